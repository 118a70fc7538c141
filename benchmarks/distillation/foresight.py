"""Whether `subclass_report` foresees what the defaults gain over one subclass."""

from collections import Counter
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.distillation.diagnosis import ALL, HALF, NUMBERS
from benchmarks.distillation.statistics import (
    Scores,
    difference,
    holm,
    interval,
    paired,
)
from benchmarks.distillation.untuned_report import NOW, ONE
from benchmarks.files import markdown

HELPS, UNCLEAR, HELPS_NOT = "helps", "unclear", "does not help"
# What the verdicts are held to: points, and shares.
WORTHWHILE, LEAST_CORRELATION, MOST_UNCLEAR = 1.0, 0.8, 0.25
SIGNIFICANT = 0.05
# The thresholds of verdicts were chosen on these tasks.
CHOSEN_ON = (
    "single digits",
    "mixture of 40 Gaussians",
    "letters, 500 rows",
)

INTRODUCTION = """# What the report says before training

By `python benchmarks/distillation/diagnose.py`. The measured gain is that of the
library's plain `fit` over the same student with `n_subclasses=1`, in points of test
accuracy, with its 95 % interval over seeds ([every fit](untuned.csv)). The report is
asked about that student, with rows and a teacher of another seed; no test row is among
them. \\*: the thresholds of verdicts were chosen on this task."""


def write_foresight(lines: list[dict[str, str]], scores: Scores, path: Path) -> None:
    """Write tables to `path`, and print them."""
    tasks = [
        task
        for task in dict.fromkeys(x["task"] for x in lines if x["rows"] == ALL)
        if len(difference(scores.get(task, {NOW: {}, ONE: {}}), NOW, ONE)) > 1
    ]
    if len(tasks) < 3:
        print("Too few tasks have both reports and results: nothing to report.")
        return
    gains = {task: paired(difference(scores[task], NOW, ONE)) for task in tasks}
    reports = {
        (line["task"], line["rows"]): line
        | {name: float(line[name]) for name in NUMBERS}
        for line in lines
        if line["task"] in tasks
    }
    parts = [INTRODUCTION, tasks_table(tasks, gains, reports), "## Bars"]
    others = [task for task in tasks if task not in CHOSEN_ON]
    for title, some in (("all tasks", tasks), ("the other tasks alone", others)):
        if len(some) > 2:
            parts.append(f"{title} ({len(some)}):\n\n" + bars(some, gains, reports))
    text = "\n\n".join(parts)
    path.write_text(text + "\n", encoding="utf-8")
    print(text)


def tasks_table(tasks, gains, reports) -> str:
    """Return a line a task: what was measured, and what the reports say."""
    rows = []
    for task in tasks:
        star = r"\*" if task in CHOSEN_ON else ""
        cells = [task + star, interval(gains[task])]
        for part in (ALL, HALF):
            line = reports.get((task, part))
            if line is None:
                cells += ["–", "–"]
                continue
            low, high = (
                100 * (line["pilot_gain"] + sign * 1.96 * line["pilot_gain_se"])
                for sign in (-1, 1)
            )
            gain = f"{100 * line['pilot_gain']:+.1f} [{low:+.1f}, {high:+.1f}]"
            cells += [gain, line["verdict"]]
        line = reports[task, ALL]
        cells += [f"{100 * line['headroom']:.1f}", f"{line['learnability']:.2f}"]
        cells += [f"{line['margin_r2']:.2f}", line["training_length"] or "–"]
        rows.append(cells)
    titles = ["task", "measured gain", "pilot gain", "verdict", "at half the rows"]
    titles += ["verdict", "headroom, %", "learnability", "margin R²", "training"]
    return markdown(titles, rows)


def bars(tasks, gains, reports) -> str:
    """Return a sentence a bar."""
    measured = np.array([gains[task].mean for task in tasks])
    p = holm([gains[task].p for task in tasks])
    verdicts = {
        part: {t: reports[t, part]["verdict"] for t in tasks if (t, part) in reports}
        for part in (ALL, HALF)
    }
    pilot = np.array([reports[task, ALL]["pilot_gain"] for task in tasks])
    correlation = float(spearmanr(pilot, measured).statistic)
    is_lost = (measured < 0) & (p < SIGNIFICANT)
    lost = [task for task, is_one in zip(tasks, is_lost, strict=True) if is_one]
    gained = [task for task in tasks if gains[task].low > WORTHWHILE]
    said = verdicts[ALL]
    wrong_help = [t for t in lost if said[t] == HELPS]
    wrong_no = [t for t in gained if said[t] == HELPS_NOT]
    turned = [
        t
        for t, verdict in verdicts[HALF].items()
        if {verdict, said[t]} == {HELPS, HELPS_NOT}
    ]
    counts = Counter(said.values())
    return "\n".join(
        [
            f"- rank correlation {correlation:+.2f} (wanted: {LEAST_CORRELATION})",
            f'- "{HELPS}" where the gain is clearly negative (Holm, p < '
            f"{SIGNIFICANT}; {len(lost)} tasks): {', '.join(wrong_help) or 'none'}",
            f'- "{HELPS_NOT}" where it is clearly above {WORTHWHILE:g} point (95 %; '
            f"{len(gained)} tasks): {', '.join(wrong_no) or 'none'}",
            f'- "{UNCLEAR}": {counts[UNCLEAR]} of {len(tasks)} (wanted: at most '
            f"{MOST_UNCLEAR:.0%})",
            f'- "{HELPS}" that turns to "{HELPS_NOT}" or back between all and half '
            f"the rows ({len(verdicts[HALF])} tasks): {', '.join(turned) or 'none'}",
        ]
    )
