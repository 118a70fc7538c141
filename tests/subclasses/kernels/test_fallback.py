"""Plain kernels are used where compiled ones cannot be, with the same results."""

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.registry import CPUDispatcher
from numpy.testing import assert_allclose

from lelp_sklearn import LELPProjector
from lelp_sklearn._subclasses.kernels.jit import can_compile, compiled, with_plain_twin
from tests.problems import integer_weights, make_problem

ROOT = Path(__file__).parents[3]
CASES = {
    "kmeans": {"splitter": "kmeans"},
    "random": {"splitter": "random"},
    "pca": {"splitter": "pca", "svd_solver": "covariance_eigh"},
    "pca, streamed": {"splitter": "pca", "svd_solver": "randomized"},
    "pca, hard": {"splitter": "pca", "subclass_temperature": 0.0},
}
TOLERANCES = {"float16": 1e-4, "float32": 1e-4, "float64": 1e-9}

needs_compiled_code = pytest.mark.skipif(
    not can_compile(), reason="no kernel is compiled"
)


def twice(x):
    return 2 * x


def plain_twice(x):
    return x + x


@needs_compiled_code
def test_a_kernel_is_compiled():
    assert isinstance(compiled(twice), CPUDispatcher)
    assert with_plain_twin(plain_twice)(twice) is twice


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DISABLE_JIT", 1),
        # A processor without AVX; one without anything beyond its base.
        ("CPU_FEATURES", "+sse2,+fma,+f16c,-avx,-avx2"),
        ("CPU_FEATURES", ""),
        ("ENABLE_AVX", 0),
    ],
)
def test_a_kernel_is_plain_where_it_cannot_be_compiled(name, value, monkeypatch):
    monkeypatch.setattr(numba.config, name, value)
    assert with_plain_twin(plain_twice)(twice) is plain_twice


def soft_labels():
    """Soft labels of every case and dtype, by the head and by given logits."""
    p = make_problem(n_classes=3, n_rows=6000, n_features=16)
    weight = integer_weights(len(p.X)) + 0.5
    y = np.where(np.arange(len(p.X)) % 5, p.codes, -1)
    found = {}
    for case, params in CASES.items():
        for dtype in TOLERANCES:
            X = p.X.astype(dtype)
            projector = LELPProjector(
                3, head=p.head, unlabeled=-1, random_state=0, **params
            )
            projector.fit(X, y, sample_weight=weight)
            found[f"{case}, {dtype}"] = projector.transform(X)
            logits = p.logits.astype(dtype)
            found[f"{case}, logits, {dtype}"] = projector.transform(
                X, teacher_logits=logits
            )
    return found


@needs_compiled_code
@pytest.mark.parametrize(
    "variable", [{"NUMBA_DISABLE_JIT": "1"}, {"NUMBA_CPU_NAME": "generic"}], ids=str
)
def test_plain_kernels_give_what_compiled_ones_do(variable, tmp_path):
    code = """
import numpy as np
from lelp_sklearn._subclasses.kernels.jit import can_compile
from tests.subclasses.kernels.test_fallback import soft_labels

assert not can_compile()
np.savez("{path}", **soft_labels())
"""
    path = tmp_path / "plain.npz"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code.format(path=path)],
        cwd=ROOT,
        env={**os.environ, **variable},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    plain = np.load(path)
    for name, fast in soft_labels().items():
        atol = TOLERANCES[name.rpartition(" ")[2]]
        assert_allclose(plain[name], fast, rtol=0, atol=atol, err_msg=name)
