"""scikit-learn's callbacks (1.9 and later); with an older scikit-learn none is called.

An estimator derives from `CallbackSupportMixin`, decorates `fit` with `with_callbacks`
(which tears the callbacks down, also after an error) and reports its tasks::

    @with_callbacks
    def fit(self, X, y=None, *, sample_weight=None):
        task = begin_fit(self, X, y, sample_weight=sample_weight, max_subtasks=n)
        for _ in range(n):
            step = task.begin("epoch")
            ...
            if step.end(lambda: {"coef_": coef}):  # a callback asks to stop
                break
        task.end({})
        return self

`end` takes the fitted attributes with which a copy of the estimator can predict as if
`fit` had stopped there, or a function that makes them, called only where a callback
wants that copy; without them callbacks such as ``ScoringMonitor`` stay silent.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])
Attributes = Mapping[str, Any]

if TYPE_CHECKING:

    class CallbackSupportMixin:
        """What a type checker needs to know of scikit-learn's own."""

    def with_callbacks(method: Method) -> Method:
        """Return the method with its callbacks torn down at the end."""

else:
    try:
        from sklearn.callback import CallbackSupportMixin, with_callbacks
    except ImportError:  # scikit-learn < 1.9

        class CallbackSupportMixin:
            """Stands in for the mixin of newer versions of scikit-learn."""

        def with_callbacks(method):
            """Return the method as it is."""
            return method


@dataclass(frozen=True)
class FitTask:
    """`fit` as a whole or one of its steps, as the callbacks see it.

    Parameters
    ----------
    estimator : estimator
        The estimator that is being fitted.
    data : dict
        ``X``, ``y`` and ``metadata`` of `fit`, handed to callbacks that ask for them.
    context : sklearn.callback.CallbackContext or None
        The context of this task; None where scikit-learn has no callbacks.
    """

    estimator: Any
    data: dict[str, Any]
    context: Any

    def begin(self, name: str) -> "FitTask":
        """Begin a step of this task; steps have no steps of their own."""
        if self.context is None:
            return self
        context = self.context.subcontext(task_name=name)
        context.call_on_fit_task_begin(estimator=self.estimator, **self.data)
        return FitTask(self.estimator, self.data, context)

    def end(
        self, attributes: Attributes | Callable[[], Attributes] | None = None
    ) -> bool:
        """End this task and tell whether a callback asks to stop the iteration."""
        if self.context is None:
            return False
        return bool(
            self.context.call_on_fit_task_end(
                estimator=self.estimator,
                reconstruction_attributes=attributes,
                **self.data,
            )
        )

    @contextmanager
    def delegate(self, name: str, estimator: Any) -> Iterator[None]:
        """Make the fit of another estimator, in this block, a step of this task.

        Callbacks that propagate reach it if it supports callbacks.
        """
        if self.context is None:
            yield
            return
        context = self.context.subcontext(task_name=name)
        handed_on: AbstractContextManager[None] = nullcontext()
        if hasattr(estimator, "set_callbacks"):
            handed_on = context.propagate_callback_context(estimator)
        # Only inside that block does scikit-learn know which callbacks the inner fit
        # calls itself.
        with handed_on:
            context.call_on_fit_task_begin(estimator=self.estimator, **self.data)
            yield
            context.call_on_fit_task_end(estimator=self.estimator, **self.data)


NO_TASK = FitTask(None, {}, None)


def begin_fit(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    max_subtasks: int | None = 0,
) -> FitTask:
    """Set the callbacks of `estimator` up and begin its fit.

    Parameters
    ----------
    estimator : estimator
        Derives from `CallbackSupportMixin`; the calling method is decorated with
        `with_callbacks`.
    X, y, sample_weight : array-like
        The arguments of `fit`, in the form that `predict` and `score` take.
    max_subtasks : int or None, default=0
        The largest number of steps; None where it is not known.

    Returns
    -------
    FitTask
        The task to end when `fit` is complete.
    """
    metadata = None if sample_weight is None else {"sample_weight": sample_weight}
    data = {"X": X, "y": y, "metadata": metadata}
    if not hasattr(estimator, "_init_callback_context"):
        return FitTask(estimator, data, None)
    context = estimator._init_callback_context(max_subtasks=max_subtasks)
    context.call_on_fit_task_begin(estimator=estimator, **data)
    return FitTask(estimator, data, context)
