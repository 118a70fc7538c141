"""What a search tries next, and what all methods of a table have in common."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.distillation import config, methods, preparation, search
from benchmarks.distillation.tables import TABLES
from benchmarks.distillation.tables.tasks import SEARCH, TASKS

SUMMIT = {"learning_rate": 0.32, "temperature": 1.0, "max_epochs": 480}


def hill(setting):
    distance = sum(abs(np.log2(setting[name] / SUMMIT[name])) for name in SUMMIT)
    return 1 - 0.01 * distance


def climb(problem, known):
    """Search on a hill; return the settings in the order in which they were wanted."""
    order = []
    while wanted := search.next_settings(problem, known):
        # One by one: a search may be stopped within a round.
        known[search.key_of(wanted[0])] = hill(wanted[0])
        order.append(search.key_of(wanted[0]))
    return order


@pytest.fixture
def problem():
    return SEARCH.of(TASKS[0], config.BASELINE)


def test_search_leaves_a_grid_whose_edge_is_best(problem):
    known = {}
    climb(problem, known)
    assert search.finalists(problem, known)[0] == SUMMIT
    neighbours = search.untried_neighbours(problem, SUMMIT, {})
    assert all(search.key_of(setting) in known for setting in neighbours)
    assert min(dict(key)["temperature"] for key in known) == 1


def test_every_quick_look_has_settings_to_try():
    for table in map(config.quick, TABLES.values()):
        for task in table.tasks:
            for method in table.of(task):
                wanted = search.next_settings(table.search.of(task, method), {})
                assert min(setting["max_epochs"] for setting in wanted) >= 1
        for chosen in table.chosen.values():
            assert set(chosen) <= set(table.methods)


def test_search_finds_a_summit_of_few_epochs_beyond_a_valley(problem):
    by_epochs = {7: 0.9, 15: 0.89, 240: 0.85, 480: 0.84}
    known = {}
    while wanted := search.next_settings(problem, known):
        known |= {search.key_of(s): by_epochs.get(s["max_epochs"], 0.8) for s in wanted}
    assert search.finalists(problem, known)[0]["max_epochs"] == 7


@pytest.mark.parametrize("summit", [{}, {"learning_rate": 0.02, "max_epochs": 240}])
def test_search_that_ends_early_spends_its_trials_elsewhere(
    problem, summit, monkeypatch
):
    for name, value in summit.items():
        monkeypatch.setitem(SUMMIT, name, value)
    known = {}
    climb(problem, known)
    assert len(known) >= problem.n_trials
    if summit:
        assert len(known) == problem.n_trials


def test_search_that_was_stopped_goes_on_as_if_it_had_not_been(problem):
    whole = {}
    order = climb(problem, whole)
    for n_done in (1, 8, 10, 17):
        known = {key: whole[key] for key in order[:n_done]}
        assert climb(problem, known) == order[n_done:]


def test_every_method_starts_from_the_same_grid_in_what_it_has():
    for table in TABLES.values():
        for task in table.tasks:
            grids = {m: table.search.of(task, m).grid for m in table.methods}
            baseline = grids[config.BASELINE]
            for method, grid in grids.items():
                weight = methods.own_weight(methods.TRAINABLE[method])
                expected = dict(baseline)
                if method == "hard labels":
                    del expected["temperature"]
                if weight is not None:
                    expected["regression_weight"] = (weight,)
                assert grid == expected


def test_controls_stand_in_every_table():
    for table in (TABLES["methods"], TABLES["peers"]):
        controls = {config.BASELINE, config.WIDE, config.SHUFFLED, config.ORACLE}
        assert controls <= set(table.methods)
        assert set(table.methods) <= methods.TRAINABLE.keys()


def test_every_auxiliary_loss_is_compared_constant_and_annealed():
    for term in ("VID", "RKD", "CRD"):
        constant = methods.PEERS[f"{term}, constant"]
        assert constant.training == {"subclass_weight": 1.0}
        assert replace(constant, training={}) == methods.PEERS[f"{term}, annealed"]
    assert "FitNet, constant" in methods.PEERS


def test_tasks_that_differ_in_the_student_share_rows_and_teachers(tmp_path):
    groups = {}
    for task in (*TABLES["mixtures"].tasks, *TABLES["epochs"].tasks):
        groups.setdefault(task.drawn_as, []).append(task)
    assert any(len(tasks) > 1 for tasks in groups.values())
    for tasks in groups.values():
        paths = {preparation.teacher_path(task, tmp_path, 3) for task in tasks}
        assert len(paths) == 1
        digests = {config.digest(task, config.OURS) for task in tasks}
        students = {(task.n_student, task.n_units) for task in tasks}
        assert len(digests) == len(students)


def test_searches_and_reports_have_no_seed_in_common():
    for table in TABLES.values():
        reported = {seed for task in table.tasks for seed in range(task.n_seeds)}
        searched = {*table.search.seeds, *table.search.final_seeds}
        assert not reported & searched
        assert len(searched) == len(table.search.seeds + table.search.final_seeds)
