"""The README's quickstart runs as it is pasted, and the guide has the same."""

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def snippet():
    """Return the only Python of the README."""
    (found,) = re.findall(r"```python\n(.*?)```", README, re.S)
    return found


@pytest.mark.slow
def test_quickstart_prints_teacher_vanilla_distillation_and_student(capsys):
    exec(compile(snippet(), "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line[:10].strip() for line in lines] == ["teacher", "vanilla KD", "student"]
    teacher, vanilla, student = (float(line[10:]) for line in lines)
    assert teacher > student > vanilla + 0.02


def test_quickstart_is_short_and_the_same_in_the_guide():
    assert len([line for line in snippet().splitlines() if line.strip()]) <= 20
    guide = (ROOT / "docs" / "user_guide" / "quickstart.rst").read_text("utf-8")
    assert textwrap.indent(snippet(), "    ") in guide


def test_links_of_the_readme_lead_to_files():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    relative = [link for link in links if not link.startswith("https://")]
    assert relative
    assert not [link for link in relative if not (ROOT / link).exists()]
