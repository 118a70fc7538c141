"""Threads within the caller's limits, forked children, compiled code on disk."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import joblib
import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from threadpoolctl import threadpool_info, threadpool_limits

import lelp_sklearn
from lelp_sklearn import LELPProjector
from lelp_sklearn import _threads as threads
from lelp_sklearn._subclasses.kernels import class_sums, jit, soft_labels
from tests.problems import make_problem

ROOT = Path(__file__).parents[1]
PACKAGE = Path(lelp_sklearn.__file__).parent
# A machine with one core has nothing to limit.
SEVERAL = min(2, numba.config.NUMBA_NUM_THREADS)


def problem():
    """Rows for several blocks, hence for several threads."""
    return make_problem(n_rows=20_000, n_features=16)


def fit_transform():
    p = problem()
    projector = LELPProjector(3, head=p.head, random_state=0)
    return projector.fit_transform(p.X, p.codes)


def limits():
    return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}


def threads_used(call):
    """Count the threads of the largest pool that a call opens; 1 without a pool."""
    opened = [1]

    class Recorder(ThreadPoolExecutor):
        def __init__(self, max_workers):
            opened.append(max_workers)
            super().__init__(max_workers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "ThreadPoolExecutor", Recorder)
        call()
    return max(opened)


def run_in_new_process(code, **environment):
    """Run code with warnings as errors; a variable given as None is left out."""
    variables = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("limit", [1, SEVERAL])
def test_as_many_threads_as_openmp_may_have(limit):
    with threadpool_limits(limit, user_api="openmp"):
        before = limits()
        assert threads_used(fit_transform) == limit
        assert limits() == before


@pytest.mark.slow
def test_as_many_threads_as_numba_may_have():
    run_in_new_process(
        """
        import numba
        from tests.test_projector_threads import fit_transform, limits, threads_used

        assert threads_used(fit_transform) == 3
        numba.set_num_threads(2)
        before = limits()
        assert threads_used(fit_transform) == 2
        assert numba.get_num_threads() == 2
        assert limits() == before
        """,
        NUMBA_NUM_THREADS="3",
        OMP_NUM_THREADS="4",
    )


@pytest.mark.slow
@pytest.mark.parametrize("share", [1, 2])
def test_a_worker_of_joblib_keeps_to_its_share(share):
    with joblib.parallel_config("loky", n_jobs=2, inner_max_num_threads=share):
        counts = joblib.Parallel()(
            joblib.delayed(threads_used)(fit_transform) for _ in range(2)
        )
    joblib.externals.loky.get_reusable_executor().shutdown(wait=True)
    assert counts == [share, share]


@pytest.mark.parametrize(
    ("module", "kernel"), [(soft_labels, "soft_labels"), (class_sums, "cluster_sums")]
)
def test_a_kernel_that_raises_leaves_limits_and_no_threads(module, kernel, monkeypatch):
    def fail(*arguments):
        raise MemoryError("no room")

    with threadpool_limits(SEVERAL, user_api="openmp"):
        expected = fit_transform()
        before, running = limits(), threading.active_count()
        with monkeypatch.context() as patch:
            patch.setattr(module, kernel, fail)
            with pytest.raises(MemoryError, match="no room"):
                fit_transform()
        assert limits() == before
        assert threading.active_count() == running
        assert_array_equal(fit_transform(), expected)


def test_a_bad_row_found_on_the_way_leaves_no_threads():
    p = problem()
    projector = LELPProjector(3, head=p.head, random_state=0).fit(p.X, p.codes)
    p.X[7, 3] = np.nan
    running = threading.active_count()
    with (
        threadpool_limits(SEVERAL, user_api="openmp"),
        pytest.raises(ValueError, match="row 7"),
    ):
        projector.transform(p.X)
    assert threading.active_count() == running


def test_eight_threads_share_a_fitted_projector():
    p = problem()
    projector = LELPProjector(3, head=p.head, random_state=0).fit(p.X, p.codes)
    with threadpool_limits(1, user_api="openmp"):
        expected = projector.transform(p.X)
    barrier = threading.Barrier(8)

    def transform(_):
        barrier.wait()
        # OpenMP's limit is one of each Python thread; a new one starts without it.
        with threadpool_limits(SEVERAL, user_api="openmp"):
            return projector.transform(p.X)

    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(transform, range(8)):
            assert_array_equal(result, expected)


@pytest.mark.slow
@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(),
    reason="the platform does not fork",
)
@pytest.mark.parametrize("others", ["nothing", "numba", "openmp"])
def test_a_forked_child_fits_and_transforms(others):
    """After threads ran in the parent: ours, and those of other libraries."""
    run_in_new_process(
        f"""
        import multiprocessing
        import warnings

        import numba
        import numpy as np
        from sklearn.cluster import KMeans
        from tests.test_projector_threads import fit_transform, threads_used

        # BLAS and the others keep threads, which newer Pythons warn of at a fork.
        warnings.filterwarnings("ignore", ".*multi-threaded.*", DeprecationWarning)

        @numba.njit(parallel=True)
        def total(x):
            result = 0.0
            for i in numba.prange(len(x)):
                result += x[i]
            return result

        if "{others}" == "numba":
            total(np.ones(1000))
        if "{others}" == "openmp":
            KMeans(2, n_init=1).fit(np.arange(5000.0)[:, None])

        expected = fit_transform()
        assert threads_used(fit_transform) == 2

        def child():
            assert threads_used(fit_transform) == 2
            assert np.array_equal(fit_transform(), expected)

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
            raise TimeoutError("the child hangs")
        assert process.exitcode == 0, process.exitcode
        """,
        NUMBA_NUM_THREADS="2",
        OMP_NUM_THREADS="2",
    )


# The cheapest kernel: what is tested is where compiled code goes.
COMPILE = """
    import numpy as np
    from lelp_sklearn._subclasses.kernels import soft_labels, tiles

    scores = np.array([[1.0], [3.0]]).repeat(tiles.TILE_ROWS, axis=1)
    assert soft_labels._choose(scores, np.empty(tiles.TILE_ROWS))
    assert (scores.argmax(axis=0) == 1).all()
"""


needs_compiled_code = pytest.mark.skipif(
    not jit.can_compile(), reason="no kernel is compiled"
)


@pytest.mark.slow
@needs_compiled_code
@pytest.mark.parametrize(("switch", "kept"), [(None, True), ("0", False)])
def test_compiled_code_is_kept_on_disk_unless_switched_off(switch, kept, tmp_path):
    run_in_new_process(
        COMPILE,
        LELP_SKLEARN_NUMBA_CACHE=switch,
        NUMBA_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert any(tmp_path.rglob("*.nbc")) == kept


@pytest.mark.slow
@needs_compiled_code
def test_a_read_only_installation_compiles_in_each_process(tmp_path):
    no_folder = tmp_path / "no_folder"
    no_folder.touch()
    copy = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    # A file in the place of a folder stops even a user who may write everywhere.
    (copy / "_subclasses" / "kernels" / "__pycache__").touch()
    printed = run_in_new_process(
        COMPILE + "    print(soft_labels.__file__)",
        PYTHONPATH=str(tmp_path),
        PYTHONSAFEPATH="1",
        PYTHONDONTWRITEBYTECODE="1",
        NUMBA_CACHE_DIR=None,
        XDG_CACHE_HOME=str(no_folder),
        HOME=str(no_folder),
    )
    assert Path(printed.strip()).is_relative_to(copy)
    assert not any(tmp_path.rglob("*.nbc"))


def blas_threads():
    return [
        pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"
    ]


def test_the_limit_on_blas_is_undone_by_the_last_to_leave_it():
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        first, second = ExitStack(), ExitStack()
        first.enter_context(threads.one_blas_thread)
        second.enter_context(threads.one_blas_thread)
        first.close()
        assert set(blas_threads()) == {1}
        second.close()
        assert blas_threads() == before
