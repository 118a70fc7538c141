"""What comes back: arrays, frames, files, names and class masses."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from lelp_sklearn import LELPProjector
from lelp_sklearn._files import new_npy
from tests.problems import integer_weights, make_problem


@pytest.fixture
def problem():
    return make_problem(n_classes=3)


@pytest.fixture
def projector(problem):
    return LELPProjector(n_subclasses=2, head=problem.head, random_state=0).fit(
        problem.X, problem.codes
    )


def test_names_are_class_and_subclass(problem):
    y = np.array(["ant", "bee", "cow"])[problem.codes]
    projector = LELPProjector(n_subclasses=2, head=problem.head).fit(problem.X, y)
    names = projector.get_feature_names_out()
    assert names.dtype == object
    assert_array_equal(names, ["ant_0", "ant_1", "bee_0", "bee_1", "cow_0", "cow_1"])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_set_output(projector, problem, library):
    plain = projector.transform(problem.X)
    frame = projector.set_output(transform=library).transform(problem.X)
    assert isinstance(frame, {"pandas": pd.DataFrame, "polars": pl.DataFrame}[library])
    assert list(frame.columns) == list(projector.get_feature_names_out())
    assert_array_equal(frame.to_numpy(), plain)
    assert_array_equal(
        np.asarray(projector.inverse_transform(frame)),
        projector.inverse_transform(plain),
    )


def test_frames_in_and_out_keep_names_and_index(problem):
    columns = [f"e{i}" for i in range(12)]
    index = np.arange(len(problem.X)) + 1000
    X = pd.DataFrame(problem.X, columns=columns, index=index)
    projector = LELPProjector(n_subclasses=2, head=problem.head, random_state=0)
    frame = projector.set_output(transform="pandas").fit_transform(X, problem.codes)
    assert_array_equal(projector.feature_names_in_, columns)
    assert_array_equal(frame.index, index)
    with pytest.raises(ValueError, match="feature names"):
        projector.transform(X[columns[::-1]])


def test_polars_frames_are_read(problem, projector):
    X = pl.DataFrame(problem.X, schema=[f"e{i}" for i in range(12)])
    again = LELPProjector(n_subclasses=2, head=problem.head, random_state=0)
    assert_allclose(
        again.fit(X, problem.codes).transform(X), projector.transform(problem.X)
    )


def test_frames_of_metadata_are_read(problem):
    projector = LELPProjector(n_subclasses=2, random_state=0)
    plain = projector.fit_transform(
        problem.X, problem.codes, teacher_logits=problem.logits
    )
    framed = projector.fit_transform(
        problem.X,
        pd.Series(problem.codes),
        teacher_logits=pd.DataFrame(problem.logits),
        sample_weight=pd.Series(np.ones(len(problem.X))),
    )
    assert_allclose(framed, plain)


def test_inverse_transform_sums_over_subclasses(projector, problem):
    soft = projector.transform(problem.X)
    mass = projector.inverse_transform(soft)
    assert_allclose(mass, soft.reshape(-1, 3, 2).sum(axis=2), rtol=1e-12)
    assert mass.dtype == soft.dtype
    assert projector.inverse_transform(soft.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
def test_inverse_transform_refuses_another_width(projector, problem, convert):
    soft = convert(projector.transform(problem.X))
    with pytest.raises(ValueError, match=r"(?s)5.*6"):
        projector.inverse_transform(soft[:, :5])


@pytest.mark.parametrize("with_logits", [True, False])
@pytest.mark.parametrize("with_weight", [True, False])
@pytest.mark.parametrize("with_y", [True, False])
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_fit_transform_is_fit_then_transform(
    problem, with_logits, with_weight, with_y, kind
):
    rng = np.random.RandomState(0)
    logits = {"teacher_logits": rng.normal(size=(len(problem.X), 3))}
    logits = logits if with_logits else {}
    weight = {"sample_weight": integer_weights(len(problem.X))} if with_weight else {}
    y = problem.codes if with_y else None
    X = torch.as_tensor(problem.X) if kind == "tensor" else problem.X
    together, apart = (
        LELPProjector(n_subclasses=2, head=problem.head, random_state=0)
        for _ in range(2)
    )
    soft = together.fit_transform(X, y, **logits, **weight)
    expected = apart.fit(X, y, **logits, **weight).transform(X, **logits)
    assert_allclose(soft, expected, rtol=1e-12)


# ------------------------------------------------------------------------- out=


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_out_array_is_filled_and_returned(projector, problem, dtype):
    X = problem.X.astype(dtype)
    out = np.full((len(X), 6), np.nan, dtype=dtype)
    assert projector.transform(X, out=out) is out
    assert_array_equal(out, projector.transform(X))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda array: np.asfortranarray(array), id="columns"),
        pytest.param(lambda array: np.tile(array, 2)[:, ::2], id="every other column"),
        pytest.param(lambda array: array[:, ::-1], id="columns in reverse"),
        pytest.param(lambda array: array[::-1], id="rows in reverse"),
        pytest.param(lambda array: np.tile(array, 2)[:, 3:9], id="some columns"),
    ],
)
def test_out_array_of_any_layout(projector, problem, dtype, view):
    X = problem.X.astype(dtype)
    out = view(np.full((len(X), 6), np.nan, dtype=dtype))
    assert projector.transform(X, out=out) is out
    assert_array_equal(out, projector.transform(X))


def test_out_array_of_a_tensor(projector, problem):
    out = np.empty((len(problem.X), 6))
    assert projector.transform(torch.as_tensor(problem.X), out=out) is out
    assert_allclose(out, projector.transform(problem.X), atol=1e-12)


def test_out_memory_map_is_filled(projector, problem, tmp_path):
    out = np.lib.format.open_memmap(
        tmp_path / "soft.npy", mode="w+", dtype=np.float64, shape=(len(problem.X), 6)
    )
    assert projector.transform(problem.X, out=out) is out
    assert_array_equal(out, projector.transform(problem.X))


@pytest.mark.parametrize("as_path", [str, lambda path: path])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_out_path_holds_a_complete_file(projector, problem, tmp_path, as_path, dtype):
    path = tmp_path / "soft.npy"
    X = problem.X.astype(dtype)
    result = projector.transform(X, out=as_path(path))
    expected = projector.transform(X)
    stored = np.load(path)
    assert stored.dtype == expected.dtype
    assert_array_equal(stored, expected)
    assert_array_equal(result, expected)
    assert [entry.name for entry in tmp_path.iterdir()] == ["soft.npy"]


def test_out_path_of_a_tensor(projector, problem, tmp_path):
    path = tmp_path / "soft.npy"
    projector.transform(torch.as_tensor(problem.X), out=path)
    assert_allclose(np.load(path), projector.transform(problem.X), atol=1e-12)


@pytest.mark.parametrize("existing", [True, False])
def test_failed_transform_leaves_the_directory_as_it_was(
    projector, problem, tmp_path, existing
):
    path = tmp_path / "soft.npy"
    before = []
    if existing:
        np.save(path, np.arange(3.0))
        before = ["soft.npy"]
    X = problem.X.copy()
    X[-1, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        projector.transform(X, out=path)
    assert [entry.name for entry in tmp_path.iterdir()] == before
    if existing:
        assert_array_equal(np.load(path), np.arange(3.0))


def test_out_path_replaces_an_older_file(projector, problem, tmp_path):
    path = tmp_path / "soft.npy"
    np.save(path, np.arange(3.0))
    projector.transform(problem.X, out=path)
    assert_array_equal(np.load(path), projector.transform(problem.X))


def test_interrupted_writing_leaves_nothing_behind(tmp_path):
    def write_half():
        with new_npy(tmp_path / "soft.npy", (4, 6), np.dtype(np.float32)) as target:
            target[:2] = 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_out_is_returned_as_it_is_whatever_set_output_says(
    projector, problem, tmp_path, library
):
    plain = projector.transform(problem.X)
    projector.set_output(transform=library)
    out = np.empty_like(plain)
    assert projector.transform(problem.X, out=out) is out
    result = projector.transform(problem.X, out=tmp_path / "soft.npy")
    assert isinstance(result, np.ndarray)
    assert_array_equal(result, plain)


@pytest.mark.parametrize(
    ("out", "fragment"),
    [
        (np.empty((160, 5)), r"(160, 6)"),
        (np.empty((160, 6), dtype=int), "float"),
        (np.empty((159, 6)), r"(160, 6)"),
        ([], "out"),
    ],
)
def test_out_that_does_not_fit(projector, problem, out, fragment):
    with pytest.raises((ValueError, TypeError)) as caught:
        projector.transform(problem.X, out=out)
    assert "out" in str(caught.value)
    assert fragment in str(caught.value)


def test_out_that_overlaps_what_is_read_is_refused(projector, problem):
    table = np.zeros((len(problem.X), problem.X.shape[1] + 6))
    table[:, 6:] = problem.X
    # Beside one another within the same rows is no overlap.
    beside = projector.transform(table[:, 6:], out=table[:, :6])
    assert_array_equal(beside, projector.transform(problem.X))
    with pytest.raises(ValueError, match="out overlaps X"):
        projector.transform(table[:, 6:], out=table[:, 2:8])
    assert_array_equal(table[:, 6:], problem.X)


def test_out_that_is_one_row_many_times_is_refused(projector, problem):
    out = np.broadcast_to(np.empty(6), (len(problem.X), 6))
    with pytest.raises(ValueError, match="share memory"):
        projector.transform(problem.X, out=out)


def test_read_only_out_is_refused(projector, problem):
    out = np.empty((len(problem.X), 6))
    out.setflags(write=False)
    with pytest.raises(ValueError, match="out"):
        projector.transform(problem.X, out=out)


def test_out_path_that_cannot_be_written(projector, problem, tmp_path):
    missing = tmp_path / "no" / "such"
    with pytest.raises((ValueError, OSError), match="such"):
        projector.transform(problem.X, out=missing / "soft.npy")
    with pytest.raises(ValueError, match=r"\.npy"):
        projector.transform(problem.X, out=tmp_path / "soft.txt")
