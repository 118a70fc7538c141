"""Types that several files share."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.intp]
BoolArray = NDArray[np.bool_]


class TargetParams(Protocol):
    """Parameters of a classifier that its soft targets depend on."""

    projector: Any
    teacher: Any
    teacher_cv: Any
    unlabeled: object


class StudentParams(TargetParams, Protocol):
    """Parameters of `LELPStudentClassifier` that its targets and training depend on."""

    module: Any
    module_params: Mapping[str, Any] | None
    label_weight: float
    subclass_weight: float | str | Callable[[float], float]
    within_class_temperature: float | str
    class_weight: Mapping[Any, float] | str | None
    optimizer: str | Callable[..., Any]
    learning_rate: float | str
    learning_rate_schedule: str | Callable[[float], float]
    weight_decay: float
    max_grad_norm: float | None
    max_epochs: int
    batch_size: int
    augment: Callable[[Any], Any] | None
    early_stopping: bool
    n_iter_no_change: int
    verbose: int
    device: Any
    precision: str
