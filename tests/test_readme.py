"""The README's snippet runs as it is written, in one piece."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.student_problems import MyNet, make_groups

README = Path(__file__).parents[1] / "README.md"


class Teacher(nn.Module):
    """Stands for a teacher whose last layer is `fc`."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(6, 30), nn.Linear(30, 2)

    def forward(self, x):
        return self.fc(self.body(x).relu())


def train_teacher(X, y):
    """Return a teacher that knows the classes of most rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Teacher()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    rows, labels = torch.tensor(X, dtype=torch.float32), torch.tensor(y)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(rows), labels).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.slow
def test_snippet_runs_as_a_reader_would_run_it():
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.S)
    X, y, _, _ = make_groups(n_rows=60)
    model = train_teacher(X, y)
    texts = [f"word{i % 7} of class{label}" for i, label in enumerate(y)]
    names = {"MyNet": MyNet, "model": model, "X": X, "y": y, "texts": texts}
    exec(compile(snippet, str(README), "exec"), names)
    assert names["E"].shape == (60, 30)
    assert names["soft"].shape == (60, 16)
    class_mass = names["proj"].inverse_transform(names["soft"])
    logits = model(torch.tensor(X, dtype=torch.float32)).detach()
    scaled = logits / names["proj"].temperature_
    np.testing.assert_allclose(class_mass, scaled.softmax(dim=1), atol=1e-5)
    searched = names["grid"].param_grid[
        "lelpstudentclassifier__projector__n_subclasses"
    ]
    assert len(names["grid"].cv_results_["params"]) == len(searched)
    assert np.isfinite(names["grid"].cv_results_["mean_test_score"]).all()
    assert names["pipe"].score(texts, y) > 0.9
    probabilities = names["net"](torch.tensor(X, dtype=torch.float64))
    np.testing.assert_allclose(
        probabilities, names["student"].predict_proba(X), atol=1e-6
    )
