"""What students learn from: rows are drawn, teachers trained or read, and asked."""

from collections.abc import Callable, Collection
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.distillation.config import TaskConfig, digest
from benchmarks.distillation.datasets.base import Array, Paths, Task
from benchmarks.distillation.datasets.draw import ENCODED, derived_seed, draw
from benchmarks.distillation.datasets.patches import as_vectors
from benchmarks.distillation.datasets.shifted import with_copies
from benchmarks.distillation.methods import subclass_distillation
from benchmarks.distillation.methods.base import (
    TRAINING,
    DistillationData,
    SubclassTeacher,
)
from benchmarks.distillation.methods.clusters import lay_out
from benchmarks.distillation.methods.losses import class_logits
from benchmarks.distillation.students import PhotoStudent
from benchmarks.distillation.teachers.convolutional import (
    PhotoTeacher,
    embed_photos,
    train_photo_teacher,
)
from benchmarks.distillation.teachers.perceptron import (
    BATCH_SIZE,
    Teacher,
    accuracy,
    embed,
    predict,
    train_teacher,
)
from benchmarks.files import replacing

# Streams of shifts: what a student reads is none of what its teacher learned from.
OF_TEACHER, OF_STUDENT = 1, 2

Network = TypeVar("Network", bound=nn.Module)


def prepare(task: Task, seed: int, **teacher_options) -> DistillationData:
    """Train a teacher on all training rows and hand the first ones to the student."""
    teacher = train_teacher(task, seed, **teacher_options)
    rows = slice(task.n_student)
    return DistillationData(
        X=task.X[rows],
        y=task.y[rows],
        groups=task.groups[rows],
        embeddings=embed(teacher, task.X[rows]),
        head=teacher.head,
        n_units=task.n_units,
        X_score=task.X_score,
        y_score=task.y_score,
        teacher_accuracy=accuracy(teacher, task.X_score, task.y_score),
        seed=seed,
    )


def make_data(
    config: TaskConfig,
    paths: Paths,
    seed: int,
    part: str,
    wanted: Collection[str] = (),
) -> DistillationData:
    """Draw the rows of a seed and have a teacher, trained or kept, asked about them.

    `wanted` names fields that are made only on demand.
    """
    if config.is_convolutional:
        check_photo_task(config, wanted)
        return make_photo_data(config, paths, seed, part)
    own_seed = derived_seed(config.drawn_as, seed)
    drawn = draw(config, paths, own_seed, part)
    task, first = drawn.task, drawn.task.X[: config.n_student]
    rows = np.tile(np.arange(len(first)), config.n_copies)
    labelled = labelled_rows(task, config.labelled_share)
    teacher_task = teacher_rows(config, labelled, own_seed)
    path = teacher_path(config, paths.cache, seed)
    options = {"n_steps": config.teacher_steps, "dropout": config.teacher_dropout}
    teacher = trained_teacher(teacher_task, own_seed, path=path, **options)
    given_logits = None
    if config.teacher_folds > 1:
        given_logits = out_of_fold_logits(config, teacher_task, own_seed, path, options)
    seen = with_copies(config.draw, first, config.n_copies, (own_seed, OF_STUDENT))
    X, X_score = seen, task.X_score
    if drawn.read_as_student is not None:
        X, X_score = drawn.read_as_student(config.n_student)
        if X.ndim > 2 and not config.student_params:
            X, X_score = as_vectors(X, X_score, config.n_patches)
    subclass_teacher = None
    if "subclass_teacher" in wanted:
        subclass_teacher = retrain(config, teacher_task, seen, own_seed, path)
    data = DistillationData(
        X=X,
        y=visible_labels(labelled.y, teacher, first)[rows],
        true_y=task.y[rows],
        groups=task.groups[rows] if config.has_groups else None,
        embeddings=embed(teacher, seen),
        head=teacher.head,
        n_units=config.n_units,
        X_score=X_score,
        y_score=task.y_score,
        teacher_accuracy=accuracy(teacher, task.X_score, task.y_score),
        seed=own_seed,
        module=PhotoStudent if config.student_params else None,
        module_params=dict(config.student_params),
        given_logits=given_logits,
        one_by_one=config.is_by_library,
        subclass_teacher=subclass_teacher,
    )
    if "earlier" in wanted:
        data = replace(data, earlier=earlier_layer(config, teacher, seen))
    if "layout" in wanted:
        layout = kept_layout(data, path.with_name(f"layout_{seed}_{len(X)}.npy"))
        data = replace(data, layout=layout)
    return data


@torch.no_grad()
def earlier_layer(config: TaskConfig, teacher: Teacher, X: Array) -> Array:
    """Return the embeddings of the layer before the last hidden one.

    Of what an encoder has embedded these are its embeddings, which the teacher reads;
    of other rows the first hidden layer, (n, 256).
    """
    if config.draw in ENCODED:
        return X
    first, activation, *_ = teacher.body
    return activation(first(torch.from_numpy(X))).numpy()


def out_of_fold_logits(
    config: TaskConfig, task: Task, seed: int, path: Path, options: dict[str, float]
) -> Array:
    """Return logits of the student's rows by teachers that did not learn from them."""
    folds = np.arange(len(task.y)) % config.teacher_folds
    rows = torch.from_numpy(task.X[: config.n_student])
    logits = np.empty((len(rows), int(task.y.max()) + 1), np.float32)
    for fold in range(config.teacher_folds):
        others = folds != fold
        part = replace(
            task, X=task.X[others], y=task.y[others], groups=task.groups[others]
        )
        of_fold = path.with_name(f"fold_{fold}_{path.name}")
        teacher = trained_teacher(part, seed, path=of_fold, **options)
        own = folds[: len(rows)] == fold
        logits[own] = teacher(rows[own]).detach().numpy()
    return logits


def make_photo_data(
    config: TaskConfig, paths: Paths, seed: int, part: str
) -> DistillationData:
    """Draw photos and have a residual network asked about them."""
    own_seed = derived_seed(config.drawn_as, seed)
    drawn = draw(config, paths, own_seed, part)
    task, rows = drawn.task, slice(config.n_student)
    path = teacher_path(config, paths.cache, seed, paths.device)
    teacher = trained_photo_teacher(config, task, own_seed, path, paths.device)
    embeddings, scored = (
        embed_photos(teacher, X) for X in (task.X[rows], task.X_score)
    )
    head = deepcopy(teacher.head).cpu()
    with torch.no_grad():
        found = head(torch.from_numpy(scored)).argmax(1).numpy()
    X, X_score = drawn.read_as_student(config.n_student)
    return DistillationData(
        X=X,
        y=task.y[rows],
        groups=task.groups[rows] if config.has_groups else None,
        embeddings=embeddings,
        head=head,
        n_units=config.n_units,
        X_score=X_score,
        y_score=task.y_score,
        teacher_accuracy=float(np.mean(found == task.y_score)),
        seed=own_seed,
        module=PhotoStudent,
        module_params=dict(config.student_params),
        training={**TRAINING, "device": paths.device},
    )


def check_photo_task(config: TaskConfig, wanted: Collection[str]) -> None:
    """Raise a ValueError if a task of photos asks for what it does not support."""
    for name in ("labelled_share", "n_copies", "teacher_copies"):
        if (found := getattr(config, name)) != 1:
            raise ValueError(
                f"{name} of {config.name!r} is {found}, but tasks with a teacher_width "
                "have labelled rows as they are: leave it at 1"
            )
    if wanted:
        raise ValueError(
            f"wanted has {', '.join(sorted(wanted))}, which tasks with a teacher_width "
            f"like {config.name!r} have not: leave out the methods that want it"
        )


def labelled_rows(task: Task, share: float) -> Task:
    """Return a task whose training rows are the share that comes first."""
    rows = slice(round(share * len(task.y)))
    return replace(task, X=task.X[rows], y=task.y[rows], groups=task.groups[rows])


def teacher_rows(config: TaskConfig, task: Task, seed: int) -> Task:
    """Return a task with as many copies of the rows as the teacher learns from."""
    n_copies = config.teacher_copies
    X = with_copies(config.draw, task.X, n_copies, (seed, OF_TEACHER))
    rows = np.tile(np.arange(len(task.y)), n_copies)
    return replace(task, X=X, y=task.y[rows], groups=task.groups[rows])


def visible_labels(labels: Array, teacher: Teacher, X: Array) -> Array:
    """Return the labels of the first rows, the teacher's class of what comes after."""
    known, unlabelled = labels[: len(X)], X[len(labels) :]
    return np.concatenate([known, predict(teacher, unlabelled)])


def teacher_path(
    config: TaskConfig, cache: Path, seed: int, device: str | None = None
) -> Path:
    """Return where the teacher of a seed is kept.

    Where teachers learn on more than one kind of `device`, each has its own.
    """
    of_device = "" if device is None else f"{torch.device(device).type}_"
    slug = "".join(c if c.isalnum() else "_" for c in config.drawn_as)
    return cache / f"{slug}-{digest(config)}" / f"teacher_{of_device}{seed}.pt"


def trained_teacher(
    task: Task,
    seed: int,
    n_steps: int,
    path: Path,
    n_outputs: int | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    dropout: float = 0.0,
) -> Teacher:
    """Load the teacher if it is there, else train it and keep it."""
    n_outputs = n_outputs or int(task.y.max()) + 1
    return load_or_train(
        path,
        lambda: Teacher(task.X.shape[1], n_outputs, dropout),
        lambda: train_teacher(task, seed, n_steps, n_outputs, loss, dropout),
    )


def trained_photo_teacher(
    config: TaskConfig, task: Task, seed: int, path: Path, device: str
) -> PhotoTeacher:
    """Load the teacher if it is there, else train it and keep it."""
    place, width = torch.device(device), config.teacher_width
    return load_or_train(
        path,
        lambda: PhotoTeacher(int(task.y.max()) + 1, width),
        lambda: train_photo_teacher(task, seed, config.teacher_steps, width, place),
    ).to(place)


def load_or_train(
    path: Path, build: Callable[[], Network], train: Callable[[], nn.Module]
) -> Network:
    """Return what `build` does, with the weights of what was trained and is kept."""
    if not path.exists():
        weights = {name: part.cpu() for name, part in train().state_dict().items()}
        with replacing(path) as unfinished:
            torch.save(weights, unfinished)
    with torch.random.fork_rng(devices=[]):
        # The weights that it begins with are drawn for nothing.
        teacher = build()
    # Read in any case: the layout of the weights in memory is seen in the last digits.
    teacher.load_state_dict(torch.load(path, weights_only=True))
    return teacher.eval()


def retrain(
    config: TaskConfig, task: Task, X: Array, seed: int, path: Path
) -> SubclassTeacher:
    """Train the teacher of Subclass Distillation as long as the other teacher.

    It learns from the rows of `task` and is asked about those of `X`.
    """
    n_classes = int(task.y.max()) + 1
    n_subclasses = subclass_distillation.N_SUBCLASSES
    teacher = trained_teacher(
        task,
        seed,
        config.teacher_steps,
        path.with_name(f"subclasses_{n_subclasses}_{path.name}"),
        n_classes * n_subclasses,
        partial(subclass_distillation.teacher_loss, n_classes=n_classes),
    )
    with torch.no_grad():
        found, scored = (teacher(torch.from_numpy(rows)) for rows in (X, task.X_score))
    right = class_logits(scored, n_classes).argmax(1).numpy() == task.y_score
    n_parameters = sum(p.numel() for p in teacher.parameters())
    return SubclassTeacher(
        logits=found.numpy(),
        accuracy=float(np.mean(right)),
        work=float(n_parameters * BATCH_SIZE * config.teacher_steps),
    )


def kept_layout(data: DistillationData, path: Path) -> Array:
    """Load the t-SNE layout if it is there, else make it and keep it."""
    if not path.exists():
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.save(file, lay_out(data))
    return np.load(path)
