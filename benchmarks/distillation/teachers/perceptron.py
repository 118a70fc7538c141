"""A multilayer perceptron as teacher: a body, and a linear head upon it."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.distillation.datasets.base import Array, Task

BATCH_SIZE = 128


class Teacher(nn.Module):
    """The output of `body` is the embedding; `head` maps it to class logits.

    In training the share `dropout` of the input and of the first hidden layer is 0.
    """

    def __init__(self, n_features: int, n_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        layers = nn.Linear(n_features, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU()
        drop = nn.Dropout(dropout)
        if dropout:
            layers = drop, *layers[:2], drop, *layers[2:]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(128, n_classes)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(X))


def train_teacher(
    task: Task,
    seed: int,
    n_steps: int = 3_500,
    n_outputs: int | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    dropout: float = 0.0,
) -> Teacher:
    """Train a teacher on the classes of all training rows.

    Without `n_outputs` it has one for each class.
    """
    X, y = torch.from_numpy(task.X), torch.from_numpy(task.y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = Teacher(X.shape[1], n_outputs or int(y.max()) + 1, dropout)
        optimizer = torch.optim.AdamW(teacher.parameters(), lr=2e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        for _ in range(n_steps):
            rows = torch.randint(len(X), (BATCH_SIZE,))
            optimizer.zero_grad()
            loss(teacher(X[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return teacher.eval()


@torch.no_grad()
def embed(teacher: Teacher, X: Array) -> Array:
    """Return the teacher's embeddings of X, of shape (n, 128)."""
    return teacher.body(torch.from_numpy(X)).numpy()


def accuracy(teacher: Teacher, X: Array, y: Array) -> float:
    """Return the share of rows that the teacher classifies correctly."""
    return float(np.mean(predict(teacher, X) == y))


@torch.no_grad()
def predict(teacher: Teacher, X: Array) -> Array:
    """Return the class of each row, of shape (n,)."""
    return teacher(torch.from_numpy(X)).argmax(1).numpy()
