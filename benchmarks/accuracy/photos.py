"""Photos as arrays: decoded once, and kept beside the teachers."""

import hashlib
import importlib.util
import io
import os
from itertools import pairwise
from pathlib import Path

import numpy as np

from tasks import Array


def decoder_is_missing() -> bool:
    """Say whether Pillow, which reads JPEG files, is not installed."""
    return not importlib.util.find_spec("PIL")


def read_photos(folder: Path, part: str, cache: Path) -> tuple[Array, Array]:
    """Return the photos of a part, uint8 (n, 3, height, width), and what is on each.

    `folder` has an archive for each part: the files end to end as bytes in `jpeg`,
    where they begin and end in `offsets`, and `y`.
    """
    with np.load(folder / f"{part}.npz") as arrays:
        y, ends = arrays["y"].astype(int), arrays["offsets"]
    path = kept_path(folder, part, ends, cache)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        with unfinished.open("wb") as file:
            np.save(file, decode(folder / f"{part}.npz"))
        os.replace(unfinished, path)
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
