"""Soft labels for every option, end to end against the reference."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lelp_sklearn import LELPProjector
from tests import reference
from tests.problems import integer_weights, make_problem

GIVEN = np.random.RandomState(7).normal(size=(3, 4, 12))
SPLITTERS = ["pca", "random", "kmeans", GIVEN]
SPLITTER_NAMES = ["pca", "random", "kmeans", "array"]


def reference_directions(projector, problem, weight):
    """Directions by the reference, taking from the projector only what is drawn.

    That is the rotation within the principal subspace, the random directions and
    the clusters; tests of their own hold those to what they must be.
    """
    coef = problem.coef
    _, means = reference.class_weights_and_means(
        problem.X, problem.codes, len(coef), weight
    )
    directions = projector.components_
    if isinstance(projector.splitter, np.ndarray):
        directions = projector.splitter
    elif projector.splitter == "kmeans":
        centroids = means[:, None, :] + projector.components_
        null_space = reference.null_space_projector(coef, projector.null_space)
        return reference.centroid_directions(centroids, means, null_space)
    elif projector.splitter == "pca":
        _, axes = reference.principal_directions(
            problem.X,
            problem.codes,
            coef,
            projector.n_subclasses_,
            sample_weight=weight,
            null_space=projector.null_space,
        )
        q = np.einsum("csd,ctd->cst", projector.components_, axes)
        directions = reference.rotate(axes, q)
    return directions, reference.centred_offsets(directions, means)


def reference_soft_labels(projector, problem, weight=None, logits=None):
    directions, offsets = reference_directions(projector, problem, weight)
    beta = projector.subclass_temperature
    if beta == "auto":
        beta = projector.subclass_temperature_
    else:
        z = reference.projections(problem.X, directions, offsets)
        beta = beta * reference.pooled_deviation(z, problem.codes, weight)
    return reference.soft_labels(
        problem.X,
        directions,
        offsets,
        problem.logits if logits is None else logits,
        temperature=projector.temperature_,
        subclass_temperature=beta,
    )


@pytest.mark.parametrize("splitter", SPLITTERS, ids=SPLITTER_NAMES)
@pytest.mark.parametrize("null_space", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("subclass_temperature", ["auto", 0.4, 0])
def test_soft_labels_of_every_splitter(
    splitter, null_space, temperature, subclass_temperature
):
    problem = make_problem(n_classes=3)
    projector = LELPProjector(
        n_subclasses=4,
        splitter=splitter,
        head=problem.head,
        null_space=null_space,
        temperature=temperature,
        subclass_temperature=subclass_temperature,
        svd_solver="full",
        random_state=0,
    ).fit(problem.X, problem.codes)
    assert_allclose(
        projector.transform(problem.X),
        reference_soft_labels(projector, problem),
        atol=1e-8,
    )


@pytest.mark.parametrize("rotation", ["equal", "random", None])
@pytest.mark.parametrize(
    "svd_solver", ["auto", "full", "covariance_eigh", "randomized"]
)
def test_soft_labels_of_every_rotation_and_solver(rotation, svd_solver):
    problem = make_problem()
    projector = LELPProjector(
        n_subclasses=3,
        splitter="pca",
        head=problem.head,
        rotation=rotation,
        subclass_temperature=0.5,
        svd_solver=svd_solver,
        random_state=0,
    ).fit(problem.X, problem.codes)
    assert_allclose(
        projector.transform(problem.X),
        reference_soft_labels(projector, problem),
        atol=1e-5,
    )


@pytest.mark.parametrize("splitter", SPLITTERS, ids=SPLITTER_NAMES)
def test_weighted_soft_labels(splitter):
    problem = make_problem(n_classes=3)
    weight = integer_weights(len(problem.X)) + 0.25
    projector = LELPProjector(
        n_subclasses=4,
        splitter=splitter,
        head=problem.head,
        subclass_temperature=0.5,
        svd_solver="full",
        random_state=0,
    ).fit(problem.X, problem.codes, sample_weight=weight)
    assert_allclose(
        projector.transform(problem.X),
        reference_soft_labels(projector, problem, weight),
        atol=1e-8,
    )


@pytest.mark.parametrize("n_classes", [2, 3])
def test_teacher_logits_replace_the_head(n_classes):
    problem = make_problem(n_classes=n_classes)
    logits = np.random.RandomState(0).normal(size=(len(problem.X), n_classes))
    projector = LELPProjector(
        n_subclasses=2,
        splitter="pca",
        head=problem.head,
        subclass_temperature=0.5,
        temperature=2.0,
    ).fit(problem.X, problem.codes, teacher_logits=logits)
    assert_allclose(
        projector.transform(problem.X, teacher_logits=logits),
        reference_soft_labels(projector, problem, logits=logits),
        atol=1e-6,
    )
    assert_allclose(
        projector.transform(problem.X),
        reference_soft_labels(projector, problem),
        atol=1e-6,
    )


def test_one_column_of_teacher_logits_is_a_sigmoid():
    problem = make_problem()
    column = np.random.RandomState(0).normal(scale=3, size=(len(problem.X), 1))
    projector = LELPProjector(n_subclasses=2, head=problem.head, random_state=0)
    projector.fit(problem.X, problem.codes, teacher_logits=column)
    mass = projector.inverse_transform(
        projector.transform(problem.X, teacher_logits=column)
    )
    assert_allclose(mass[:, 1], 1 / (1 + np.exp(-column[:, 0])), atol=1e-12)


@pytest.mark.parametrize("normalised", [True, False])
def test_log_probabilities_are_logits(normalised):
    problem = make_problem(n_classes=3)
    logits = problem.logits
    if normalised:
        logits = np.log(reference.class_probabilities(problem.logits))
    projector = LELPProjector(n_subclasses=2, head=problem.head, temperature=2.0)
    soft = projector.fit(problem.X, problem.codes).transform(
        problem.X, teacher_logits=logits
    )
    assert_allclose(
        projector.inverse_transform(soft),
        reference.class_probabilities(problem.logits, 2.0),
        atol=1e-12,
    )


@pytest.mark.parametrize("splitter", ["pca", "random", "kmeans"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_one_subclass_is_vanilla_distillation(splitter, temperature, n_classes):
    problem = make_problem(n_classes=n_classes)
    projector = LELPProjector(
        n_subclasses=1, splitter=splitter, head=problem.head, temperature=temperature
    ).fit(problem.X, problem.codes)
    assert_allclose(
        projector.transform(problem.X),
        reference.class_probabilities(problem.logits, temperature),
        rtol=1e-12,
    )
    assert_array_equal(projector.components_, np.zeros((n_classes, 1, 12)))
    assert_array_equal(projector.offsets_, np.zeros((n_classes, 1)))


def test_one_subclass_needs_no_direction():
    X = np.array([[0.0, 1.0], [1.0, 0.0]])
    soft = LELPProjector(n_subclasses=1, head=(np.eye(2), np.zeros(2))).fit_transform(
        X, [0, 1]
    )
    assert_allclose(soft, reference.class_probabilities(X))


@pytest.mark.parametrize("splitter", SPLITTERS, ids=SPLITTER_NAMES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("subclass_temperature", [0, 0.01, "auto"])
def test_class_mass_is_kept(splitter, dtype, subclass_temperature):
    problem = make_problem(n_classes=3)
    X = problem.X.astype(dtype)
    projector = LELPProjector(
        n_subclasses=4,
        splitter=splitter,
        head=problem.head,
        subclass_temperature=subclass_temperature,
        random_state=0,
    )
    soft = projector.fit_transform(X, problem.codes)
    logits = X.astype(np.float64) @ problem.coef.T + problem.intercept
    mass = np.asarray(soft, dtype=np.float64).reshape(-1, 3, 4).sum(axis=2)
    assert_allclose(mass, reference.class_probabilities(logits), atol=1e-6)
    assert soft.min() >= 0


def test_hard_assignment_of_tied_rows_takes_the_first_subclass():
    X = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, -1.0, -1.0]] * 2)
    directions = np.zeros((2, 3, 3))
    directions[:, 1:, 1:] = np.eye(2)
    projector = LELPProjector(
        splitter=directions,
        head=([[1.0, 0, 0], [-1.0, 0, 0]], [0, 0]),
        subclass_temperature=0,
    )
    soft = projector.fit_transform(X, [0, 0, 0, 1, 1, 1]).reshape(6, 2, 3)
    assert_array_equal(np.argmax(soft, axis=2)[:, 0], [0, 1, 0] * 2)
    assert_array_equal(np.count_nonzero(soft, axis=2), 1)


def test_extreme_logits_give_finite_soft_labels():
    problem = make_problem()
    projector = LELPProjector(
        n_subclasses=3, head=problem.head, subclass_temperature=1e-3, random_state=0
    ).fit(problem.X, problem.codes)
    logits = 1e5 * problem.logits
    soft = projector.transform(1e4 * problem.X, teacher_logits=logits)
    assert np.all(np.isfinite(soft))
    assert_allclose(soft.sum(axis=1), 1)


@pytest.mark.parametrize("splitter", ["pca", "random", "kmeans"])
@pytest.mark.parametrize("subclass_temperature", ["auto", 0.5])
def test_subclass_temperature_does_not_depend_on_the_embeddings_scale(
    splitter, subclass_temperature
):
    problem = make_problem()
    scale = 64.0
    projector = LELPProjector(
        n_subclasses=3,
        splitter=splitter,
        head=problem.head,
        subclass_temperature=subclass_temperature,
        random_state=0,
    )
    soft = projector.fit_transform(problem.X, problem.codes)
    scaled = projector.set_params(head=(problem.coef / scale, problem.intercept))
    assert_allclose(
        scaled.fit_transform(scale * problem.X, problem.codes), soft, atol=1e-6
    )


@pytest.mark.parametrize("splitter", ["pca", "random", "kmeans"])
def test_automatic_choices(splitter):
    problem = make_problem(n_features=5)
    projector = LELPProjector(splitter=splitter, head=problem.head, random_state=0).fit(
        problem.X, problem.codes
    )
    assert isinstance(projector.n_subclasses_, int)
    assert projector.n_subclasses_ >= 1
    if splitter != "kmeans":
        assert projector.n_subclasses_ <= 3
    assert projector.subclass_temperature_ >= 0
    assert projector.components_.shape == (2, projector.n_subclasses_, 5)
    assert projector.n_subclasses == projector.subclass_temperature == "auto"


@pytest.mark.parametrize("splitter", ["pca", "kmeans"])
def test_automatic_subclasses_follow_the_poorest_class(splitter):
    problem = make_problem()
    keep = (problem.codes == 0) | (np.cumsum(problem.codes == 1) <= 3)
    projector = LELPProjector(splitter=splitter, head=problem.head, random_state=0).fit(
        problem.X[keep], problem.codes[keep]
    )
    # Three rows: two directions about their mean, or three centroids.
    assert projector.n_subclasses_ <= (2 if splitter == "pca" else 3)


@pytest.mark.parametrize("splitter", ["pca", "random", "kmeans"])
def test_automatic_subclasses_without_any_direction_are_vanilla_distillation(splitter):
    X = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    projector = LELPProjector(splitter=splitter, head=(np.eye(2), np.zeros(2)))
    soft = projector.fit_transform(X, [0, 1, 0, 1])
    assert projector.n_subclasses_ == 1
    assert_allclose(soft, reference.class_probabilities(X))


@pytest.mark.parametrize("subclass_temperature", [0, 0.5])
def test_scores_beyond_single_precision(subclass_temperature):
    problem = make_problem()
    projector = LELPProjector(
        n_subclasses=3,
        head=problem.head,
        subclass_temperature=subclass_temperature,
        random_state=0,
    ).fit(problem.X, problem.codes)
    X = problem.X.astype(np.float32)
    X[::7] *= np.float32(1e37)
    soft_labels = projector.transform(X)
    assert soft_labels.dtype == np.float32
    assert_allclose(soft_labels, projector.transform(X.astype(np.float64)), atol=1e-5)
