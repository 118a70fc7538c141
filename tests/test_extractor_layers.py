"""Embeddings of an earlier layer, and the logits of the model beside them."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from torch import nn

from lelp_sklearn import (
    EmbeddingExtractor,
    LELPProjector,
    LELPStudentClassifier,
    NoLinearHeadWarning,
    subclass_report,
)
from tests.extractor_problems import logits_of, make_model, rows


def earlier_layer(model, X, y, **options):
    """A student of a model's earlier layer, and what that teacher says of rows."""
    extractor = EmbeddingExtractor(model, layer="4").fit(X)
    student = LELPStudentClassifier(
        teacher=extractor,
        projector=LELPProjector(2),
        max_epochs=2,
        random_state=0,
        **options,
    )
    return student, {
        "teacher_embeddings": extractor.transform(X),
        "teacher_logits": extractor.predict_logits(X),
    }


def test_logits_are_those_of_the_model_whichever_layer_is_taken():
    X, model = rows(), make_model()
    extractor = EmbeddingExtractor(model, layer="4", batch_size=16).fit(X)
    with torch.no_grad():
        expected = model.eval()[:4](torch.from_numpy(X)).numpy()
    assert_allclose(extractor.transform(X), expected, rtol=1e-5, atol=1e-6)
    found = extractor.predict_logits(X)
    assert found.dtype == np.float32
    assert found.shape == (50, extractor.n_logits_)
    assert_allclose(found, logits_of(model, X), rtol=1e-5, atol=1e-6)
    assert extractor.head_layer_ == "6"


class Ending(nn.Module):
    """Does something with the logits before it returns them."""

    def __init__(self, ending, n_outputs):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(6, 5)
        self.head = nn.Linear(5, n_outputs)
        self.ending = ending

    def forward(self, x):
        return self.ending(self.head(torch.relu(self.body(x))))


@pytest.mark.parametrize(
    ("ending", "n_outputs"),
    [
        (nn.Softmax(1), 2),
        (nn.LogSoftmax(1), 3),
        (nn.Sigmoid(), 1),
        (lambda logits: logits.squeeze(-1), 1),
        (lambda logits: {"loss": None, "logits": logits}, 2),
        (lambda logits: {"classes": logits, "aux": logits[:, :1]}, 2),
        (lambda logits: (logits, None), 2),
        (lambda logits: SimpleNamespace(mask=logits > 0, logits=logits), 2),
    ],
)
def test_logits_are_those_that_the_head_makes(ending, n_outputs):
    """One row more than whole batches: a model may squeeze what it returns."""
    X, model = rows(33), Ending(ending, n_outputs)
    extractor = EmbeddingExtractor(model, layer="body", batch_size=16).fit(X)
    assert (extractor.head_layer_, extractor.n_logits_) == ("head", n_outputs)
    with torch.no_grad():
        expected = model.head(torch.relu(model.body(torch.from_numpy(X)))).numpy()
    found = extractor.predict_logits(X)
    if n_outputs > 1:
        found, expected = log_softmax(found, axis=1), log_softmax(expected, axis=1)
    assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    extractor.set_params(layer=None)
    W, b = extractor.fit(X).head_
    assert_array_equal(W, model.head.weight.detach())
    assert_array_equal(b, model.head.bias.detach())


class TwoHeads(nn.Module):
    """The one that is returned is not the last."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(6, 5)
        self.head = nn.Linear(5, 2)
        self.other = nn.Linear(5, 2)

    def forward(self, x):
        hidden = torch.relu(self.body(x))
        self.other(hidden)
        return self.head(hidden)


def test_logits_are_of_the_head_that_the_model_returns():
    X, model = rows(), TwoHeads()
    extractor = EmbeddingExtractor(model, layer="body").fit(X)
    assert_allclose(extractor.predict_logits(X), logits_of(model, X), rtol=1e-5)
    W, b = EmbeddingExtractor(model, layer="head").fit(X).head_
    hidden = EmbeddingExtractor(model, layer="head").fit_transform(X)
    assert_allclose(hidden @ W.T + b, logits_of(model, X), rtol=1e-4, atol=1e-5)


class NoLogits(nn.Module):
    """Its last linear layer sees every place of a row."""

    def __init__(self):
        super().__init__()
        self.linear, self.pool = nn.Linear(1, 2), nn.Flatten()

    def forward(self, x):
        return self.pool(self.linear(x[:, :, None]))


def test_a_model_without_logits_has_none():
    X = rows()
    extractor = EmbeddingExtractor(NoLogits(), layer="pool")
    with pytest.raises(NotFittedError):
        extractor.predict_logits(X)
    with pytest.raises(ValueError, match="takes an input of shape"):
        extractor.fit(X)
    model = nn.Sequential(NoLogits(), nn.Tanh(), nn.Identity())
    model.append(nn.Unflatten(1, (6, 2)))
    extractor = EmbeddingExtractor(model, layer="2").fit(X)
    assert (extractor.head_layer_, extractor.n_logits_) == (None, 0)
    with pytest.raises(ValueError, match="model has no logits"):
        extractor.predict_logits(X)
    extractor = EmbeddingExtractor(nn.Sequential(nn.Linear(6, 12), model[-1]))
    with pytest.warns(NoLinearHeadWarning, match="not return one vector of logits"):
        assert_array_equal(extractor.fit_transform(X), X)


def test_logits_that_are_not_finite_are_refused_by_row():
    X, model = rows(), make_model()
    extractor = EmbeddingExtractor(model, layer="4").fit(X)
    with torch.no_grad():
        model[-1].bias.fill_(np.inf)
    with pytest.raises(ValueError, match="NaN or infinity as the logits of row 0"):
        extractor.predict_logits(X)


def test_embeddings_are_kept_from_what_the_model_does_in_place():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 2))
    X = rows()
    found = EmbeddingExtractor(model, layer="1").fit_transform(X)
    with torch.no_grad():
        expected = model[0](torch.from_numpy(X)).numpy()
    assert (expected < 0).any()
    assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_outputs", [2, 1])
def test_a_student_takes_the_logits_of_a_teacher_without_a_head(n_outputs):
    X, model = rows(200), make_model()
    model[-1] = nn.Linear(5, n_outputs)
    y = (X[:, 0] > 0).astype(int)
    student, of_teacher = earlier_layer(model, X, y)
    given = clone(student).set_params(teacher=None).fit(X, y, **of_teacher)
    expected = given.predict_proba(X)
    embeddings = {"teacher_embeddings": of_teacher["teacher_embeddings"]}
    frozen = clone(student).set_params(teacher=FrozenEstimator(student.teacher))
    for found in (
        clone(student).fit(X, y),
        clone(student).fit(X, y, **embeddings),
        frozen.fit(X, y),
    ):
        assert_array_equal(found.predict_proba(X), expected)
        # Of rows that come later it asks too.
        found.partial_fit(X[:50], y[:50])
    blocks = {name: array[:50] for name, array in of_teacher.items()}
    given.partial_fit(X[:50], y[:50], **blocks)
    assert_array_equal(found.predict_proba(X), given.predict_proba(X))
    # Logits that are given count more than those of the model.
    other = clone(student).fit(X, y, teacher_logits=np.zeros((200, 2)))
    assert not np.array_equal(other.predict_proba(X), expected)


def test_validation_rows_are_judged_by_the_models_logits():
    """They are far from linear in the layer: a map that is fitted would differ."""
    X, X_val, model = rows(200), rows(60, seed=1), make_model()
    y, y_val = (X[:, 0] > 0).astype(int), (X_val[:, 0] > 0).astype(int)
    with torch.no_grad():
        model[4].weight.mul_(20)
        model[-1].weight.mul_(5)
    student, _ = earlier_layer(model, X, y, early_stopping=True)
    student.fit(X, y, X_val=X_val, y_val=y_val)
    logits = torch.from_numpy(logits_of(model, X_val))
    targets = torch.softmax(logits, dim=1).numpy()
    log_likelihood = (targets * np.log(student.predict_proba(X_val))).sum(axis=1)
    assert_allclose(student.validation_scores_[-1], log_likelihood.mean(), rtol=1e-4)


def test_a_pickled_student_asks_for_the_teacher_that_it_left_behind():
    X, model = rows(200), make_model()
    y = (X[:, 0] > 0).astype(int)
    student, of_teacher = earlier_layer(model, X, y)
    loaded = pickle.loads(pickle.dumps(student.fit(X, y)))
    embeddings = {"teacher_embeddings": of_teacher["teacher_embeddings"]}
    with pytest.raises(ValueError, match="was left out"):
        loaded.partial_fit(X, y, **embeddings)
    student.partial_fit(X, y, **embeddings)
    loaded.partial_fit(X, y, **of_teacher)
    assert_array_equal(loaded.predict_proba(X), student.predict_proba(X))


def test_the_layer_is_one_more_parameter_of_a_search():
    X, model = rows(120), make_model()
    y = (X[:, 0] > 0).astype(int)
    student, of_teacher = earlier_layer(model, X, y)
    search = GridSearchCV(student, {"teacher__layer": [None, "4"]}, cv=2).fit(X, y)
    given = clone(student).set_params(teacher=None)
    expected = cross_val_score(given, X, y, cv=2, params=of_teacher)
    assert search.cv_results_["mean_test_score"][1] == expected.mean()


def test_a_report_asks_about_an_earlier_layer():
    X, model = rows(200), make_model()
    y = (X[:, 0] > 0).astype(int)
    student, of_teacher = earlier_layer(model, X, y)
    few = {"n_splits": 2, "max_steps": 5, "random_state": 0}
    given = clone(student).set_params(teacher=None)
    assert subclass_report(student, X, y, **few) == subclass_report(
        given, X, y, **of_teacher, **few
    )


def test_a_layer_whose_model_has_other_classes_is_refused():
    X, model = rows(200), make_model()
    model[-1] = nn.Linear(5, 3)
    y = (X[:, 0] > 0).astype(int)
    student, _ = earlier_layer(model, X, y)
    with pytest.raises(ValueError, match="3 columns"):
        student.fit(X, y)


def test_what_an_encoder_puts_out_is_no_logits_of_the_classes():
    """It has no head either: the classes are told by the labels."""
    X, model = rows(200), nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    y = (X[:, 0] > 0).astype(int)
    extractor = EmbeddingExtractor(model, layer="1")
    embeddings = extractor.fit_transform(X)
    student = LELPStudentClassifier(
        projector=LELPProjector(2), max_epochs=2, random_state=0
    )
    found = clone(student).set_params(teacher=extractor).fit(X, y)
    given = student.fit(X, y, teacher_embeddings=embeddings)
    assert_array_equal(found.predict_proba(X), given.predict_proba(X))
