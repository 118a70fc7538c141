"""Short texts, of which a sentence encoder makes what the teacher reads."""

from pathlib import Path

import numpy as np

from benchmarks.distillation.datasets.base import Array, Drawn, Paths, Task, held_out
from benchmarks.text.data import Texts, read_table
from benchmarks.text.students import HashedTfidf
from lelp_sklearn import EmbeddingExtractor

N_VALIDATION = 1_000


def texts(
    paths: Paths,
    seed: int,
    part: str,
    *,
    name: str,
    mixed: bool = True,
    n_train: int | None = None,
    n_score: int | None = None,
) -> Drawn:
    """Short texts: a sentence encoder's embeddings for the teacher, words for students.

    The classes are the intents in a random order, or else as numbered, even or odd.
    """
    parts, n_groups = read_texts(paths.data / name, n_train, n_score)
    class_of = np.arange(n_groups) % 2
    if mixed:
        class_of = np.random.default_rng(0).permutation(n_groups) % 2
    embeddings = {
        key: np.load(embeddings_path(paths, name, key, len(of_part)))
        for key, of_part in parts.items()
    }
    order = np.random.default_rng(seed).permutation(len(parts["train"]))
    train, score = parts["train"][order], parts[part]
    scale = embeddings["train"].std()
    task = Task(
        X=embeddings["train"][order] / scale,
        y=class_of[train.labels],
        groups=train.labels,
        X_score=embeddings[part] / scale,
        y_score=class_of[score.labels],
    )

    def read(n_student: int) -> tuple[Array, Array]:
        own = train.texts[:n_student]
        reader = HashedTfidf(0).fit(own)
        return reader.transform(own), reader.transform(score.texts)

    return Drawn(task, read)


def embed_texts(
    paths: Paths, *, name: str, n_train: int | None, n_score: int | None
) -> None:
    """Embed the texts of a task, or check what an earlier run has left."""
    from benchmarks.text import encoder

    extractor = EmbeddingExtractor(encoder.sentence_encoder())
    parts, _ = read_texts(paths.data / name, n_train, n_score)
    for key, part in parts.items():
        path = embeddings_path(paths, name, key, len(part))
        path.parent.mkdir(parents=True, exist_ok=True)
        extractor.extract(part.texts, path, dtype="float32")


def read_texts(folder: Path, n_train: int | None, n_score: int | None):
    """Return training, validation and test texts and the number of their groups."""
    files = ("train", "val", "test")
    tables = {
        file: read_table(folder / f"{file}.tsv.gz")
        for file in files
        if (folder / f"{file}.tsv.gz").exists()
    }
    names = sorted(tables["train"]["label"].astype(str).unique())
    read = {
        file: Texts(
            table["text"].to_numpy(dtype=object, copy=True),
            np.searchsorted(names, table["label"].to_numpy(dtype=str)),
        )
        for file, table in tables.items()
    }
    if "val" in read:
        rest = np.random.default_rng(0).permutation(len(read["train"]))
        validation = read["val"]
    else:
        held, rest = held_out(len(read["train"]), N_VALIDATION, 0)
        validation = read["train"][held]
    parts = {
        "train": read["train"][rest[:n_train]],
        "validation": validation[:n_score],
        "test": read["test"][:n_score],
    }
    return parts, len(names)


def embeddings_path(paths: Paths, name: str, part: str, n: int) -> Path:
    return paths.cache / "sentences" / f"{name}_{part}_{n}.npy"
