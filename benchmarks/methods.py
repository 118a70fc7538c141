"""The methods compared, each as arguments of the library's two estimators.

Whatever a method does not name is the library's default. Learning rate, temperature and
epochs make up a setting: every method has its own best one, found by ``search.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from sklearn.base import ClassifierMixin
from torch import nn

from fitnet import FitNetClassifier, OneHiddenLayer
from lelp_sklearn import LELPProjector, LELPStudentClassifier
from tasks import Array, Task
from teacher import accuracy, embed, train_teacher

Setting = dict[str, float]

# What the students of all methods share and no search touches.
TRAINING = {
    "learning_rate_schedule": "cosine",
    "weight_decay": 0.01,
    "batch_size": 100,
}


@dataclass(frozen=True)
class SubclassTeacher:
    """What a teacher that was retrained for subclasses says of the student's rows.

    `logits` are (n, C * S), `work` the multiply-adds of its forward passes in training.
    """

    logits: Array
    accuracy: float
    work: float


@dataclass(frozen=True)
class Lesson:
    """What a student is given, the hidden groups (for the oracle) and rows to score.

    A student has one hidden layer of `n_units` unless a `module` is given, to be called
    with `module_params` too. `training` holds arguments of every student. `true_y` are
    the classes of the hidden groups; `y` may have what a teacher predicted instead.
    Without a `head` the teacher's logits are given.
    The last three are made only for the methods that want them: a teacher of
    subclasses, where t-SNE lays out the embeddings, (n, 2), and an earlier layer's
    embeddings.
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
    subclass_teacher: SubclassTeacher | None = None
    layout: Array | None = None
    earlier: Array | None = None

    @property
    def logits(self) -> Array:
        """The teacher's logits of the student's rows."""
        if self.head is None:
            return self.given_logits
        coef, intercept = (part.detach().numpy() for part in self.head.parameters())
        return self.embeddings @ coef.T + intercept


@dataclass(frozen=True)
class Method:
    """Arguments of projector and student; targets within classes made by hand.

    `within` takes a lesson and returns a distribution over the subclasses of each
    class, (n, C, S), in place of the projector's.
    """

    splitting: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    within: Callable[[Lesson], Array] | None = None
    labels_only: bool = False
    is_fitnet: bool = False

    def taught(self, lesson: Lesson) -> Lesson:
        """Return the lesson that the method learns from: all of it."""
        return lesson


@dataclass(frozen=True)
class OfEarlierLayer(Method):
    """A method that is given an earlier layer's embeddings, and the teacher's logits.

    What maps those embeddings to the logits is no head: the projector fits one.
    """

    # Tells its digest from that of the same method of the last layer.
    layer: str = "earlier"

    def taught(self, lesson: Lesson) -> Lesson:
        """Return the lesson with the embeddings of its earlier layer."""
        return replace(
            lesson,
            embeddings=lesson.earlier,
            head=None,
            given_logits=lesson.logits,
        )


def prepare(task: Task, seed: int, **teacher_options) -> Lesson:
    """Train a teacher on all training rows and hand the first ones to the student."""
    teacher = train_teacher(task, seed, **teacher_options)
    rows = slice(task.n_student)
    return Lesson(
        X=task.X[rows],
        y=task.y[rows],
        groups=task.groups[rows],
        embeddings=embed(teacher, task.X[rows]),
        head=teacher.head,
        n_units=task.n_units,
        X_score=task.X_score,
        y_score=task.y_score,
        teacher_accuracy=accuracy(teacher, task.X_score, task.y_score),
        seed=seed,
    )


def fit(method: Method, lesson: Lesson, setting: Setting) -> ClassifierMixin:
    """Train a student by a method, at a learning rate, a temperature and so on."""
    setting = dict(setting)
    temperature = setting.pop("temperature", 1.0)
    lesson = method.taught(lesson)
    if method.is_fitnet:
        return fit_fitnet(lesson, temperature, setting)
    module_params = lesson.module_params
    if lesson.module is None:
        module_params = {"hidden_layer_sizes": (lesson.n_units,)}
    student = LELPStudentClassifier(
        lesson.module,
        module_params=module_params,
        projector=projector(lesson, temperature=temperature, **method.splitting),
        random_state=lesson.seed,
        **lesson.training,
        **setting,
        **method.training,
    )
    if method.labels_only:
        soft_targets = np.eye(2, dtype=np.float32)[lesson.y]
        return student.fit(lesson.X, lesson.y, soft_targets=soft_targets)
    if method.within is None:
        return student.fit(
            lesson.X,
            lesson.y,
            teacher_embeddings=lesson.embeddings,
            teacher_logits=lesson.given_logits,
        )
    classes = projector(lesson, n_subclasses=1, temperature=temperature)
    mass = classes.fit_transform(
        lesson.embeddings, lesson.y, teacher_logits=lesson.given_logits
    )
    soft_targets = mass[:, :, np.newaxis] * method.within(lesson)
    return student.fit(
        lesson.X, lesson.y, soft_targets=soft_targets.reshape(len(mass), -1)
    )


def scored_logits(method: Method, lesson: Lesson, setting: Setting) -> Array:
    """Train a student and return the class logits of `X_score`, (n, C).

    Two classes are told apart by a difference only: the first one's logit is 0.
    """
    try:
        student = fit(method, lesson, setting)
    except FloatingPointError:
        # A setting that diverges is a bad one, and no reason to end a search.
        n_classes = lesson.logits.shape[1]
        return np.zeros((len(lesson.X_score), n_classes), np.float32)
    if method.is_fitnet:
        return student.class_logits(lesson.X_score)
    decision = student.decision_function(lesson.X_score)
    if decision.ndim > 1:
        return decision
    return np.column_stack([np.zeros_like(decision), decision])


def fit_fitnet(
    lesson: Lesson, temperature: float, setting: Setting
) -> FitNetClassifier:
    """Train a student by FitNet, whose schedule of learning rates is its own."""
    module, module_params = lesson.module, lesson.module_params
    if module is None:
        module, module_params = OneHiddenLayer, {"n_units": lesson.n_units}
    return FitNetClassifier(
        module,
        module_params=module_params,
        temperature=temperature,
        random_state=lesson.seed,
        batch_size=lesson.training["batch_size"],
        weight_decay=lesson.training["weight_decay"],
        device=lesson.training.get("device", "cpu"),
        **setting,
    ).fit(
        lesson.X,
        lesson.y,
        teacher_embeddings=lesson.embeddings,
        teacher_logits=lesson.logits,
    )


def projector(lesson: Lesson, **options) -> LELPProjector:
    """Return a projector that knows the teacher's head, if there is one."""
    return LELPProjector(head=lesson.head, random_state=lesson.seed, **options)


def subclasses(lesson: Lesson, **splitting) -> Array:
    """Return each row's distribution over the subclasses of each class, (n, C, S)."""
    fitted = projector(lesson, **splitting).fit(
        lesson.embeddings, lesson.y, teacher_logits=lesson.given_logits
    )
    indifferent = np.zeros((len(lesson.y), len(fitted.classes_)), np.float32)
    soft = fitted.transform(lesson.embeddings, teacher_logits=indifferent)
    return soft.reshape(*indifferent.shape, -1) * len(fitted.classes_)


def shuffled_subclasses(lesson: Lesson) -> Array:
    """Deal the library's subclasses out anew among the rows of each class."""
    within = subclasses(lesson)
    rng = np.random.default_rng(lesson.seed)
    for label in np.unique(lesson.y):
        rows = np.flatnonzero(lesson.y == label)
        within[rows] = within[rng.permutation(rows)]
    return within


def true_groups(lesson: Lesson) -> Array:
    """Return one-hot groups in a row's own class; in the others, all groups alike.

    Its own class is the true one.
    """
    # Not that of a teacher that errs: a class would then be split into groups of the
    # others too. What the teacher takes for another class is no group of that.
    y = lesson.y if lesson.true_y is None else lesson.true_y
    groups = lesson.groups
    members = [np.unique(groups[y == label]) for label in np.unique(y)]
    within = np.zeros((len(y), len(members), max(map(len, members))), np.float32)
    for label, own in enumerate(members):
        within[y != label, label, : len(own)] = 1 / len(own)
        rows = np.flatnonzero(y == label)
        within[rows, label, np.searchsorted(own, groups[rows])] = 1
    return within


METHODS = {
    "hard labels": Method({"n_subclasses": 1}, labels_only=True),
    "vanilla KD": Method({"n_subclasses": 1}),
    "LELP as published": Method(
        {"splitter": "pca", "rotation": "random"}, {"subclass_weight": 1.0}
    ),
    "LELP, library defaults": Method(),
    "PCA, annealed": Method({"splitter": "pca"}),
    "hard k-means, annealed": Method(
        {"splitter": "kmeans", "subclass_temperature": 0.0}
    ),
    "FitNet": Method({"n_subclasses": 1}, is_fitnet=True),
    "same outputs, λ = 0": Method(training={"subclass_weight": 0.0}),
    "shuffled subclasses": Method(within=shuffled_subclasses),
    "oracle": Method(
        {"subclass_temperature": 0.0},
        {"within_class_temperature": 1.0},
        within=true_groups,
    ),
}


def of_earlier_layer(name: str) -> str:
    """Name a method that is given an earlier layer."""
    return f"{name}, earlier layer"


EARLIER = {
    of_earlier_layer(name): OfEarlierLayer(**vars(METHODS[name]))
    for name in ("LELP as published", "LELP, library defaults", "FitNet")
}
