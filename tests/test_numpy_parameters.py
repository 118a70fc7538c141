"""NumPy's numbers are parameters like Python's: what a grid of a search holds."""

import pickle
from numbers import Integral, Real

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.model_selection import GridSearchCV
from sklearn.utils._param_validation import Interval
from torch import nn

from lelp_sklearn import (
    EmbeddingExtractor,
    LELPProjector,
    LELPStudentClassifier,
    labeled_scorer,
    losses,
    subclass_report,
)
from tests.student_problems import MyNet, make_groups

X, Y, E, HEAD = make_groups()
TOKENS = np.arange(40 * 6).reshape(40, 6) % 11

# A value for each parameter that is a number, other than the default, and such that it
# is the same in each of NumPy's types.
VALUES = {
    LELPStudentClassifier: {
        "label_weight": 0.25,
        "subclass_weight": 0.5,
        "within_class_temperature": 2.0,
        "learning_rate": 0.015625,
        "weight_decay": 0.03125,
        "max_grad_norm": 0.5,
        "max_epochs": 3,
        "batch_size": 100,
        "early_stopping": True,
        "validation_fraction": 0.25,
        "n_iter_no_change": 2,
        "warm_start": True,
        "verbose": 0,
        "checkpoint_interval": 2,
        "random_state": 3,
    },
    LELPProjector: {
        "n_subclasses": 3,
        "null_space": False,
        "temperature": 2.0,
        "subclass_temperature": 0.5,
        "n_oversamples": 250,
        "iterated_power": 1,
        "random_state": 3,
    },
    EmbeddingExtractor: {"batch_size": 15, "verbose": False, "max_length": 4},
}
KINDS = {
    Integral: [np.int64, np.uint8],
    "random_state": [np.int64, np.uint8],
    "verbose": [np.int64, np.bool_],
    Real: [np.float64, np.float32, np.float16],
    "boolean": [np.bool_],
}


def kind_of(constraints):
    """Give the key in `KINDS` of a parameter, None where it is no number."""
    for constraint in constraints:
        kind = constraint.type if isinstance(constraint, Interval) else constraint
        if isinstance(kind, type | str) and kind in KINDS:
            return kind
    return None


def numeric_parameters():
    """Yield each parameter that may be a number, with each of NumPy's types of it."""
    for estimator in VALUES:
        for name, constraints in estimator._parameter_constraints.items():
            kind = kind_of(constraints)
            for numpy_type in KINDS.get(kind, ()):
                yield pytest.param(
                    estimator,
                    name,
                    numpy_type,
                    id=f"{estimator.__name__}-{name}-{numpy_type.__name__}",
                )


def student_results(tmp_path, **params):
    options = {
        "projector": LELPProjector(2, head=HEAD),
        "max_epochs": 4,
        "random_state": 0,
    }
    student = LELPStudentClassifier(**options | params)
    # The second fit is read from the checkpoint of the first, or goes on from it.
    student.set_params(checkpoint=tmp_path / "student.ckpt")
    student.fit(X, Y, teacher_embeddings=E)
    curve = student.loss_curve_
    student.set_params(**{name: np.asarray(v).item() for name, v in params.items()})
    if student.warm_start:
        student.set_params(checkpoint=tmp_path / "next.ckpt")
    student.fit(X, Y, teacher_embeddings=E)
    if not student.early_stopping:
        student.partial_fit(X, Y, teacher_embeddings=E)
    return pickle.loads(pickle.dumps(student)).predict_proba(X), np.array(curve)


def projector_results(tmp_path, **params):
    options = {
        "n_subclasses": 2,
        "splitter": "pca",
        "svd_solver": "randomized",
        "head": HEAD,
        "random_state": 0,
    }
    projector = LELPProjector(**options | params)
    return projector.fit_transform(E, Y), projector.partial_fit(E, Y).transform(E)


class TokenSum(nn.Module):
    """A sequence classifier that is called with what a tokenizer makes of texts."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.top = nn.Linear(5, 2)

    def forward(self, input_ids):
        return self.top(self.embedding(input_ids).sum(dim=1))


def tokenize(texts, *, padding, truncation, max_length, return_tensors):
    """Cut texts of six digits to `max_length` ids."""
    return {"input_ids": torch.tensor([[*map(int, t)] for t in texts])[:, :max_length]}


def extractor_results(tmp_path, **params):
    torch.manual_seed(0)
    texts = ["".join(str(token % 10) for token in row) for row in TOKENS]
    extractor = EmbeddingExtractor(TokenSum(), tokenizer=tokenize, **params)
    file = extractor.extract(texts, tmp_path / f"{len(list(tmp_path.iterdir()))}.npy")
    return extractor.transform(texts), extractor.predict_logits(texts), np.array(file)


RESULTS = {
    LELPStudentClassifier: student_results,
    LELPProjector: projector_results,
    EmbeddingExtractor: extractor_results,
}


@pytest.mark.parametrize(("estimator", "name", "numpy_type"), [*numeric_parameters()])
def test_numbers_of_numpy_are_numbers(estimator, name, numpy_type, tmp_path):
    value = VALUES[estimator][name]
    results = RESULTS[estimator]
    folders = [tmp_path / "numpy", tmp_path / "python"]
    for folder in folders:
        folder.mkdir()
    found = results(folders[0], **{name: numpy_type(value)})
    wanted = results(folders[1], **{name: value})
    for one, other in zip(found, wanted, strict=True):
        assert_array_equal(one, other)


def test_a_grid_of_batch_sizes_made_by_numpy():
    student = LELPStudentClassifier(
        projector=LELPProjector(2, head=HEAD), max_epochs=2, random_state=0
    )
    grid = {"batch_size": 2 ** np.arange(4, 7), "learning_rate": np.logspace(-3, -2, 2)}
    search = GridSearchCV(student, grid, cv=2, error_score="raise")
    search.fit(X, Y, teacher_embeddings=E)
    assert search.best_params_["batch_size"] in (16, 32, 64)


def test_a_schedule_may_give_numbers_of_numpy(tmp_path):
    def fitted(schedule, name):
        return LELPStudentClassifier(
            MyNet,
            projector=LELPProjector(2, head=HEAD),
            learning_rate_schedule=schedule,
            max_epochs=2,
            checkpoint=tmp_path / name,
            random_state=0,
        ).fit(X, Y, teacher_embeddings=E)

    from_numpy = fitted(lambda progress: np.float64(1 - progress), "numpy.ckpt")
    from_python = fitted(lambda progress: 1 - progress, "python.ckpt")
    assert_array_equal(from_numpy.predict_proba(X), from_python.predict_proba(X))


def test_many_epochs_of_the_narrowest_integer():
    # Progress counts to one more than the parameter, which a byte does not hold.
    student = LELPStudentClassifier(
        projector=LELPProjector(1, head=HEAD),
        subclass_weight=lambda progress: 1.0,
        max_epochs=np.uint8(255),
        checkpoint_interval=np.uint8(255),
        random_state=0,
    )
    rows = slice(0, 12)
    student.fit(X[rows], Y[rows], teacher_embeddings=E[rows])
    assert student.n_epochs_ == 255


def test_losses_and_functions_take_them_too():
    logits, targets = torch.randn(5, 6).double(), torch.rand(5, 6).double().softmax(1)
    options = {"temperature": 2.0, "subclass_weight": 0.5}
    of_numpy = {name: np.float32(value) for name, value in options.items()}
    torch.testing.assert_close(
        losses.subclass_cross_entropy(logits, targets, np.int64(2), **of_numpy),
        losses.subclass_cross_entropy(logits, targets, 2, **options),
    )
    student = LELPStudentClassifier(
        projector=LELPProjector(np.int64(2), head=HEAD), max_epochs=np.int64(1)
    )
    counts = {"n_splits": 2, "max_samples": 60, "max_steps": 1, "random_state": 0}
    reports = [
        subclass_report(student, X, Y, teacher_embeddings=E, **numbers)
        for numbers in (counts, {n: np.uint8(value) for n, value in counts.items()})
    ]
    assert reports[0] == reports[1]
    student.fit(X, Y, teacher_embeddings=E)
    marked = np.where(np.arange(len(Y)) % 2, Y, -1)
    scores = [
        labeled_scorer("accuracy", unlabeled=marker)(student, X, marked)
        for marker in (-1, np.int8(-1))
    ]
    assert scores[0] == scores[1]
