"""One start of the part `start_up`, in a process of its own.

Prints as JSON the seconds of each step. The rows are few, so that the steps show what a
first call costs beside the computation, which the second calls show.
"""

import json
import time

steps = {}
last = time.perf_counter()


def step_done(name: str) -> None:
    """Note the time since the last step."""
    global last
    now = time.perf_counter()
    steps[name] = now - last
    last = now


import sklearn  # noqa: E402, F401 - the import is measured

step_done("import sklearn")

from lelp_sklearn import LELPProjector  # noqa: E402 - the import is measured

step_done("import lelp_sklearn beyond it")

from lelp_sklearn._subclasses.kernels import soft_labels  # noqa: E402, F401 - measured

step_done("import Numba and the kernels")

from benchmarks.speed.problems import Shape, Teacher  # noqa: E402 - after the measured

shape = Shape(500, 64, 2, 5)
teacher = Teacher(shape)
X, y = teacher.draw(shape.n_rows)
projector = LELPProjector(shape.n_subclasses, head=teacher.head, random_state=0)
step_done("")
projector.fit(X, y)
step_done("fit")
projector.transform(X)
step_done("transform")
projector.fit(X, y)
step_done("second fit")
projector.transform(X)
step_done("second transform")
del steps[""]
print(json.dumps(steps))
