"""How a student is pickled, and what makes sure that it comes back whole."""

import copy

from lelp_sklearn._extraction.sklearn_teachers import OmittedTeacher
from lelp_sklearn._locks import exclusive
from lelp_sklearn._sealing import sealed, unsealed
from lelp_sklearn._training import modules


class SavedStudentMixin:
    """The state of a `LELPStudentClassifier`, fitted or not."""

    def __getstate__(self):
        state = {**super().__getstate__(), "module": modules.on_cpu(self.module)}
        # Made again of the arrays in the fit.
        if state.pop("module_", None) is None:
            return state
        return sealed({**state, "teacher": OmittedTeacher.of(self.teacher)})

    def __sklearn_clone__(self):
        # Modules are copied, and may be what another thread runs as a teacher.
        with exclusive(*self.get_params().values()):
            return super().__sklearn_clone__()

    def __deepcopy__(self, memo):
        # Unlike a pickle, a copy keeps the teacher, and needs no seal.
        twin = memo[id(self)] = type(self).__new__(type(self))
        state = {name: v for name, v in vars(self).items() if name != "module_"}
        with exclusive(*self.get_params().values()):
            twin._restore(copy.deepcopy(state, memo))
        return twin

    def __setstate__(self, state):
        self._restore(unsealed(state, type(self).__name__))

    def _restore(self, state):
        super().__setstate__(state)
        if hasattr(self, "_fit"):
            self.module_ = self._fit.student.net
