"""Variants of the default: what a subclass should be, and how it is learned.

A variant differs from the library's default in what its question is about, unless its
name says more. Those with a `within` split by hand what no argument of the projector
does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from sklearn.decomposition import PCA
from sklearn.kernel_approximation import Nystroem

from benchmarks.distillation.datasets.base import Array
from benchmarks.distillation.methods import controls
from benchmarks.distillation.methods.base import (
    CONSTANT,
    DistillationData,
    Method,
    subclasses,
    within_classes,
)
from lelp_sklearn import LELPProjector

DEFAULT, VANILLA = "default", "vanilla KD"
SOFTNESS = (0.0, 0.05, 0.1, 0.2, 0.5)
COUNTS = (2, 5, 10, 20, 40)


@dataclass(frozen=True)
class Question:
    """Variants that answer one question.

    `surface` names the two arguments of a surface: variants are then looked up by their
    values, rows first.
    """

    title: str
    asked: str
    variants: Mapping[str, Method]
    surface: tuple[str, str] | None = None


@dataclass(frozen=True)
class Fall:
    """A weight that falls linearly from `start` to 0 at a share `end` of training."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        """Return the weight at a share of training."""
        return max(0.0, self.start * (1 - progress / self.end))


@dataclass(frozen=True)
class Blocks:
    """Several partitions side by side, each with an equal share of the mass.

    Partition k is split with another seed. The student has one output for every
    subclass of every partition.
    """

    splittings: tuple[Mapping[str, object], ...]

    def __call__(self, data: DistillationData) -> Array:
        """Return each row's distribution over all subclasses of each class."""
        found = [
            Reseeded(splitting, number)(data)
            for number, splitting in enumerate(self.splittings)
        ]
        return np.concatenate(found, axis=2) / len(found)


@dataclass(frozen=True)
class Reseeded:
    """A partition from a seed of its own, the student's seed as it was."""

    splitting: Mapping[str, object]
    number: int

    def __call__(self, data: DistillationData) -> Array:
        """Return each row's distribution over the subclasses of each class."""
        other = replace(data, seed=data.seed + 7_919 * self.number)
        return subclasses(other, **self.splitting)


@dataclass(frozen=True)
class MarginRegressedOut:
    """What the teacher's margin says of an embedding is taken from it, class by class.

    The head's own direction is left out anyway; this also takes what merely goes along
    with the margin.
    """

    regressed_out: Mapping[str, object]

    def __call__(self, data: DistillationData) -> Array:
        """Return each row's distribution over the subclasses of each class."""
        margin = data.logits[:, 1] - data.logits[:, 0]
        embeddings = data.embeddings.copy()
        for label in np.unique(data.y):
            rows = data.y == label
            known = np.column_stack([np.ones(rows.sum()), margin[rows]])
            slopes, *_ = np.linalg.lstsq(known, embeddings[rows], rcond=None)
            embeddings[rows] -= np.outer(margin[rows], slopes[1])
        return subclasses(replace(data, embeddings=embeddings), **self.regressed_out)


@dataclass(frozen=True)
class Mapped:
    """Splits a smooth map of the null space: features of a Gaussian kernel (Nyström).

    The kernel's width is the median distance; the space is reduced and whitened first.
    """

    splitting: Mapping[str, object]
    n_map_features: int = 200

    def __call__(self, data: DistillationData) -> Array:
        """Return each row's distribution over the subclasses of each class."""
        coef = data.head.weight.detach().numpy()
        coef = coef - coef.mean(0)
        kept = np.eye(coef.shape[1]) - np.linalg.pinv(coef) @ coef
        reduced = PCA(20, whiten=True, random_state=data.seed).fit_transform(
            data.embeddings @ kept
        )
        some = reduced[:500]
        distances = np.sum((some[:, np.newaxis] - some) ** 2, axis=2)
        features = Nystroem(
            gamma=1 / np.median(distances[distances > 0]),
            n_components=min(self.n_map_features, len(reduced)),
            random_state=data.seed,
        ).fit_transform(reduced)
        fitted = LELPProjector(
            null_space=False, random_state=data.seed, **self.splitting
        ).fit(features, data.y)
        return within_classes(fitted, features)


PRINCIPAL = {"splitter": "pca"}
ONE = {"within_class_temperature": 1.0}


def _directions(n_subclasses: int) -> dict[str, object]:
    return {**PRINCIPAL, "n_subclasses": n_subclasses}


QUESTIONS = (
    Question(
        "S and β, k-means",
        "How many subclasses, and how soft? (β = 0: one subclass a row.)",
        {
            f"k-means, S = {S}, β = {beta}": Method(
                {"n_subclasses": S, "subclass_temperature": beta}
            )
            for S in COUNTS
            for beta in SOFTNESS
        },
        surface=("S", "β"),
    ),
    Question(
        "S and β, principal directions",
        "The same where subclasses are principal directions, one for each.",
        {
            f"directions, S = {S}, β = {beta}": Method(
                {**_directions(S), "subclass_temperature": beta}
            )
            for S in (2, 3, 5, 10, 20)
            for beta in (0.1, 0.3, 1.0)
        },
        surface=("S", "β"),
    ),
    Question(
        "Subclass weight λ",
        "What weight has the loss within the classes at the start, and when is it 0?",
        {
            f"λ from {start:g} to 0 at {end:.0%}": Method(
                training={"subclass_weight": Fall(start, end)}
            )
            for start, end in (
                (1, 0.125),
                (1, 0.25),
                (1, 0.75),
                (1, 1.0),
                (0.3, 0.5),
                (3.0, 0.5),
            )
        }
        | {"λ = 1 throughout": Method(training=CONSTANT)},
    ),
    Question(
        "Temperature within classes",
        "Is the softmax within the classes taken at τ (coupled) or at 1? At β = 0.01 "
        "nearly every row has one subclass.",
        {
            "k-means, at 1": Method(training=ONE),
            "k-means, β = 0.01, coupled": Method({"subclass_temperature": 0.01}),
            "k-means, β = 0.01, at 1": Method({"subclass_temperature": 0.01}, ONE),
            "k-means, β = 0, at 1": Method({"subclass_temperature": 0.0}, ONE),
            "directions, coupled": Method(PRINCIPAL),
            "directions, at 1": Method(PRINCIPAL, ONE),
        },
    ),
    Question(
        "Null space",
        "Are the head's own directions left out before a class is split?",
        {
            "k-means, all directions": Method({"null_space": False}),
            "directions, head's left out": Method(PRINCIPAL),
            "directions, all": Method({**PRINCIPAL, "null_space": False}),
        },
    ),
    Question(
        "Rotation",
        "Are principal directions rotated among themselves, and does the draw matter?",
        {
            "directions, equal rotation": Method({**PRINCIPAL, "rotation": "equal"}),
            "directions, no rotation": Method({**PRINCIPAL, "rotation": None}),
        }
        | {
            f"directions, random rotation {number}": Method(
                within=Reseeded({**PRINCIPAL, "rotation": "random"}, number)
            )
            for number in range(1, 6)
        },
    ),
    Question(
        "Label weight",
        "Do labels beside the teacher help? (Every row of these tasks has one.)",
        {
            f"{name}, α = {weight}": Method(splitting, {"label_weight": weight})
            for name, splitting in (("default", {}), (VANILLA, {"n_subclasses": 1}))
            for weight in (0.1, 0.3)
        },
    ),
    Question(
        "Other partitions",
        "Several partitions at once, the margin regressed out, a smooth map before.",
        {
            "two k-means of 20": Method(within=Blocks(({}, {}))),
            "two k-means of 10": Method(within=Blocks(({"n_subclasses": 10},) * 2)),
            "four k-means of 20": Method(within=Blocks(({},) * 4)),
            "two rotations of 10": Method(
                within=Blocks(({**_directions(10), "rotation": "random"},) * 2)
            ),
            "four rotations of 10": Method(
                within=Blocks(({**_directions(10), "rotation": "random"},) * 4)
            ),
            "k-means and directions, 20 each": Method(within=Blocks(({}, PRINCIPAL))),
            "margin regressed out": Method(within=MarginRegressedOut({})),
            "margin regressed out, directions": Method(
                within=MarginRegressedOut(PRINCIPAL)
            ),
            "Gaussian kernel, k-means": Method(within=Mapped({})),
            "Gaussian kernel, directions": Method(within=Mapped(PRINCIPAL)),
        },
    ),
    Question(
        "Candidates for a default",
        "What wins by itself, taken together and further.",
        {
            f"S = {S}, λ from {start:g} to 0 at {end:.0%}": Method(
                {"n_subclasses": S}, {"subclass_weight": Fall(start, end)}
            )
            for S, start, end in (
                (40, 3.0, 0.5),
                (40, 3.0, 0.25),
                (40, 1.0, 0.25),
                (80, 1.0, 0.5),
                (80, 3.0, 0.5),
            )
        }
        | {
            "40 outputs a class, λ = 0": Method(
                {"n_subclasses": 40}, {"subclass_weight": 0.0}
            ),
            "directions, λ from 3 to 0 at 50%": Method(
                PRINCIPAL, {"subclass_weight": Fall(3.0, 0.5)}
            ),
            "oracle, λ from 3 to 0 at 50%": replace(
                controls.METHODS["oracle"],
                training={**ONE, "subclass_weight": Fall(3.0, 0.5)},
            ),
        },
    ),
)

VARIANTS = {
    name: method for question in QUESTIONS for name, method in question.variants.items()
}
