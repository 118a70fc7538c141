"""From which epoch on a schedule keeps its final value."""

import pytest

from lelp_sklearn._training.loop import first_final_epoch
from lelp_sklearn._training.objective import subclass_weight_schedule


@pytest.mark.parametrize(
    ("weight", "max_epochs", "expected"),
    [
        ("anneal", 100, 50),
        ("anneal", 5, 3),
        ("anneal", 1, 1),
        (0.3, 100, 0),
        (lambda progress: 1 - progress, 10, 10),
        (lambda progress: 1.0 if 0.2 < progress < 0.4 else 0.0, 10, 4),
    ],
)
def test_first_final_epoch(weight, max_epochs, expected):
    schedule = subclass_weight_schedule(weight)
    assert first_final_epoch(schedule, max_epochs) == expected
