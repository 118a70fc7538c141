"""The README's snippets run as they are written."""

import re
from pathlib import Path

import numpy as np
import sklearn
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from tests.student_problems import MyNet, make_groups

README = Path(__file__).parents[1] / "README.md"


class Resnet(nn.Module):
    """Stands for a teacher whose last layer is `fc`."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(6, 30), nn.Linear(30, 2)

    def forward(self, x):
        return self.fc(self.body(x).relu())


def test_snippets_run_as_written():
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.S)
    X, y, E, (W, b) = make_groups(n_rows=120, width=20)
    names = {
        "GridSearchCV": GridSearchCV,
        "make_pipeline": make_pipeline,
        "StandardScaler": StandardScaler,
        "MyNet": MyNet,
        "resnet": Resnet(),
        **{"X": X, "y": y, "E": E, "W": W, "b": b},
    }
    for statement in re.split(r"\n(?=\S)", snippet):
        routing = "metadata routing on" in statement
        with sklearn.config_context(enable_metadata_routing=routing):
            exec(statement, names)
    assert names["soft"].shape == (120, 16)
    class_mass = names["proj"].inverse_transform(names["soft"])
    np.testing.assert_allclose(class_mass.sum(axis=1), 1)
    searched = names["grid"].param_grid[
        "lelpstudentclassifier__projector__n_subclasses"
    ]
    assert len(names["grid"].cv_results_["params"]) == len(searched)
    assert np.isfinite(names["grid"].cv_results_["mean_test_score"]).all()
