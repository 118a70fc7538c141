"""The table of trees: what is reported of the areas in its lines."""

from benchmarks.distillation.tables.trees import (
    CROSS_FITTED,
    HARD,
    LEAKING,
    SETS,
    SIZES,
)
from benchmarks.distillation.tables.trees_report import STUDENTS, TEACHERS, write_trees


def lines_of(name, area):
    """Return lines of two seeds: `area` of each method, less by 0.01 with seed 1."""
    lines = []
    for seed in range(2):

        def line(teacher, student, method, S, auc, seed=seed):
            return {
                "set": name,
                "seed": str(seed),
                "teacher": teacher,
                "student": student,
                "method": method,
                "n_subclasses": S,
                "auc": str(auc - seed / 100),
                "ms": "0.5",
                "kB": "3",
            }

        lines += [line(teacher, "", "", "", 0.9) for teacher in TEACHERS]
        for student in STUDENTS:
            lines.append(line("", student, HARD, "1", area[HARD]))
            lines += [
                line(teacher, student, method, S, area[method])
                for teacher in TEACHERS
                for method in (LEAKING, CROSS_FITTED)
                for S in SIZES
            ]
    return lines


def test_report(tmp_path, capsys):
    first, second = list(SETS)[:2]
    lines = lines_of(first, {HARD: 0.7, LEAKING: 0.75, CROSS_FITTED: 0.8})
    lines += lines_of(second, {HARD: 0.8, LEAKING: 0.8, CROSS_FITTED: 0.6})
    write_trees(lines, tmp_path / "trees.md")
    text = (tmp_path / "trees.md").read_text("utf-8")
    assert "| linear | 89.50 | 69.50 | 74.50 | 79.50 | 88.8 |" in text
    assert f"above hard labels on 1 of 2 sets ({first})" in text
    assert f"clearly below hard labels on 1 ({second})" in text
    capsys.readouterr()
