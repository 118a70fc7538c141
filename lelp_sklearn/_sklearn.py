"""What newer versions of scikit-learn offer: callbacks (1.9), a display in notebooks.

With an older scikit-learn no callback is called. An estimator derives from
`CallbackSupportMixin`, decorates `fit` with `with_callbacks`, and reports its fit as a
task with steps: `begin_fit`, `FitTask.begin`, `FitTask.end`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])
Attributes = Mapping[str, Any]

if TYPE_CHECKING:

    class CallbackSupportMixin:
        """The mixin of scikit-learn, for type checkers."""

    def with_callbacks(method: Method) -> Method:
        """Return the method with its callbacks torn down at the end."""

else:
    try:
        from sklearn.callback import CallbackSupportMixin, with_callbacks
    except ImportError:  # scikit-learn < 1.9

        class CallbackSupportMixin:
            """Replaces the mixin of newer versions of scikit-learn."""

        def with_callbacks(method):
            """Return the method as it is."""
            return method


@dataclass(frozen=True)
class FitTask:
    """`fit` as a whole or one of its steps, for the callbacks."""

    estimator: Any
    # X, y and metadata of `fit`, for callbacks that request them.
    data: dict[str, Any]
    # A CallbackContext of scikit-learn; None if it has no callbacks.
    context: Any

    def begin(self, name: str) -> "FitTask":
        """Begin a step of this task."""
        if self.context is None:
            return self
        context = self.context.subcontext(task_name=name)
        context.call_on_fit_task_begin(estimator=self.estimator, **self.data)
        return FitTask(self.estimator, self.data, context)

    def end(
        self, attributes: Attributes | Callable[[], Attributes] | None = None
    ) -> bool:
        """End this task; return whether a callback asks to stop the iteration.

        With `attributes`, or those that a function returns, a copy of the estimator can
        predict as if `fit` had stopped here.
        """
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
        """Make the fit of another estimator, in this block, a step of this task."""
        if self.context is None:
            yield
            return
        context = self.context.subcontext(task_name=name)
        propagated: AbstractContextManager[None] = nullcontext()
        if hasattr(estimator, "set_callbacks"):
            propagated = context.propagate_callback_context(estimator)
        # Inside that block scikit-learn knows which callbacks the inner fit calls.
        with propagated:
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
    """Set up the callbacks of `estimator` and begin its fit.

    X, y and `sample_weight` are as `score` takes them; `max_subtasks` None is unknown.
    """
    metadata = None if sample_weight is None else {"sample_weight": sample_weight}
    data = {"X": X, "y": y, "metadata": metadata}
    if not hasattr(estimator, "_init_callback_context"):
        return FitTask(estimator, data, None)
    context = estimator._init_callback_context(max_subtasks=max_subtasks)
    context.call_on_fit_task_begin(estimator=estimator, **data)
    return FitTask(estimator, data, context)


def single_block(estimator: Any) -> Any:
    """Return scikit-learn's box of one estimator, with its fit in a line.

    By default an estimator that holds others is drawn as boxes of these, each with its
    name twice. scikit-learn draws a box without the line if it has no `name_caption`.
    """
    from sklearn.utils._repr_html.estimator import _VisualBlock

    return _VisualBlock(
        "single",
        estimator,
        names=type(estimator).__name__,
        name_details=str(estimator),
        name_caption=_describe_fit(estimator),
    )


def _describe_fit(estimator: Any) -> str:
    """Return epochs, stop reason and number of subclasses, as far as there are any."""
    fitted = getattr(estimator, "best_estimator_", estimator)
    parts = []
    if hasattr(fitted, "n_epochs_"):
        parts.append(f"{fitted.n_epochs_} epochs")
        if fitted.stop_reason_ is not None:
            parts[0] += f" ({fitted.stop_reason_})"
    projector: Any = getattr(fitted, "projector_", None)
    # A frozen one hands on its attributes.
    if hasattr(projector, "n_subclasses_"):
        parts.append(f"S = {projector.n_subclasses_}")
    return ", ".join(parts)
