"""What the student refuses, by the message that says why and what to do."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import nn

from lelp_sklearn import (
    ClassOrderWarning,
    EmbeddingExtractor,
    LELPProjector,
    LELPStudentClassifier,
)
from tests.student_problems import (
    MatrixTeacher,
    MyNet,
    make_groups,
    make_soft_targets,
)

X, Y, TARGETS = make_soft_targets(n_rows=60)
_, _, E, HEAD = make_groups(n_rows=60)


class Untouched(MyNet):
    """A module that must never be trained."""

    def forward(self, X):
        if self.training:
            raise AssertionError("training began before the arguments were checked")
        return super().forward(X)


def student(**options):
    return LELPStudentClassifier(**{"module": Untouched, "max_epochs": 1, **options})


def refused(message, *, error=ValueError, X=X, y=Y, options=None, **data):
    data = data or {"soft_targets": TARGETS}
    with pytest.raises(error, match=message):
        student(**(options or {})).fit(X, y, **data)


def changed(array, row, value):
    array = np.array(array, dtype=float)
    array[row] = value
    return array


# Rows and labels


@pytest.mark.parametrize("as_given", [np.asarray, torch.tensor])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_row_that_is_not_finite(as_given, value):
    refused("Input X contains .*first in row 7", X=as_given(changed(X, 7, value)))


def test_sparse_tensor():
    sparse_tensor = torch.tensor(X).to_sparse()
    refused("pass a real and dense one", error=TypeError, X=sparse_tensor)


@pytest.mark.parametrize("shape", [(60,), (0, 3), (60, 0)])
def test_tensor_without_rows_or_features(shape):
    refused("Expected 2D or more", X=torch.zeros(shape))


def test_other_width_at_predict():
    fitted = LELPStudentClassifier(max_epochs=1).fit(X, Y, soft_targets=TARGETS)
    with pytest.raises(ValueError, match="X has 5 features, but LELPStudent"):
        fitted.predict(X[:, :5])
    with pytest.raises(ValueError, match="X has 5 features, but LELPStudent"):
        fitted.predict(torch.tensor(X[:, :5]))


def test_labels_of_other_length():
    refused("y has 59 rows and X has 60", y=Y[1:])


def test_one_class():
    refused("one class only", y=np.ones(60))
    refused("one class only", y=np.ones(60), teacher_embeddings=E)


def test_labels_that_the_frozen_projector_does_not_know():
    frozen = FrozenEstimator(LELPProjector(2, head=HEAD).fit(E, Y))
    options = {"projector": frozen}
    refused(
        r"labels \[5\] that are not among the classes \[0, 1\]",
        y=np.where(Y == 1, 5, Y),
        options=options,
        teacher_embeddings=E,
    )


def test_weights_that_are_no_weights():
    data = {"soft_targets": TARGETS}
    refused("is negative in row 3", sample_weight=changed(np.ones(60), 3, -1), **data)
    refused("zero for every row", sample_weight=np.zeros(60), **data)


def test_class_weight_of_no_class():
    options = {"class_weight": {7: 2.0}}
    refused(r"class_weight has weights for \[7\]", options=options)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, "2", None])
def test_class_weight_that_is_no_weight(value):
    options = {"class_weight": {0: 1.0, 1: value}}
    refused(r"class_weight\[1\]=.*finite numbers", options=options)


def test_class_weight_that_leaves_no_rows():
    options = {"class_weight": {0: 0.0, 1: 0.0}}
    refused("class_weight=.* gives every row of positive weight", options=options)


# Targets


def test_soft_targets_that_are_none():
    refused(
        "soft_targets has 5 columns, not a multiple of the 2 classes",
        soft_targets=np.full((60, 5), 0.2),
    )
    refused("does not sum to one in row 4", soft_targets=changed(TARGETS, 4, 0.3))
    refused(
        "negative in row 2.*not logits",
        soft_targets=changed(TARGETS, 2, [-1, 2, 0, 0, 0, 0]),
    )
    refused("soft_targets contains NaN", soft_targets=changed(TARGETS, 2, np.nan))
    refused("soft_targets has 59 rows and X has 60", soft_targets=TARGETS[1:])
    refused(r"soft_targets has shape \(60,\)", soft_targets=Y)


def test_soft_targets_whose_classes_nothing_says():
    refused("nothing says the classes", y=None)
    known = LELPStudentClassifier(projector=LELPProjector(3), max_epochs=1)
    np.testing.assert_array_equal(known.fit(X, soft_targets=TARGETS).classes_, [0, 1])


def test_soft_targets_that_are_not_of_the_subclasses_of_the_projector():
    refused(
        "soft_targets has 8 columns; 2 classes with n_subclasses=3 need 6",
        y=None,
        options={"projector": LELPProjector(3)},
        soft_targets=np.full((60, 8), 1 / 8),
    )


def test_teacher_data_of_other_length():
    refused("teacher_embeddings has 59 rows", teacher_embeddings=E[1:])
    refused("teacher_logits has 59 rows", teacher_logits=E[1:, :2])


def test_errors_of_the_projector_say_which_array_is_meant():
    given = student(projector=LELPProjector(99))
    with pytest.raises(ValueError, match="n_subclasses=99") as caught:
        given.fit(X, Y, teacher_embeddings=E)
    assert any("teacher_embeddings" in note for note in caught.value.__notes__)


def test_a_teacher_of_texts_after_a_vectorizer_is_told_what_it_reads():
    texts = ["a red card", "the pin", "a new card", "my pin"] * 5
    teacher = make_pipeline(TfidfVectorizer(), LogisticRegression())
    pipeline = make_pipeline(TfidfVectorizer(), student(teacher=teacher))
    with pytest.raises(AttributeError, match="lower") as caught:
        pipeline.fit(texts, [0, 1] * 10)
    assert any("teacher_embeddings" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("column", [list, np.array, pd.Series])
def test_texts_need_a_vectorizer(column):
    texts = column(["a red card", "the pin"] * 30)
    with pytest.raises(TypeError, match="put a vectorizer before"):
        student().fit(texts, Y)


def test_more_subclasses_than_there_are():
    refused(
        "n_subclasses=99 is more than class",
        options={"projector": LELPProjector(99, head=HEAD)},
        teacher_embeddings=E,
    )


def test_no_teacher_and_no_labels():
    with pytest.raises(ValueError, match=r"requires y to be passed.*no teacher"):
        student().fit(X)
    options = {"label_weight": 0.5}
    refused("requires y to be passed.*label_weight=0.5 needs", y=None, options=options)


def test_rows_that_cannot_take_the_place_of_embeddings():
    images = X.reshape(60, 2, 3)
    with pytest.raises(ValueError, match=r"X has 3 dimensions.*teacher_embeddings"):
        LELPStudentClassifier(projector=LELPProjector(1, head=HEAD)).fit(images, Y)


def test_projector_that_is_frozen_but_not_fitted():
    options = {"projector": FrozenEstimator(LELPProjector())}
    with pytest.raises(ValueError, match="not fitted"):
        student(**options).fit(X, Y, teacher_embeddings=E)


def test_projector_that_is_frozen_but_another_transformer():
    options = {"projector": FrozenEstimator(PCA(2).fit(E))}
    message = "projector is a FrozenEstimator of PCA; it must hold"
    refused(message, error=TypeError, options=options, teacher_embeddings=E)


# Modules, devices and parameters


def test_module_with_other_outputs():
    def net(n_features, n_outputs):
        return nn.Linear(n_features, n_outputs + 1)

    refused(r"output of shape \(2, 7\).*must be \(2, 6\)", options={"module": net})


def test_module_that_does_not_take_the_rows():
    def net(n_features, n_outputs):
        return nn.Linear(n_features + 1, n_outputs)

    refused("module fails on the first rows of X", options={"module": net})


def test_callable_that_makes_no_module():
    options = {"module": lambda n_features, n_outputs: "net"}
    refused("module returned str", error=TypeError, options=options)


def test_module_params_that_the_module_does_not_have():
    options = {"module_params": {"hiden": 3}}
    refused("cannot be called.*hiden", error=TypeError, options=options)
    options = {"module_params": {"hidden": 3}, "module": MyNet(6, 6)}
    refused("has no effect on an instance", options=options)
    options = {"module_params": {"hidden": 3}, "module": None}
    refused("multilayer_perceptron cannot be called", error=TypeError, options=options)


class Every(nn.Module):
    """Every second number."""

    def forward(self, x):
        return x[:, ::2]


def test_template_without_a_linear_layer():
    refused("runs no torch.nn.Linear to widen", options={"module": Every()})


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (Every(), r"output of shape \(2, 3\).*must be \(2, 6\)"),
        (nn.LayerNorm(4), "module fails on the first rows of X"),
    ],
)
def test_template_whose_other_layers_depend_on_its_outputs(after, message):
    module = nn.Sequential(nn.Linear(6, 4), after)
    message = f"{message}.*Only its linear layer '0' was widened: pass a callable"
    refused(message, options={"module": module})


def test_module_without_parameters():
    def net(n_features, n_outputs):
        return nn.Identity()

    options = {"module": net}
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        student(**options).fit(TARGETS, Y, soft_targets=TARGETS)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "xpu"])
def test_device_that_is_not_there(device):
    options = {"device": device}
    refused(f"device='{device}' cannot be used.*'auto'", options=options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_weight", 1.5),
        ("subclass_weight", -0.1),
        ("subclass_weight", "linear"),
        ("within_class_temperature", 0.0),
        ("class_weight", "equal"),
        ("optimizer", "adamx"),
        ("learning_rate", 0.0),
        ("learning_rate", "fast"),
        ("learning_rate_schedule", "step"),
        ("weight_decay", -1.0),
        ("max_grad_norm", 0.0),
        ("max_epochs", 0),
        ("batch_size", 0),
        ("validation_fraction", 1.0),
        ("n_iter_no_change", 0),
        ("projector", "pca"),
        ("projector", PCA(2)),
        ("teacher", object()),
        ("module", 3),
        ("random_state", "zero"),
    ],
)
def test_parameter_out_of_range(name, value):
    refused(f"The '{name}' parameter", options={name: value})


@pytest.mark.parametrize("name", ["subclass_weight", "learning_rate_schedule"])
@pytest.mark.parametrize("value", [-1.0, np.nan, "high"])
def test_schedule_that_gives_no_weight(name, value):
    options = {name: lambda progress: value if progress > 0.5 else 1.0}
    refused(f"{name} gives .* at progress 1", options=options)


class UntouchedTeacher(MatrixTeacher):
    def fit(self, X, y=None):
        raise AssertionError("the teacher began before the arguments were checked")


LBFGS = torch.optim.LBFGS


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda p, lr, weight_decay: None, "optimizer returned NoneType; it must"),
        (lambda p, lr: torch.optim.SGD(p, lr), "cannot be called as optimizer.*Pass"),
        (
            lambda p, lr, weight_decay: torch.optim.SGD(p, lr, momentm=0.9),
            "cannot be called as optimizer.*momentm",
        ),
        (torch.optim.Rprop, "Rprop cannot be called as optimizer.*Pass"),
        (LBFGS, "LBFGS needs a closure"),
        (lambda p, lr, weight_decay: LBFGS(p, lr), "LBFGS needs a closure"),
    ],
    ids=["returns None", "two arguments", "typo", "no decay", "LBFGS", "makes LBFGS"],
)
def test_optimizer_that_cannot_be_used(optimizer, message):
    options = {"optimizer": optimizer, "teacher": UntouchedTeacher()}
    with pytest.raises(TypeError, match=message):
        student(**options).fit(X, Y)
    with pytest.raises(TypeError, match=message):
        student(**options).partial_fit(X, Y, classes=[0, 1])


def test_optimizer_that_is_none_for_the_parameters_of_the_module():
    def optimizer(parameters, lr, weight_decay):
        by_layer = [{"params": parameters[:2]}, {"params": parameters[2]}]
        assert by_layer

    message = "optimizer returned NoneType; it must"
    refused(message, error=TypeError, options={"optimizer": optimizer})


# Validation rows and streams


def test_validation_rows_that_are_incomplete_or_of_no_use():
    data = {"soft_targets": TARGETS, "X_val": X}
    refused("early_stopping is False", y_val=Y, **data)
    stopping = {"early_stopping": True}
    refused("nothing says its classes: pass y_val", options=stopping, **data)
    refused(
        "teacher_embeddings_val is given and there is no projector",
        options=stopping,
        teacher_embeddings_val=E,
        **data,
    )
    data = {"soft_targets": TARGETS}
    refused("y_val is given without X_val", options=stopping, y_val=Y, **data)
    refused(
        "teacher_embeddings_val is given without X_val",
        options=stopping,
        teacher_embeddings_val=E,
        **data,
    )


def test_validation_rows_of_another_shape():
    with pytest.raises(ValueError, match="X has 5 features") as caught:
        student(early_stopping=True).fit(
            X, Y, soft_targets=TARGETS, X_val=X[:, :5], y_val=Y
        )
    assert any("X_val" in note for note in caught.value.__notes__)


def test_too_few_rows_to_hold_out():
    refused(
        "validation_fraction=0.1 of 2 rows holds out none",
        X=X[:2],
        y=[0, 1],
        soft_targets=TARGETS[:2],
        options={"early_stopping": True},
    )


def test_partial_fit_without_what_it_needs():
    data = {"soft_targets": TARGETS}
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        student().partial_fit(X, Y, **data)
    with pytest.raises(ValueError, match="does not support early_stopping"):
        student(early_stopping=True).partial_fit(X, Y, classes=[0, 1], **data)
    with pytest.raises(ValueError, match="does not support class_weight='balanced'"):
        student(class_weight="balanced").partial_fit(X, Y, classes=[0, 1], **data)
    with pytest.raises(ValueError, match=r"no rows of \[2\]"):
        student().partial_fit(X, Y, classes=[0, 1, 2], teacher_embeddings=E)


def test_classes_that_the_first_block_or_the_projector_does_not_have():
    _, y, embeddings, head = make_groups(n_rows=60, n_classes=3)
    data = {"teacher_embeddings": embeddings}
    classes = [0, 1, 2]
    given = student(projector=LELPProjector(2, head=head), unlabeled=-1)
    with pytest.raises(ValueError, match=r"first block .* no rows of \[2\]"):
        given.partial_fit(X, y % 2, classes=classes, **data)
    # The head puts no row into class 2, which no row is labelled with.
    never = head[0], np.array([0, 0, -1e6])
    given.set_params(projector=LELPProjector(2, head=never))
    with pytest.raises(ValueError, match="class 2 has no samples"):
        given.partial_fit(X, np.where(y == 2, -1, y), classes=classes, **data)
    frozen = FrozenEstimator(LELPProjector(2, head=HEAD).fit(E, Y))
    message = r"classes=\[0, 1, 2\] are not those of the projector, \[0, 1\]"
    for data in ({"teacher_embeddings": E}, {"soft_targets": TARGETS}):
        with pytest.raises(ValueError, match=message):
            student(projector=frozen).partial_fit(X, Y, classes=classes, **data)


def test_stream_that_goes_on_without_its_targets():
    fitted = LELPStudentClassifier().partial_fit(
        X, Y, classes=[0, 1], soft_targets=TARGETS
    )
    with pytest.raises(ValueError, match="fitted on soft_targets: pass them again"):
        fitted.partial_fit(X, Y, teacher_embeddings=E)
    with pytest.raises(
        ValueError, match=r"targets have 4 columns and the .* 6 outputs"
    ):
        fitted.partial_fit(X, Y, soft_targets=np.full((60, 4), 0.25))
    projector = LELPProjector(2, head=HEAD)
    fitted = LELPStudentClassifier(projector=projector).partial_fit(
        X, Y, classes=[0, 1], teacher_embeddings=E
    )
    with pytest.raises(ValueError, match="on teacher_embeddings: pass them again"):
        fitted.partial_fit(X, Y)


def test_teacher_without_transform():
    class Classifier:
        def fit(self, X, y):
            return self

    refused("The 'teacher' parameter", options={"teacher": Classifier()})


def test_soft_targets_of_other_subclasses_than_the_projectors():
    rng = np.random.RandomState(0)
    soft_targets = rng.dirichlet(np.ones(6), size=40)
    student = LELPStudentClassifier(projector=LELPProjector(2), max_epochs=1)
    with pytest.raises(ValueError, match=r"6 columns.*n_subclasses=2 need 4"):
        student.fit(
            rng.normal(size=(40, 3)), np.arange(40) % 2, soft_targets=soft_targets
        )


# The teacher by its name


def refused_embeddings(message, *, projector=None, error=ValueError, **data):
    projector = LELPProjector(2, head=HEAD) if projector is None else projector
    with pytest.raises(error, match=message):
        student(projector=projector).fit(X, Y, **data)


def test_embeddings_that_are_missing_or_of_another_width():
    fitted = FrozenEstimator(LELPProjector(2, head=HEAD).fit(E, Y))
    classifier = LogisticRegression().fit(E, Y)
    linear = torch.nn.Linear(9, 2)
    heads = [LELPProjector(2, head=head) for head in (HEAD, classifier, linear)]
    for projector in (fitted, *heads):
        message = r"teacher_embeddings are missing: X.*6 features.*reads 9"
        refused_embeddings(message, projector=projector)
        message = r"teacher_embeddings has 7 features.*reads 9"
        refused_embeddings(message, projector=projector, teacher_embeddings=E[:, :7])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_named(value):
    found = "NaN" if np.isnan(value) else "infinity"
    refused_embeddings(
        f"Input teacher_embeddings contains {found}.*row 7",
        teacher_embeddings=changed(E, 7, value),
    )
    given = student(module=None, projector=LELPProjector(2), early_stopping=True)
    with pytest.raises(
        ValueError, match=f"Input teacher_embeddings_val contains {found}.*row 7"
    ):
        given.fit(
            X,
            Y,
            teacher_embeddings=E,
            X_val=X,
            teacher_embeddings_val=changed(E, 7, value),
        )
    matrix = changed(np.eye(6), 2, value)
    with pytest.raises(ValueError, match=r"teacher\.transform\(X\) contains"):
        student(teacher=MatrixTeacher(matrix)).fit(X, Y)


def test_models_in_the_place_of_what_they_make():
    message = r"Got Linear\. Wrap a torch module, EmbeddingExtractor\(module\)"
    refused(message, options={"teacher": nn.Linear(6, 9)})
    refused(r"such as EmbeddingExtractor, .*Got int\.$", options={"teacher": 3})
    extractor = EmbeddingExtractor(nn.Linear(6, 9))
    refused_embeddings(
        "teacher_embeddings is EmbeddingExtractor; it must be an array.*teacher=",
        error=TypeError,
        teacher_embeddings=extractor,
    )


@pytest.mark.parametrize("kind", ["soft_targets", "frozen"])
def test_targets_with_classes_in_another_order_are_noticed(kind):
    given, projector = {"soft_targets": TARGETS}, None
    if kind == "frozen":
        fitted = LELPProjector(2, head=HEAD).fit(E, Y)
        given, projector = {"teacher_embeddings": E}, FrozenEstimator(fitted)
    trained = student(module=None, projector=projector)
    trained.fit(X, Y, **given)
    with pytest.warns(ClassOrderWarning, match="sorted labels"):
        trained.fit(X, 1 - Y, **given)
