"""What `subclass_report` predicts before training, beside what training came to."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.distillation.config import (
    BASELINE,
    OURS,
    PLAIN,
    UNION,
    Table,
    TaskConfig,
    digest,
)
from benchmarks.distillation.datasets.base import Array
from benchmarks.distillation.methods import TRAINABLE
from benchmarks.distillation.methods.base import DistillationData
from benchmarks.distillation.records import Line, read_lines, write_lines
from benchmarks.distillation.report import SIGNIFICANT, scores_of
from benchmarks.distillation.statistics import (
    Estimate,
    difference,
    holm,
    interval,
    mean_over_tasks,
    paired,
)
from benchmarks.files import markdown, versions
from lelp_sklearn import LELPProjector, LELPStudentClassifier, subclass_report

# What no task was searched for: a student that a user asks about is not tuned yet.
SETTING = {"learning_rate": 0.02, "max_epochs": 240}
TEMPERATURE = 4.0
# Those of searches, which no result is reported on.
SEEDS = (100, 101)

GAINS = "pilot_gain", "ranking_gain"
MEASURES = (
    *GAINS,
    "headroom",
    "learnability",
    "gap_ratio",
    "stability",
    "margin_r2",
)
NUMBERS = ("pilot_gain_se", *MEASURES)
VERDICTS = ("helps", "unclear", "does not help")
COLUMNS = ("task", "kind", "seed", "verdict", *NUMBERS, "made_with", *versions())

# How well the subclasses of each layer agree with the groups, None without groups.
# Reports on an earlier layer have these columns.
AGREEMENTS = ("last_agreement", "earlier_agreement")

# Whether to take subclasses at all, by what a report says. The library's report advises
# the second; the third could be asked of the embeddings alone. 0.8 was chosen when the
# tasks up to the letters with all rows had been measured.
POLICIES: dict[str, Callable[[Line], bool]] = {
    "always subclasses": lambda line: True,
    'not where it "does not help"': lambda line: line["verdict"] != "does not help",
    "not where the margin R² is above 0.8": (lambda line: line["margin_r2"] <= 0.8),
    'only where it "helps"': lambda line: line["verdict"] == "helps",
}

FOOTNOTE = (
    "The measured gain is that of the defaults over tuned vanilla distillation, in "
    "points of test accuracy, with its 95 % interval. \\*: p < 0.05, corrected for all "
    "tasks (Holm). What the reports say is the mean of two, of other seeds, and no "
    "test row is among theirs; ± is the mean of their errors."
)


def made_with(task: TaskConfig, method: str = OURS) -> str:
    """Return what stands for the configuration of a report on a method."""
    defaults = subclass_report.__kwdefaults__
    parts = [digest(task, method), SETTING, TEMPERATURE, SEEDS, defaults]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def diagnose(
    task: TaskConfig, data: DistillationData, seed: int, method: str = OURS
) -> Line:
    """Return the line of a report on data whose rows to score are not read.

    The method says which embeddings are asked about; its other arguments do not count.
    """
    data = TRAINABLE[method].select_layer(data)
    student = LELPStudentClassifier(
        module_params={"hidden_layer_sizes": (data.n_units,)},
        projector=LELPProjector(head=data.head, temperature=TEMPERATURE),
        within_class_temperature=TEMPERATURE,
        **data.training,
        **SETTING,
    )
    report = subclass_report(
        student,
        data.X,
        data.y,
        teacher_embeddings=data.embeddings,
        teacher_logits=data.given_logits,
        random_state=data.seed,
    )
    found = asdict(report)
    return {
        **{"task": task.name, "kind": task.kind, "seed": seed},
        "verdict": report.verdict,
        **{name: round(found[name], 6) for name in NUMBERS},
        "made_with": made_with(task, method),
        **versions(),
    }


def read(path: Path, table: Table, method: str = OURS) -> list[Line]:
    """Return the lines of a file that this configuration made."""
    current = {task.name: made_with(task, method) for task in table.tasks}
    lines: list[Line] = []
    for row in read_lines(path) if path.exists() else []:
        numbers = {name: float(row[name]) for name in NUMBERS}
        agreements = {
            name: float(row[name]) if row[name] else None
            for name in AGREEMENTS
            if name in row
        }
        if current.get(row["task"]) == row["made_with"]:
            lines.append(row | numbers | agreements | {"seed": int(row["seed"])})
    return lines


def write(path: Path, lines: list[Line], table: Table) -> None:
    """Write the lines in the order of the tasks."""
    order = [task.name for task in table.tasks]
    names = [name for name in AGREEMENTS if any(name in line for line in lines)]
    in_order = sorted(lines, key=lambda x: (order.index(x["task"]), x["seed"]))
    write_lines(path, [*COLUMNS, *names], in_order)


def write_report(
    table: Table, lines: list[Line], results: Iterable[Line], path: Path
) -> None:
    """Write tables to `path`, and print them."""
    scores = scores_of(table, results)
    tasks = [
        task.name
        for task in table.tasks
        if task.name in scores and any(line["task"] == task.name for line in lines)
    ]
    if len(tasks) < 3:
        print("Too few tasks have both reports and results: nothing to report.")
        return
    leads = [difference(scores[task], OURS, BASELINE) for task in tasks]
    gains = [paired(lead) for lead in leads]
    is_clear = holm([gain.p for gain in gains]) < SIGNIFICANT
    by_task = [[line for line in lines if line["task"] == task] for task in tasks]
    means = {
        name: np.array([np.mean([x[name] for x in found]) for found in by_task])
        for name in NUMBERS
    }
    measured = np.array([gain.mean for gain in gains])
    text = "\n\n".join(
        [
            "# What the report says beforehand",
            "Generated by `python benchmarks/distillation/diagnose.py`; "
            f"{len(tasks)} of {len(table.tasks)} tasks have reports and results.",
            tasks_table(tasks, gains, is_clear, means, by_task),
            FOOTNOTE,
            "## Does it foresee the gain?",
            correlations_table(means, measured),
            "Spearman's rank correlation with the measured gain, over the tasks; in "
            "brackets the least and the largest where one task is left out.",
            signs_table(means, measured, is_clear),
            "Clear: p < 0.05. Foreseen: whether a task gains clearly, by a threshold "
            "on the measure that is fitted to all other tasks.",
            "The verdicts of single reports, whose threshold is one point:",
            verdicts_table(by_task, is_clear & (measured > 0)),
            "What is gained where a report decides whether there are subclasses or one "
            "a class, which is vanilla distillation: means over the tasks. Where the "
            "two reports of a task disagree, half of its gain counts.",
            policies_table(by_task, leads),
            "The thresholds were chosen when most of these tasks had been measured. "
            "The intervals are about the students' seeds, not the reports'.",
        ]
    )
    path.write_text(text + "\n", encoding="utf-8")
    print(text)


def tasks_table(
    tasks: list[str],
    gains: list[Estimate],
    is_clear: Array,
    means: dict[str, Array],
    by_task: list[list[Line]],
) -> str:
    """Return a line a task: what was measured, and what the reports say."""
    rows = []
    for i, task in enumerate(tasks):
        star = r"\*" if is_clear[i] else ""
        gain, error = (means[name][i] for name in ("pilot_gain", "pilot_gain_se"))
        ranking, headroom, *others = (means[name][i] for name in MEASURES[1:])
        verdicts = ", ".join(str(line["verdict"]) for line in by_task[i])
        rows.append(
            [
                task,
                str(by_task[i][0]["kind"]),
                interval(gains[i]) + star,
                f"{100 * gain:+.1f} ± {100 * error:.1f}",
                verdicts,
                f"{100 * ranking:+.1f}",
                f"{100 * headroom:.1f}",
                *(f"{value:.2f}" for value in others),
            ]
        )
    names = [title(name) for name in MEASURES[3:]]
    titles = ["task", "kind", "measured gain", "pilot gain", "verdicts"]
    titles += ["ranking gain", "headroom, %"]
    return markdown([*titles, *names], rows)


def correlations_table(means: dict[str, Array], measured: Array) -> str:
    """Return a line a measure: how well it ranks the tasks."""
    rows = []
    for name in MEASURES:
        left_out = [
            rank_correlation(np.delete(means[name], i), np.delete(measured, i))
            for i in range(len(measured))
        ]
        whole = rank_correlation(means[name], measured)
        spread = f"{whole:+.2f} [{min(left_out):+.2f}, {max(left_out):+.2f}]"
        rows.append([title(name), spread])
    return markdown(["measure", "rank correlation"], rows)


def title(name: str) -> str:
    """Return a measure as tables show it."""
    return name.replace("margin_r2", "margin R²").replace("_", " ")


def rank_correlation(one: Array, other: Array) -> float:
    """Return Spearman's rank correlation."""
    return float(spearmanr(one, other).statistic)


def signs_table(means: dict[str, Array], measured: Array, is_clear: Array) -> str:
    """Return a line a measure of gain: how often its sign and more is right."""
    gained, rows = is_clear & (measured > 0), []
    for name in GAINS:
        has_sign = np.sign(means[name]) == np.sign(measured)
        foreseen = held_out_guesses(means[name], gained) == gained
        counts = has_sign[is_clear], foreseen[is_clear], foreseen
        cells = [f"{int(right.sum())} of {len(right)}" for right in counts]
        rows.append([title(name), *cells])
    clear = "tasks with a clear gain"
    titles = ["measure", f"sign right, {clear}", f"foreseen, {clear}", "foreseen, all"]
    return markdown(titles, rows)


def verdicts_table(by_task: list[list[Line]], gained: Array) -> str:
    """Return a line a verdict: how many reports on tasks of either kind came to it."""
    rows = []
    for verdict in VERDICTS:
        n_reports = np.array(
            [sum(line["verdict"] == verdict for line in found) for found in by_task]
        )
        counts = n_reports[gained].sum(), n_reports[~gained].sum()
        rows.append([verdict, *map(str, counts)])
    return markdown(["verdict", "gained clearly", "did not"], rows)


def policies_table(by_task: list[list[Line]], leads: list[Array]) -> str:
    """Return a line a policy: the mean gain over the tasks of each kind."""
    rows = []
    for name, takes in POLICIES.items():
        cells = []
        for kind in (UNION, PLAIN):
            of_kind = [
                np.mean([takes(line) for line in lines]) * lead
                for lines, lead in zip(by_task, leads, strict=True)
                if lines[0]["kind"] == kind
            ]
            cells.append(interval(mean_over_tasks(of_kind)) if of_kind else "")
        rows.append([name, *cells])
    return markdown(["subclasses", "union tasks", "plain tasks"], rows)


def held_out_guesses(pilot: Array, gained: Array) -> Array:
    """Guess of each task whether it gains, by a threshold fitted to the others."""
    guesses = [
        pilot[i] > best_threshold(np.delete(pilot, i), np.delete(gained, i))
        for i in range(len(pilot))
    ]
    return np.array(guesses)


def best_threshold(pilot: Array, gained: Array) -> float:
    """Return what best tells gains apart: midway between two tasks, the widest gap."""
    ordered = np.sort(pilot)
    middles = (ordered[1:] + ordered[:-1]) / 2
    n_right = [int(np.sum((pilot > middle) == gained)) for middle in middles]
    gaps = np.diff(ordered)
    best = max(range(len(middles)), key=lambda i: (n_right[i], gaps[i]))
    return float(middles[best])
