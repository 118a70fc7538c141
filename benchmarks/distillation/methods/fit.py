"""Students of every method, trained one by one by the public API."""

import numpy as np
from sklearn.base import ClassifierMixin

from benchmarks.distillation.datasets.base import Array
from benchmarks.distillation.methods.base import (
    DistillationData,
    Method,
    Setting,
    projector,
)
from benchmarks.distillation.methods.fitnet import FitNetClassifier, OneHiddenLayer
from lelp_sklearn import LELPStudentClassifier


def fit(method: Method, data: DistillationData, setting: Setting) -> ClassifierMixin:
    """Train a student by a method, at a learning rate, a temperature and so on.

    Unless the method says otherwise, the subclasses have the temperature of the
    classes, 1 if each row has one subclass, and their weight falls from 1.
    """
    setting = dict(setting)
    temperature = setting.pop("temperature", 1.0)
    data = method.select_layer(data)
    if method.is_fitnet:
        return fit_fitnet(data, temperature, setting)
    module_params = data.module_params
    if data.module is None:
        # A student without hidden units is linear.
        module_params = {"hidden_layer_sizes": (data.n_units,) if data.n_units else ()}
    if method.within is None:
        within, is_hard = None, method.splitting.get("subclass_temperature") == 0
    else:
        within = method.within(data)
        is_hard = np.isin(within, (0, 1)).all()
    training = {
        "within_class_temperature": 1.0 if is_hard else temperature,
        **method.training,
    }
    student = LELPStudentClassifier(
        data.module,
        module_params=module_params,
        projector=projector(data, temperature=temperature, **method.splitting),
        random_state=data.seed,
        **data.training,
        **setting,
        **training,
    )
    if method.labels_only:
        soft_targets = np.eye(data.logits.shape[1], dtype=np.float32)[data.y]
        return student.fit(data.X, data.y, soft_targets=soft_targets)
    if within is None:
        return student.fit(
            data.X,
            data.y,
            teacher_embeddings=data.embeddings,
            teacher_logits=data.given_logits,
        )
    classes = projector(data, n_subclasses=1, temperature=temperature)
    mass = classes.fit_transform(
        data.embeddings, data.y, teacher_logits=data.given_logits
    )
    soft_targets = mass[:, :, np.newaxis] * within
    return student.fit(data.X, data.y, soft_targets=soft_targets.reshape(len(mass), -1))


def scored_logits(method: Method, data: DistillationData, setting: Setting) -> Array:
    """Train a student and return the class logits of `X_score`, (n, C).

    With two classes the first logit is 0: only their difference is known.
    """
    try:
        student = fit(method, data, setting)
    except FloatingPointError:
        # A setting that diverges is a bad one, and no reason to end a search.
        return np.zeros((len(data.X_score), data.logits.shape[1]), np.float32)
    if method.is_fitnet:
        return student.class_logits(data.X_score)
    decision = student.decision_function(data.X_score)
    if decision.ndim > 1:
        return decision
    return np.column_stack([np.zeros_like(decision), decision])


def fit_fitnet(
    data: DistillationData, temperature: float, setting: Setting
) -> ClassifierMixin:
    """Train a student by FitNet, whose schedule of learning rates is its own."""
    module, module_params = data.module, data.module_params
    if module is None:
        module, module_params = OneHiddenLayer, {"n_units": data.n_units}
    return FitNetClassifier(
        module,
        module_params=module_params,
        temperature=temperature,
        random_state=data.seed,
        batch_size=data.training["batch_size"],
        weight_decay=data.training["weight_decay"],
        device=data.training.get("device", "cpu"),
        **setting,
    ).fit(
        data.X,
        data.y,
        teacher_embeddings=data.embeddings,
        teacher_logits=data.logits,
    )
