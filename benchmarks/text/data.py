"""The texts of both tasks, read from the folder that the user names."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

N_VALIDATION = 1_000


@dataclass(frozen=True)
class Texts:
    """Texts and their labels, as numbers."""

    texts: np.ndarray
    labels: np.ndarray

    def __getitem__(self, rows) -> "Texts":
        return Texts(self.texts[rows], self.labels[rows])

    def __len__(self) -> int:
        return len(self.texts)


def read_table(path: Path) -> pd.DataFrame:
    """Read texts and labels; quotation marks are part of a text."""
    return pd.read_csv(path, sep="\t", quoting=3, keep_default_na=False)


def read_sentiment(folder: Path, part: str) -> Texts:
    """Read a part of SST-2: 0 is a negative, 1 a positive review."""
    table = read_table(folder / "sst2" / f"{part}.tsv.gz")
    return Texts(
        np.array([text.strip() for text in table["text"]], dtype=object),
        table["label"].to_numpy(copy=True),
    )


def split_sentiment(folder: Path) -> tuple[Texts, Texts]:
    """Return the phrases to train on and whole sentences for validation.

    The phrases of SST-2 are parts of its sentences: none of a validation sentence is
    trained on.
    """
    sentences = read_sentiment(folder, "sentences_train")
    rows = np.random.default_rng(0).permutation(len(sentences))[:N_VALIDATION]
    validation = sentences[rows]
    held_out = " | ".join(f" {text} " for text in validation.texts)
    phrases = read_sentiment(folder, "train")
    inside = np.array([f" {text} " in held_out for text in phrases.texts])
    return phrases[~inside], validation


def read_messages(folder: Path) -> tuple[Texts, Texts, list[str]]:
    """Read training and test messages of Banking77, and the names of its intents."""
    tables = [
        read_table(folder / "banking77" / f"{p}.tsv.gz") for p in ("train", "test")
    ]
    names = sorted(tables[0]["label"].unique())
    parts = [
        Texts(
            table["text"].to_numpy(dtype=object, copy=True),
            np.searchsorted(names, table["label"].to_numpy(dtype=str)),
        )
        for table in tables
    ]
    return *parts, names
