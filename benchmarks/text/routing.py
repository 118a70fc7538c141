"""Messages of bank customers routed to one of two desks, each with dozens of intents.

Banking77 (Casanueva et al., 2020) has 77 intents. The class is a desk: either an
arbitrary half of the intents, or all that is about cards against the rest; the intents
are the groups that the classes hide. The teacher is the all-MiniLM-L6-v2 sentence
encoder, as it is, with a multilayer perceptron on two classes, trained on 9 000
messages; students learn from 2 000.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.distillation.datasets.base import Array, Task
from benchmarks.distillation.methods import METHODS
from benchmarks.distillation.methods.base import TRAINING, DistillationData
from benchmarks.distillation.teachers.perceptron import (
    Teacher,
    accuracy,
    embed,
    train_teacher,
)
from benchmarks.text import encoder
from benchmarks.text.comparison import TextTask
from benchmarks.text.data import Texts, read_messages
from benchmarks.text.students import READERS
from lelp_sklearn import EmbeddingExtractor

CARDS = ("card", "pin", "contactless", "apple_pay", "atm")
TEACHER_STEPS = 2_000
N_STUDENT, N_VALIDATION = 2_000, 1_000
MAX_WORDS, N_UNITS = 32, 32


@dataclass(frozen=True)
class Messages:
    """Texts with their intents, and what the sentence encoder makes of them."""

    texts: Texts
    embeddings: Array

    def __getitem__(self, rows: Array) -> "Messages":
        return Messages(self.texts[rows], self.embeddings[rows])


def read(folder: Path, cache: Path) -> tuple[Messages, Messages, list[str]]:
    """Read training and test messages; embeddings of an earlier run are kept."""
    extractor = EmbeddingExtractor(encoder.sentence_encoder(), verbose=True)
    train, test, names = read_messages(folder)
    found = []
    for part, texts in (("train", train), ("test", test)):
        path = cache / f"banking77_{part}.npy"
        embeddings = extractor.extract(texts.texts, path, dtype="float32")
        found.append(Messages(texts, np.array(embeddings)))
    return *found, names


def desks(names: list[str]) -> dict[str, Array]:
    """Return the class of each intent, for both tasks."""
    halves = np.random.default_rng(0).permutation(len(names)) % 2
    about_cards = [any(word in name for word in CARDS) for name in names]
    return {
        "arbitrary halves": halves,
        "cards or not": np.array(about_cards, dtype=int),
    }


def split(train: Messages, seed: int) -> tuple[Array, Array]:
    """Return validation messages and all others, these in an order of the seed."""
    order = np.random.default_rng(0).permutation(len(train.embeddings))
    validation, rest = order[:N_VALIDATION], order[N_VALIDATION:]
    return validation, np.random.default_rng(seed).permutation(rest)


def make_data(
    train: Messages,
    test: Messages,
    class_of: Array,
    reader: str,
    seed: int,
    is_final: bool,
) -> DistillationData:
    """Train a teacher; give a student its messages, and those to score it on.

    Validation messages are the same for all seeds and never trained on.
    """
    validation, rest = split(train, seed)
    training = train[rest]
    score = test if is_final else train[validation]
    scale = training.embeddings.std()
    task = Task(
        X=training.embeddings / scale,
        y=class_of[training.texts.labels],
        groups=training.texts.labels,
        X_score=score.embeddings / scale,
        y_score=class_of[score.texts.labels],
        n_student=N_STUDENT,
        n_units=N_UNITS,
    )
    teacher = train_teacher(task, seed, TEACHER_STEPS)
    rows = slice(N_STUDENT)
    read = READERS[reader](MAX_WORDS).fit(training.texts.texts[rows])
    return DistillationData(
        X=read.transform(training.texts.texts[rows]),
        y=task.y[rows],
        groups=task.groups[rows],
        embeddings=embed(teacher, task.X[rows]),
        head=teacher.head,
        n_units=N_UNITS,
        X_score=read.transform(score.texts.texts),
        y_score=task.y_score,
        teacher_accuracy=accuracy(teacher, task.X_score, task.y_score),
        seed=seed,
        module=read.student,
        module_params=read.module_params,
        training={**TRAINING, "batch_size": 100},
    )


def tasks(folder: Path, cache: Path, quick: bool = False) -> list[TextTask]:
    """Return both labelings of the messages, in a quick look the first."""
    train, test, names = read(folder, cache)
    encode = encoder.sentence_encoder()
    # As large as any that is trained here, and as fast.
    top = Teacher(train.embeddings.shape[1], 2).eval()
    student_texts = train.texts.texts[split(train, 0)[1][:N_STUDENT]]

    def ask(text: str) -> torch.Tensor:
        return top(encode.encode([text], convert_to_tensor=True))

    return [
        TextTask(
            title=title,
            make_data=partial(make_data, train, test, class_of),
            methods=list(METHODS),
            learning_rates=[0.005, 0.01, 0.02],
            epochs=60,
            epoch_bounds=(4, 480),
            search_seeds=[100, 101],
            seeds=range(5),
            scored_on={"test": len(test.embeddings)},
            teacher=nn.ModuleList([encode, top]),
            ask_teacher=ask,
            fit_reader=lambda reader: READERS[reader](MAX_WORDS).fit(student_texts),
            texts=test.texts.texts.tolist(),
        )
        for title, class_of in list(desks(names).items())[: 1 if quick else None]
    ]
