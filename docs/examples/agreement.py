"""Compare the students of other trainers with ours: ``python agreement.py``.

*One batch.* If a batch holds all rows, nothing is random but the initial weights, which
are the same. Then the class probabilities after 100 steps are equal up to rounding: the
loss, the subclass weight, the learning rate, the weight decay and the optimizer are the
same at every step.

*As in the examples.* Batches of 128 for 100 epochs, in an order that each trainer draws
itself; accuracies are paired by the initial weights.

The exit status is 1 if the students differ by more.
"""

import argparse
import contextlib
import io
import logging
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import lightning_student
import skorch_student
import transformers_student
from lelp_sklearn import LELPProjector, LELPStudentClassifier
from task import Task, accuracy, make_net, make_task

TRAINERS = {
    "skorch": skorch_student.train,
    "Lightning": lightning_student.train,
    "Hugging Face Trainer": transformers_student.train,
}

# Difference of a class probability. It is larger if a cosine is one step longer, or if
# biases have no weight decay.
MOST_BY_ROUNDING = 1e-3
# Percentage points. Without the subclasses, or without annealing, the loss is three.
MOST_BY_CHANCE = 0.5


def train_ours(
    task: Task, seed: int = 0, max_epochs: int = 100, batch_size: int = 128
) -> np.ndarray:
    """Train `LELPStudentClassifier` at the settings of the examples."""
    student = LELPStudentClassifier(
        make_net,
        module_params={"seed": seed},
        projector=LELPProjector(head=task.head, temperature=1.0, random_state=0),
        within_class_temperature=1.0,
        learning_rate=0.01,
        max_epochs=max_epochs,
        batch_size=batch_size,
        random_state=seed,
    )
    student.fit(task.X, task.y, teacher_embeddings=task.embeddings)
    return student.predict_proba(task.X_test)


def quietly(train: Callable[..., Tensor | np.ndarray], *args: object) -> Tensor:
    """Train without the trainer's own reports."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        return torch.as_tensor(train(*args))


def compare_on_one_batch(task: Task) -> bool:
    """Print the largest differences of probabilities; return whether all are small."""
    arguments = task, 0, 100, len(task.X)
    ours = torch.as_tensor(train_ours(*arguments))
    print(
        f"One batch: largest difference of a probability (at most {MOST_BY_ROUNDING})"
    )
    agree = True
    for trainer, train in TRAINERS.items():
        largest = float((quietly(train, *arguments) - ours).abs().max())
        print(f"  {trainer:24}{largest:.1e}")
        agree &= largest <= MOST_BY_ROUNDING
    return agree


def compare_as_in_the_examples(task: Task, n_seeds: int) -> bool:
    """Print accuracies and paired differences; return whether all are small."""
    seeds = range(n_seeds)
    ours = np.array([accuracy(train_ours(task, seed), task) for seed in seeds])
    print(f"As in the examples: accuracy %, difference (at most {MOST_BY_CHANCE})")
    print(f"  {'LELPStudentClassifier':24}{100 * ours.mean():.2f}")
    agree = True
    for trainer, train in TRAINERS.items():
        theirs = [accuracy(quietly(train, task, seed), task) for seed in seeds]
        points = 100 * (np.array(theirs) - ours)
        error = points.std(ddof=1) / n_seeds**0.5
        print(
            f"  {trainer:24}{100 * np.mean(theirs):.2f}"
            f"  {points.mean():+.2f} ± {error:.2f}"
        )
        agree &= abs(points.mean()) <= MOST_BY_CHANCE
    return agree


def main() -> int:
    """Compare, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="default: 10")
    n_seeds = parser.parse_args().seeds
    for part in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.ERROR)
    task = make_task()
    agree = [compare_on_one_batch(task), compare_as_in_the_examples(task, n_seeds)]
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main())
