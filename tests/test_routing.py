"""The benchmark on text says what it lacks."""

import importlib
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def routing(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("routing")


def test_without_its_data_it_is_skipped_with_a_line(routing, tmp_path, capsys):
    routing.main(["--data-dir", str(tmp_path)])
    assert capsys.readouterr().out.startswith("Skipped: there is no")


def test_the_desks_are_two_and_every_intent_has_one(routing):
    names = ["card_arrival", "exchange_rate", "change_pin", "top_up_failed"]
    found = routing.desks(names)
    assert found["cards or not"].tolist() == [1, 0, 1, 0]
    assert np.bincount(found["arbitrary halves"]).tolist() == [2, 2]
