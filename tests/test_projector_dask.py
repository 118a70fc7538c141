"""Dask arrays: what is in memory elsewhere, chunk by chunk, gives the same fit."""

import os
import signal
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import dask
import dask.array as da
import dask.threaded
import numpy as np
import pytest
from distributed import Client, LocalCluster, wait
from distributed.comm import tcp
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.linalg import subspace_angles
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression

from lelp_sklearn import LELPProjector
from tests.problems import integer_weights, make_problem

SPLITTERS = ["kmeans", "pca", "random"]
N_ROWS = 400
PROBLEM = make_problem(n_classes=3, n_rows=N_ROWS)
# Rows sorted by class, so that chunks lack classes; one chunk lacks rows.
ORDER = PROBLEM.codes.argsort(kind="stable")
X, CODES, LOGITS = PROBLEM.X[ORDER], PROBLEM.codes[ORDER], PROBLEM.logits[ORDER]
WEIGHT = integer_weights(N_ROWS)
CHUNKS = (90, 0, 150, 7, 53, 100)


@pytest.fixture(scope="module")
def client():
    """A cluster of two processes, on ports of its own."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def one_thread():
    """No cluster: chunks are made one after the other in this thread."""
    with dask.config.set(scheduler=dask.get):
        yield


def chunked(array, chunks=CHUNKS):
    return da.from_array(array, chunks=(chunks, *array.shape[1:]))


def projector(**params):
    return LELPProjector(
        **{"n_subclasses": 3, "head": PROBLEM.head, "random_state": 0, **params}
    )


def assert_same_fit(found, expected, rows, atol=1e-5):
    assert_array_equal(found.classes_, expected.classes_)
    assert_allclose(found.mean_, expected.mean_, atol=atol)
    if found.splitter == "pca":
        for ours, theirs in zip(found.components_, expected.components_, strict=True):
            assert subspace_angles(ours.T, theirs.T).max() < 1e-4
    assert_allclose(
        found.explained_variance_.sum(axis=1),
        expected.explained_variance_.sum(axis=1),
        rtol=1e-3,
    )
    assert_allclose(found.transform(rows), expected.transform(rows), atol=10 * atol)


# ------------------------------------------------------------ the fit, on a cluster


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("source", ["given head", "labels", "logits"])
def test_a_cluster_finds_what_one_process_finds(client, splitter, source):
    rows = X.astype(np.float32)
    y = np.where(np.arange(N_ROWS) % 3 == 0, CODES, -1)
    metadata = {"sample_weight": WEIGHT}
    if source == "logits":
        metadata["teacher_logits"] = LOGITS
    head = PROBLEM.head if source == "given head" else None
    estimator = projector(splitter=splitter, head=head, unlabeled=-1)
    expected = estimator.fit(rows, y, **metadata).__dict__.copy()
    lazy = {name: chunked(array) for name, array in metadata.items()}
    found = estimator.fit(chunked(rows), chunked(y), **lazy)
    in_memory = projector(splitter=splitter)
    in_memory.__dict__.update(expected)
    assert_same_fit(found, in_memory, rows)


@pytest.mark.parametrize("splitter", ["kmeans", "pca"])
def test_a_cluster_draws_the_same_sample_of_a_large_class(client, splitter):
    rows, group = make_blobs(9000, 12, centers=14, cluster_std=4.0, random_state=0)
    y = group % 2
    copies = np.random.RandomState(0).randint(1, 4, size=len(rows))
    # Copies of a row lie in several chunks, and on both workers.
    index = np.repeat(np.arange(len(rows)), copies)
    index = np.random.RandomState(1).permutation(index)
    head = np.random.RandomState(1).normal(size=(2, 12)) / 10, np.zeros(2)
    estimator = projector(splitter=splitter, n_subclasses=5, head=head)
    expected = projector(splitter=splitter, n_subclasses=5, head=head)
    expected.fit(rows, y, sample_weight=copies)
    estimator.fit(
        da.from_array(rows[index], chunks=(2500, -1)),
        da.from_array(y[index], chunks=2500),
    )
    assert_same_fit(estimator, expected, rows, atol=1e-8)


def test_rows_that_lie_on_the_workers_are_read_there(client):
    rows, y = dask.persist(chunked(X), chunked(CODES))
    wait([rows, y])
    expected = projector().fit(X, CODES)
    assert_same_fit(projector().fit(2 * rows / 2, y), expected, X, atol=1e-9)


# --------------------------------------------------------------- kinds of chunked input


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, int])
@pytest.mark.parametrize("splitter", SPLITTERS)
def test_dtypes(dtype, splitter):
    rows = (20 * X if dtype is int else X).astype(dtype)
    expected = projector(splitter=splitter).fit(rows, CODES)
    found = projector(splitter=splitter).fit(chunked(rows), chunked(CODES))
    assert_same_fit(found, expected, rows)
    assert found.transform(chunked(rows)).dtype == expected.transform(rows).dtype


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "svd_solver", ["auto", "randomized", "covariance_eigh", "full"]
)
def test_every_solver(svd_solver):
    expected = projector(splitter="pca", svd_solver=svd_solver).fit(X, CODES)
    found = projector(splitter="pca", svd_solver=svd_solver)
    assert_same_fit(found.fit(chunked(X), chunked(CODES)), expected, X)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("chunks", [1, 33, (90, 0, 310), N_ROWS])
def test_chunks_of_any_size(chunks):
    step = 8 if chunks == 1 else 1
    rows, labels = X[::step], CODES[::step]
    found = projector().fit(chunked(rows, chunks), chunked(labels, chunks))
    assert_same_fit(found, projector().fit(rows, labels), rows, atol=1e-9)


@pytest.mark.usefixtures("one_thread")
def test_what_comes_with_the_rows_may_be_chunked_otherwise_or_in_memory():
    expected = projector(head=None).fit(X, CODES, teacher_logits=LOGITS)
    found = projector(head=None).fit(
        da.from_array(X, chunks=(101, 5)),
        CODES.tolist(),
        teacher_logits=da.from_array(LOGITS, chunks=(64, 1)),
        sample_weight=1.0,
    )
    assert_same_fit(found, expected, X, atol=1e-9)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("labels", "unlabeled"),
    [
        (np.array(["ham", "spam", "and eggs"]), "none"),
        (np.array(["ham", "spam", "and eggs"], dtype=object), None),
        (np.array([3.0, 1.0, 2.0]), np.nan),
    ],
)
def test_labels_of_any_kind(labels, unlabeled):
    y = labels[CODES]
    if unlabeled is not None:
        y[::5] = unlabeled
    estimator = projector(head=None, unlabeled=unlabeled)
    expected = projector(head=None, unlabeled=unlabeled).fit(X, y)
    assert_same_fit(estimator.fit(chunked(X), chunked(y)), expected, X, atol=1e-9)


@pytest.mark.usefixtures("one_thread")
def test_classes_without_labels_are_those_of_the_head():
    found = projector().fit(chunked(X))
    assert_same_fit(found, projector().fit(X), X, atol=1e-9)


@pytest.mark.usefixtures("one_thread")
def test_automatic_number_of_subclasses_and_rare_rows():
    rng = np.random.RandomState(0)
    # One row in 10 000 lies at a place of its own.
    place = np.arange(20_000) // 2 % 4
    place[:2] = 4
    rows = np.hstack([np.zeros((20_000, 1)), rng.normal(size=(5, 6))[place]])
    y = np.arange(20_000) % 2
    head = np.zeros((2, 7))
    head[:, 0] = 1, -1
    found = projector(n_subclasses="auto", head=(head, np.zeros(2)))
    found.fit(da.from_array(rows, chunks=(3000, -1)), y)
    assert found.n_subclasses_ == 5


@pytest.mark.parametrize(
    "scheduler", [dask.get, dask.threaded.get], ids=["one", "many"]
)
def test_schedulers_without_a_cluster(scheduler):
    with dask.config.set(scheduler=scheduler):
        found = projector().fit(chunked(X), chunked(CODES))
    assert_same_fit(found, projector().fit(X, CODES), X, atol=1e-9)


# ------------------------------------------------------------------- memory and network


def lazy_rows(load, sizes, n_features, *arguments):
    """Rows of which each chunk is loaded where it is needed."""
    delayed = dask.delayed(load, pure=True)
    chunks = [
        da.from_delayed(
            delayed(start, start + size, *arguments), (size, n_features), np.float64
        )
        for start, size in zip(np.cumsum([0, *sizes[:-1]]).tolist(), sizes, strict=True)
    ]
    return da.concatenate(chunks)


@pytest.mark.parametrize(
    "scheduler", [dask.get, dask.threaded.get], ids=["one", "many"]
)
@pytest.mark.parametrize("splitter", SPLITTERS)
def test_one_chunk_at_a_time_is_in_memory(scheduler, splitter):
    alive = weakref.WeakValueDictionary()
    loads = []

    def load(start, stop):
        # Whatever was loaded before is gone.
        assert not alive
        loads.append(start)
        rows = X[start:stop].copy()
        alive[start] = rows
        return rows

    with dask.config.set(scheduler=scheduler):
        rows = lazy_rows(load, (100,) * 4, X.shape[1])
        found = projector(splitter=splitter).fit(rows, CODES)
    assert set(loads) == {0, 100, 200, 300}
    assert_same_fit(found, projector(splitter=splitter).fit(X, CODES), X)


# A loader runs on the workers, which import this module.


def load_rows(start, stop):
    return X[start:stop]


def load_or_die(start, stop, folder):
    """Load rows; at the third time for the first of them, die as by a failing machine.

    Only that once: the files say how often, and outlive the process.
    """
    if start == 0:
        turn = len(list(Path(folder).iterdir()))
        (Path(folder) / str(turn)).touch()
        if turn == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    return X[start:stop]


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [
        {"splitter": "kmeans", "head": None},
        {"splitter": "pca", "svd_solver": "randomized"},
    ],
    ids=str,
)
def test_a_worker_that_dies_in_the_middle_of_a_fit_changes_nothing(
    client, params, tmp_path
):
    whole = lazy_rows(load_rows, (100,) * 4, X.shape[1])
    undisturbed = projector(**params).fit(whole, CODES)
    before = set(client.run(os.getpid).values())
    mortal = lazy_rows(load_or_die, (100,) * 4, X.shape[1], str(tmp_path))
    found = projector(**params).fit(mortal, CODES)
    client.wait_for_workers(2)
    assert len(before - set(client.run(os.getpid).values())) == 1
    assert_array_equal(found.components_, undisturbed.components_)


@pytest.mark.slow
def test_rows_that_a_dead_worker_held_are_made_again(client):
    rows, y = dask.persist(
        lazy_rows(load_rows, (100,) * 4, X.shape[1]), chunked(CODES, 100)
    )
    wait([rows, y])
    expected = projector().fit(X, CODES)
    os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
    assert_same_fit(projector().fit(rows, y), expected, X, atol=1e-9)
    client.wait_for_workers(2)


def count_bytes(dask_worker=None):
    """Count from now on what this process sends over its connections."""
    write = tcp.TCP.write

    async def counting(self, *args, **kwargs):
        n_bytes = await write(self, *args, **kwargs)
        tcp.TCP.sent += n_bytes
        return n_bytes

    tcp.TCP.sent = 0
    tcp.TCP.write = counting


def bytes_sent(dask_worker=None):
    return tcp.TCP.sent


@pytest.fixture(scope="module")
def counted(client):
    """A function that gives the bytes that client, scheduler and workers have sent."""
    write = tcp.TCP.write
    count_bytes()
    client.run(count_bytes)
    yield lambda: bytes_sent() + sum(client.run(bytes_sent).values())
    tcp.TCP.write = write


def repeated_rows(start, stop):
    """Rows of which 1000 are distinct."""
    table = np.random.RandomState(0).normal(size=(1000, 64))
    return table[np.arange(start, stop) % 1000]


@pytest.mark.parametrize(
    "params",
    [
        {"splitter": "pca", "head": None},
        {"splitter": "pca", "iterated_power": 2},
        {"splitter": "random"},
    ],
    ids=str,
)
def test_bytes_on_the_network_do_not_grow_with_the_rows(client, counted, params):
    head = np.eye(2, 64), np.zeros(2)
    estimator = LELPProjector(2, **{"head": head, "random_state": 0, **params})
    # Which worker has the other half of a pair depends on the scheduler, and the first
    # fit sends what is sent once only: the least of two fits counts.
    sent = {8000: [], 32_000: []}
    for n_rows in [8000, 32_000] * 2:
        rows = lazy_rows(repeated_rows, (n_rows // 8,) * 8, 64)
        y = (rows[:, 0] > rows[:, 1]).astype(int)
        before = counted()
        estimator.fit(rows, y)
        sent[n_rows].append(counted() - before)
    bytes_of_a_chunk = 4000 * 64 * 8
    assert min(sent[32_000]) - min(sent[8000]) < bytes_of_a_chunk


# ------------------------------------------------------------------------- soft labels


@pytest.fixture
def fitted():
    return projector().fit(X, CODES)


def never(start, stop):
    raise AssertionError("a chunk was made")


def test_transform_is_lazy_and_says_what_it_will_be(fitted):
    rows = lazy_rows(never, (100,) * 4, X.shape[1]).astype(np.float32)
    soft = fitted.transform(rows)
    assert (soft.shape, soft.dtype) == ((N_ROWS, 9), np.float32)
    assert soft.chunks == ((100,) * 4, (9,))
    classes = fitted.inverse_transform(soft)
    assert (classes.shape, classes.dtype) == ((N_ROWS, 3), np.float32)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("logits", [None, LOGITS, chunked(LOGITS, 70)], ids=type)
def test_lazy_soft_labels(fitted, dtype, logits):
    rows = X.astype(dtype)
    expected = fitted.transform(rows, teacher_logits=None if logits is None else LOGITS)
    lazy = da.from_array(rows, chunks=(CHUNKS, 5))
    soft = fitted.transform(lazy, teacher_logits=logits)
    assert soft.compute().dtype == expected.dtype
    assert_allclose(soft, expected, atol=1e-6)
    assert_allclose(
        fitted.inverse_transform(soft.rechunk((50, 4))),
        fitted.inverse_transform(expected),
        atol=1e-6,
    )


@pytest.mark.usefixtures("one_thread")
def test_one_column_of_logits_is_that_of_a_sigmoid():
    problem = make_problem()
    fitted = LELPProjector(2, head=problem.head).fit(problem.X, problem.codes)
    logits = problem.logits[:, 1] - problem.logits[:, 0]
    soft = fitted.transform(
        da.from_array(problem.X, chunks=(50, -1)), teacher_logits=logits
    )
    expected = fitted.transform(problem.X, teacher_logits=logits)
    assert_allclose(soft, expected, atol=1e-12)


def test_fit_transform_on_a_cluster(client):
    expected = projector().fit_transform(X, CODES, teacher_logits=LOGITS)
    soft = projector().fit_transform(
        chunked(X), chunked(CODES), teacher_logits=chunked(LOGITS)
    )
    assert isinstance(soft, da.Array)
    assert_allclose(soft, expected, atol=1e-9)


def test_set_output_leaves_lazy_soft_labels_alone(fitted):
    fitted.set_output(transform="pandas")
    assert isinstance(fitted.transform(chunked(X)), da.Array)


# ------------------------------------------------------------------------------ errors


def changed(array, row, value):
    array = array.astype(float)
    array[row] = value
    return array


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"X": changed(X, [215, 380], np.nan)}, "X contains NaN, first in row 215;"),
        ({"X": changed(X, 399, np.inf)}, "X contains infinity .* row 399;"),
        ({"y": changed(CODES, [300, 301], np.nan)}, "y contains NaN.* in row 300 "),
        ({"y": CODES + 0.5}, "Unknown label type: continuous"),
        ({"sample_weight": changed(WEIGHT, 200, -2)}, "negative in row 200 "),
        ({"sample_weight": changed(WEIGHT, 200, np.nan)}, "sample_weight .* row 200;"),
        ({"sample_weight": np.zeros(N_ROWS)}, "zero for every row"),
        (
            {"teacher_logits": changed(LOGITS, 150, np.inf)},
            "teacher_logits .* row 150;",
        ),
        ({"teacher_logits": LOGITS[:, :2]}, "2 columns for 3 classes"),
        ({"y": CODES[:-1]}, "y has 399 rows and X has 400"),
        ({"y": np.full(N_ROWS, 7)}, "one class only"),
        ({"y": np.where(CODES == 1, 0, CODES)}, "2 classes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_rows_are_named_by_their_place_among_all(bad, message):
    given = {"X": X, "y": CODES, **bad}
    lazy = {name: chunked(a, (150, 49, len(a) - 199)) for name, a in given.items()}
    with pytest.raises(ValueError, match=message):
        projector().fit(lazy.pop("X"), **lazy)


def test_an_error_on_a_worker_is_what_it_is_in_memory(client):
    bad = changed(X, [120, 399], np.nan)
    with pytest.raises(ValueError, match="X contains NaN, first in row 120;"):
        projector().fit(chunked(bad, 100), chunked(CODES, 100))
    bad = changed(X, 377, np.inf)
    with pytest.raises(ValueError, match=r"X contains infinity .* row 377;"):
        projector().fit(X, CODES).transform(chunked(bad, 60)).compute()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("method", ["fit", "transform"])
@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (chunked(X)[chunked(X)[:, 0] > 0], ValueError, "X.compute_chunk_sizes()"),
        (chunked(X[:, 0]), ValueError, "Expected 2D"),
        (chunked(X)[:0], ValueError, "at least one sample"),
        (chunked(X + 1j), ValueError, "Complex"),
        (chunked(X.astype(str)), ValueError, "numbers"),
        (chunked(X).map_blocks(sparse.csr_array), TypeError, "toarray"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arrays_that_cannot_be_read(fitted, method, bad, kind, message):
    args = (CODES,) if method == "fit" else ()
    with pytest.raises(kind, match=message.replace("()", r"\(\)")):
        getattr(fitted, method)(bad, *args)


@pytest.mark.usefixtures("one_thread")
def test_labels_of_unknown_chunks():
    y = chunked(CODES)
    with pytest.raises(ValueError, match=r"y.compute_chunk_sizes\(\)"):
        projector().fit(chunked(X), y[y >= 0])


def test_another_width_in_transform(fitted):
    with pytest.raises(ValueError, match=r"7 features.* 12 features"):
        fitted.transform(chunked(X)[:, :7])


def test_logits_of_other_columns_in_transform(fitted):
    with pytest.raises(ValueError, match="2 columns for 3 classes"):
        fitted.transform(chunked(X), teacher_logits=chunked(LOGITS)[:, :2])


def test_a_head_that_is_not_fitted():
    with pytest.raises(
        ValueError, match=r"LogisticRegression, not fitted.*fit it first"
    ):
        projector(head=LogisticRegression()).fit(chunked(X), chunked(CODES))


def test_lazy_soft_labels_are_stored_by_dask(fitted, tmp_path):
    with pytest.raises(TypeError, match=r"dask.array.to_zarr"):
        fitted.transform(chunked(X), out=tmp_path / "soft.npy")


@pytest.mark.parametrize("lazy", ["X", "y"])
def test_a_stream_is_of_blocks_in_memory(lazy):
    given = {"X": X, "y": CODES}
    given[lazy] = chunked(given[lazy])
    with pytest.raises(TypeError, match=r"call fit.* or pass array.compute\(\)"):
        projector().partial_fit(**given)


def test_soft_labels_of_another_width(fitted):
    with pytest.raises(ValueError, match="must have 9 columns"):
        fitted.inverse_transform(chunked(X))


def test_dask_is_not_imported_without_a_dask_array():
    code = """
        import sys
        import numpy as np
        from lelp_sklearn import LELPProjector

        X = np.random.RandomState(0).normal(size=(40, 5))
        projector = LELPProjector(2).fit(X, np.arange(40) % 2)
        projector.inverse_transform(projector.transform(X))
        assert "dask" not in sys.modules
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, check=True)
