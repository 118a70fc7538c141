"""Classes of more rows than are sampled: presentation still changes nothing."""

import dask.array as da
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from lelp_sklearn import LELPProjector
from lelp_sklearn._subclasses.dask_backend import DaskRows
from lelp_sklearn._subclasses.inputs import CheckedRows
from lelp_sklearn._subclasses.rows import LabelledRows, hash_rows
from lelp_sklearn._subclasses.subsample import class_samples

N_ROWS = 10_000


def large_classes():
    """Two classes of about 5000 rows in groups, and the head of a teacher."""
    X, group = make_blobs(N_ROWS, 12, centers=14, cluster_std=4.0, random_state=0)
    head = np.random.RandomState(1).normal(size=(2, 12)) / 10
    return X, group % 2, (head, np.zeros(2))


def fit(X, codes, head, splitter, **metadata):
    projector = LELPProjector(5, splitter=splitter, head=head, random_state=0)
    return projector.fit(X, codes, **metadata)


def assert_same_fit(left, right, X):
    assert_allclose(left.mean_, right.mean_, atol=1e-9)
    assert_allclose(left.subclass_temperature_, right.subclass_temperature_, rtol=1e-9)
    assert_allclose(left.transform(X), right.transform(X), atol=1e-7)


@pytest.mark.parametrize("splitter", ["kmeans", "pca"])
@pytest.mark.parametrize("seed", range(2))
def test_order_of_the_rows_does_not_matter(splitter, seed):
    X, codes, head = large_classes()
    order = np.random.RandomState(seed).permutation(len(X))
    permuted = fit(X[order], codes[order], head, splitter)
    assert_same_fit(fit(X, codes, head, splitter), permuted, X)


@pytest.mark.parametrize("splitter", ["kmeans", "pca"])
def test_rows_sorted_by_group_are_as_good_as_shuffled(splitter):
    X, group = make_blobs(N_ROWS, 12, centers=14, random_state=0)
    _, _, head = large_classes()
    order = group.argsort(kind="stable")
    in_order = fit(X[order], group[order] % 2, head, splitter)
    assert_same_fit(fit(X, group % 2, head, splitter), in_order, X)


@pytest.mark.parametrize("splitter", ["kmeans", "pca"])
def test_weights_are_repetitions(splitter):
    X, codes, head = large_classes()
    copies = np.random.RandomState(0).randint(0, 4, size=N_ROWS)
    weighted = fit(X, codes, head, splitter, sample_weight=copies)
    repeat = np.repeat(np.arange(N_ROWS), copies)
    repeated = fit(X[repeat], codes[repeat], head, splitter)
    assert_same_fit(weighted, repeated, X)


@pytest.mark.parametrize("splitter", ["kmeans", "pca"])
def test_splitting_a_rows_weight_does_not_matter(splitter):
    X, codes, head = large_classes()
    copies = np.random.RandomState(0).choice([1, 2, 4], size=N_ROWS)
    repeat = np.repeat(np.arange(N_ROWS), copies)
    split = fit(
        X[repeat], codes[repeat], head, splitter, sample_weight=1 / copies[repeat]
    )
    assert_same_fit(fit(X, codes, head, splitter), split, X)


@pytest.mark.parametrize("factor", [1e-60, 1e60])
@pytest.mark.parametrize("splitter", ["kmeans", "pca"])
def test_only_ratios_of_weights_count(splitter, factor):
    X, codes, head = large_classes()
    weight = np.random.RandomState(0).uniform(1, 2, size=N_ROWS)
    X = X.astype(np.float32)
    plain = fit(X, codes, head, splitter, sample_weight=weight)
    scaled = fit(X, codes, head, splitter, sample_weight=factor * weight)
    assert_allclose(scaled.transform(X), plain.transform(X), atol=2e-4)


def groups_of_unlike_size(rng):
    group = rng.choice(20, size=N_ROWS, p=rng.dirichlet(np.full(20, 3.0)))
    return rng.normal(scale=6, size=(20, 16))[group] + rng.normal(size=(N_ROWS, 16))


@pytest.mark.parametrize("seed", range(2))
def test_inertia_is_that_of_scikit_learn_within_two_percent(seed):
    X, codes = groups_of_unlike_size(np.random.RandomState(seed)), np.arange(N_ROWS) % 2
    head = np.zeros((2, 16))
    head[:, 0] = 1, -1
    projector = LELPProjector(
        20, splitter="kmeans", head=(head, np.zeros(2)), random_state=seed
    )
    projector.fit(X, codes)
    for c in range(2):
        rows = X[codes == c] - projector.mean_[c]
        rows[:, 0] = 0
        squares = np.sum((rows[:, None] - projector.components_[c]) ** 2, axis=2)
        best = KMeans(20, n_init=10, random_state=0).fit(rows).inertia_
        assert squares.min(axis=1).sum() < 1.02 * best


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n_rows", [600, N_ROWS])
def test_rounding_makes_no_distinct_rows(n_rows, dtype):
    rng = np.random.RandomState(1)
    head = rng.normal(size=(2, 40))
    basis = np.linalg.qr(head.T)[0]
    places = rng.normal(size=(3, 40))
    places -= places @ basis @ basis.T
    if dtype == np.float16:
        # Equal rows are equal in half precision only where nothing is added to them.
        X = places[np.arange(n_rows) % 3]
    else:
        along_head = rng.normal(size=(n_rows, 2)) @ basis.T
        X = places[np.arange(n_rows) % 3] + along_head
    X, codes = X.astype(dtype), np.arange(n_rows) // 3 % 2
    projector = LELPProjector(head=(head, np.zeros(2)), random_state=0).fit(X, codes)
    assert projector.n_subclasses_ == 3
    with pytest.raises(ValueError, match="3"):
        LELPProjector(4, head=(head, np.zeros(2))).fit(X, codes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_rows", [600, 6000])
@pytest.mark.parametrize("n_features", [2, 10])
def test_no_null_space_is_no_subclass(n_features, n_rows, dtype):
    rng = np.random.RandomState(1)
    X = (rng.normal(size=(n_rows, n_features)) * 3 + 5).astype(dtype)
    head = rng.normal(size=(n_features, n_features)), np.zeros(n_features)
    codes = np.arange(n_rows) % n_features
    assert LELPProjector(head=head, random_state=0).fit(X, codes).n_subclasses_ == 1
    with pytest.raises(ValueError, match="n_subclasses=2"):
        LELPProjector(2, head=head).fit(X, codes)


@pytest.mark.parametrize("seed", [0, 59])
def test_every_distinct_row_counts_however_rare(seed):
    rng = np.random.RandomState(0)
    places = rng.normal(size=(6, 7))
    places[:, 0] = 0
    place = np.arange(2 * N_ROWS) // 2 % 5
    # One row of each class at the sixth place.
    place[:2] = 5
    X = places[place]
    head = np.zeros((2, 7))
    head[:, 0] = 1, -1
    codes = np.arange(len(X)) % 2
    options = {"head": (head, np.zeros(2)), "random_state": seed}
    projector = LELPProjector(6, subclass_temperature=0, **options).fit(X, codes)
    subclasses = projector.transform(X).reshape(-1, 2, 6)[np.arange(len(X)), codes]
    for c in range(2):
        pairs = {*zip(place[codes == c], subclasses[codes == c].argmax(1), strict=True)}
        assert len(pairs) == 6
    assert LELPProjector("auto", **options).fit(X, codes).n_subclasses_ == 6
    with pytest.raises(ValueError, match="6"):
        LELPProjector(7, **options).fit(X, codes)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_sample_estimates_sums_over_its_class(weighted):
    X, codes, _ = large_classes()
    rng = np.random.RandomState(0)
    weight = rng.pareto(1.5, size=N_ROWS) if weighted else np.ones(N_ROWS)
    data = LabelledRows(X, codes, weight, hash_rows(X))
    means = []
    for seed in range(30):
        random_state = np.random.RandomState(seed)
        means.append([s.mean for s in class_samples(data, 2, random_state)])
    exact = [np.average(X[codes == c], 0, weight[codes == c]) for c in range(2)]
    error = np.std(means, axis=0, ddof=1) / np.sqrt(len(means))
    assert_array_equal(np.abs(np.mean(means, axis=0) - exact) < 5 * error, True)


@pytest.mark.parametrize("kind", ["copies", "weights"])
def test_a_sample_put_together_from_chunks_is_that_of_all_rows(kind):
    rng = np.random.RandomState(0)
    # More distinct rows than are kept of a class.
    X = rng.normal(size=(130_000, 2))
    weight = rng.pareto(1.5, size=len(X))
    codes = np.arange(len(X)) % 50 // 49
    if kind == "copies":
        index = np.arange(160_000) % len(X)
        X, codes, weight = X[index], codes[index], np.ones(len(index))
    whole = LabelledRows(X, codes, weight, hash_rows(X))
    lazy = DaskRows.check(
        da.from_array(X, chunks=(30_000, -1)), codes, weight, None, None
    ).map(CheckedRows.encode, np.arange(2))
    for expected, found in zip(
        class_samples(whole, 2, np.random.RandomState(0)),
        class_samples(lazy, 2, np.random.RandomState(0)),
        strict=True,
    ):
        assert found.is_whole == expected.is_whole
        assert_allclose(found.rows, expected.rows, atol=1e-12)
        assert_allclose(found.weight, expected.weight, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_distinct_rows_have_distinct_digests(dtype):
    whole_numbers = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 4), axis=-1)
    indicators = np.eye(300)
    for X in (whole_numbers.reshape(-1, 4), indicators, np.outer(indicators[0], [1])):
        n_distinct = len(np.unique(X, axis=0))
        assert len(np.unique(hash_rows(X.astype(dtype)))) == n_distinct


def test_equal_rows_have_equal_digests():
    X = np.random.RandomState(0).normal(size=(50, 9)).astype(np.float16)
    X[X < 0] = 0
    assert_array_equal(hash_rows(X), hash_rows(X.astype(np.float32)))
    assert_array_equal(hash_rows(X), hash_rows(np.where(X == 0, np.float16(-0.0), X)))
    assert_array_equal(hash_rows(np.asfortranarray(X)), hash_rows(X))


@pytest.mark.parametrize("svd_solver", ["auto", "randomized"])
@pytest.mark.parametrize("heights", [[300], [300, -280, 250, 200]])
def test_directions_that_a_sample_lacks_are_found(heights, svd_solver):
    rng = np.random.RandomState(0)
    n_rows, n_features = 20000, 200
    codes = np.arange(n_rows) % 2
    X = rng.normal(size=(n_rows, n_features)) * 0.8 ** np.arange(n_features)
    X = X.astype(np.float32)
    # A few rows, perpendicular to all others, have most of the variance of class 0.
    rare = np.flatnonzero(codes == 0)[: len(heights)]
    places = 100 + np.arange(len(heights))
    X[:, places] = 0
    X[rare] = 0
    X[rare, places] = heights
    coef = np.zeros((1, n_features))
    coef[0, -1] = 1
    own = X[codes == 0].astype(np.float64)
    own[:, -1] = 0
    best = np.linalg.eigvalsh(np.cov(own.T, bias=True))[-10:].sum()
    for seed in range(3):
        projector = LELPProjector(
            10,
            splitter="pca",
            head=(coef, [0.0]),
            svd_solver=svd_solver,
            random_state=seed,
        ).fit(X, codes)
        assert projector.explained_variance_[0].sum() > 0.999 * best
