"""Students of every method, trained by the public API."""

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
from lelp_sklearn import LELPStudentClassifier, LELPStudentClassifierCV


def fit(method: Method, data: DistillationData, setting: Setting) -> ClassifierMixin:
    """Train a student by a method, at a learning rate, a temperature and so on."""
    data = method.select_layer(data)
    if method.is_fitnet:
        return fit_fitnet(data, setting)
    within = within_by_hand(method, data)
    student = make_student(method, data)
    student.set_params(**student_params(method, within, setting))
    return student.fit(data.X, data.y, **teacher_arrays(method, data, within, setting))


def accuracies(
    method: Method, data: DistillationData, settings: list[Setting]
) -> list[float]:
    """Return the accuracies at some settings, by one search of the library.

    A student whose losses are not finite is scored as one that always says class 0.
    """
    data = method.select_layer(data)
    within = within_by_hand(method, data)
    # Targets that are made by hand are those of one temperature.
    by_targets: dict[float | None, list[int]] = {}
    for position, setting in enumerate(settings):
        temperature = None if within is None else setting.get("temperature")
        by_targets.setdefault(temperature, []).append(position)
    n, n_score = len(data.X), len(data.X_score)
    # The teacher of the rows to score is not asked: each stands by a row of its class.
    labels, first = np.unique(data.y, return_index=True)
    stand_ins = first[np.searchsorted(labels, data.y_score)]
    rows = np.append(np.arange(n), stand_ins)
    found = np.empty(len(settings))
    for positions in by_targets.values():
        alike = [settings[position] for position in positions]
        params = [student_params(method, within, setting) for setting in alike]
        search = LELPStudentClassifierCV(
            make_student(method, data),
            [{name: [value] for name, value in each.items()} for each in params],
            cv=[(np.arange(n), np.arange(n, n + n_score))],
            scoring="accuracy",
            refit=False,
        )
        arrays = teacher_arrays(method, data, within, alike[0])
        try:
            search.fit(
                np.concatenate([data.X, data.X_score]),
                np.append(data.y, data.y_score),
                **{
                    name: None if array is None else array[rows]
                    for name, array in arrays.items()
                },
            )
            found[positions] = search.cv_results_["mean_test_score"]
        except FloatingPointError:
            found[positions] = np.nan
    return np.where(np.isnan(found), np.mean(data.y_score == 0), found).tolist()


def within_by_hand(method: Method, data: DistillationData) -> Array | None:
    """Return the targets within classes, (n, C, S); None if the library makes them."""
    return None if method.within is None else method.within(data)


def make_student(method: Method, data: DistillationData) -> LELPStudentClassifier:
    """Return the student of a method, which lacks a setting."""
    module_params = data.module_params
    if data.module is None:
        # A student without hidden units is linear.
        module_params = {"hidden_layer_sizes": (data.n_units,) if data.n_units else ()}
    return LELPStudentClassifier(
        data.module,
        module_params=module_params,
        projector=projector(data, **method.splitting),
        random_state=data.seed,
        **data.training,
    )


def student_params(
    method: Method, within: Array | None, setting: Setting
) -> dict[str, object]:
    """Return the parameters of a student that a method and a setting tell.

    Unless the method says otherwise, the subclasses have the temperature of the
    classes, 1 if each row has one subclass, and their weight falls from 1.
    """
    setting = dict(setting)
    temperature = setting.pop("temperature", 1.0)
    if within is None:
        is_hard = method.splitting.get("subclass_temperature") == 0
    else:
        is_hard = np.isin(within, (0, 1)).all()
    return {
        "projector__temperature": temperature,
        "within_class_temperature": 1.0 if is_hard else temperature,
        **setting,
        **method.training,
    }


def teacher_arrays(
    method: Method, data: DistillationData, within: Array | None, setting: Setting
) -> dict[str, Array | None]:
    """Return the arguments of `fit` that tell what the teacher says of the rows."""
    if method.labels_only:
        n_classes = data.logits.shape[1]
        return {"soft_targets": np.eye(n_classes, dtype=np.float32)[data.y]}
    asked = {
        "teacher_embeddings": data.embeddings,
        "teacher_logits": data.given_logits,
    }
    if within is None:
        return asked
    temperature = setting.get("temperature", 1.0)
    classes = projector(data, n_subclasses=1, temperature=temperature)
    mass = classes.fit_transform(
        data.embeddings, data.y, teacher_logits=data.given_logits
    )
    soft_targets = mass[:, :, np.newaxis] * within
    return {"soft_targets": soft_targets.reshape(len(mass), -1)}


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


def fit_fitnet(data: DistillationData, setting: Setting) -> ClassifierMixin:
    """Train a student by FitNet, whose schedule of learning rates is its own."""
    module, module_params = data.module, data.module_params
    if module is None:
        module, module_params = OneHiddenLayer, {"n_units": data.n_units}
    return FitNetClassifier(
        module,
        module_params=module_params,
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
