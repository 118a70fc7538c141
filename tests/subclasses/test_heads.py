"""Every form of the class head, and both ways to do without one."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.svm import SVC, LinearSVC

from lelp_sklearn import ClassOrderWarning, LELPProjector, ProbabilitiesAsLogitsWarning
from tests import reference
from tests.problems import integer_weights, make_problem

NAMES = np.array(["ant", "bee", "cow"])


def class_mass(projector, X, **metadata):
    return projector.inverse_transform(projector.transform(X, **metadata))


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("as_type", [np.asarray, np.float32, np.ndarray.tolist])
def test_pair_of_coefficients_and_intercepts(n_classes, as_type):
    problem = make_problem(n_classes=n_classes)
    head = tuple(as_type(part) for part in problem.head)
    projector = LELPProjector(n_subclasses=2, head=head, temperature=1.0).fit(
        problem.X, problem.codes
    )
    assert_allclose(projector.coef_, problem.coef, rtol=1e-6)
    assert_allclose(projector.intercept_, problem.intercept, rtol=1e-6)
    assert_allclose(
        class_mass(projector, problem.X),
        reference.class_probabilities(problem.logits),
        atol=1e-6,
    )


@pytest.mark.parametrize("flat", [True, False])
def test_one_row_is_a_sigmoid_head(flat):
    problem = make_problem()
    row, bias = problem.coef[:1], 0.3
    head = (row[0], bias) if flat else (row, np.array([bias]))
    # The row is that of the first class, here of the second.
    y = 1 - problem.codes
    projector = LELPProjector(n_subclasses=2, head=head, temperature=1.0).fit(
        problem.X, y
    )
    positive = 1 / (1 + np.exp(-(problem.X @ row[0] + bias)))
    assert_allclose(class_mass(projector, problem.X)[:, 1], positive, atol=1e-12)
    coef, intercept = reference.two_rows(row, bias)
    assert_allclose(projector.coef_, coef)
    assert_allclose(projector.intercept_, intercept)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    "classifier",
    [
        LogisticRegression(max_iter=5000),
        LinearSVC(random_state=0),
        RidgeClassifier(),
        SGDClassifier(random_state=0),
    ],
    ids=lambda classifier: type(classifier).__name__,
)
@pytest.mark.parametrize("fitted", [True, False])
def test_linear_classifier(classifier, n_classes, fitted):
    problem = make_problem(n_classes=n_classes)
    y = NAMES[problem.codes]
    trained = clone(classifier).fit(problem.X, y)
    head = trained if fitted else clone(classifier)
    projector = LELPProjector(
        temperature=1.0, n_subclasses=2, head=head, svd_solver="full"
    ).fit(problem.X, y)
    coef, intercept = reference.two_rows(trained.coef_, trained.intercept_)
    assert_allclose(projector.coef_, coef)
    assert_allclose(projector.intercept_, intercept)
    decision = trained.decision_function(problem.X).reshape(len(y), -1)
    assert_allclose(
        class_mass(projector, problem.X),
        reference.class_probabilities(decision),
        atol=1e-10,
    )


def test_unfitted_classifier_is_left_unfitted():
    problem = make_problem()
    head = LogisticRegression(max_iter=5000)
    LELPProjector(n_subclasses=2, head=head).fit(problem.X, problem.codes)
    with pytest.raises(NotFittedError):
        head.predict(problem.X)


def test_unfitted_classifier_is_fitted_with_the_weights():
    problem = make_problem(n_classes=3)
    weight = integer_weights(len(problem.X))
    classifier = LogisticRegression(max_iter=5000, tol=1e-10)
    trained = clone(classifier).fit(problem.X, problem.codes, weight)
    projector = LELPProjector(n_subclasses=2, head=classifier)
    projector.fit(problem.X, problem.codes, sample_weight=weight)
    assert_allclose(projector.coef_, trained.coef_, atol=1e-4)


def test_classes_of_a_fitted_classifier_hold_for_unlabelled_rows():
    problem = make_problem(n_classes=3)
    head = LogisticRegression(max_iter=5000).fit(problem.X, NAMES[problem.codes])
    projector = LELPProjector(n_subclasses=2, head=head).fit(problem.X)
    assert_array_equal(projector.classes_, NAMES)
    predicted = LELPProjector(n_subclasses=2, head=head).fit(
        problem.X, head.predict(problem.X)
    )
    assert_allclose(projector.mean_, predicted.mean_)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.filterwarnings("ignore::lelp_sklearn.ClassOrderWarning")
def test_torch_linear(n_classes, bias, dtype):
    problem = make_problem(n_classes=n_classes)
    linear = torch.nn.Linear(12, n_classes, bias=bias, dtype=dtype)
    projector = LELPProjector(n_subclasses=2, head=linear).fit(problem.X, problem.codes)
    coef = linear.weight.detach().double().numpy()
    intercept = linear.bias.detach().double().numpy() if bias else np.zeros(n_classes)
    assert_allclose(projector.coef_, coef, rtol=1e-12)
    assert_allclose(projector.intercept_, intercept, rtol=1e-12)
    assert linear.weight.requires_grad
    assert linear.weight.grad is None


class Cosine(torch.nn.Linear):
    """Normalises its weights."""

    def forward(self, x):
        return 16 * torch.nn.functional.linear(
            x, torch.nn.functional.normalize(self.weight)
        )


class WithLabels(torch.nn.Linear):
    """Takes the labels too, as heads with a margin do in training."""

    def forward(self, x, labels):
        return super().forward(x) - torch.nn.functional.one_hot(labels)


class Adapted(torch.nn.Module):
    """Shows the weights of the layer that it changes."""

    def __init__(self, base):
        super().__init__()
        self.base, self.change = base, torch.nn.Linear(12, 2, bias=False)
        self.weight, self.out_features = base.weight, base.out_features

    def forward(self, x):
        return self.base(x) + self.change(x)


@pytest.mark.parametrize(
    "head",
    [Cosine(12, 2, bias=False), WithLabels(12, 2), Adapted(torch.nn.Linear(12, 2))],
)
def test_a_layer_with_a_forward_of_its_own_is_no_head(head):
    problem = make_problem()
    with pytest.raises(
        ValueError, match=r"not its weights times its input.*teacher_logits"
    ):
        LELPProjector(2, head=head).fit(problem.X, problem.codes)


@pytest.mark.filterwarnings("ignore::lelp_sklearn.ClassOrderWarning")
def test_a_layer_with_weight_norm_is_a_head():
    problem = make_problem()
    linear = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(12, 2))
    projector = LELPProjector(2, head=linear).fit(problem.X, problem.codes)
    with torch.no_grad():
        logits = linear(torch.as_tensor(problem.X, dtype=torch.float32)).numpy()
    found = problem.X @ projector.coef_.T + projector.intercept_
    assert_allclose(found, logits, atol=1e-4)


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.filterwarnings("ignore::lelp_sklearn.ClassOrderWarning")
def test_a_pair_without_intercept_is_a_layer_without_bias(kind):
    problem = make_problem(n_classes=3)
    linear = torch.nn.Linear(12, 3, bias=False, dtype=torch.float64)
    layer, pair = (
        LELPProjector(n_subclasses=2, head=head, random_state=0)
        for head in (linear, kind((linear.weight, linear.bias)))
    )
    assert_array_equal(
        pair.fit_transform(problem.X, problem.codes),
        layer.fit_transform(problem.X, problem.codes),
    )
    assert_array_equal(pair.intercept_, np.zeros(3))


@pytest.mark.filterwarnings("ignore::lelp_sklearn.ClassOrderWarning")
def test_torch_linear_with_one_output_is_a_sigmoid_head():
    problem = make_problem()
    linear = torch.nn.Linear(12, 1, dtype=torch.float64)
    projector = LELPProjector(n_subclasses=2, head=linear).fit(problem.X, problem.codes)
    with torch.no_grad():
        positive = torch.sigmoid(linear(torch.as_tensor(problem.X)))[:, 0]
    assert_allclose(class_mass(projector, problem.X)[:, 1], positive, atol=1e-12)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("weighted", [True, False])
def test_without_head_and_logits_it_is_the_discriminant(n_classes, weighted):
    problem = make_problem(n_classes=n_classes)
    weight = integer_weights(len(problem.X)) if weighted else None
    projector = LELPProjector(temperature=1.0, n_subclasses=2, svd_solver="full").fit(
        problem.X, problem.codes, sample_weight=weight
    )
    coef, intercept = reference.discriminant_head(
        problem.X, problem.codes, n_classes, weight
    )
    assert_allclose(projector.coef_, coef, rtol=1e-8)
    assert_allclose(projector.intercept_, intercept, rtol=1e-8)
    assert_allclose(
        class_mass(projector, problem.X),
        reference.class_probabilities(problem.X @ coef.T + intercept),
        atol=1e-9,
    )


def test_discriminant_does_not_depend_on_where_the_embeddings_lie():
    problem = make_problem(n_classes=3)
    here, there = (LELPProjector(n_subclasses=2, splitter="pca") for _ in range(2))
    here.fit(problem.X, problem.codes)
    there.fit(problem.X + 100, problem.codes)
    assert_allclose(there.coef_, here.coef_, rtol=1e-6)
    assert_allclose(there.spectrum_, here.spectrum_, rtol=1e-6)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("teacher", ["discriminant", "logistic"])
def test_rows_that_sum_to_zero_have_one_rank_less(n_classes, seed, teacher):
    problem = make_problem(n_classes=n_classes, seed=seed)
    head = LogisticRegression(max_iter=5000) if teacher == "logistic" else None
    projector = LELPProjector(
        n_subclasses=12 - (n_classes - 1), splitter="random", head=head
    )
    projector.fit(problem.X, problem.codes)
    with pytest.raises(ValueError, match="n_subclasses"):
        projector.set_params(n_subclasses=12 - (n_classes - 2)).fit(
            problem.X, problem.codes
        )


def test_discriminant_with_more_features_than_rows():
    problem = make_problem(n_rows=30, n_features=50, decay=0.97)
    projector = LELPProjector(n_subclasses=2).fit(problem.X, problem.codes)
    coef, _ = reference.discriminant_head(problem.X, problem.codes, 2)
    assert_allclose(projector.coef_, coef, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("weighted", [True, False])
def test_without_head_the_logits_give_the_least_squares_map(n_classes, weighted):
    problem = make_problem(n_classes=n_classes)
    weight = integer_weights(len(problem.X)) if weighted else None
    logits = np.tanh(problem.logits)
    projector = LELPProjector(n_subclasses=2, svd_solver="full").fit(
        problem.X, problem.codes, teacher_logits=logits, sample_weight=weight
    )
    coef, intercept = reference.least_squares_head(problem.X, logits, weight)
    assert_allclose(projector.coef_, coef, atol=1e-9)
    assert_allclose(projector.intercept_, intercept, atol=1e-9)


def test_logits_that_come_from_a_head_give_it_back():
    problem = make_problem(n_classes=3)
    given = LELPProjector(n_subclasses=3, splitter="pca", head=problem.head)
    found = LELPProjector(n_subclasses=3, splitter="pca")
    given.fit(problem.X, problem.codes)
    found.fit(problem.X, problem.codes, teacher_logits=problem.logits)
    assert_allclose(found.coef_, problem.coef, atol=1e-9)
    assert_allclose(found.intercept_, problem.intercept, atol=1e-9)
    assert_allclose(found.spectrum_, given.spectrum_, rtol=1e-6)


def test_one_column_of_logits_gives_a_sigmoid_head():
    problem = make_problem()
    row, bias = problem.coef[1:], problem.intercept[1:]
    column = problem.X @ row.T + bias
    projector = LELPProjector(temperature=1.0, n_subclasses=2).fit(
        problem.X, problem.codes, teacher_logits=column
    )
    coef, intercept = reference.two_rows(row, bias)
    assert_allclose(projector.coef_, coef, atol=1e-9)
    assert_allclose(projector.intercept_, intercept, atol=1e-9)
    for directions in projector.components_:
        assert_allclose(directions @ row.T, 0, atol=1e-9)


def test_least_squares_head_with_more_features_than_rows_is_the_smallest():
    problem = make_problem(n_rows=24, n_features=40, decay=0.97)
    projector = LELPProjector(temperature=1.0, n_subclasses=1).fit(
        problem.X, problem.codes, teacher_logits=problem.logits
    )
    coef, _ = reference.least_squares_head(problem.X, problem.logits)
    assert_allclose(projector.coef_, coef, atol=1e-6)


def test_columns_of_logits_follow_the_classes():
    problem = make_problem(n_classes=3)
    y = np.array(["c", "a", "b"])[problem.codes]
    order = [1, 2, 0]
    projector = LELPProjector(n_subclasses=2, random_state=0).fit(
        problem.X, y, teacher_logits=problem.logits[:, order]
    )
    assert_array_equal(projector.classes_, ["a", "b", "c"])
    assert_allclose(projector.coef_, problem.coef[order], atol=1e-9)


def test_head_may_be_a_calibrated_teachers_log_probabilities():
    problem = make_problem()
    teacher = CalibratedClassifierCV(LogisticRegression(max_iter=5000), cv=2).fit(
        problem.X, problem.codes
    )
    logits = np.log(teacher.predict_proba(problem.X))
    projector = LELPProjector(n_subclasses=2, random_state=0)
    projector.fit(problem.X, problem.codes, teacher_logits=logits)
    assert_allclose(
        class_mass(projector, problem.X, teacher_logits=logits), np.exp(logits)
    )


def test_support_vector_machine_of_two_classes_is_a_sigmoid_head():
    problem = make_problem()
    svc = SVC(kernel="linear").fit(problem.X, problem.codes)
    projector = LELPProjector(2, head=svc).fit(problem.X, problem.codes)
    logits = projector.coef_ @ problem.X.T + projector.intercept_[:, None]
    assert_allclose(logits[1] - logits[0], svc.decision_function(problem.X))


@pytest.mark.parametrize("kind", ["arrays", "tensors"])
def test_a_fitted_projector_is_apart_from_the_arrays_of_the_caller(kind):
    problem = make_problem()
    as_kind = np.array if kind == "arrays" else torch.tensor
    coef, intercept = as_kind(problem.coef), as_kind(problem.intercept)
    directions = np.random.RandomState(0).normal(size=(2, 3, 12))
    projector = LELPProjector(splitter=directions, head=(coef, intercept))
    soft = projector.fit_transform(problem.X, problem.codes)
    coef *= 0
    intercept += 1
    directions *= -1
    assert_array_equal(projector.transform(problem.X), soft)


def test_an_edited_classifier_changes_no_fitted_projector():
    problem = make_problem()
    head = LogisticRegression().fit(problem.X, problem.codes)
    projector = LELPProjector(2, head=head).fit(problem.X, problem.codes)
    soft = projector.transform(problem.X)
    head.coef_ *= -1
    head.classes_ += 1
    assert_array_equal(projector.transform(problem.X), soft)
    assert_array_equal(projector.classes_, [0, 1])


def test_a_fitted_head_stays_fitted_in_a_clone():
    problem = make_problem()
    head = LogisticRegression(C=1e-4).fit(problem.X, problem.codes)
    first, second = slice(0, 100), slice(60, 160)
    projector = LELPProjector(2, head=head, random_state=0)
    twin = clone(projector)
    assert twin.head is not head
    for each in (projector, twin):
        each.fit(problem.X[first], problem.codes[first])
        assert_allclose(each.coef_[1] - each.coef_[0], head.coef_[0])
    twin.set_params(head__C=7.0)
    assert head.C == 1e-4
    # One that is not fitted is fitted on the rows of each fit, in clones too.
    twin = clone(LELPProjector(2, head=LogisticRegression(C=1e-4)))
    twin.fit(problem.X[second], problem.codes[second])
    own = LogisticRegression(C=1e-4).fit(problem.X[second], problem.codes[second])
    assert_allclose(twin.coef_[1] - twin.coef_[0], own.coef_[0])


def test_rows_are_not_copied_for_a_classifier_where_all_have_labels():
    problem = make_problem()

    class Witness(LogisticRegression):
        def fit(self, X, y, sample_weight=None):
            assert np.shares_memory(X, problem.X)
            return super().fit(X, y, sample_weight)

    LELPProjector(2, head=Witness()).fit(problem.X, problem.codes)


# The order of the classes


def shuffled(n_classes, kind):
    problem = make_problem(n_classes=n_classes, n_rows=300)
    order = np.roll(np.arange(n_classes), 1)
    if kind == "logits":
        options, given = {}, {"teacher_logits": problem.logits[:, order]}
    else:
        options, given = {"head": (problem.coef[order], problem.intercept[order])}, {}
    return LELPProjector(2, **options), problem, given


@pytest.mark.parametrize("kind", ["logits", "head"])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_classes_of_the_teacher_in_another_order_are_noticed(n_classes, kind):
    projector, problem, given = shuffled(n_classes, kind)
    names = np.array(["ant", "bee", "cow", "dog"])[problem.codes]
    with pytest.warns(ClassOrderWarning, match="order of the sorted labels"):
        projector.fit(problem.X, names, **given)
    # Nothing says the order where there are no labels.
    projector.fit(problem.X, **given)


def test_a_poor_teacher_is_no_teacher_in_another_order():
    problem = make_problem(n_classes=4, n_rows=300)
    rng = np.random.RandomState(0)
    y = np.where(rng.rand(300) < 0.3, problem.codes, rng.randint(4, size=300))
    LELPProjector(2, head=problem.head).fit(problem.X, y)
    LELPProjector(2, head=problem.head).fit(problem.X, rng.permutation(y))


def test_probabilities_are_no_logits():
    problem = make_problem(n_classes=3)
    logits = problem.logits
    p = softmax(logits, axis=1).astype(np.float32)
    projector = LELPProjector(2, random_state=0)
    with pytest.warns(ProbabilitiesAsLogitsWarning, match="logarithm"):
        projector.fit(problem.X, problem.codes, teacher_logits=p)
    projector.fit(problem.X, problem.codes, teacher_logits=np.log(p))
    with pytest.warns(ProbabilitiesAsLogitsWarning, match="logarithm"):
        projector.transform(problem.X, teacher_logits=p)
    for others in (logits, np.log(p), np.abs(logits), p - 1e-3, 2 * p):
        projector.transform(problem.X, teacher_logits=others)
