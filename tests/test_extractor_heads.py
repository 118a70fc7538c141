"""The head of a torch teacher is compared with what the teacher returns."""

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax, logit, softmax
from sklearn.base import clone
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from lelp_sklearn import (
    EmbeddingExtractor,
    LELPProjector,
    LELPStudentClassifier,
    NoLinearHeadWarning,
)


@pytest.fixture(autouse=True)
def same_weights():
    torch.manual_seed(0)


def rows(n=50, d=6, seed=0):
    return np.random.RandomState(seed).normal(size=(n, d)).astype(np.float32)


def returned_by(model, X):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(X)).numpy()


def logits_of(case, model, X):
    """The logarithm, and the logit, of probabilities."""
    returned = returned_by(model, X).reshape(len(X), -1)
    if case == "softmax":
        return np.log(returned)
    return logit(returned) if case == "sigmoid" else returned


class Net(nn.Module):
    """A body, a head that is made first, and what comes after it."""

    def __init__(self, head, ending=nn.Identity()):  # noqa: B008
        super().__init__()
        self.head, self.body, self.ending = head, nn.Linear(6, 5), ending

    def embeddings(self, X):
        with torch.no_grad():
            return torch.tanh(self.body(torch.from_numpy(X))).numpy()

    def forward(self, x):
        return self.ending(self.head(torch.tanh(self.body(x))))


class Cosine(nn.Linear):
    """The normalised head of ArcFace and its kin."""

    def forward(self, x):
        return 16 * functional.linear(
            functional.normalize(x), functional.normalize(self.weight)
        )


class Quantised(nn.Linear):
    """Multiplies by weights of 15 steps."""

    def forward(self, x):
        step = self.weight.abs().max() / 7
        return functional.linear(x, (self.weight / step).round() * step, self.bias)


class Scale(nn.Module):
    """A temperature that was learned."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.05]))

    def forward(self, x):
        return x * self.scale


class Prototypes(nn.Module):
    """Squared distances from one row a class."""

    def __init__(self, n_outputs=2):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(n_outputs, 5))

    def forward(self, x):
        return -(torch.cdist(x, self.rows) ** 2)


class OneScore(nn.Module):
    """A product with a vector."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5))

    def forward(self, x):
        return x @ self.weight


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter beside it."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.adapter = nn.Sequential(
            nn.Linear(base.in_features, 2, bias=False),
            nn.Linear(2, base.out_features, bias=False),
        )

    def forward(self, x):
        return self.base(x) + self.adapter(x)


class MeanOfHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x):
        return (self.first(x) + self.second(x)) / 2


# By the layer whose input is the embedding.
WITHOUT_HEAD = {
    "cosine": (lambda: Net(Cosine(5, 2, bias=False)), "head", "'head' come closest"),
    "quantised": (lambda: Net(Quantised(5, 2)), "head", "'head' come closest"),
    "scale": (lambda: Net(nn.Linear(5, 2), Scale()), "head", "'head' come closest"),
    "temperature": (
        lambda: Net(nn.Linear(5, 3), lambda x: x / 1.05),
        "head",
        "'head' come closest",
    ),
    "cut off": (lambda: Net(nn.Linear(5, 2), nn.ReLU(inplace=True)), "head", "'head'"),
    "softmax": (
        lambda: Net(Cosine(5, 3, bias=False), nn.Softmax(1)),
        "head",
        "'head' come closest",
    ),
    "sigmoid": (
        lambda: Net(Cosine(5, 1, bias=False), nn.Sigmoid()),
        "head",
        "'head' come closest",
    ),
    "own module": (lambda: Net(Prototypes()), "head", "No torch.nn.Linear makes"),
    "one score": (lambda: Net(OneScore()), "head", "No torch.nn.Linear makes"),
    "adapter": (
        lambda: Net(Adapted(nn.Linear(5, 2))),
        "head.base",
        "'head.base' come closest",
    ),
    "mean of heads": (lambda: Net(MeanOfHeads()), "head.first", "log-probabilities"),
}
each_without = pytest.mark.parametrize("case", WITHOUT_HEAD)


@each_without
def test_the_returned_logits_are_taken_where_no_layer_makes_them(case):
    make, layer, message = WITHOUT_HEAD[case]
    X, model = rows(), make()
    extractor = EmbeddingExtractor(model, batch_size=16)
    with pytest.warns(NoLinearHeadWarning, match=message) as warned:
        extractor.fit(X)
    assert [each.filename for each in warned] == [__file__]
    assert (extractor.head_, extractor.head_layer_) == (None, None)
    assert extractor.layer_ == layer
    assert_allclose(extractor.transform(X), model.embeddings(X), rtol=1e-5, atol=1e-6)
    expected = logits_of(case, model, X)
    assert extractor.n_logits_ == expected.shape[1]
    tolerance = 1e-3 if case == "sigmoid" else 1e-5
    assert_allclose(extractor.predict_logits(X), expected, tolerance, tolerance)


@each_without
def test_a_student_gets_the_class_probabilities_of_its_teacher(case):
    X, model = rows(200), WITHOUT_HEAD[case][0]()
    logits = logits_of(case, model, X)
    y = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).astype(int)
    student = LELPStudentClassifier(
        projector=LELPProjector(1),
        max_epochs=20,
        learning_rate=0.01,
        random_state=0,
    )
    with pytest.warns(NoLinearHeadWarning):
        found = clone(student).set_params(teacher=EmbeddingExtractor(model)).fit(X, y)
    given = {"teacher_embeddings": model.embeddings(X), "teacher_logits": logits}
    expected = student.fit(X, y, **given)
    assert_allclose(found.predict_proba(X), expected.predict_proba(X), atol=1e-3)


# ------------------------------------------------------------- what is a linear layer


def low_rank(layer):
    """A parametrization that adds something to the weights, as adapters do."""

    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(2, 5))

        def forward(self, weight):
            return weight + self.matrix

    parametrize.register_parametrization(layer, "weight", Added())
    return layer


class Twice(nn.Module):
    """A layer that runs on two inputs, of which the first makes what is returned."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        logits = self.layer(x)
        self.layer(x + 1)
        return logits


class Heads(nn.Module):
    """Several heads in a dict, of which the logits come first in time."""

    def __init__(self):
        super().__init__()
        self.of_classes, self.of_groups = nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x):
        logits = self.of_classes(x)
        return {"groups": self.of_groups(x), "logits": logits}


WITH_HEAD = {
    "head before body": lambda: Net(nn.Linear(5, 2)),
    "weight norm": lambda: Net(parametrizations.weight_norm(nn.Linear(5, 2))),
    "parametrized": lambda: Net(low_rank(nn.Linear(5, 2))),
    "adapter merged": lambda: Net(nn.Sequential(nn.Dropout(), nn.Linear(5, 3))),
    "runs twice": lambda: Net(Twice(nn.Linear(5, 2))),
    "several heads": lambda: Net(Heads()),
    "log-softmax": lambda: Net(nn.Linear(5, 4), nn.LogSoftmax(1)),
    "large logits": lambda: Net(nn.Linear(5, 3), nn.Softmax(1)),
    "no bias": lambda: Net(nn.Linear(5, 2, bias=False)),
}


@pytest.mark.parametrize("case", WITH_HEAD)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_head_is_the_layer_whose_weights_make_what_is_returned(case, precision):
    X, model = rows(), WITH_HEAD[case]()
    if case == "large logits":
        with torch.no_grad():
            model.head.weight.mul_(100)
    extractor = EmbeddingExtractor(model, precision=precision)
    embeddings = extractor.fit_transform(X)
    W, b = extractor.head_
    if precision == "float32":
        assert_allclose(embeddings, model.embeddings(X), rtol=1e-5, atol=1e-6)
    returned = model.eval()(torch.from_numpy(X))
    returned = returned["logits"] if case == "several heads" else returned
    expected = returned.detach().numpy()
    found = embeddings.astype(np.float64) @ W.T + b
    if case == "large logits":
        assert_allclose(
            softmax(found, axis=1),
            expected,
            atol=1e-4 if precision == "float32" else 0.5,
        )
    else:
        tolerance = 1e-5 if precision == "float32" else 0.05
        found, expected = log_softmax(found, axis=1), log_softmax(expected, axis=1)
        assert_allclose(found, expected, atol=tolerance)
    assert extractor.layer_ == extractor.head_layer_


def test_a_model_in_half_precision_has_its_head():
    """Its logits are rounded, and may be far smaller than what they sum up."""
    X, model = rows(), Net(nn.Linear(5, 2))
    with torch.no_grad():
        model.head.bias.copy_(-model.head(torch.tensor(model.embeddings(X))).mean(0))
        model.head.bias.add_(100)
    for dtype in (torch.bfloat16, torch.float16):
        model.to(dtype)
        assert EmbeddingExtractor(model).fit(X).head_ is not None


def test_a_model_that_is_a_linear_layer_is_its_head():
    X, model = rows(), nn.Linear(6, 2)
    extractor = EmbeddingExtractor(model)
    assert_array_equal(extractor.fit_transform(X), X)
    assert_array_equal(extractor.head_[0], model.weight.detach())


@pytest.mark.parametrize("has_run", [False, True])
def test_a_compiled_model_has_its_head(has_run):
    X, model = rows(), nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    compiled = torch.compile(model, backend="eager")
    if has_run:
        compiled(torch.from_numpy(X))
    extractor = EmbeddingExtractor(compiled)
    found = extractor.fit_transform(X)
    assert_allclose(found, returned_by(model[:2], X), rtol=1e-5, atol=1e-6)
    assert_array_equal(extractor.head_[0], model[2].weight.detach())


def test_a_model_with_a_scripted_part_has_its_head():
    X, model = rows(), nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model[0] = torch.jit.script(model[0])
    assert EmbeddingExtractor(model).fit(X).layer_ == "2"


def test_the_layer_nearest_to_the_output_of_an_encoder_is_its_last():
    """All of its layers are as wide as what it takes and returns."""
    X = rows()
    model = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in "abc"])
    extractor = EmbeddingExtractor(model)
    with pytest.warns(NoLinearHeadWarning):
        found = extractor.fit_transform(X)
    assert_allclose(found, returned_by(model[:2], X), rtol=1e-5, atol=1e-6)


def test_a_layer_that_runs_twice_gives_the_input_of_the_last_run():
    """Where no run by itself makes what is returned."""

    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head(x + 1) + self.head(2 * x)

    X = rows()
    with pytest.warns(NoLinearHeadWarning):
        assert_array_equal(EmbeddingExtractor(Views()).fit_transform(X), 2 * X)


# ------------------------------------------------------------------------ convolutions


class Convolutional(nn.Module):
    """A linear gate in the midst, and a convolution as the head."""

    def __init__(self):
        super().__init__()
        self.gate, self.head = nn.Linear(3, 3), nn.Conv2d(3, 2, 1)

    def gated(self, x):
        return x * self.gate(x.mean((2, 3)))[:, :, None, None].sigmoid()

    def forward(self, x):
        return self.head(self.gated(x)).mean((2, 3))


def test_embeddings_of_a_convolution_are_averaged_over_positions():
    X, model = rows(20, 3 * 4 * 5).reshape(20, 3, 4, 5), Convolutional()
    extractor = EmbeddingExtractor(model, batch_size=8)
    with pytest.warns(NoLinearHeadWarning, match=r"No torch\.nn\.Linear"):
        found = extractor.fit_transform(X)
    with torch.no_grad():
        expected = model.gated(torch.from_numpy(X)).mean((2, 3)).numpy()
    assert extractor.layer_ == "head"
    assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert_allclose(extractor.predict_logits(X), returned_by(model, X), atol=1e-6)
    named = EmbeddingExtractor(model, layer="head").fit(X)
    assert_array_equal(
        named.transform(X), EmbeddingExtractor(model, layer="head").fit_transform(X)
    )
    assert_allclose(named.transform(X), expected, rtol=1e-5, atol=1e-6)
