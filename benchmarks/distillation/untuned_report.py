"""The report of the table ``untuned``: means of seeds, and what they are held to."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from benchmarks.distillation.config import OURS, PLAIN, UNION
from benchmarks.distillation.records import read as read_records
from benchmarks.distillation.statistics import (
    Scores,
    difference,
    holm,
    interval,
    level,
    mean_over_tasks,
    paired,
)
from benchmarks.files import markdown

NOW, ONE, BEFORE, TUNED = "defaults", "S = 1", "earlier defaults", "tuned"
AT_4 = ", τ = 4"
# Points.
MARGIN, ALLOWED_GAP, FAR = 0.5, {UNION: 0.8, PLAIN: 0.5}, 2.0

INTRODUCTION = """# Untuned

Test accuracy in percent of the library's plain `fit`, mean ± standard error over
seeds, and that of LELP as tuned for the table `methods` on the same seeds and teachers.
By `python benchmarks/distillation/run.py untuned`; [every fit](untuned.csv).
"""


def write_untuned(
    lines: list[dict[str, str]], tasks: list[str], tuned: Collection[str], folder: Path
) -> None:
    """Write the report of all lines; `tuned` are tasks of the table ``methods``."""
    kinds = {line["task"]: line["kind"] for line in lines}
    scores = scores_of(lines)
    add_tuned(scores, tuned, folder / "methods.csv")
    complete = [
        task
        for task in tasks
        if {NOW, ONE, BEFORE} <= scores.get(task, {}).keys()
        and len(scores[task][NOW]) > 1
    ]
    parts = [
        INTRODUCTION,
        levels(scores, complete),
        against_best(scores, complete, ""),
        against_best(scores, complete, AT_4),
        gaps_to_tuned(scores, complete, kinds),
        above_chance(lines),
        steadiness(lines),
    ]
    text = "\n\n".join(part.strip() for part in parts)
    (folder / "untuned.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def scores_of(lines: list[dict[str, str]]) -> Scores:
    """Return percents of the first start by task, recipe and seed."""
    scores: Scores = {}
    for line in lines:
        if line["start"] == "0":
            of_task = scores.setdefault(line["task"], {})
            by_seed = of_task.setdefault(line["recipe"], {})
            by_seed[int(line["seed"])] = 100 * float(line["accuracy"])
    return scores


def add_tuned(scores: Scores, tasks: Collection[str], path: Path) -> None:
    """Add the tuned LELP of the table ``methods`` on the same seeds."""
    for line in read_records(path):
        task, seed = line["task"], line["seed"]
        has_both = seed in scores.get(task, {}).get(NOW, {})
        if line["method"] == OURS and task in tasks and has_both:
            by_seed = scores[task].setdefault(TUNED, {})
            by_seed[seed] = 100 * line["accuracy"]


def levels(scores: Scores, tasks: list[str]) -> str:
    """Return the table of means."""
    names = [NOW, ONE, BEFORE]
    names += [name + AT_4 for name in names] + [TUNED]
    rows = []
    for task in tasks:
        of_task = scores[task]
        cells = [
            level(of_task[name].values()) if len(of_task.get(name, {})) > 1 else "–"
            for name in names
        ]
        rows.append([task, str(len(of_task[NOW])), *cells])
    return markdown(["task", "seeds", *names], rows)


def against_best(scores: Scores, tasks: list[str], ending: str) -> str:
    """Compare the defaults with the better of S = 1 and the earlier ones."""
    now, rivals, rows, p_values = NOW + ending, (ONE, BEFORE), [], []
    tasks = [task for task in tasks if len(scores[task].get(now, {})) > 1]
    if not tasks:
        return f"## {now}\n\nNo task has two seeds yet."
    for task in tasks:
        of_task = scores[task]
        best = max(
            (rival + ending for rival in rivals if rival + ending in of_task),
            key=lambda name: np.mean(list(of_task[name].values())),
        )
        estimate = paired(difference(of_task, now, best))
        # One-sided: below.
        p_values.append(estimate.p / 2 if estimate.mean < 0 else 1 - estimate.p / 2)
        rows.append([task, best, interval(estimate)])
    corrected = holm(p_values)
    for row, p in zip(rows, corrected, strict=True):
        row.append(f"{p:.3f}")
    below = [r[0] for r, p in zip(rows, corrected, strict=True) if p < 0.05]
    short = [r[0] for r in rows if float(r[2].split(" ")[0]) < -MARGIN]
    return "\n\n".join(
        [
            f"## {now}, against the better of S = 1 and the earlier defaults",
            markdown(
                ["task", "the better", "lead, points", "p that it is below"], rows
            ),
            f"More than {MARGIN} points below: {', '.join(short) or 'none'}. Clearly "
            f"below (Holm, p < 0.05): {', '.join(below) or 'none'}.",
        ]
    )


def gaps_to_tuned(scores: Scores, tasks: list[str], kinds: dict[str, str]) -> str:
    """Say how far the defaults are from the tuned ones."""
    sentences = ["## Against tuned"]
    for kind, allowed in ALLOWED_GAP.items():
        of_kind = [t for t in tasks if kinds[t] == kind and TUNED in scores[t]]
        if not of_kind:
            continue
        by_name = {
            name: mean_over_tasks(
                [difference(scores[task], TUNED, name) for task in of_kind]
            )
            for name in (NOW, BEFORE)
        }
        gain = mean_over_tasks([difference(scores[t], NOW, ONE) for t in of_kind])
        sentences.append(
            f"{kind} tasks ({len(of_kind)}): tuned leads the defaults by "
            f"{interval(by_name[NOW])} points (wanted: at most {allowed}), and the "
            f"earlier ones by {interval(by_name[BEFORE])}. The defaults lead S = 1 by "
            f"{interval(gain)}."
        )
    return "\n\n".join(sentences)


def above_chance(lines: list[dict[str, str]]) -> str:
    """Say how near a fit of the defaults came to chance."""
    leads = {
        name: min(
            (100 * (float(x["accuracy"]) - float(x["chance"])), x["task"])
            for x in lines
            if x["recipe"] in (name, name + AT_4)
        )
        for name in (NOW, BEFORE)
    }
    worst = "; ".join(
        f"of the {name} {lead:+.1f} points ({task})"
        for name, (lead, task) in leads.items()
    )
    return f"## Chance\n\nThe worst fit against the most frequent class: {worst}."


def steadiness(lines: list[dict[str, str]]) -> str:
    """Count the fits that are far below the mean of their data."""
    by_data: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        if line["recipe"] == NOW:
            key = line["task"], line["seed"]
            by_data.setdefault(key, []).append(100 * float(line["accuracy"]))
    sentences = ["## Single fits"]
    for task in sorted({task for task, _ in by_data}):
        fits = [
            np.array(v) for (t, _), v in by_data.items() if t == task and len(v) > 2
        ]
        if fits:
            away = np.concatenate([of_data - of_data.mean() for of_data in fits])
            sentences.append(
                f"{task}: {len(away)} fits on {len(fits)} draws of rows and teachers, "
                f"{int((away < -FAR).sum())} more than {FAR:g} points below the mean "
                f"of their draw; the lowest by {-away.min():.1f}."
            )
    return "\n\n".join(sentences)
