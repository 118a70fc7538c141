"""Texts of any length: a sentence encoder's embeddings for teachers, sparse words."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer

from benchmarks.distillation.datasets.base import (
    Array,
    Drawn,
    Paths,
    Task,
    held_out,
    merged,
)
from benchmarks.text.data import read_table

N_VALIDATION, N_WORDS = 1_000, 5_000
# Tokens beyond these, of long texts, are not read by the encoder.
MAX_TOKENS = 128
# Kinds of newsgroups, by the first part of their names.
KINDS = {"comp": 0, "rec": 1, "misc": 1, "sci": 2, "talk": 3, "soc": 3, "alt": 3}


def documents(
    paths: Paths,
    seed: int,
    part: str,
    *,
    name: str,
    n_pool: int = 6_000,
    n_train: int = 4_000,
    n_score: int = 2_000,
    **classes,
) -> Drawn:
    """Texts, of which each seed draws `n_train` from a pool of `n_pool`.

    Teachers read embeddings, students the tf-idf of the most frequent words.
    """
    tables = read_documents(paths.data / name, n_pool, n_score, **classes)
    embeddings = {
        key: np.load(embeddings_path(paths, name, key, len(table)), mmap_mode="r")
        for key, table in tables.items()
    }
    scale = embeddings["train"].std()
    rows = np.random.default_rng(seed).permutation(len(tables["train"]))[:n_train]
    train, score = tables["train"].iloc[rows], tables[part]
    task = Task(
        X=embeddings["train"][rows] / scale,
        y=train["y"].to_numpy(),
        groups=train["group"].to_numpy(),
        X_score=embeddings[part] / scale,
        y_score=score["y"].to_numpy(),
    )

    def read(n_student: int) -> tuple[Array, Array]:
        words = TfidfVectorizer(max_features=N_WORDS, dtype=np.float32)
        X = words.fit_transform(train["text"].iloc[:n_student])
        return X, words.transform(score["text"])

    return Drawn(task, read)


def read_documents(
    folder: Path,
    n_pool: int,
    n_score: int,
    *,
    files: Sequence[str] = ("train", "test"),
    column: str = "label",
    finer: Sequence[str] = (),
    n_classes: int | None = None,
    by_kind: bool = False,
) -> Mapping[str, pd.DataFrame]:
    """Return training, validation and test texts with columns text, y and group.

    Groups are the values of `column` and the columns `finer` together. Classes are the
    values of `column`, or with `n_classes` unions of groups, at random or of one kind.
    """
    found = [read_table(folder / f"{file}.tsv.gz") for file in files]
    columns = [column, *finer]
    keys = [table[columns].astype(str).agg("|".join, axis=1) for table in found]
    names = np.unique(keys[0])
    if n_classes is None:
        _, class_of = np.unique([x.split("|")[0] for x in names], return_inverse=True)
    else:
        kinds = kinds_of(folder, names) if by_kind else None
        class_of = merged(len(names), n_classes, kinds)
    train, test = (
        table[["text"]].assign(group=group, y=class_of[group])
        for table, group in zip(
            found, (np.searchsorted(names, key) for key in keys), strict=True
        )
    )
    validation, rest = held_out(len(train), N_VALIDATION, 0)
    scored = np.random.default_rng(0).permutation(len(test))[:n_score]
    return {
        "train": train.iloc[rest[:n_pool]],
        "validation": train.iloc[validation[:n_score]],
        "test": test.iloc[scored],
    }


def kinds_of(folder: Path, names: Array) -> Array:
    """Return the kind of each group: its domain, or that of a newsgroup."""
    path = folder / "domains.json"
    if not path.exists():
        return np.array([KINDS[name.split(".")[0]] for name in names])
    domains = json.loads(path.read_text(encoding="utf-8"))
    domain_of = {x: i for i, intents in enumerate(domains.values()) for x in intents}
    return np.array([domain_of[name] for name in names])


def embed_documents(
    paths: Paths,
    *,
    name: str,
    n_pool: int = 6_000,
    n_train: int = 0,
    n_score: int = 2_000,
    **classes,
) -> None:
    """Embed the texts of a task, or check what an earlier run has left."""
    from benchmarks.text import encoder
    from lelp_sklearn import EmbeddingExtractor

    model = encoder.sentence_encoder()
    model.max_seq_length = MAX_TOKENS
    extractor = EmbeddingExtractor(model)
    tables = read_documents(paths.data / name, n_pool, n_score, **classes)
    for key, table in tables.items():
        path = embeddings_path(paths, name, key, len(table))
        path.parent.mkdir(parents=True, exist_ok=True)
        extractor.extract(table["text"].to_numpy(dtype=object), path, dtype="float32")


def embeddings_path(paths: Paths, name: str, part: str, n: int) -> Path:
    """Return where the embeddings of a part are kept."""
    return paths.cache / "documents" / f"{name}_{part}_{n}.npy"
