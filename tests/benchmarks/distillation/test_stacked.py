"""FitNet's students side by side learn what its own loop teaches them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from benchmarks.distillation import methods, stacked
from benchmarks.distillation.methods.base import DistillationData
from benchmarks.distillation.methods.fit import fit

SETTINGS = [
    {"learning_rate": 0.02, "temperature": 2.0, "max_epochs": 4},
    {"learning_rate": 0.005, "temperature": 4.0, "max_epochs": 4},
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


@pytest.mark.parametrize("name", ["FitNet", "FitNet, earlier layer"])
def test_stacked_fitnet_is_the_fitnet_of_the_benchmarks(data_by_seed, name):
    method = methods.TRAINABLE[name]
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
    settings = [{**setting, "regression_weight": 20.0} for setting in SETTINGS]
    found = stacked.class_logits(method, data_by_seed, settings)
    for data, by_setting in zip(data_by_seed, found, strict=True):
        for setting, logits in zip(settings, by_setting, strict=True):
            student = fit(method, data, setting)
            with torch.no_grad():
                expected = student.module_(torch.from_numpy(data.X_score)).numpy()
            np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_what_a_student_learns_does_not_depend_on_its_neighbours(data_by_seed):
    method = methods.METHODS["FitNet"]
    together = stacked.class_logits(method, data_by_seed, SETTINGS)
    alone = stacked.class_logits(method, data_by_seed[1:], SETTINGS[1:2])
    np.testing.assert_allclose(together[1][1], alone[0][0], rtol=1e-3, atol=1e-4)
