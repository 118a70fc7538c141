"""The stacked students of the benchmarks learn what the library's student learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from benchmarks.distillation import methods, stacked
from benchmarks.distillation.methods.base import DistillationData
from benchmarks.distillation.methods.fit import fit

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
    {"learning_rate": 0.02, "temperature": 2.0, "max_epochs": 4},
    {"learning_rate": 0.005, "temperature": 4.0, "max_epochs": 4},
    {"learning_rate": 0.01, "temperature": 3.0, "max_epochs": 2},
]


@pytest.fixture
def data_by_seed():
    """Two data sets of 201 rows: the last of five batches of 50 would have one."""
    images, names = load_digits(n_class=8, return_X_y=True)
    X = (images / 16).astype(np.float32)
    torch.manual_seed(0)
    first = DistillationData(
        X=X[:201],
        y=names[:201] % 2,
        groups=names[:201],
        embeddings=X[:201, ::2],
        earlier=X[:201, :24],
        head=nn.Linear(32, 2),
        n_units=12,
        X_score=X[500:600],
        y_score=names[500:600] % 2,
        teacher_accuracy=0.0,
        seed=0,
        training={
            "learning_rate_schedule": "cosine",
            "weight_decay": 0.01,
            "batch_size": 50,
        },
    )
    rows = slice(201, 402)
    second = replace(
        first,
        X=X[rows],
        y=names[rows] % 2,
        groups=names[rows],
        embeddings=X[rows, ::2],
        earlier=X[rows, :24],
        head=nn.Linear(32, 2),
        seed=1,
    )
    return [first, second]


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
def test_stacked_students_are_those_of_the_public_api(data_by_seed, name):
    """Batch for batch: the same initial weights, order of rows, loss and steps."""
    method = method_of(name)
    settings = SETTINGS
    if name == "hard labels":
        settings = [{**setting, "temperature": 1.0} for setting in SETTINGS]
    found = stacked.class_logits(method, data_by_seed, settings)
    for data, by_setting in zip(data_by_seed, found, strict=True):
        for setting, logits in zip(settings, by_setting, strict=True):
            student = fit(method, data, setting)
            np.testing.assert_allclose(
                logits[:, 1] - logits[:, 0],
                student.decision_function(data.X_score),
                rtol=1e-3,
                atol=1e-4,
            )


@pytest.mark.parametrize("name", ["FitNet", "FitNet, earlier layer"])
def test_stacked_fitnet_is_the_fitnet_of_the_benchmarks(data_by_seed, name):
    method = method_of(name)
    # One row more: FitNet's own loop does not join a last batch of one row.
    images = [np.vstack([le.X, le.X[:1]]) for le in data_by_seed]
    data_by_seed = [
        replace(
            data,
            X=X,
            y=np.append(data.y, data.y[0]),
            embeddings=X[:, ::2],
            earlier=X[:, :24],
        )
        for data, X in zip(data_by_seed, images, strict=True)
    ]
    settings = [{**setting, "regression_weight": 20.0} for setting in SETTINGS[:2]]
    found = stacked.class_logits(method, data_by_seed, settings)
    for data, by_setting in zip(data_by_seed, found, strict=True):
        for setting, logits in zip(settings, by_setting, strict=True):
            student = fit(method, data, setting)
            with torch.no_grad():
                expected = student.module_(torch.from_numpy(data.X_score)).numpy()
            np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_what_a_student_learns_does_not_depend_on_its_neighbours(data_by_seed):
    method = method_of("LELP, library defaults")
    together = stacked.class_logits(method, data_by_seed, SETTINGS)
    alone = stacked.class_logits(method, data_by_seed[1:], SETTINGS[1:2])
    np.testing.assert_allclose(together[1][1], alone[0][0], rtol=1e-3, atol=1e-4)
