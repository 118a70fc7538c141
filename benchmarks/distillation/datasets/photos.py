"""Photos of ten kinds (CIFAR-10), decoded once and kept beside the teachers."""

import hashlib
import io
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.distillation.datasets.base import Array, Drawn, Paths, Task, held_out
from benchmarks.files import replacing

N_VALIDATION = 5_000


def photos(
    paths: Paths,
    seed: int,
    part: str,
    *,
    n_train: int = 45_000,
    n_score: int | None = None,
) -> Drawn:
    """Photos of ten kinds (CIFAR-10), even or odd, from copies that are JPEG files.

    So they are not the original pixels. The teacher reads them as whole numbers.
    """
    X, groups = read_part(paths, "train")
    validation, rest = held_out(len(groups), N_VALIDATION, seed)
    X_score, groups_score = X[validation], groups[validation]
    if part == "test":
        X_score, groups_score = read_part(paths, "test")
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
    )
    return Drawn(task, lambda n_student: standardise(task.X[:n_student], X_score))


def decode_photos(paths: Paths) -> None:
    """Decode the photos, unless an earlier run has."""
    for part in ("train", "test"):
        read_part(paths, part)


def read_part(paths: Paths, part: str) -> tuple[Array, Array]:
    """Return the photos of a part and what is on them."""
    return read_photos(paths.data / "cifar10_jpeg", part, paths.cache)


def read_photos(folder: Path, part: str, cache: Path) -> tuple[Array, Array]:
    """Return the photos of a part, uint8 (n, 3, height, width), and what is on each.

    `folder` has an archive for each part: the files end to end as bytes in `jpeg`,
    where they begin and end in `offsets`, and `y`.
    """
    with np.load(folder / f"{part}.npz") as arrays:
        y, ends = arrays["y"].astype(int), arrays["offsets"]
    path = kept_path(folder, part, ends, cache)
    if not path.exists():
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.save(file, decode(folder / f"{part}.npz"))
    return np.load(path, mmap_mode="r"), y


def kept_path(folder: Path, part: str, ends: Array, cache: Path) -> Path:
    """Return where the decoded photos of a part are kept.

    Where its files begin and end stands for an archive: those of another are seldom
    all as long.
    """
    archive = hashlib.sha256(ends.astype(np.int64).tobytes()).hexdigest()[:12]
    return cache / "photos" / f"{folder.name}_{part}_{archive}.npy"


def decode(path: Path) -> Array:
    """Return the photos of an archive, (n, 3, height, width)."""
    from PIL import Image

    with np.load(path) as arrays:
        files, ends = memoryview(arrays["jpeg"]), arrays["offsets"]
    photos = []
    for start, end in pairwise(ends):
        with Image.open(io.BytesIO(files[start:end])) as image:
            photos.append(np.asarray(image.convert("RGB")))
    return np.ascontiguousarray(np.stack(photos).transpose(0, 3, 1, 2))


def standardise(photos: Array, others: Array) -> tuple[Array, Array]:
    """Return both in half precision, each channel scaled by the first's."""
    levels = np.arange(256)
    found = [np.empty(part.shape, np.float16) for part in (photos, others)]
    for channel in range(photos.shape[1]):
        counts = np.bincount(photos[:, channel].ravel(), minlength=256)
        mean = np.average(levels, weights=counts)
        spread = np.average((levels - mean) ** 2, weights=counts) ** 0.5
        scaled = ((levels - mean) / spread).astype(np.float16)
        for made, part in zip(found, (photos, others), strict=True):
            made[:, channel] = scaled[part[:, channel]]
    return found[0], found[1]
