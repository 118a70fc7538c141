"""Embeddings of torch teachers: right, unharmed models, files that survive."""

import errno
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from unittest import SkipTest

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from lelp_sklearn import (
    EmbeddingExtractor,
    LELPProjector,
    LELPStudentClassifier,
    NoLinearHeadWarning,
    subclass_report,
)
from lelp_sklearn._extraction import resumable
from lelp_sklearn._files import locked

ROOT = Path(__file__).parents[1]


def rows(n=50, d=6, seed=0):
    return np.random.RandomState(seed).normal(size=(n, d)).astype(np.float32)


def make_model(d=6, width=5):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(d, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 2),
    )  # fmt: skip


class Texts:
    """A tokenizer: characters as numbers, zeros after them."""

    def __call__(self, texts, *, padding, truncation, max_length, return_tensors):
        assert (padding, truncation, return_tensors) == (True, True, "pt")
        cut = [text[:max_length] for text in texts]
        length = max(1, *map(len, cut))
        codes = [[ord(c) for c in text.ljust(length, "\0")] for text in cut]
        ids = torch.tensor(codes)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


class TextModel(nn.Module):
    """Mean of character vectors, then a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.vectors = nn.Embedding(128, 7)
        self.head = nn.Linear(7, 2)
        self.lengths = []

    def forward(self, input_ids, attention_mask):
        self.lengths.append(input_ids.shape[1])
        mask = attention_mask[:, :, None]
        total = (self.vectors(input_ids) * mask).sum(1)
        return self.head(total / mask.sum(1).clamp(min=1))


class AnyWidth(nn.Module):
    """Takes rows of any number of features, as scikit-learn's checks have them."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(torch.stack([x.mean(1), x[:, 0]], dim=1))


HASHED = {
    "check_estimators_overwrite_params": "the hash of a module differs between copies"
}


@parametrize_with_checks(
    [EmbeddingExtractor(AnyWidth())], expected_failed_checks=lambda _: HASHED
)
def test_scikit_learn_check(estimator, check):
    """A skipped check counts as failed."""
    try:
        check(estimator)
    except SkipTest as reason:
        pytest.fail(f"the check was skipped: {reason}")


# ------------------------------------------------------------------------------- values


def test_embeddings_are_the_input_of_the_last_linear_layer():
    X, model = rows(), make_model()
    extractor = EmbeddingExtractor(model, batch_size=16)
    found = extractor.fit_transform(X)
    with torch.no_grad():
        expected = model.eval()[:-1](torch.from_numpy(X)).numpy()
        logits = model(torch.from_numpy(X)).numpy()
    assert found.dtype == np.float32
    assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    W, b = extractor.head_
    assert_allclose(found @ W.T + b, logits, rtol=1e-4, atol=1e-5)
    assert extractor.layer_ == "6"
    names = extractor.get_feature_names_out()
    assert list(names[:2]) == ["embeddingextractor0", "embeddingextractor1"]


def test_a_layer_may_be_named_and_need_not_be_linear():
    X, model = rows(), make_model()
    extractor = EmbeddingExtractor(model, layer="5").fit(X)
    assert extractor.head_ is None
    with torch.no_grad():
        expected = model.eval()[:5](torch.from_numpy(X)).numpy()
    assert_allclose(extractor.transform(X), expected, rtol=1e-5, atol=1e-6)


def test_rows_may_have_any_rank_and_be_tensors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 3, bias=False))
    X = rows(9, 12).reshape(9, 3, 4)
    extractor = EmbeddingExtractor(model).fit(X)
    assert_array_equal(extractor.head_[1], np.zeros(3))
    assert_array_equal(extractor.transform(X), extractor.transform(torch.tensor(X)))


def test_rows_may_be_in_reverse_in_memory():
    X = rows(33)
    extractor = EmbeddingExtractor(make_model(), batch_size=32).fit(X)
    assert_array_equal(
        extractor.transform(X[::-1]), extractor.transform(X[::-1].copy())
    )


def test_double_precision_rows_come_to_the_model_in_its_own():
    X = rows().astype(np.float64)
    found = EmbeddingExtractor(make_model()).fit_transform(X)
    assert_array_equal(found, EmbeddingExtractor(make_model()).fit_transform(rows()))


def test_texts_keep_their_order_and_come_to_the_model_by_length():
    rng = np.random.RandomState(0)
    texts = ["ab" * n for n in rng.randint(0, 30, size=40)]
    model = TextModel()
    extractor = EmbeddingExtractor(model, tokenizer=Texts(), batch_size=8).fit(texts)
    model.lengths.clear()
    found = extractor.transform(texts)
    assert model.lengths == sorted(model.lengths, reverse=True)
    one_by_one = [extractor.transform([text])[0] for text in texts]
    assert_allclose(found, one_by_one, rtol=1e-5, atol=1e-6)
    assert_array_equal(extractor.transform(np.array(texts)), found)


def test_texts_are_cut_to_max_length():
    extractor = EmbeddingExtractor(TextModel(), tokenizer=Texts(), max_length=3)
    long, short = extractor.fit_transform(["abcdef", "abc"])
    assert_allclose(long, short, rtol=1e-6)


def test_a_layer_may_take_its_input_by_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head(input=2 * x)

    X = rows()
    assert_allclose(EmbeddingExtractor(Named()).fit_transform(X), 2 * X)


def test_lower_precision_is_automatic_mixed_precision():
    X = rows()
    exact = EmbeddingExtractor(make_model()).fit_transform(X)
    near = EmbeddingExtractor(make_model(), precision="bfloat16").fit_transform(X)
    assert not np.array_equal(near, exact)
    assert_allclose(near, exact, atol=0.05)


def test_a_student_takes_an_extractor_as_its_teacher():
    X, model = rows(200), make_model()
    y = (X[:, 0] > 0).astype(int)
    student = LELPStudentClassifier(
        teacher=EmbeddingExtractor(model),
        projector=LELPProjector(2, head=model[-1]),
        max_epochs=2,
        random_state=0,
    )
    embeddings = EmbeddingExtractor(model).fit_transform(X)
    found = student.fit(X, y).predict_proba(X)
    given = clone(student).set_params(teacher=None)
    given.fit(X, y, teacher_embeddings=embeddings)
    assert_array_equal(found, given.predict_proba(X))


# ------------------------------------------------------------------- an earlier layer


def logits_of(model, X):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(X)).numpy()


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


def test_logits_of_texts_keep_their_order():
    texts = ["ab" * n for n in np.random.RandomState(0).permutation(30)]
    extractor = EmbeddingExtractor(TextModel(), tokenizer=Texts(), batch_size=8)
    embeddings = extractor.fit_transform(texts)
    W, b = extractor.head_
    found = extractor.predict_logits(texts)
    assert_allclose(found, embeddings @ W.T + b, rtol=1e-4, atol=1e-5)


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
    with pytest.raises(ValueError, match="logits of row 0 holds NaN or infinity"):
        extractor.predict_logits(X)


def test_embeddings_are_kept_from_what_the_model_does_in_place():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 2))
    X = rows()
    found = EmbeddingExtractor(model, layer="1").fit_transform(X)
    with torch.no_grad():
        expected = model[0](torch.from_numpy(X)).numpy()
    assert (expected < 0).any()
    assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


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
    few = {"n_splits": 2, "max_epochs": 2, "random_state": 0}
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


# ---------------------------------------------------------------- the model is unharmed


def state_of(model):
    return (
        [module.training for module in model.modules()],
        [len(module._forward_pre_hooks) for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [tensor.clone() for tensor in model.state_dict().values()],
        [id(parameter) for parameter in model.parameters()],
    )


def assert_same_state(before, after):
    assert before[:3] == after[:3]
    assert before[4] == after[4]
    for old, new in zip(before[3], after[3], strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_it_was(fails):
    model = make_model().train()
    model[1].eval()
    next(model.parameters()).requires_grad_(False)
    before = state_of(model)
    generator = torch.get_rng_state()
    extractor = EmbeddingExtractor(model)
    if fails:
        with pytest.raises(ValueError, match="model fails on a batch"):
            extractor.fit(rows(d=9))
    else:
        extractor.fit_transform(rows())
    assert_same_state(before, state_of(model))
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_clone_shares_the_model():
    extractor = EmbeddingExtractor(make_model(), layer="4").fit(rows())
    copy = clone(extractor)
    assert copy.model is extractor.model
    assert copy.get_params() == extractor.get_params()
    assert not hasattr(copy, "head_")


class Weighted(EmbeddingExtractor):
    """Asks for metadata."""

    def fit(self, X, y=None, sample_weight=None):
        return super().fit(X)


def test_a_clone_keeps_what_those_of_scikit_learn_keep():
    pandas = pytest.importorskip("pandas")
    extractor = EmbeddingExtractor(make_model()).set_output(transform="pandas")
    other = clone(extractor).set_output(transform="default")
    assert isinstance(extractor.fit_transform(rows()), pandas.DataFrame)
    assert isinstance(clone(extractor).fit_transform(rows()), pandas.DataFrame)
    assert isinstance(other.fit_transform(rows()), np.ndarray)
    with config_context(enable_metadata_routing=True):
        extractor = Weighted(make_model()).set_fit_request(sample_weight=True)
        requests = clone(extractor).get_metadata_routing().fit.requests
    assert requests == {"sample_weight": True}


# ---------------------------------------------------------------------------- bad input


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.idle = nn.Linear(6, 2)

    def forward(self, x):
        return self.layer(self.layer(x))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (make_model(), {"layer": "nine"}, "'nine' is not a layer.* 0, 1, 2"),
        (nn.Sequential(nn.ReLU()), {}, "runs no torch.nn.Linear"),
        (Twice(), {"layer": "idle"}, "'idle' did not run"),
        (Twice(), {"layer": "layer"}, "'layer' ran 2 times"),
        (nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Linear(3, 2)), {}, r"\(8, 2, 3\)"),
        (make_model(d=9), {}, "model fails on a batch of X, rows 0 to 7, a ten"),
    ],
)
def test_models_that_do_not_fit_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingExtractor(model, **options).fit(rows())


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        EmbeddingExtractor("bert").fit(rows())


def test_texts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no tokenizer"):
        EmbeddingExtractor(TextModel()).fit(["a", "b"])
    extractor = EmbeddingExtractor(TextModel(), tokenizer=Texts())
    with pytest.raises(TypeError, match="in row 1, a float"):
        extractor.fit(["a", float("nan"), "b"])
    for first in (None, float("nan"), 7, ["a"]):
        for X in ([first, "b"], np.array([first, "b"], dtype=object)):
            with pytest.raises(TypeError, match=f"row 0, a {type(first).__name__}"):
                extractor.fit(X)
    with pytest.raises(TypeError, match="row 0, a NoneType"):
        extractor.fit([None, None])


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ([], ValueError, r"X is empty, \[\]: at least one row"),
        ((text for text in ["a", "b"]), TypeError, r"type generator, .*pass list\(X\)"),
        (map(str, [1, 2]), TypeError, r"type map, .*pass list\(X\)"),
        ("a text", TypeError, r"X is one text, 'a text': pass a list"),
        ({"input_ids": [[1, 2]]}, TypeError, "X is of type dict: pass a list of texts"),
    ],
)
def test_what_is_no_list_of_rows_is_refused(X, error, message):
    for extractor in (
        EmbeddingExtractor(TextModel(), tokenizer=Texts()),
        EmbeddingExtractor(make_model()),
    ):
        with pytest.raises(error, match=message):
            extractor.fit(X)


def test_a_loader_or_a_dataset_is_no_rows():
    data = torch.utils.data.TensorDataset(torch.from_numpy(rows()))
    extractor = EmbeddingExtractor(make_model())
    with pytest.raises(TypeError, match=r"X is of type DataLoader: .*torch\.cat"):
        extractor.fit(torch.utils.data.DataLoader(data))
    with pytest.raises(TypeError, match=r"X is of type TensorDataset: .*torch\.stack"):
        extractor.fit(data)


@pytest.mark.parametrize("text", ["\ud83d", "ab\udc00", "\U0001f600 \ude00\ud83d"])
def test_half_a_surrogate_pair_is_named_with_its_row(text):
    model = TextModel()
    # One for each character, emoji included.
    model.vectors = nn.Embedding(2**17, 7)
    extractor = EmbeddingExtractor(model, tokenizer=Texts())
    texts = ["a", "\U0001f600", text, "b"]
    with pytest.raises(ValueError, match=r"in row 2, half a surrogate pair .*utf-16"):
        extractor.fit(texts)
    # What the message says to pass is taken.
    texts[2] = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    extractor.fit(texts)
    with pytest.raises(ValueError, match="in row 1, half a surrogate pair"):
        extractor.transform(["a", text])


def test_a_table_of_texts_is_answered_with_its_column():
    pandas = pytest.importorskip("pandas")
    texts = ["a", "bc", "def"]
    table = pandas.DataFrame({"length": [1, 2, 3], "text": texts}, index=[5, 0, 9])
    extractor = EmbeddingExtractor(TextModel(), tokenizer=Texts())
    for X in (table, table[["text"]]):
        with pytest.raises(ValueError, match=r"by itself, X\['text'\]"):
            extractor.fit(X)
    with pytest.raises(ValueError, match=r"by itself, X\[:, 0\]"):
        extractor.fit(np.array([texts]).T)
    found = extractor.fit_transform(table["text"])
    assert_array_equal(found, extractor.transform(texts))


class Spoiled(nn.Module):
    """Gives what is not finite for one of the rows."""

    def __init__(self, value):
        super().__init__()
        self.value, self.head = value, nn.Linear(6, 2)

    def forward(self, x):
        return self.head(torch.where(x[:, :1] == 77, self.value, x))


def test_embeddings_that_are_not_finite_are_refused_by_row():
    X = rows(100)
    X[83, 0] = 77
    with pytest.raises(ValueError, match="row 83 holds NaN or infinity"):
        EmbeddingExtractor(Spoiled(torch.nan)).fit_transform(X)


@pytest.mark.parametrize("place", [3, 83])
def test_half_precision_that_overflows_is_answered_with_what_helps(place, tmp_path):
    X = rows(100)
    X[place, 0] = 77
    extractor = EmbeddingExtractor(Spoiled(1e6), batch_size=10)
    path = tmp_path / "e.npy"
    with pytest.raises(ValueError, match=rf"row {place} .*dtype='float32'") as error:
        extractor.extract(X, path)
    # What the message says, and no more: nothing is left where nothing was done.
    left = {p for p in tmp_path.iterdir() if p.suffix != ".lock"}
    assert left == set(map(Path, re.findall(r"'([^']+e\.npy[^']*)'", str(error.value))))
    assert (left != set()) == (place > 10)
    for file in left:
        file.unlink()
    assert extractor.extract(X, path, dtype="float32").max() == 1e6


class TokenModel(nn.Module):
    """Mean of the vectors of token ids, then a head."""

    def __init__(self):
        super().__init__()
        self.vectors, self.head = nn.Embedding(10, 3), nn.Linear(3, 2)

    def forward(self, ids):
        return self.head(self.vectors(ids).mean(1))


@pytest.mark.parametrize("code", [10, -1])
def test_a_token_that_the_model_does_not_know_is_answered_with_its_rows(code):
    ids = np.random.RandomState(0).randint(10, size=(100, 4))
    extractor = EmbeddingExtractor(TokenModel(), batch_size=30).fit(ids)
    ids[71, 2] = code
    with pytest.raises(ValueError, match=r"rows 60 to 89, .*int64: .*range") as error:
        extractor.transform(ids)
    assert isinstance(error.value.__cause__, IndexError)


def test_an_error_that_comes_when_results_are_read_is_answered_with_its_rows():
    """As those of an accelerator do; nothing can be read of torch's device "meta"."""

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.spot = nn.Identity()

        def forward(self, x):
            return self.spot(x.to("meta") if (x == 77).any() else x)

    X = rows(100)
    extractor = EmbeddingExtractor(Late(), layer="spot", batch_size=30).fit(X)
    X[71] = 77
    with pytest.raises(ValueError, match=r"rows 60 to 89, .*: Cannot copy out of meta"):
        extractor.transform(X)


def test_texts_that_the_model_fails_on_are_answered_with_their_rows():
    texts = ["ab" * (1 + i % 10) for i in range(60)]
    extractor = EmbeddingExtractor(TextModel(), tokenizer=Texts(), batch_size=6)
    extractor.fit(texts)
    texts[42] = "é" * 6
    with pytest.raises(ValueError, match=r"6 of the rows 2 to 52, .*input_ids"):
        extractor.transform(texts)


class Greedy(nn.Module):
    """Has memory for three rows."""

    def __init__(self):
        super().__init__()
        self.head, self.sizes = nn.Linear(6, 2), []

    def forward(self, x):
        if len(x) > 3:
            raise torch.OutOfMemoryError("three rows fit")
        self.sizes.append(len(x))
        return self.head(x)


def test_batches_too_large_for_the_memory_are_halved_with_one_warning(tmp_path):
    X, model = rows(40), Greedy()
    extractor = EmbeddingExtractor(model, batch_size=20).fit(X)
    path = tmp_path / "e.npy"
    calls = [extractor.transform, extractor.fit_transform]
    calls += [lambda X: extractor.extract(X, path, dtype="float32")]
    calls += [make_pipeline(EmbeddingExtractor(model)).fit_transform]
    for call in calls:
        with pytest.warns(UserWarning, match="halved") as warned:
            assert_array_equal(call(X), X)
        # It points to the line of the user, however many lie between.
        assert [each.filename for each in warned] == [__file__]
    assert max(model.sizes) <= 3


def test_a_row_too_large_for_the_memory_is_an_error():
    class Hungry(Greedy):
        def forward(self, x):
            raise torch.OutOfMemoryError("none fits")

    with pytest.raises(torch.OutOfMemoryError, match="none fits"):
        EmbeddingExtractor(Hungry()).fit(rows())


# -------------------------------------------------------------------------------- files


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_file_holds_the_embeddings(dtype, tmp_path):
    X, path = rows(), tmp_path / "e.npy"
    extractor = EmbeddingExtractor(make_model(), batch_size=7)
    found = extractor.extract(X, path, dtype=dtype)
    assert isinstance(found, np.memmap)
    assert_array_equal(found, extractor.transform(X).astype(dtype))
    # A lock that is free is an empty file.
    names = ["e.npy", "e.npy.journal", "e.npy.lock"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


# Rows that a model sees in a fit: the first eight, three times.
IN_A_FIT = 3 * 8


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.n_rows = nn.Linear(6, 2), 0

    def forward(self, x):
        self.n_rows += len(x)
        return self.head(x)


def test_a_finished_file_is_not_computed_again(tmp_path):
    model, X = Counting(), rows(50)
    extractor = EmbeddingExtractor(model)
    first = extractor.extract(X, tmp_path / "e.npy")
    model.n_rows = 0
    assert_array_equal(extractor.extract(X, tmp_path / "e.npy"), first)
    assert model.n_rows == IN_A_FIT


INTERRUPTED = """
    import os, signal, sys
    import numpy as np
    from lelp_sklearn import EmbeddingExtractor
    from lelp_sklearn._extraction import resumable
    from tests.test_extractor import Counting, make_model, rows
    import torch

    resumable._BETWEEN_MARKS = {between}
    model, calls = make_model(), []

    def die(module, args):
        calls.append(1)
        if len(calls) == {turn}:
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(die)
    EmbeddingExtractor(model, batch_size=8).extract(rows(100), sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("between", [0, 3600])
@pytest.mark.parametrize("turn", [2, 4, 8, 16])
def test_a_killed_process_changes_nothing(turn, between, tmp_path):
    path, whole = tmp_path / "e.npy", tmp_path / "whole.npy"
    extractor = EmbeddingExtractor(make_model(), batch_size=8)
    extractor.extract(rows(100), whole)
    code = textwrap.dedent(INTERRUPTED.format(turn=turn, between=between))
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, check=False, timeout=300
    )
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    extractor.extract(rows(100), path)
    assert path.read_bytes() == whole.read_bytes()


WRITING = """
    import sys
    from lelp_sklearn import EmbeddingExtractor
    from tests.test_extractor import make_model, rows

    model = make_model()

    def wait(module, args):
        if len(args[0]) == 9:
            print("begun", flush=True)
            sys.stdin.readline()

    hook = model.register_forward_pre_hook(wait)
    EmbeddingExtractor(model, batch_size=9).extract(rows(100), sys.argv[1])
"""


def writing(path):
    """Start a process that is in the midst of `extract` and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITING), str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.slow
def test_two_calls_never_write_to_one_file(tmp_path):
    path, model = tmp_path / "e.npy", Counting()
    with writing(path) as first:
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        for X in (rows(100), rows(30)):
            with pytest.raises(ValueError, match=r"e\.npy' is in use by another"):
                EmbeddingExtractor(model).extract(X, path)
        assert model.n_rows == 0
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
        first.communicate("\n" * 20, timeout=100)
    assert first.returncode == 0
    extractor = EmbeddingExtractor(make_model(), batch_size=8)
    assert_array_equal(
        extractor.extract(rows(100), path),
        extractor.transform(rows(100)).astype(np.float16),
    )


@pytest.mark.slow
def test_a_process_that_is_killed_frees_its_file(tmp_path):
    path = tmp_path / "e.npy"
    with writing(path) as first:
        first.kill()
    extractor = EmbeddingExtractor(make_model(), batch_size=8)
    assert_array_equal(
        extractor.extract(rows(100), path),
        extractor.transform(rows(100)).astype(np.float16),
    )


def test_a_complete_file_is_read_by_any_number_of_calls_at_once(tmp_path):
    path, X = tmp_path / "e.npy", rows(50)
    extractor = EmbeddingExtractor(Counting())
    first = extractor.extract(X, path)
    with locked(path) as is_ours:
        assert is_ours
        assert_array_equal(extractor.extract(X, path), first)


def test_a_call_goes_on_where_an_error_ended_the_last(tmp_path):
    model, X = Counting(), rows(100)
    path = tmp_path / "e.npy"

    def stop(module, args):
        if module.n_rows >= IN_A_FIT + 60:
            raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(stop)
    extractor = EmbeddingExtractor(model, batch_size=10)
    with pytest.raises(KeyboardInterrupt):
        extractor.extract(X, path)
    hook.remove()
    model.n_rows = 0
    assert_array_equal(extractor.extract(X, path), X.astype(np.float16))
    assert model.n_rows == IN_A_FIT + 40


def test_the_end_may_come_before_the_file_is_renamed(tmp_path, monkeypatch):
    X, path = rows(), tmp_path / "e.npy"
    extractor = EmbeddingExtractor(make_model())

    def fail(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resumable.ResumableNpy, "finish", fail)
        with pytest.raises(KeyboardInterrupt):
            extractor.extract(X, path)
    assert not path.exists()
    assert_array_equal(
        extractor.extract(X, path), extractor.transform(X).astype(np.float16)
    )


@pytest.mark.parametrize("changes", [False, True])
def test_a_complete_file_that_was_deleted_is_begun_anew(changes, tmp_path):
    """Its journal may lie there still; other rows may come to the same path."""
    X, path = rows(), tmp_path / "e.npy"
    extractor = EmbeddingExtractor(make_model())
    extractor.extract(X, path)
    path.unlink()
    X = X + 1 if changes else X
    found = extractor.extract(X, path)
    assert_array_equal(found, extractor.transform(X).astype(np.float16))
    assert_array_equal(extractor.extract(X, path), found)


@pytest.mark.slow
def test_the_journal_of_a_file_that_is_gone_does_not_vouch_for_the_next(tmp_path):
    """A process that dies before its first note leaves no other behind."""
    path, whole = tmp_path / "e.npy", tmp_path / "whole.npy"
    extractor = EmbeddingExtractor(make_model(), batch_size=8)
    extractor.extract(rows(100), whole)
    # The first call notes every batch, the second, of a file that is empty, none.
    for turn, between in ((9, 0), (2, 3600)):
        code = textwrap.dedent(INTERRUPTED.format(turn=turn, between=between))
        path.with_name("e.npy.part").unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], cwd=ROOT, check=False, timeout=300
        )
        assert done.returncode == -signal.SIGKILL
    extractor.extract(rows(100), path)
    assert path.read_bytes() == whole.read_bytes()


def other_model():
    model = make_model()
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    return model


def other_layer():
    """Return a model with the weights of `make_model` and another activation."""
    model = make_model()
    model[5] = nn.ReLU()
    return model


class Described(Counting):
    """Prints an object, as layers that were given a function do."""

    def __init__(self):
        super().__init__()
        self.activation = object()

    def extra_repr(self):
        return f"activation={self.activation}"


def test_a_model_that_prints_addresses_is_recognised(tmp_path):
    torch.manual_seed(0)
    model = Described()
    first = EmbeddingExtractor(model).extract(rows(), tmp_path / "e.npy")
    spare = Described()
    spare.load_state_dict(model.state_dict())
    spare.n_rows = 0
    again = EmbeddingExtractor(spare).extract(rows(), tmp_path / "e.npy")
    assert_array_equal(again, first)
    assert spare.n_rows == IN_A_FIT


def test_an_attribute_that_a_layer_prints_counts(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.scale, self.head = 1, nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.scale * x)

        def extra_repr(self):
            return f"scale={self.scale}"

    model = Scaled()
    EmbeddingExtractor(model).extract(rows(), tmp_path / "e.npy")
    model.scale = 2
    with pytest.raises(ValueError, match="another model "):
        EmbeddingExtractor(model).extract(rows(), tmp_path / "e.npy")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"model": other_model()}, "model"),
        ({"model": other_layer()}, "model"),
        ({"X": rows(51)}, "number of rows"),
        ({"X": rows(seed=1)}, "X"),
        ({"dtype": "float32"}, "dtype"),
        ({"layer": "5"}, "layer"),
        ({"precision": "bfloat16"}, "precision"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_file_of_something_else_is_refused(change, key, finished, tmp_path):
    given = {"model": make_model(), "X": rows(), "dtype": "float16", "layer": "6"}
    path = tmp_path / "e.npy"
    assert extract(path, **given) is not None
    if not finished:
        path.rename(tmp_path / "e.npy.part")
        journal = tmp_path / "e.npy.journal"
        entry = json.loads(journal.read_text())
        journal.write_text(json.dumps(entry | {"done": 8}))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    held = "e.npy" if finished else r"e\.npy\.part"
    mend = rf"delete '[^']*{held}' and '[^']*e\.npy\.journal'"
    with pytest.raises(ValueError, match=f"another {key} .*{mend}"):
        extract(path, **given | change)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def extract(path, *, model, X, dtype, **options):
    extractor = EmbeddingExtractor(model, batch_size=8, **options)
    return extractor.extract(X, path, dtype=dtype)


def mapped(X, path):
    np.save(path, X)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize(
    "lying",
    [
        lambda X, _: X,
        lambda X, _: np.asfortranarray(X),
        lambda X, folder: mapped(X, folder / "x.npy"),
        lambda X, _: torch.from_numpy(X),
        lambda X, _: torch.from_numpy(np.repeat(X, 2, axis=1))[:, ::2],
    ],
    ids=["array", "Fortran", "memmap", "tensor", "strided tensor"],
)
def test_every_row_counts(lying, tmp_path):
    X = rows(1500)
    other = X.copy()
    other[500, 3] = np.nextafter(other[500, 3], np.float32(9))
    extractor = EmbeddingExtractor(make_model())
    extractor.extract(lying(X, tmp_path), tmp_path / "e.npy")
    with pytest.raises(ValueError, match="another X "):
        extractor.extract(lying(other, tmp_path), tmp_path / "e.npy")


def test_the_same_rows_are_recognised_however_they_lie(tmp_path):
    model, X = Counting(), rows(300)
    extractor = EmbeddingExtractor(model)
    extractor.extract(X, tmp_path / "e.npy")
    model.n_rows = 0
    same = [
        np.asfortranarray(X),
        X[::-1].copy()[::-1],
        X.astype(">f4"),
        mapped(X, tmp_path / "x.npy"),
        torch.from_numpy(X),
        torch.from_numpy(X.T.copy()).T.requires_grad_(),
    ]
    for again in same:
        extractor.extract(again, tmp_path / "e.npy")
    assert model.n_rows == IN_A_FIT * len(same)


DIGESTED = """
    import resource
    import numpy as np, torch
    from lelp_sklearn._extraction.runner import digest_of_rows

    X = np.ones((512, 65536), np.float32, order="F")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    digest_of_rows(X)
    digest_of_rows(torch.from_numpy(X))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < X.nbytes / 4, grown
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted as on Linux")
def test_rows_are_digested_without_a_copy():
    code = textwrap.dedent(DIGESTED)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)


class Caching(Texts):
    """Remembers what it has seen, and may take one letter for another."""

    def __init__(self, old="", new=""):
        self.old, self.new, self.seen = old, new, {}

    def __call__(self, texts, **options):
        self.seen |= dict.fromkeys(texts)
        return super().__call__(
            [text.replace(self.old, self.new) for text in texts], **options
        )


def test_a_tokenizer_is_known_by_what_it_makes_of_all_texts(tmp_path):
    texts, path = ["ab" * (i % 30) for i in range(600)], tmp_path / "e.npy"
    texts[433] = "abz"
    tokenizer = Caching("q", "x")
    extractor = EmbeddingExtractor(TextModel(), tokenizer=tokenizer)
    first = extractor.extract(texts, path)
    tokenizer(
        ["later"], padding=True, truncation=True, max_length=9, return_tensors="pt"
    )
    assert_array_equal(extractor.extract(texts, path), first)
    for other in (Caching("z", "y"), Texts()):
        extractor.set_params(tokenizer=other)
        with pytest.raises(
            ValueError, match=f"another tokenizer .*{type(other).__name__}"
        ):
            extractor.extract(texts, path)
    extractor.set_params(tokenizer=tokenizer, max_length=5)
    with pytest.raises(ValueError, match=r"another (tokenizer|max_length) "):
        extractor.extract(texts, path)


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    path = tmp_path / "e.npy"
    EmbeddingExtractor(make_model()).extract(rows(), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="not as it was written"):
        EmbeddingExtractor(make_model()).extract(rows(), path)


def test_a_begun_file_that_is_cut_short_is_refused(tmp_path):
    """Lengthened again it would be of zeros where rows were noted as done."""
    path = tmp_path / "e.npy"
    EmbeddingExtractor(make_model()).extract(rows(), path)
    journal = tmp_path / "e.npy.journal"
    entry = json.loads(journal.read_text())
    journal.write_text(json.dumps({**entry, "done": len(rows()) // 2}))
    part = tmp_path / "e.npy.part"
    part.write_bytes(path.read_bytes()[:300])
    path.unlink()
    with pytest.raises(ValueError, match="is not as it was written") as raised:
        EmbeddingExtractor(make_model()).extract(rows(), path)
    assert part.stat().st_size == 300
    for file in (part, journal):
        assert repr(str(file)) in str(raised.value)
        file.unlink()
    EmbeddingExtractor(make_model()).extract(rows(), path)


class Autoencoder(nn.Module):
    """It encodes and preprocesses, and is no sentence encoder."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(6, 5), nn.Linear(5, 2)

    def encode(self, X):
        return torch.relu(self.body(X))

    def preprocess(self, X):
        return X

    def forward(self, X):
        return self.fc(self.encode(X))


def test_a_model_that_encodes_need_not_read_texts():
    torch.manual_seed(0)
    model = Autoencoder()
    X = np.random.RandomState(0).normal(size=(7, 6)).astype(np.float32)
    with torch.no_grad():
        expected = model.encode(torch.from_numpy(X))
    assert_allclose(EmbeddingExtractor(model).fit_transform(X), expected, rtol=1e-5)


def test_a_set_of_texts_is_refused():
    with pytest.raises(TypeError, match="set: pass a list of texts"):
        EmbeddingExtractor(make_model()).fit({"one", "two"})


def test_a_file_of_unknown_origin_is_refused(tmp_path):
    path = tmp_path / "e.npy"
    np.save(path, rows())
    with pytest.raises(ValueError, match=r"no '\.journal'"):
        EmbeddingExtractor(make_model()).extract(rows(), path)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"done": 3'])
def test_a_journal_that_cannot_be_read_is_refused(content, tmp_path):
    path = tmp_path / "e.npy"
    EmbeddingExtractor(make_model()).extract(rows(), path)
    (tmp_path / "e.npy.journal").write_text(content)
    with pytest.raises(ValueError, match="unreadable journal"):
        EmbeddingExtractor(make_model()).extract(rows(), path)


def has_no_room(free):
    usage = shutil.disk_usage(".")
    return lambda _: usage._replace(free=int(free))


def test_bad_paths_are_refused_before_work_starts(tmp_path, monkeypatch):
    model = Counting()
    extractor = EmbeddingExtractor(model)
    for path in (tmp_path / "e.bin", tmp_path / "none" / "e.npy"):
        with pytest.raises(ValueError, match="path="):
            extractor.extract(rows(), path)
    with pytest.raises(ValueError, match="dtype='int8'"):
        extractor.extract(rows(), tmp_path / "e.npy", dtype="int8")
    monkeypatch.setattr("shutil.disk_usage", has_no_room(10))
    with pytest.raises(ValueError, match="needs 728 bytes and the disk has 10"):
        extractor.extract(rows(), tmp_path / "e.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["e.npy.lock"]


@pytest.mark.skipif(sys.platform != "linux", reason="holes are counted as on Linux")
def test_a_file_with_holes_does_not_go_on_where_the_disk_is_full(tmp_path, monkeypatch):
    """A copy of what a call has begun may have holes where there were zeros."""
    model, X, path = Counting(), rows(100_000), tmp_path / "e.npy"

    def stop(module, args):
        if module.n_rows >= 10_000:
            raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(stop)
    extractor = EmbeddingExtractor(model, batch_size=1000)
    with pytest.raises(KeyboardInterrupt):
        extractor.extract(X, path)
    hook.remove()
    part = tmp_path / "e.npy.part"
    n_bytes = part.stat().st_size
    os.truncate(part, n_bytes // 8)
    os.truncate(part, n_bytes)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    n_missing = X.size * 2 * 0.9
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", has_no_room(n_missing // 2))
        model.n_rows = 0
        with pytest.raises(ValueError, match=r"needs 1,[01]\d\d,\d\d\d bytes and the"):
            extractor.extract(X, path)
        assert model.n_rows == IN_A_FIT
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
        patch.setattr("shutil.disk_usage", has_no_room(n_missing * 1.2))
        assert_array_equal(extractor.extract(X, path), X.astype(np.float16))
    assert model.n_rows == 2 * IN_A_FIT + 90_000


@pytest.mark.skipif(sys.platform != "linux", reason="room is reserved as on Linux")
def test_the_room_of_a_file_is_reserved(tmp_path, monkeypatch):
    """A hole in a memory map kills the process when others have filled the disk."""
    model, X, path = Counting(), rows(100_000), tmp_path / "e.npy"
    extractor = EmbeddingExtractor(model, batch_size=1000)

    def fill(file, offset, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", fill)
        with pytest.raises(ValueError, match=r"needs 1,200,128 bytes and the disk has"):
            extractor.extract(X, path)
    assert model.n_rows == IN_A_FIT
    assert [p.name for p in tmp_path.iterdir()] == ["e.npy.lock"]
    assert_array_equal(extractor.extract(X, path), X.astype(np.float16))


def test_a_disk_that_reserves_nothing_is_written_all_the_same(tmp_path, monkeypatch):
    def refuse(file, offset, length):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("os.posix_fallocate", refuse, raising=False)
    X = rows()
    found = EmbeddingExtractor(Counting()).extract(X, tmp_path / "e.npy")
    assert_array_equal(found, X.astype(np.float16))


def test_progress_is_printed_where_asked_for(capsys):
    X = rows(100)
    EmbeddingExtractor(make_model()).fit_transform(X)
    assert not capsys.readouterr().out
    EmbeddingExtractor(make_model(), verbose=True).fit_transform(X)
    assert "100 of 100 rows" in capsys.readouterr().out
