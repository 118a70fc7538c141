"""Passes over the rows as steps of a fit, which callbacks hear of."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._callbacks import FitTask
from lelp_sklearn._subclasses.rows import Data
from lelp_sklearn._typing import IntArray

Result = TypeVar("Result")


@dataclass(frozen=True)
class ReportedData:
    """Labelled rows of which each pass is a step of `task`.

    How many passes there will be is not known beforehand.
    """

    data: Data
    task: FitTask

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    @property
    def is_in_memory(self) -> bool:
        return self.data.is_in_memory

    def map_reduce(
        self,
        function: Callable[..., Result],
        merge: Callable[[Result, Result], Result],
        *arguments: Any,
    ) -> Result:
        """Fold the rows as one step."""
        step = self.task.begin("pass over the rows")
        result = self.data.map_reduce(function, merge, *arguments)
        step.end()
        return result

    def map(self, function: Callable[..., Any], *arguments: Any) -> "ReportedData":
        """Label the rows anew as one step."""
        step = self.task.begin("pass over the rows")
        data = self.data.map(function, *arguments)
        step.end()
        return replace(self, data=data)

    def take(self, places: Sequence[IntArray]) -> Iterator[NDArray[Any]]:
        """Give copies of rows."""
        return self.data.take(places)
