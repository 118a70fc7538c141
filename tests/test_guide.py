"""Programs of the user guide that no doctest runs."""

import re
import textwrap
from pathlib import Path

import joblib
import numpy as np
import pytest

from tests.student_problems import make_soft_targets

GUIDE = Path(__file__).parents[1] / "docs" / "user_guide"


def code_block(page, start):
    """Return the code block of a page that begins with a line."""
    text = (GUIDE / f"{page}.rst").read_text("utf-8")
    blocks = re.findall(r"\.\. code-block:: python\n\n((?: {4}.*\n|\n)+)", text)
    (block,) = [b for b in map(textwrap.dedent, blocks) if b.startswith(start)]
    return block


def test_the_program_for_several_processes_runs_in_one_and_goes_on(
    tmp_path, monkeypatch
):
    program = compile(code_block("training", "# train.py"), "train.py", "exec")
    X, y, soft = make_soft_targets()
    for name, array in {"X": X, "y": y, "soft": soft}.items():
        np.save(tmp_path / f"{name}.npy", array)
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    first = joblib.load("student.joblib")
    assert first.n_epochs_ == first.max_epochs
    written = Path("student.ckpt").stat().st_mtime_ns
    exec(program, {})
    assert Path("student.ckpt").stat().st_mtime_ns == written
    again = joblib.load("student.joblib")
    np.testing.assert_array_equal(again.predict_proba(X), first.predict_proba(X))


@pytest.mark.slow
def test_the_program_that_asks_before_training_is_answered_as_shown(capsys):
    names = {}
    exec(compile(code_block("when", "# ask.py"), "ask.py", "exec"), names)
    assert names["of_numbers"].verdict == "helps"
    assert names["of_tumours"].verdict == "does not help"
    found, shown = (
        # Figures depend on the processor, words do not.
        re.sub(r"[-+]?\d+\.\d+%?|\d+%", "#", text).split()
        for text in (capsys.readouterr().out, (GUIDE / "when.rst").read_text("utf-8"))
    )
    assert " ".join(found) in " ".join(shown)
