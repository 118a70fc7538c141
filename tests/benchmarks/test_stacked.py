"""The stacked students of the benchmarks learn what the library's student learns."""

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
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
def stacked(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("stacked")


@pytest.fixture
def lessons(stacked):
    """Two lessons of 201 rows: the last of five batches of 50 would have one row."""
    images, names = load_digits(n_class=8, return_X_y=True)
    X = (images / 16).astype(np.float32)
    torch.manual_seed(0)
    first = stacked.Lesson(
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


def methods(stacked):
    names = importlib.import_module("methods").METHODS
    earlier = importlib.import_module("methods").EARLIER
    variants = importlib.import_module("accuracy.variants").VARIANTS
    names = {**names, **earlier, **{name: variants[name] for name in VARIANTS}}
    few = {"n_subclasses": 3}
    return {
        name: method
        if method.within
        else replace(method, splitting={**few, **method.splitting})
        for name, method in names.items()
    }


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
def test_stacked_students_are_those_of_the_public_api(stacked, lessons, name):
    """Batch for batch: the same initial weights, order of rows, loss and steps."""
    method = methods(stacked)[name]
    settings = SETTINGS
    if name == "hard labels":
        settings = [{**setting, "temperature": 1.0} for setting in SETTINGS]
    fit = importlib.import_module("methods").fit
    found = stacked.class_logits(method, lessons, settings)
    for lesson, by_setting in zip(lessons, found, strict=True):
        for setting, logits in zip(settings, by_setting, strict=True):
            student = fit(method, lesson, setting)
            np.testing.assert_allclose(
                logits[:, 1] - logits[:, 0],
                student.decision_function(lesson.X_score),
                rtol=1e-3,
                atol=1e-4,
            )


@pytest.mark.parametrize("name", ["FitNet", "FitNet, earlier layer"])
def test_stacked_fitnet_is_the_fitnet_of_the_benchmarks(stacked, lessons, name):
    method = methods(stacked)[name]
    # One row more: FitNet's own loop does not join a last batch of one row.
    images = [np.vstack([le.X, le.X[:1]]) for le in lessons]
    lessons = [
        replace(
            lesson,
            X=X,
            y=np.append(lesson.y, lesson.y[0]),
            embeddings=X[:, ::2],
            earlier=X[:, :24],
        )
        for lesson, X in zip(lessons, images, strict=True)
    ]
    settings = [{**setting, "regression_weight": 20.0} for setting in SETTINGS[:2]]
    fit = importlib.import_module("methods").fit
    found = stacked.class_logits(method, lessons, settings)
    for lesson, by_setting in zip(lessons, found, strict=True):
        for setting, logits in zip(settings, by_setting, strict=True):
            student = fit(method, lesson, setting)
            with torch.no_grad():
                expected = student.module_(torch.from_numpy(lesson.X_score)).numpy()
            np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_what_a_student_learns_does_not_hang_on_its_neighbours(stacked, lessons):
    method = methods(stacked)["LELP, library defaults"]
    together = stacked.class_logits(method, lessons, SETTINGS)
    alone = stacked.class_logits(method, lessons[1:], SETTINGS[1:2])
    np.testing.assert_allclose(together[1][1], alone[0][0], rtol=1e-3, atol=1e-4)
