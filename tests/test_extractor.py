"""Embeddings of torch teachers: right values, unharmed models, named mistakes."""

import os
from contextlib import redirect_stdout
from unittest import SkipTest

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from lelp_sklearn import EmbeddingExtractor, LELPProjector, LELPStudentClassifier
from tests.extractor_problems import Spoiled, make_model, rows


class TokenModel(nn.Module):
    """Mean of the vectors of token ids, then a head."""

    def __init__(self):
        super().__init__()
        self.vectors, self.head = nn.Embedding(10, 3), nn.Linear(3, 2)

    def forward(self, ids):
        return self.head(self.vectors(ids).mean(1))


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
        (make_model(), {"layer": "nine"}, "'nine' is not a layer.*named_modules"),
        (nn.Sequential(nn.ReLU()), {}, "runs no torch.nn.Linear"),
        (Twice(), {"layer": "layers"}, "pass 'layer' or another name in model"),
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


def test_a_loader_or_a_dataset_is_no_rows():
    data = torch.utils.data.TensorDataset(torch.from_numpy(rows()))
    extractor = EmbeddingExtractor(make_model())
    with pytest.raises(TypeError, match="X is of type DataLoader: pass an array"):
        extractor.fit(torch.utils.data.DataLoader(data))
    with pytest.raises(TypeError, match="X is of type TensorDataset: pass an array"):
        extractor.fit(data)


def test_embeddings_that_are_not_finite_are_refused_by_row():
    X = rows(100)
    X[83, 0] = 77
    with pytest.raises(ValueError, match="NaN or infinity as the embedding of row 83"):
        EmbeddingExtractor(Spoiled(torch.nan)).fit_transform(X)


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


def test_progress_is_printed_where_asked_for(capsys):
    X = rows(100)
    EmbeddingExtractor(make_model()).fit_transform(X)
    assert not capsys.readouterr().out
    EmbeddingExtractor(make_model(), verbose=True).fit_transform(X)
    assert "100 of 100 rows" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="terminals of POSIX")
def test_progress_on_a_terminal_is_one_line_that_is_printed_over():
    reading, writing = os.openpty()
    with os.fdopen(writing, "w") as terminal, redirect_stdout(terminal):
        EmbeddingExtractor(make_model(), verbose=True).fit_transform(rows(100))
    # A terminal hands over what is there; the line may come in pieces.
    printed = ""
    while not printed.endswith("\n"):
        printed += os.read(reading, 1000).decode()
    os.close(reading)
    assert printed.startswith("\r100 of 100 rows")
    assert printed.count("\n") == 1
