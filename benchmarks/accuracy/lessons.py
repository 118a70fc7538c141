"""Teachers, kept on disk once trained, and what they teach."""

import os
from pathlib import Path

import torch

from accuracy.config import TaskConfig, digest
from accuracy.data import Places, derived_seed, draw
from methods import Lesson
from tasks import Task
from teacher import Teacher, accuracy, embed, train_teacher


def make_lesson(config: TaskConfig, places: Places, seed: int, part: str) -> Lesson:
    """Draw the rows of a seed and have a teacher, trained or kept, prepare a lesson."""
    own_seed = derived_seed(config.drawn_as, seed)
    drawn = draw(config, places, own_seed, part)
    task, rows = drawn.task, slice(config.n_student)
    path = teacher_path(config, places.cache, seed)
    teacher = trained_teacher(task, own_seed, config.teacher_steps, path)
    X, X_score = task.X[rows], task.X_score
    if drawn.read_as_student is not None:
        X, X_score = drawn.read_as_student(config.n_student)
    return Lesson(
        X=X,
        y=task.y[rows],
        groups=task.groups[rows] if config.has_groups else None,
        embeddings=embed(teacher, task.X[rows]),
        head=teacher.head,
        n_units=config.n_units,
        X_score=X_score,
        y_score=task.y_score,
        teacher_accuracy=accuracy(teacher, task.X_score, task.y_score),
        seed=own_seed,
    )


def teacher_path(config: TaskConfig, cache: Path, seed: int) -> Path:
    """Return where the teacher of a seed is kept."""
    slug = "".join(c if c.isalnum() else "_" for c in config.drawn_as)
    return cache / f"{slug}-{digest(config)}" / f"teacher_{seed}.pt"


def trained_teacher(task: Task, seed: int, n_steps: int, path: Path) -> Teacher:
    """Load the teacher if it is there, else train it and keep it."""
    if path.exists():
        teacher = Teacher(task.X.shape[1], int(task.y.max()) + 1)
        teacher.load_state_dict(torch.load(path, weights_only=True))
        return teacher.eval()
    teacher = train_teacher(task, seed, n_steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    torch.save(teacher.state_dict(), unfinished)
    os.replace(unfinished, path)
    return teacher
