"""Tables of customers: numbers standardised, words one-hot."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import (
    ColumnTransformer,
    make_column_selector,
    make_column_transformer,
)
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks.distillation.datasets.base import Drawn, Paths, Task, held_out

N_VALIDATION = 6_000


def read_customers(
    folder: Path, left_out: str | None = None
) -> dict[str, pd.DataFrame]:
    """Return the rows of both files, without a column that is left out."""
    return {
        part: pd.read_csv(folder / f"{part}.csv.gz", keep_default_na=False).drop(
            columns=left_out or []
        )
        for part in ("train", "test")
    }


def columns_as_numbers() -> ColumnTransformer:
    """Return what makes numbers of the columns of a table."""
    return make_column_transformer(
        (StandardScaler(), make_column_selector(dtype_include="number")),
        (
            OneHotEncoder(handle_unknown="ignore", sparse_output=False),
            make_column_selector(dtype_exclude="number"),
        ),
    )


def make_task(
    train: pd.DataFrame, score: pd.DataFrame, columns: ColumnTransformer
) -> Task:
    """Return the rows of two tables by columns that are fitted."""
    y = train["label"].to_numpy(copy=True)
    return Task(
        X=columns.transform(train.drop(columns="label")).astype(np.float32),
        y=y,
        groups=y,
        X_score=columns.transform(score.drop(columns="label")).astype(np.float32),
        y_score=score["label"].to_numpy(copy=True),
    )


def customers(
    paths: Paths,
    seed: int,
    part: str,
    *,
    name: str,
    left_out: str | None = None,
    n_train: int = 26_000,
    n_score: int | None = None,
) -> Drawn:
    """Draw customers of a table, which has two classes and no groups."""
    frames = read_customers(paths.data / name, left_out)
    validation, rest = held_out(len(frames["train"]), N_VALIDATION, seed)
    train = frames["train"].iloc[rest[:n_train]]
    score = frames["train"].iloc[validation] if part == "validation" else frames["test"]
    # Of all rows, so that every seed has the same columns.
    columns = columns_as_numbers().fit(frames["train"].drop(columns="label"))
    return Drawn(make_task(train, score.iloc[:n_score], columns))
