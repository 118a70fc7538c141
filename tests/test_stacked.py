"""The stacked students of the searches learn what the library's student learns."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lelp_sklearn import LELPProjector, LELPStudentClassifier

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SETTINGS = [
    {"learning_rate": 0.02, "temperature": 2.0, "max_epochs": 30},
    {"learning_rate": 0.005, "temperature": 4.0, "max_epochs": 30},
]


@pytest.fixture
def stacked(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("stacked")


@pytest.fixture
def lesson(stacked):
    images, names = load_digits(n_class=8, return_X_y=True)
    X = (images[:200] / 16).astype(np.float32)
    torch.manual_seed(0)
    return stacked.Lesson(
        X=X,
        y=names[:200] % 2,
        groups=names[:200],
        embeddings=X[:, ::2],
        head=nn.Linear(32, 2),
        n_units=12,
        X_score=X,
        y_score=names[:200] % 2,
        teacher_accuracy=0.0,
        seed=0,
    )


@pytest.mark.parametrize(
    "splitting",
    [
        {"n_subclasses": 1},
        {"n_subclasses": 3, "splitter": "pca"},
        {"n_subclasses": 3, "splitter": "kmeans", "subclass_temperature": 0.0},
    ],
    ids=["vanilla", "soft", "hard"],
)
@pytest.mark.parametrize("weight", ["anneal", 1.0, 0.0])
def test_stack_of_students_equals_students_of_the_library(
    stacked, lesson, splitting, weight
):
    """With all rows in one batch, so no order is drawn, and equal initial weights."""
    method = stacked.Method(splitting, {"subclass_weight": weight})
    stack = stacked.make_stack(method, lesson, SETTINGS)
    n_outputs = stack.within[0].numel()
    layers = [nn.Linear(64, 12), nn.Linear(12, n_outputs)]
    X = torch.from_numpy(lesson.X)
    trained = stack.train(X, layers, max_epochs=30, batch_size=len(X))
    logits = stack.class_logits(X, trained).numpy()
    for setting, found in zip(SETTINGS, logits, strict=True):
        projector = LELPProjector(
            head=lesson.head,
            temperature=setting["temperature"],
            random_state=lesson.seed,
            **splitting,
        )
        student = LELPStudentClassifier(
            nn.Sequential(layers[0], nn.ReLU(), layers[1]),
            projector=projector,
            learning_rate=setting["learning_rate"],
            max_epochs=30,
            random_state=0,
            **{**stacked.TRAINING, "batch_size": len(X)},
            **method.training,
        ).fit(lesson.X, lesson.y, teacher_embeddings=lesson.embeddings)
        expected = found[:, 1] - found[:, 0]
        np.testing.assert_allclose(
            student.decision_function(lesson.X), expected, rtol=1e-3, atol=1e-3
        )
