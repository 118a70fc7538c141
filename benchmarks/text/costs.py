"""What teacher and students take: parameters, bytes in a file, time for one text."""

import io
import time

import numpy as np
import torch
from torch import nn

from benchmarks.distillation.config import OURS
from benchmarks.distillation.methods import METHODS
from benchmarks.distillation.methods.base import Setting
from benchmarks.distillation.methods.fit import fit
from benchmarks.files import markdown
from benchmarks.text.comparison import TextTask
from benchmarks.timing import one_thread

N_TEXTS, N_TURNS = 50, 5


def print_costs(task: TextTask, settings: dict[str, Setting]) -> dict[str, dict]:
    """Print and return the costs of the teacher and of a student of each reader."""
    answers = {"teacher": (task.teacher, task.ask_teacher)}
    for reader, setting in settings.items():
        data = task.make_data(reader, next(iter(task.seeds)), True)
        module = fit(METHODS[OURS], data, setting).to_module()
        answers[reader] = module, asking(module, task.fit_reader(reader))
    found = {name: cost(*each, task.texts[:N_TEXTS]) for name, each in answers.items()}
    rows = [
        [
            name,
            f"{each['parameters']:,}",
            f"{each['bytes'] / 1e6:.2f}",
            f"{each['ms']:.2f}",
        ]
        for name, each in found.items()
    ]
    titles = ["", "parameters", "file, MB", "one text on one core, ms"]
    print(markdown(titles, rows))
    return found


def asking(module: nn.Module, reader):
    """Return a function from one text to class probabilities."""
    dtype = next(module.parameters()).dtype

    def ask(text: str) -> torch.Tensor:
        rows = torch.from_numpy(reader.transform([text]))
        return module(rows.to(dtype) if rows.is_floating_point() else rows)

    return ask


def cost(module: nn.Module, ask, texts) -> dict:
    """Return the size of a module and the median time of an answer, in one thread."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    with one_thread(), torch.inference_mode():
        times = [elapsed(ask, text) for _ in range(N_TURNS) for text in texts]
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "bytes": file.getbuffer().nbytes,
        "ms": 1e3 * float(np.median(times)),
    }


def elapsed(ask, text: str) -> float:
    """Return the seconds that an answer takes."""
    start = time.perf_counter()
    ask(text)
    return time.perf_counter() - start
