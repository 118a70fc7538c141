"""A search by the library trains the students that it trains one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from benchmarks.distillation import methods, training
from benchmarks.distillation.methods.base import DistillationData

# Variants whose targets or losses are of a kind of their own.
VARIANTS = (
    "default, α = 0.3",
    "vanilla KD, α = 0.3",
    "λ from 3 to 0 at 50%",
    "k-means, at 1",
    "margin regressed out",
    "Gaussian kernel, k-means",
    "k-means and directions, 20 each",
)
SETTINGS = [
    {"learning_rate": 0.02, "temperature": 2.0, "max_epochs": 8},
    {"learning_rate": 0.005, "temperature": 4.0, "max_epochs": 8},
    {"learning_rate": 0.01, "temperature": 3.0, "max_epochs": 4},
]
DIVERGENT = {**SETTINGS[0], "learning_rate": 1e30}


@pytest.fixture(scope="module")
def data():
    """Few rows to train on, many to score, and a teacher that is often right."""
    images, names = load_digits(n_class=8, return_X_y=True)
    X, y = (images / 16).astype(np.float32), names % 2
    teacher = LogisticRegression().fit(X[:201, ::2], y[:201])
    head = nn.Linear(32, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[-1], [1]]) * torch.tensor(teacher.coef_))
        head.bias.copy_(torch.tensor([-1, 1]) * torch.tensor(teacher.intercept_))
    return DistillationData(
        X=X[:201],
        y=y[:201],
        groups=names[:201],
        embeddings=X[:201, ::2],
        earlier=X[:201, :24],
        head=head,
        n_units=12,
        X_score=X[201:],
        y_score=y[201:],
        teacher_accuracy=0.0,
        seed=3,
        training={
            "learning_rate_schedule": "cosine",
            "weight_decay": 0.01,
            "batch_size": 50,
        },
    )


def method_of(name):
    """Return a method that makes few subclasses."""
    method = methods.TRAINABLE[name]
    if method.within:
        return method
    return replace(method, splitting={"n_subclasses": 3, **method.splitting})


@pytest.mark.parametrize(
    "name",
    [
        "hard labels",
        "vanilla KD",
        "LELP as published",
        "LELP, library defaults",
        "hard k-means, annealed",
        "same outputs, λ = 0",
        "oracle",
        "LELP as published, earlier layer",
        "LELP, library defaults, earlier layer",
        *VARIANTS,
    ],
)
def test_students_of_a_search_score_as_those_trained_one_by_one(data, name):
    method = method_of(name)
    settings = SETTINGS
    if name == "hard labels":
        settings = [
            {key: value for key, value in setting.items() if key != "temperature"}
            for setting in SETTINGS
        ]
    (found,) = training.accuracies(method, [data], settings)
    (by_setting,) = training.class_logits(method, [data], settings)
    expected = [np.mean(logits.argmax(1) == data.y_score) for logits in by_setting]
    # Up to rounding: one row of a thousand may be on the border.
    np.testing.assert_allclose(found, expected, atol=1.5 / len(data.y_score))
    assert len(set(found)) > 1


@pytest.mark.parametrize("settings", [[DIVERGENT], [SETTINGS[0], DIVERGENT]])
def test_setting_that_diverges_is_a_bad_one_and_ends_no_search(data, settings):
    method = methods.METHODS["vanilla KD"]
    (found,) = training.accuracies(method, [data], settings)
    assert found[-1] == np.mean(data.y_score == 0)
    assert len(found) == len(settings)
    assert all(accuracy > found[-1] for accuracy in found[:-1])
