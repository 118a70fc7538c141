"""k-means subclasses: as good as scikit-learn's, and independent of presentation."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, load_wine, make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import StandardScaler

from lelp_sklearn import LELPProjector
from tests import reference
from tests.problems import integer_weights, make_problem


def linear_teacher(X, codes):
    head = LogisticRegression(max_iter=2000).fit(X, codes)
    return X, codes, reference.two_rows(head.coef_, head.intercept_)


def digits():
    X, y = load_digits(return_X_y=True)
    return linear_teacher(X / 16, y % 2)


def blobs():
    X, group = make_blobs(1000, 20, centers=20, cluster_std=4.0, random_state=0)
    return linear_teacher(X, group % 2)


def overlapping_blobs():
    X, group = make_blobs(900, 8, centers=12, cluster_std=9.0, random_state=1)
    return linear_teacher(X, group % 3)


def noise():
    X = np.random.RandomState(0).normal(size=(600, 10))
    return linear_teacher(X, (X[:, 0] > 0).astype(int))


def wine():
    X, y = load_wine(return_X_y=True)
    return linear_teacher(StandardScaler().fit_transform(X), (y > 0).astype(int))


DATASETS = [
    (digits, 5),
    (digits, 10),
    (blobs, 10),
    (overlapping_blobs, 4),
    (noise, 6),
    (wine, 4),
]


def fit(X, codes, head, n_subclasses, **options):
    weight = options.pop("sample_weight", None)
    return LELPProjector(
        n_subclasses=n_subclasses,
        splitter="kmeans",
        head=head,
        random_state=0,
        **options,
    ).fit(X, codes, sample_weight=weight)


def distances_to_centroids(projector, rows, c):
    """Squared distances of class-centred null-space rows to the centroids of c."""
    return np.sum((rows[:, None] - projector.components_[c]) ** 2, axis=2)


@pytest.mark.parametrize(("dataset", "n_subclasses"), DATASETS)
def test_inertia_is_that_of_scikit_learn_within_two_percent(dataset, n_subclasses):
    X, codes, head = dataset()
    projector = fit(X, codes, head, n_subclasses)
    rows = reference.null_space_rows(X, codes, head[0])
    ours, theirs = 0.0, 0.0
    for c in range(len(head[0])):
        members = rows[codes == c]
        ours += distances_to_centroids(projector, members, c).min(axis=1).sum()
        kmeans = KMeans(n_subclasses, n_init=10, random_state=0).fit(members)
        theirs += kmeans.inertia_
    assert ours <= 1.02 * theirs


@pytest.mark.parametrize(("dataset", "n_subclasses"), DATASETS[2:])
@pytest.mark.parametrize("null_space", [True, False])
def test_centroids_are_the_weighted_means_of_their_rows(
    dataset, n_subclasses, null_space
):
    X, codes, head = dataset()
    weight = integer_weights(len(X)) + 0.5
    projector = fit(
        X, codes, head, n_subclasses, null_space=null_space, sample_weight=weight
    )
    rows = reference.null_space_rows(X, codes, head[0], weight, null_space)
    for c in range(len(head[0])):
        members, w = rows[codes == c], weight[codes == c]
        distances = distances_to_centroids(projector, members, c)
        nearest = np.argmin(distances, axis=1)
        means = [
            np.average(members[nearest == s], axis=0, weights=w[nearest == s])
            for s in range(n_subclasses)
        ]
        inertia = w @ distances.min(axis=1)
        improved = np.sum((members - np.array(means)[nearest]) ** 2, axis=1)
        assert w @ improved >= (1 - 1e-3) * inertia


def test_hard_subclasses_are_the_nearest_centroids():
    X, codes, head = overlapping_blobs()
    projector = fit(X, codes, head, 4, subclass_temperature=0)
    soft = projector.transform(X).reshape(len(X), 3, 4)
    rows = reference.null_space_rows(X, codes, head[0])
    for c in range(3):
        own = codes == c
        nearest = np.argmin(distances_to_centroids(projector, rows[own], c), axis=1)
        assert_array_equal(np.argmax(soft[own, c], axis=1), nearest)
    assert_array_equal(np.count_nonzero(soft, axis=2), 1)


def test_soft_subclasses_are_soft_kmeans():
    X, codes, head = overlapping_blobs()
    projector = fit(X, codes, head, 4, subclass_temperature=0.5)
    soft = projector.transform(X).reshape(len(X), 3, 4)
    rows = reference.null_space_rows(X, codes, head[0])
    for c in range(3):
        own = codes == c
        distances = distances_to_centroids(projector, rows[own], c)
        q = reference.within_class_probabilities(
            -distances[:, None] / 2, projector.subclass_temperature_
        )[:, 0]
        p = soft[own, c].sum(axis=1, keepdims=True)
        assert_allclose(soft[own, c], p * q, atol=1e-8)


def partition(projector, X, codes):
    soft = projector.transform(X).reshape(len(X), len(projector.classes_), -1)
    return np.argmax(soft[np.arange(len(X)), codes], axis=1)


@pytest.mark.parametrize("seed", range(3))
def test_order_of_the_rows_does_not_matter(seed):
    X, codes, head = overlapping_blobs()
    order = np.random.RandomState(seed).permutation(len(X))
    straight = fit(X, codes, head, 4)
    permuted = fit(X[order], codes[order], head, 4)
    assert_allclose(permuted.components_, straight.components_, atol=1e-6)


def test_splitting_a_rows_weight_does_not_matter():
    X, codes, head = overlapping_blobs()
    copies = 1 + integer_weights(len(X)).astype(int)
    repeat = np.repeat(np.arange(len(X)), copies)
    whole = fit(X, codes, head, 4)
    split = fit(X[repeat], codes[repeat], head, 4, sample_weight=1 / copies[repeat])
    assert_allclose(split.components_, whole.components_, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_low_precision_finds_the_same_groups(dtype):
    rng = np.random.RandomState(0)
    centres = rng.normal(scale=10, size=(8, 6))
    group = np.arange(400) % 8
    X = centres[group] + rng.normal(size=(400, 6))
    head = (rng.normal(size=(2, 6)) / 10, np.zeros(2))
    exact = partition(fit(X, group % 2, head, 4), X, group % 2)
    rounded = partition(fit(X.astype(dtype), group % 2, head, 4), X, group % 2)
    assert adjusted_rand_score(rounded, exact) > 0.99


def test_as_many_subclasses_as_distinct_rows():
    X = np.repeat(np.random.RandomState(0).normal(size=(8, 4)), 5, axis=0)
    codes = np.repeat(np.arange(8) % 2, 5)
    head = (np.array([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]), np.zeros(2))
    labels = partition(fit(X, codes, head, 4), X, codes)
    for c in range(2):
        assert sorted(labels[codes == c].reshape(4, 5)[:, 0]) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="4"):
        fit(X, codes, head, 5)


def test_no_subclass_is_empty():
    problem = make_problem(n_classes=2, n_rows=60)
    projector = fit(problem.X, problem.codes, problem.head, 12)
    labels = partition(projector, problem.X, problem.codes)
    for c in range(2):
        assert len(np.unique(labels[problem.codes == c])) == 12
