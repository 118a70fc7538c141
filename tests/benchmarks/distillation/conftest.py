"""A command whose only table is tiny, and its files."""

import shutil
from dataclasses import replace

import pytest

from benchmarks.distillation import config, run
from benchmarks.distillation.tables.tasks import SEARCH, TASKS


@pytest.fixture(scope="module")
def tiny():
    """The command, whose only table is tiny and of bundled data."""
    small = {"teacher_steps": 30, "max_epochs": 2, "epoch_bounds": (1, 4), "n_seeds": 3}
    by_draw = {task.draw: task for task in TASKS}
    numbers, digits = by_draw["numbers"], by_draw["digits"]
    sizes = {"n_train": 400, "n_score": 200}
    tasks = (
        replace(
            numbers,
            arguments={**numbers.arguments, **sizes},
            n_student=100,
            **small,
        ),
        replace(digits, has_rare_class=True, n_student=200, **small),
    )
    methods = (config.BASELINE, config.OURS, config.FITNET, config.ORACLE)
    search = replace(
        SEARCH,
        grid={"learning_rate": (0.02, 0.08), "temperature": (2.0,)},
        n_trials=5,
        seeds=(100, 101),
        final_seeds=(102,),
        n_finalists=2,
    )
    table = config.Table("Tiny", tasks, methods, search)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "TABLES", {"tiny": table})
        yield run


def call(tiny, folder, *options):
    arguments = ["tiny", "--cache", str(folder / "cache")]
    tiny.main([*arguments, "--results", str(folder), *options])


@pytest.fixture(scope="module")
def first_run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    call(tiny, folder)
    return folder


@pytest.fixture
def finished(first_run, tmp_path):
    """A folder of its own of a finished run."""
    return shutil.copytree(first_run, tmp_path / "finished")
