"""The reference is itself held to identities and to scikit-learn."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.covariance import oas
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression

from tests import reference
from tests.problems import integer_weights, make_problem


@pytest.fixture
def outputs_and_targets():
    rng = np.random.RandomState(0)
    outputs = rng.normal(scale=3, size=(20, 6))
    targets = rng.dirichlet(np.ones(6), size=20)
    return outputs, targets


def test_projector_removes_the_rows_of_a_rank_deficient_head():
    coef = np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])
    projector = reference.null_space_projector(coef)
    assert_allclose(projector @ coef.T, 0, atol=1e-14)
    assert_allclose(projector @ projector, projector, atol=1e-14)
    assert_allclose(np.trace(projector), 2)


def test_principal_directions_equal_those_of_scikit_learn():
    problem = make_problem()
    variances, axes = reference.principal_directions(
        problem.X, problem.codes, problem.coef, 3
    )
    for c in range(2):
        members = problem.X[problem.codes == c]
        rows = members @ reference.null_space_projector(problem.coef)
        pca = PCA(n_components=3, svd_solver="full").fit(rows)
        overlap = np.abs(np.sum(pca.components_ * axes[c], axis=1))
        assert_allclose(overlap, 1, atol=1e-12)
        ratio = (len(members) - 1) / len(members)
        assert_allclose(variances[c], pca.explained_variance_ * ratio)


def test_weights_act_as_repetitions():
    problem = make_problem()
    weight = integer_weights(len(problem.X))
    repeat = np.repeat(np.arange(len(problem.X)), weight.astype(int))
    for weighted, repeated in zip(
        reference.principal_directions(
            problem.X, problem.codes, problem.coef, 2, sample_weight=weight
        ),
        reference.principal_directions(
            problem.X[repeat], problem.codes[repeat], problem.coef, 2
        ),
        strict=True,
    ):
        assert_allclose(np.abs(weighted), np.abs(repeated), rtol=1e-9)


def test_discriminant_equals_that_of_scikit_learn():
    problem = make_problem(n_classes=3)
    pooled, shrinkages = 0, []
    for c in range(3):
        residuals = problem.X[problem.codes == c]
        residuals = residuals - residuals.mean(axis=0)
        deviations = residuals.std(axis=0)
        correlation, shrinkage = oas(residuals / deviations, assume_centered=True)
        covariance = correlation * np.outer(deviations, deviations)
        assert_allclose(
            reference.shrunk_correlation(residuals, np.ones(len(residuals))), covariance
        )
        pooled = pooled + np.mean(problem.codes == c) * covariance
        shrinkages.append(shrinkage)
    lda = LinearDiscriminantAnalysis(
        solver="lsqr", covariance_estimator=_FixedCovariance(pooled)
    ).fit(problem.X, problem.codes)
    coef, intercept = reference.discriminant_head(problem.X, problem.codes, 3)
    assert 0 < min(shrinkages) < max(shrinkages) < 1
    assert np.linalg.matrix_rank(coef, rtol=1e-6) == 2
    assert_allclose(
        reference.class_probabilities(problem.X @ coef.T + intercept),
        lda.predict_proba(problem.X),
        rtol=1e-8,
    )


class _FixedCovariance:
    """A covariance estimator that knows its answer: the pooled one."""

    def __init__(self, covariance):
        self.covariance_ = covariance

    def fit(self, X):
        return self


def test_least_squares_equals_that_of_scikit_learn():
    problem = make_problem(n_classes=3)
    logits = np.tanh(problem.logits)
    weight = integer_weights(len(logits))
    regression = LinearRegression().fit(problem.X, logits, sample_weight=weight)
    coef, intercept = reference.least_squares_head(problem.X, logits, weight)
    assert_allclose(coef, regression.coef_, rtol=1e-9)
    assert_allclose(intercept, regression.intercept_, rtol=1e-9)


def test_sigmoid_head_is_a_softmax_head_of_two_rows():
    values = np.linspace(-4, 4, 9)[:, None]
    assert_allclose(
        reference.class_probabilities(values)[:, 1], 1 / (1 + np.exp(-values[:, 0]))
    )


def test_centroid_directions_give_the_distances_to_the_centroids():
    problem = make_problem()
    projector = reference.null_space_projector(problem.coef)
    _, means = reference.class_weights_and_means(problem.X, problem.codes, 2)
    centroids = problem.X[:6].reshape(2, 3, -1)
    directions, offsets = reference.centroid_directions(centroids, means, projector)
    z = reference.projections(problem.X, directions, offsets)
    differences = (problem.X[:, None, None, :] - centroids) @ projector
    distances = np.sum(differences**2, axis=-1)
    sigma = 1.7
    assert_allclose(
        reference.within_class_probabilities(z, sigma**2),
        reference.within_class_probabilities(-distances / 2, sigma**2),
    )


def test_soft_labels_keep_the_class_mass():
    problem = make_problem(n_classes=3)
    _, directions = reference.principal_directions(
        problem.X, problem.codes, problem.coef, 2
    )
    _, means = reference.class_weights_and_means(problem.X, problem.codes, 3)
    offsets = reference.centred_offsets(directions, means)
    for beta in (0, 0.5):
        soft = reference.soft_labels(
            problem.X,
            directions,
            offsets,
            problem.logits,
            temperature=2,
            subclass_temperature=beta,
        )
        mass = soft.reshape(-1, 3, 2).sum(axis=2)
        assert_allclose(mass, reference.class_probabilities(problem.logits, 2))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cross_entropy_splits_into_classes_and_within(outputs_and_targets, temperature):
    outputs, targets = outputs_and_targets
    assert_allclose(
        reference.split_cross_entropy(outputs, targets, 2, temperature=temperature),
        reference.joint_cross_entropy(outputs, targets, temperature),
    )


def test_zero_subclass_weight_is_distillation_of_the_classes(outputs_and_targets):
    outputs, targets = outputs_and_targets
    assert_allclose(
        reference.split_cross_entropy(
            outputs, targets, 3, temperature=2.0, subclass_weight=0.0
        ),
        reference.joint_cross_entropy(
            reference.class_logits(outputs, 3, 2.0),
            targets.reshape(-1, 3, 2).sum(axis=2),
            2.0,
        ),
    )


def test_batch_loss_weighs_rows_and_skips_the_label_of_unlabelled_ones(
    outputs_and_targets,
):
    outputs, targets = outputs_and_targets
    codes = np.arange(20) % 2
    weight = integer_weights(20)
    repeat = np.repeat(np.arange(20), weight.astype(int))
    options = {"temperature": 2.0, "label_weight": 0.3}
    assert_allclose(
        reference.student_loss(
            outputs, targets, codes, 2, sample_weight=weight, **options
        ),
        reference.student_loss(
            outputs[repeat], targets[repeat], codes[repeat], 2, **options
        ),
    )
    unlabelled = reference.student_loss(
        outputs, targets, np.full(20, -1), 2, label_weight=0.3
    )
    assert_allclose(
        unlabelled, 0.7 * reference.student_loss(outputs, targets, codes, 2)
    )
