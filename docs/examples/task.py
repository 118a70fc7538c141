"""The task that the examples share, its teacher, and the student's network.

Two of scikit-learn's handwritten digits side by side make a two-digit number; the class
is whether it is prime. A teacher learns the two classes from 20 000 such images. The
student has 1 000 others and the teacher's embeddings of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from lelp_sklearn import EmbeddingExtractor

PRIME = np.array([n > 1 and all(n % k for k in range(2, n)) for n in range(100)])


@dataclass(frozen=True)
class Task:
    """Rows for the student, the teacher's embeddings and head, and test rows.

    `X` (n, 128) and `embeddings` (n, 64) are float32; `head` is the teacher's last
    layer, and `y` (n,) holds 0 or 1.
    """

    X: Tensor
    y: Tensor
    embeddings: Tensor
    head: nn.Linear
    X_test: Tensor
    y_test: Tensor


def make_task() -> Task:
    """Draw the numbers and train the teacher."""
    digits = train_test_split(
        *load_digits(return_X_y=True), test_size=0.5, random_state=0
    )
    generator = np.random.default_rng(0)
    X_teacher, y_teacher = _draw_numbers(*digits[::2], 20_000, generator)
    X, y = _draw_numbers(*digits[::2], 1_000, generator)
    X_test, y_test = _draw_numbers(*digits[1::2], 10_000, generator)
    teacher = _train_teacher(X_teacher, y_teacher)
    extractor = EmbeddingExtractor(teacher)
    embeddings = torch.from_numpy(extractor.fit_transform(X))
    return Task(X, y, embeddings, extractor.head_, X_test, y_test)


def make_net(n_features: int, n_outputs: int, seed: int) -> nn.Module:
    """Seed torch, which also draws the order of the rows, and make the student."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(n_features, 32), nn.ReLU(), nn.Linear(32, n_outputs))


def accuracy(probabilities: Tensor | np.ndarray, task: Task) -> float:
    """Return the share of the test numbers whose most likely class is correct."""
    found = torch.as_tensor(probabilities).argmax(dim=1)
    return float((found == task.y_test).float().mean())


def print_accuracy(trainer: str, train: Callable[[Task], Tensor | np.ndarray]) -> None:
    """Train a student and print its accuracy on the test numbers."""
    task = make_task()
    print(f"{trainer}: {accuracy(train(task), task):.1%}")


def _draw_numbers(
    images: np.ndarray, names: np.ndarray, n: int, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    left, right = generator.integers(len(images), size=(2, n))
    X = np.hstack([images[left], images[right]]) / 8 - 1
    y = PRIME[10 * names[left] + names[right]]
    return torch.tensor(X, dtype=torch.float32), torch.tensor(y, dtype=torch.int64)


def _train_teacher(X: Tensor, y: Tensor) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = nn.Sequential(
            nn.Linear(X.shape[1], 256),
            nn.ReLU(),
            nn.Linear(256, 64),
            nn.ReLU(),
            nn.Linear(64, 2),
        )
        optimizer = torch.optim.AdamW(teacher.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1_000)
        for _ in range(1_000):
            rows = torch.randint(len(X), (128,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(teacher(X[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return teacher.eval()
