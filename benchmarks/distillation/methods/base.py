"""What a method is, and what it learns from.

Whatever a method does not name is the library's default. Learning rate, temperature and
epochs make up a setting: a search finds the best one for each method.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor, nn

from benchmarks.distillation.datasets.base import Array
from benchmarks.distillation.methods import losses
from lelp_sklearn import LELPProjector

Setting = dict[str, float]

# What the students of all methods share and no search touches.
TRAINING = {
    "learning_rate_schedule": "cosine",
    "weight_decay": 0.01,
    "batch_size": 100,
}
# Arguments of a method whose subclass weight does not fall.
CONSTANT = {"subclass_weight": 1.0}


@dataclass(frozen=True)
class SubclassTeacher:
    """A teacher that was retrained for subclasses, asked about the student's rows.

    `logits` are (n, C * S), `work` the multiply-adds of its forward passes in training.
    """

    logits: Array
    accuracy: float
    work: float


@dataclass(frozen=True)
class DistillationData:
    """The inputs of a student, the hidden groups (for the oracle) and rows to score.

    A student has one hidden layer of `n_units` unless a `module` is given, to be called
    with `module_params` too. `training` holds arguments of every student. `true_y` are
    the classes of the hidden groups; `y` may have what a teacher predicted instead.
    The teacher's logits are given where they are not what the `head` makes of the
    embeddings. Students are trained side by side unless `one_by_one`.
    The last three are made only for the methods that use them: a teacher of subclasses,
    the t-SNE layout of the embeddings, (n, 2), and the embeddings of an earlier layer.
    """

    X: Array
    y: Array
    groups: Array | None
    embeddings: Array
    head: nn.Linear | None
    n_units: int
    X_score: Array
    y_score: Array
    teacher_accuracy: float
    seed: int
    module: Callable[..., nn.Module] | None = None
    module_params: dict = field(default_factory=dict)
    training: dict = field(default_factory=lambda: TRAINING)
    true_y: Array | None = None
    given_logits: Array | None = None
    one_by_one: bool = False
    subclass_teacher: SubclassTeacher | None = None
    layout: Array | None = None
    earlier: Array | None = None

    @property
    def logits(self) -> Array:
        """The teacher's logits of the student's rows."""
        if self.given_logits is not None:
            return self.given_logits
        coef, intercept = (part.detach().numpy() for part in self.head.parameters())
        return self.embeddings @ coef.T + intercept


@dataclass(frozen=True)
class Method:
    """Arguments of projector and student; targets within classes made by hand.

    `within` takes the data and returns a distribution over the subclasses of each
    class, (n, C, S), in place of the projector's.
    """

    splitting: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    within: Callable[[DistillationData], Array] | None = None
    labels_only: bool = False
    is_fitnet: bool = False

    def select_layer(self, data: DistillationData) -> DistillationData:
        """Return the data with the embeddings of the layer that the method uses."""
        return data


@dataclass(frozen=True)
class EarlierLayerMethod(Method):
    """A method that uses an earlier layer's embeddings, and the teacher's logits.

    What maps those embeddings to the logits is no head: the projector fits one.
    """

    # Tells its digest from that of the same method of the last layer.
    layer: str = "earlier"

    def select_layer(self, data: DistillationData) -> DistillationData:
        """Return the data with the embeddings of the earlier layer."""
        return replace(
            data, embeddings=data.earlier, head=None, given_logits=data.logits
        )


@dataclass(frozen=True)
class Peer(Method):
    """A method of the literature with a loss of its own, a key of ``methods.TERMS``."""

    term: str = ""


@dataclass(frozen=True)
class Batch:
    """Rows of G data sets at M settings: what M share is of length 1 there.

    `hidden` (G, M, b, units) and `outputs` (G, M, b, K) are the students', `logits`
    (G, 1, b, K) and `embeddings` (G, 1, b, e) the teachers'. `labels` are (G, 1, b),
    `temperatures` (1, M).
    """

    hidden: Tensor
    outputs: Tensor
    logits: Tensor
    embeddings: Tensor
    labels: Tensor
    temperatures: Tensor
    n_classes: int

    def distillation(self) -> Tensor:
        """Return the loss of vanilla distillation over all outputs."""
        return losses.distillation(self.outputs, self.logits, self.temperatures)

    def label_loss(self) -> Tensor:
        """Return the cross-entropy to the labels."""
        return losses.label_loss(self.outputs, self.labels, self.n_classes)


@dataclass(frozen=True)
class Term:
    """The loss that a method adds to vanilla distillation, or to the labels'.

    `loss` takes a batch and the method's own parameters, which are those of `modules`,
    called with the numbers of hidden units and of the teacher's embeddings. The search
    for the term's weight begins at `own_weight`, that of its authors' code.
    """

    loss: Callable[..., Tensor]
    own_weight: float
    modules: Callable[[int, int], list[nn.Module]] = lambda n_units, n_embedding: []
    is_beside_labels: bool = False


def projector(data: DistillationData, **options) -> LELPProjector:
    """Return a projector with the teacher's head, if there is one."""
    return LELPProjector(head=data.head, random_state=data.seed, **options)


def subclasses(data: DistillationData, **splitting) -> Array:
    """Return each row's distribution over the subclasses of each class, (n, C, S)."""
    fitted = projector(data, **splitting).fit(
        data.embeddings, data.y, teacher_logits=data.given_logits
    )
    return within_classes(fitted, data.embeddings)


def within_classes(fitted: LELPProjector, embeddings: Array) -> Array:
    """Return what a fitted projector says of subclasses, whatever the class."""
    shape = len(embeddings), len(fitted.classes_)
    soft = fitted.transform(embeddings, teacher_logits=np.zeros(shape, np.float32))
    return soft.reshape(*shape, -1) * len(fitted.classes_)


def within_class_targets(method: Method, data: DistillationData) -> Array:
    """Return the targets of a method within the classes, (n, C, S)."""
    if method.within is not None:
        return method.within(data)
    return subclasses(data, **method.splitting)
