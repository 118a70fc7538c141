"""Files of embeddings: whole, resumed, and refused where they are others."""

import errno
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

from lelp_sklearn import EmbeddingExtractor, _files
from tests.extractor_problems import (
    Counting,
    Spoiled,
    TextModel,
    Texts,
    make_model,
    rows,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_file_holds_the_embeddings(dtype, tmp_path):
    X, path = rows(), tmp_path / "e.npy"
    extractor = EmbeddingExtractor(make_model(), batch_size=7)
    found = extractor.extract(X, path, dtype=dtype)
    assert isinstance(found, np.memmap)
    assert_array_equal(found, extractor.transform(X).astype(dtype))
    # A lock that is free is an empty file.
    names = ["e.npy", "e.npy.journal", "e.npy.lock"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


# Rows that a model sees in a fit: the first eight, three times.
IN_A_FIT = 3 * 8


def test_a_finished_file_is_not_computed_again(tmp_path):
    model, X = Counting(), rows(50)
    extractor = EmbeddingExtractor(model)
    first = extractor.extract(X, tmp_path / "e.npy")
    model.n_rows = 0
    assert_array_equal(extractor.extract(X, tmp_path / "e.npy"), first)
    assert model.n_rows == IN_A_FIT


WRITING = """
    import sys
    from lelp_sklearn import EmbeddingExtractor
    from tests.extractor_problems import make_model, rows

    model = make_model()

    def wait(module, args):
        if len(args[0]) == 9:
            print("begun", flush=True)
            sys.stdin.readline()

    hook = model.register_forward_pre_hook(wait)
    EmbeddingExtractor(model, batch_size=9).extract(rows(100), sys.argv[1])
"""


def writing(path):
    """Start a process that is in the midst of `extract` and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITING), str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.slow
def test_only_one_call_writes_to_a_file_and_frees_it_when_it_is_killed(tmp_path):
    path, model = tmp_path / "e.npy", Counting()
    with writing(path) as first:
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        for X in (rows(100), rows(30)):
            with pytest.raises(ValueError, match=r"e\.npy' is in use by another"):
                EmbeddingExtractor(model).extract(X, path)
        assert model.n_rows == 0
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
        first.kill()
    extractor = EmbeddingExtractor(make_model(), batch_size=8)
    assert_array_equal(
        extractor.extract(rows(100), path),
        extractor.transform(rows(100)).astype(np.float16),
    )


def test_a_complete_file_is_read_by_any_number_of_calls_at_once(tmp_path):
    path, X = tmp_path / "e.npy", rows(50)
    extractor = EmbeddingExtractor(Counting())
    first = extractor.extract(X, path)
    with _files.locked(path) as is_ours:
        assert is_ours
        assert_array_equal(extractor.extract(X, path), first)


def test_a_call_goes_on_where_an_error_ended_the_last(tmp_path):
    model, X = Counting(), rows(100)
    path = tmp_path / "e.npy"

    def stop(module, args):
        if module.n_rows >= IN_A_FIT + 60:
            raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(stop)
    extractor = EmbeddingExtractor(model, batch_size=10)
    with pytest.raises(KeyboardInterrupt):
        extractor.extract(X, path)
    hook.remove()
    model.n_rows = 0
    assert_array_equal(extractor.extract(X, path), X.astype(np.float16))
    assert model.n_rows == IN_A_FIT + 40


def test_the_end_may_come_before_the_file_is_renamed(tmp_path, monkeypatch):
    X, path = rows(), tmp_path / "e.npy"
    extractor = EmbeddingExtractor(make_model())

    def fail(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_files.ResumableNpy, "finish", fail)
        with pytest.raises(KeyboardInterrupt):
            extractor.extract(X, path)
    assert not path.exists()
    assert_array_equal(
        extractor.extract(X, path), extractor.transform(X).astype(np.float16)
    )


@pytest.mark.parametrize("changes", [False, True])
def test_a_complete_file_that_was_deleted_is_begun_again(changes, tmp_path):
    """Its journal may lie there still; other rows may come to the same path."""
    X, path = rows(), tmp_path / "e.npy"
    extractor = EmbeddingExtractor(make_model())
    extractor.extract(X, path)
    path.unlink()
    X = X + 1 if changes else X
    found = extractor.extract(X, path)
    assert_array_equal(found, extractor.transform(X).astype(np.float16))
    assert_array_equal(extractor.extract(X, path), found)


def other_model():
    model = make_model()
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    return model


def other_layer():
    """Return a model with the weights of `make_model` and another activation."""
    model = make_model()
    model[5] = nn.ReLU()
    return model


class Described(Counting):
    """Prints an object, as layers that were given a function do."""

    def __init__(self):
        super().__init__()
        self.activation = object()

    def extra_repr(self):
        return f"activation={self.activation}"


def test_a_model_that_prints_addresses_is_recognised(tmp_path):
    torch.manual_seed(0)
    model = Described()
    first = EmbeddingExtractor(model).extract(rows(), tmp_path / "e.npy")
    spare = Described()
    spare.load_state_dict(model.state_dict())
    spare.n_rows = 0
    again = EmbeddingExtractor(spare).extract(rows(), tmp_path / "e.npy")
    assert_array_equal(again, first)
    assert spare.n_rows == IN_A_FIT


def test_an_attribute_that_a_layer_prints_counts(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.scale, self.head = 1, nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.scale * x)

        def extra_repr(self):
            return f"scale={self.scale}"

    model = Scaled()
    EmbeddingExtractor(model).extract(rows(), tmp_path / "e.npy")
    model.scale = 2
    with pytest.raises(ValueError, match="another model "):
        EmbeddingExtractor(model).extract(rows(), tmp_path / "e.npy")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"model": other_model()}, "model"),
        ({"model": other_layer()}, "model"),
        ({"X": rows(51)}, "number of rows"),
        ({"X": rows(seed=1)}, "X"),
        ({"dtype": "float32"}, "dtype"),
        ({"layer": "5"}, "layer"),
        ({"precision": "bfloat16"}, "precision"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_file_of_something_else_is_refused(change, key, finished, tmp_path):
    given = {"model": make_model(), "X": rows(), "dtype": "float16", "layer": "6"}
    path = tmp_path / "e.npy"
    assert extract(path, **given) is not None
    if not finished:
        path.rename(tmp_path / "e.npy.part")
        journal = tmp_path / "e.npy.journal"
        entry = json.loads(journal.read_text())
        journal.write_text(json.dumps(entry | {"done": 8}))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    held = "e.npy" if finished else r"e\.npy\.part"
    mend = rf"delete '[^']*{held}' and '[^']*e\.npy\.journal'"
    with pytest.raises(ValueError, match=f"another {key} .*{mend}"):
        extract(path, **given | change)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def extract(path, *, model, X, dtype, **options):
    extractor = EmbeddingExtractor(model, batch_size=8, **options)
    return extractor.extract(X, path, dtype=dtype)


def mapped(X, path):
    np.save(path, X)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize(
    "lying",
    [
        lambda X, _: X,
        lambda X, _: np.asfortranarray(X),
        lambda X, folder: mapped(X, folder / "x.npy"),
        lambda X, _: torch.from_numpy(X),
        lambda X, _: torch.from_numpy(np.repeat(X, 2, axis=1))[:, ::2],
    ],
    ids=["array", "Fortran", "memmap", "tensor", "strided tensor"],
)
def test_every_row_counts(lying, tmp_path):
    X = rows(1500)
    other = X.copy()
    other[500, 3] = np.nextafter(other[500, 3], np.float32(9))
    extractor = EmbeddingExtractor(make_model())
    extractor.extract(lying(X, tmp_path), tmp_path / "e.npy")
    with pytest.raises(ValueError, match="another X "):
        extractor.extract(lying(other, tmp_path), tmp_path / "e.npy")


def test_the_same_rows_are_recognised_however_they_lie(tmp_path):
    model, X = Counting(), rows(300)
    extractor = EmbeddingExtractor(model)
    extractor.extract(X, tmp_path / "e.npy")
    model.n_rows = 0
    same = [
        np.asfortranarray(X),
        X[::-1].copy()[::-1],
        X.astype(">f4"),
        mapped(X, tmp_path / "x.npy"),
        torch.from_numpy(X),
        torch.from_numpy(X.T.copy()).T.requires_grad_(),
    ]
    for again in same:
        extractor.extract(again, tmp_path / "e.npy")
    assert model.n_rows == IN_A_FIT * len(same)


DIGESTED = """
    import resource
    import numpy as np, torch
    from lelp_sklearn._extraction.runner import hash_inputs

    X = np.ones((512, 65536), np.float32, order="F")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    hash_inputs(X)
    hash_inputs(torch.from_numpy(X))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < X.nbytes / 4, grown
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted as on Linux")
def test_rows_are_digested_without_a_copy():
    code = textwrap.dedent(DIGESTED)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)


class Caching(Texts):
    """Remembers what it has seen, and may take one letter for another."""

    def __init__(self, old="", new=""):
        self.old, self.new, self.seen = old, new, {}

    def __call__(self, texts, **options):
        self.seen |= dict.fromkeys(texts)
        return super().__call__(
            [text.replace(self.old, self.new) for text in texts], **options
        )


def test_a_tokenizer_is_known_by_what_it_makes_of_all_texts(tmp_path):
    texts, path = ["ab" * (i % 30) for i in range(600)], tmp_path / "e.npy"
    texts[433] = "abz"
    tokenizer = Caching("q", "x")
    extractor = EmbeddingExtractor(TextModel(), tokenizer=tokenizer)
    first = extractor.extract(texts, path)
    tokenizer(
        ["later"], padding=True, truncation=True, max_length=9, return_tensors="pt"
    )
    assert_array_equal(extractor.extract(texts, path), first)
    for other in (Caching("z", "y"), Texts()):
        extractor.set_params(tokenizer=other)
        with pytest.raises(
            ValueError, match=f"another tokenizer .*{type(other).__name__}"
        ):
            extractor.extract(texts, path)
    extractor.set_params(tokenizer=tokenizer, max_length=5)
    with pytest.raises(ValueError, match=r"another (tokenizer|max_length) "):
        extractor.extract(texts, path)


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    path = tmp_path / "e.npy"
    EmbeddingExtractor(make_model()).extract(rows(), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="not as it was written"):
        EmbeddingExtractor(make_model()).extract(rows(), path)


def test_a_begun_file_that_is_cut_short_is_refused(tmp_path):
    """Lengthened again it would be of zeros where rows were noted as done."""
    path = tmp_path / "e.npy"
    EmbeddingExtractor(make_model()).extract(rows(), path)
    journal = tmp_path / "e.npy.journal"
    entry = json.loads(journal.read_text())
    journal.write_text(json.dumps({**entry, "done": len(rows()) // 2}))
    part = tmp_path / "e.npy.part"
    part.write_bytes(path.read_bytes()[:300])
    path.unlink()
    with pytest.raises(ValueError, match="is not as it was written") as raised:
        EmbeddingExtractor(make_model()).extract(rows(), path)
    assert part.stat().st_size == 300
    for file in (part, journal):
        assert repr(str(file)) in str(raised.value)
        file.unlink()
    EmbeddingExtractor(make_model()).extract(rows(), path)


def test_a_file_of_unknown_origin_is_refused(tmp_path):
    path = tmp_path / "e.npy"
    np.save(path, rows())
    with pytest.raises(ValueError, match=r"no '\.journal'"):
        EmbeddingExtractor(make_model()).extract(rows(), path)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"done": 3'])
def test_a_journal_that_cannot_be_read_is_refused(content, tmp_path):
    path = tmp_path / "e.npy"
    EmbeddingExtractor(make_model()).extract(rows(), path)
    (tmp_path / "e.npy.journal").write_text(content)
    with pytest.raises(ValueError, match="unreadable journal"):
        EmbeddingExtractor(make_model()).extract(rows(), path)


def test_bad_paths_are_refused_before_work_starts(tmp_path):
    model = Counting()
    extractor = EmbeddingExtractor(model)
    for path in (tmp_path / "e.bin", tmp_path / "none" / "e.npy"):
        with pytest.raises(ValueError, match="path="):
            extractor.extract(rows(), path)
    with pytest.raises(ValueError, match="dtype='int8'"):
        extractor.extract(rows(), tmp_path / "e.npy", dtype="int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="room is reserved as on Linux")
def test_the_room_of_a_file_is_reserved(tmp_path, monkeypatch):
    """A hole in a memory map kills the process when others have filled the disk."""
    model, X, path = Counting(), rows(100_000), tmp_path / "e.npy"
    extractor = EmbeddingExtractor(model, batch_size=1000)

    def fill(file, offset, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", fill)
        with pytest.raises(ValueError, match=r"needs 1,200,128 bytes and the disk has"):
            extractor.extract(X, path)
    assert model.n_rows == IN_A_FIT
    assert [p.name for p in tmp_path.iterdir()] == ["e.npy.lock"]
    assert_array_equal(extractor.extract(X, path), X.astype(np.float16))


def test_a_disk_that_reserves_nothing_is_written_all_the_same(tmp_path, monkeypatch):
    def refuse(file, offset, length):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("os.posix_fallocate", refuse, raising=False)
    X = rows()
    found = EmbeddingExtractor(Counting()).extract(X, tmp_path / "e.npy")
    assert_array_equal(found, X.astype(np.float16))


@pytest.mark.parametrize("place", [3, 83])
def test_half_precision_that_overflows_is_answered_with_what_helps(place, tmp_path):
    X = rows(100)
    X[place, 0] = 77
    extractor = EmbeddingExtractor(Spoiled(1e6), batch_size=10)
    path = tmp_path / "e.npy"
    with pytest.raises(ValueError, match=rf"row {place} .*dtype='float32'") as error:
        extractor.extract(X, path)
    # What the message says, and no more: nothing is left where nothing was done.
    left = {p for p in tmp_path.iterdir() if p.suffix != ".lock"}
    assert left == set(map(Path, re.findall(r"'([^']+e\.npy[^']*)'", str(error.value))))
    assert (left != set()) == (place > 10)
    for file in left:
        file.unlink()
    assert extractor.extract(X, path, dtype="float32").max() == 1e6
