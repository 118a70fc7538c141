"""What to call after a report."""

from dataclasses import dataclass
from typing import Any

from sklearn import get_config
from sklearn.frozen import FrozenEstimator

from lelp_sklearn._diagnostics.pilots import has_epochs


@dataclass(frozen=True)
class Advice:
    """Writes a recommendation for a student, in a Pipeline or not.

    `step` is the name of the student in its Pipeline, None without one; `given` are the
    names of the arguments that were passed with X.
    """

    student: Any
    step: str | None
    given: list[str]

    def recommend(self, verdict: str, length: str | None, n_subclasses: int) -> str:
        """Return what to do, and the call on a line of its own."""
        if length == "too long" and has_epochs(self.student):
            return f"search for shorter training.\n  {self._search()}"
        if length is None and verdict == "unclear":
            numbers = f"1 and {n_subclasses} subclasses per class"
            what = f"compare {numbers}, and others, in a search"
            return f"{what}.\n  {self._comparison(n_subclasses)}"
        changes, what = {}, "train the student as it is"
        if length == "too short":
            changes["max_epochs"] = str(2 * int(self.student.max_epochs))
            what = "train longer"
        if verdict == "does not help":
            name, (value,) = self._projector_values([1])
            changes[name] = value
            what = f"{what if changes.keys() - {name} else 'train'} with one subclass"
        return f"{what}.\n  {self._fit(changes)}"

    def _comparison(self, n_subclasses: int) -> str:
        """Return the search of 1 and `n_subclasses` subclasses."""
        name, values = self._projector_values([1, n_subclasses])
        of_numbers = f": [{', '.join(values)}]}}"
        if has_epochs(self.student):
            return self._search(f', {{"{name}"{of_numbers}')
        grid = f'{{"{self._prefix}{name}"{of_numbers}'
        return f"GridSearchCV(student, {grid}).fit({self._arguments()})"

    def _search(self, grid: str = "") -> str:
        """Return the search of a torch student, by default with the default grid."""
        if self.step is None:
            return f"LELPStudentClassifierCV(student{grid}).fit({self._arguments()})"
        search = f"{self.step}=LELPStudentClassifierCV(student[-1]{grid})"
        return f"student.set_params({search}).fit({self._arguments()})"

    def _fit(self, changes: dict[str, str]) -> str:
        parts = [f"{self._prefix}{name}={value}" for name, value in changes.items()]
        set_params = f".set_params({', '.join(parts)})" if parts else ""
        return f"student{set_params}.fit({self._arguments()})"

    def _projector_values(self, numbers: list[int]) -> tuple[str, list[str]]:
        """Return the parameter that sets the number of subclasses, and values of it."""
        projector = self.student.projector
        if projector is None or isinstance(projector, FrozenEstimator):
            return "projector", [f"LELPProjector(n_subclasses={n})" for n in numbers]
        return "projector__n_subclasses", [str(n) for n in numbers]

    @property
    def _prefix(self) -> str:
        return "" if self.step is None else f"{self.step}__"

    def _arguments(self) -> str:
        """Return the arguments of `fit`."""
        prefix = "" if get_config()["enable_metadata_routing"] else self._prefix
        positional = [name for name in self.given if name == "y"]
        named = [f"{prefix}{name}={name}" for name in self.given if name != "y"]
        return ", ".join(["X", *positional, *named])
