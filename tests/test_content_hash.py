"""The digest of a value: equal for equal content, and for hardly anything else."""

import copy
import functools
import pickle
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from lelp_sklearn._files import content_hash

ROOT = Path(__file__).parents[1]


class Colour(Enum):
    RED = 1
    BLUE = 2


@dataclass
class Pair:
    first: object
    second: object = None


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class OwnState:
    """Counts by its state, not by what it remembers besides."""

    def __init__(self, value, scratch):
        self.value, self.scratch = value, scratch

    def __getstate__(self):
        return {"value": self.value}


def network(seed=0, p=0.5):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(p), nn.BatchNorm1d(4))


def twice(x):
    return 2 * x


def _inside_itself():
    value = [1, {"a": 2}]
    value[1]["self"] = value
    return value


def _values():
    """Values that all differ, each made again at every call."""
    floats = np.arange(6, dtype=np.float32)
    return {
        "none": None,
        "false": False,
        "zero": 0,
        "zero as float": 0.0,
        "minus zero": -0.0,
        "zero as text": "0",
        "zero as bytes": b"0",
        "complex": 0j,
        "large": 10**40,
        "nan": float("nan"),
        "infinity": float("inf"),
        "text": "naïve",
        "half a pair": "\ud800",
        "list": [1, 2],
        "list in another order": [2, 1],
        "list that nests": [[1], 2],
        "list that nests elsewhere": [1, [2]],
        "tuple": (1, 2),
        "set": {1, 2},
        "frozen set": frozenset({1, 2}),
        "dict": {"a": 1, "b": 2},
        "dict, swapped": {"a": 2, "b": 1},
        "ordered dict": OrderedDict(a=1, b=2),
        "floats": floats,
        "floats of another shape": floats.reshape(2, 3),
        "floats, transposed": floats.reshape(2, 3).T,
        "doubles": floats.astype(np.float64),
        "empty": floats[:0],
        "empty rows": floats[:0].reshape(0, 3),
        "of no dimension": np.float32(3),
        "scalar": np.int64(1),
        "numpy text": np.str_("0"),
        "texts": np.array(["a", "bc"]),
        "objects": np.array(["a", None, 1.0], dtype=object),
        "dates": np.array(["2020-01-01"], dtype="datetime64[D]"),
        "table": np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
        "table of objects": np.array([(1, "x")], dtype=[("a", int), ("b", object)]),
        "tensor": torch.arange(6, dtype=torch.float32),
        "tensor of another dtype": torch.arange(6, dtype=torch.bfloat16),
        "tensor of integers": torch.arange(6),
        "tensor of another shape": torch.arange(6.0).reshape(2, 3),
        "tensor of no dimension": torch.tensor(3.0),
        "complex tensor": torch.arange(6.0).to(torch.complex64),
        "torch dtype": torch.float32,
        "another torch dtype": torch.float64,
        "device": torch.device("cpu"),
        "numpy dtype": np.dtype("f4"),
        "module": network(),
        "module of other weights": network(1),
        "module of other options": network(p=0.1),
        "function": twice,
        "built-in": len,
        "torch function": torch.relu,
        "ufunc": np.add,
        "method of a class": str.upper,
        "method": Pair(1).__eq__,
        "method of another": Pair(2).__eq__,
        "class": Pair,
        "partial": functools.partial(twice, x=1),
        "partial of other arguments": functools.partial(twice, x=2),
        "enum": Colour.RED,
        "another of the enum": Colour.BLUE,
        "data class": Pair(1, 2),
        "data class of other data": Pair(2, 1),
        "slots": Slotted(1),
        "other slots": Slotted(2),
        "own state": OwnState(1, object),
        "estimator": LogisticRegression(C=2.0),
        "another estimator": LogisticRegression(C=3.0),
        "random state": np.random.RandomState(0),
        "another random state": np.random.RandomState(1),
        "generator": np.random.default_rng(0),
        "path": Path("a") / "b",
        "cycle": _inside_itself(),
    }


VALUES = _values()


def test_values_that_differ_have_different_digests():
    digests = {name: content_hash(value) for name, value in VALUES.items()}
    assert len(set(digests.values())) == len(VALUES)
    assert all(len(digest) == 32 for digest in digests.values())


@pytest.mark.parametrize("name", VALUES)
def test_equal_values_have_equal_digests(name):
    """Made again, copied and pickled."""
    expected = content_hash(VALUES[name])
    assert content_hash(_values()[name]) == expected
    assert content_hash(copy.deepcopy(VALUES[name])) == expected
    assert content_hash(pickle.loads(pickle.dumps(VALUES[name]))) == expected


@pytest.mark.slow
def test_another_process_finds_the_same():
    """Where sets and dicts of strings lie in another order."""
    code = """
    from tests.test_content_hash import VALUES, content_hash
    print(content_hash(VALUES), content_hash({"one", "two", "three"}))
    """
    done = subprocess.run(
        [sys.executable, "-c", "if True:" + code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        # This process draws its own.
        env={"PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT)},
    )
    here = content_hash(VALUES), content_hash({"one", "two", "three"})
    assert done.stdout.split() == list(here)


def test_order_of_a_dict_does_not_matter():
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})


def test_layout_of_an_array_does_not_matter(tmp_path):
    array = np.random.RandomState(0).normal(size=(3000, 130))
    expected = content_hash(array)
    assert content_hash(np.asfortranarray(array)) == expected
    assert content_hash(np.repeat(array, 2, axis=1)[:, ::2]) == expected
    assert content_hash(array.astype(">f8")) == expected
    np.save(tmp_path / "array.npy", array)
    assert content_hash(np.load(tmp_path / "array.npy", mmap_mode="r")) == expected
    tensor = torch.from_numpy(array)
    assert content_hash(tensor.T.contiguous().T) == content_hash(tensor)
    assert content_hash(nn.Parameter(tensor)) == content_hash(tensor)


def test_texts_of_any_length_count():
    def texts(*given):
        return np.array(given, dtype=np.dtypes.StringDType())

    assert content_hash(texts("a", "bc")) == content_hash(texts("a", "bc"))
    assert content_hash(texts("a", "bc")) != content_hash(texts("ab", "c"))
    assert content_hash(texts("a", "bc")) != content_hash(np.array(["a", "bc"]))


def test_every_number_of_an_array_counts():
    array = np.random.RandomState(0).normal(size=(3000, 130))
    before = {content_hash(array)}
    for position in ((0, 0), (1500, 7), (2999, 129)):
        changed = array.copy()
        changed[position] = np.nextafter(changed[position], 9)
        before.add(content_hash(changed))
    assert len(before) == 4


def test_what_an_object_does_not_pickle_does_not_count():
    assert content_hash(OwnState(1, 2)) == content_hash(OwnState(1, 3))
    assert content_hash(OwnState(1, 2)) != content_hash(OwnState(2, 2))


def test_version_of_scikit_learn_does_not_count():
    """A file made under one version is whole under another."""
    estimator = LogisticRegression()
    expected = content_hash(estimator)
    state = {**estimator.__getstate__(), "_sklearn_version": "0.1"}
    estimator.__dict__["_sklearn_version"] = state["_sklearn_version"]
    assert content_hash(estimator) == expected


def test_lazy_layers_of_torch_have_digests():
    """Their hooks are numbered by the process; their weights are not there yet."""
    layer = nn.LazyLinear(3)
    assert (
        content_hash(layer)
        == content_hash(nn.LazyLinear(3))
        != content_hash(nn.LazyLinear(4))
    )
    assert content_hash(pickle.loads(pickle.dumps(layer))) == content_hash(layer)
    assert content_hash(copy.deepcopy(layer)) == content_hash(layer)


def test_python_modules_count_by_name():
    assert content_hash(copy) == content_hash(copy) != content_hash(pickle)


def test_what_cannot_be_pickled_is_refused():
    with open(__file__, encoding="utf-8") as file, pytest.raises(TypeError):
        content_hash({"file": file})


def test_torch_is_not_imported():
    code = """
    import sys
    from lelp_sklearn._files import content_hash
    content_hash([1.0, {"a": b"c"}, len])
    assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", "if True:" + code], check=True, cwd=ROOT)
