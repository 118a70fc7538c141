"""Plots of the subclasses of a projector, and of a search over their number."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from lelp_sklearn._callers import warn_user
from lelp_sklearn._diagnostics.table import ClassData, read_classes
from lelp_sklearn._validation import check_length

# More points of a class overlap.
_MAX_POINTS = 2000
# The eye cannot distinguish more colours.
_MAX_COLOURS = 20

Panel = dict[str, Any]


class SubclassDisplay:
    """Plots of the subclasses of a fitted projector, or of a search over their number.

    Use :meth:`from_estimator` or :meth:`from_search` to create a display, which is then
    plotted.

    Parameters
    ----------
    kind : {"embedding", "mass", "spectrum", "search"}
        What the display shows.
    panels : dict of dict
        The data of each panel by its title: arrays ``x`` and ``y``, and depending on
        the kind ``colour`` (labels) and ``palette`` (all labels that have a colour, in
        this order), ``error``, ``baseline``, ``auto`` (score and error of
        ``n_subclasses="auto"``) or ``metric``.

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
    axes_ : ndarray of matplotlib.axes.Axes
    """

    def __init__(self, *, kind: str, panels: dict[str, Panel]) -> None:
        self.kind = kind
        self.panels = panels

    @classmethod
    def from_estimator(
        cls,
        projector: Any,
        X: Any,
        y: Any,
        *,
        kind: str = "embedding",
        teacher_logits: Any = None,
        fine_labels: Any = None,
        axes: Any = None,
    ) -> "SubclassDisplay":
        """Plot the subclasses of a fitted projector.

        Parameters
        ----------
        projector : LELPProjector
            Fitted; that of a student is ``student.projector_``.
        X : array-like of shape (n_samples, n_features)
            Embeddings.
        y : array-like of shape (n_samples,)
            Class labels.
        kind : {"embedding", "mass", "spectrum"}, default="embedding"
            "embedding": the rows of each class in the plane of their largest
            variance in the null space, coloured by subclass, and below by
            `fine_labels`, each of which has one colour in both classes; "mass": the
            share of the class that each subclass has, in the colours of "embedding";
            the title gives the effective number of subclasses, the exponential of the
            entropy of these shares; "spectrum": the variance of each class along its
            first principal directions in the null space, as many as there are
            subclasses, as a share of its variance there, whatever the `splitter`.
        teacher_logits : array-like of shape (n_samples, n_classes), default=None
            As in :meth:`LELPProjector.transform`.
        fine_labels : array-like of shape (n_samples,), default=None
            Known groups inside the classes, shown next to the subclasses.
        axes : array of matplotlib.axes.Axes, default=None
            One for each panel. If None, a figure is made.

        Returns
        -------
        SubclassDisplay

        Raises
        ------
        TypeError
            If `projector` is not a projector.
        ValueError
            If `kind` is unknown, if the lengths, labels or axes do not match, or if a
            class of the projector has no row.
        """
        kinds = ("embedding", "mass", "spectrum")
        if kind not in kinds:
            raise ValueError(
                f"kind={kind!r} must be one of {', '.join(map(repr, kinds))}."
            )
        data = read_classes(projector, X, y, teacher_logits)
        if kind == "spectrum":
            panels = _spectrum_panels(data)
        elif kind == "mass":
            panels = _mass_panels(data)
        else:
            if fine_labels is not None:
                check_length(fine_labels, len(X), "fine_labels")
                fine_labels = np.asarray(fine_labels)
            panels = _embedding_panels(data, fine_labels)
        return cls(kind=kind, panels=panels).plot(axes=axes)

    @classmethod
    def from_search(cls, search: Any, *, axes: Any = None) -> "SubclassDisplay":
        """Plot the score of a search against the number of subclasses.

        Parameters
        ----------
        search : GridSearchCV or another search
            Fitted; one of its parameters ends in ``n_subclasses``. If other parameters
            were searched too, the best score of each number is shown. A candidate
            without that parameter has the number of the estimator. Of several metrics,
            the one named by `refit` is shown. Scores of a halving search are comparable
            only within an iteration, where resources are equal: the last iteration
            that still has every number is shown, and its resources are given next to
            the metric.
        axes : array of matplotlib.axes.Axes, default=None
            The one to plot on. If None, a figure is made.

        Returns
        -------
        SubclassDisplay
            With error bars of one standard error over the folds; a dotted line marks
            the score of S = 1, vanilla distillation, if it was searched; "auto" is next
            to the numbers.

        Raises
        ------
        ValueError
            If no parameter of the search ends in ``n_subclasses``, if it has several
            metrics and `refit` names none, or if all its scores are NaN.

        Warns
        -----
        UserWarning
            If a number has no score because its fits failed: it is left out.
        """
        check_is_fitted(search)
        panel = _search_panel(search)
        return cls(kind="search", panels={"": panel}).plot(axes=axes)

    def plot(self, axes: Any = None) -> "SubclassDisplay":
        """Plot the panels.

        Parameters
        ----------
        axes : array of matplotlib.axes.Axes, default=None
            One for each panel. If None, a figure is made.

        Returns
        -------
        self : SubclassDisplay
            The display, with the axes that it was plotted on.

        Raises
        ------
        ImportError
            If Matplotlib is not installed.
        ValueError
            If the number of axes is not that of the panels.
        """
        # Matplotlib is slow to import.
        try:
            from matplotlib import pyplot
        except ImportError as reason:
            raise ImportError(
                "SubclassDisplay needs Matplotlib, which the extra 'plot' brings: "
                "python -m pip install 'lelp-sklearn[plot]'"
            ) from reason

        n_panels = len(self.panels)
        if axes is None:
            n_rows = 2 if self.kind == "embedding" and n_panels % 2 == 0 else 1
            n_columns = n_panels // n_rows
            _, axes = pyplot.subplots(
                n_rows,
                n_columns,
                figsize=(4.5 * n_columns, 3.6 * n_rows),
                squeeze=False,
                layout="constrained",
            )
        self.axes_ = np.asarray(axes).ravel()
        if self.axes_.size != n_panels:
            raise ValueError(
                f"axes holds {self.axes_.size} axes and there are {n_panels} panels: "
                "pass one for each, or None."
            )
        self.figure_ = self.axes_[0].figure
        for axis, (title, panel) in zip(self.axes_, self.panels.items(), strict=True):
            _PLOTS[self.kind](axis, panel)
            axis.set_title(title)
        return self


def _spectrum_panels(data: list[ClassData]) -> dict[str, Panel]:
    panels = {}
    for class_data in data:
        centred = class_data.embeddings - class_data.embeddings.mean(axis=0)
        variances = np.linalg.eigvalsh(centred.T @ centred)[::-1].clip(0)
        shown = variances[: class_data.shares.shape[1]]
        share = shown / variances.sum() if shown.any() else shown
        title, x = f"class {class_data.label}", np.arange(1, len(share) + 1)
        panels[title] = {"x": x, "y": share}
    return panels


def _mass_panels(data: list[ClassData]) -> dict[str, Panel]:
    panels = {}
    for class_data in data:
        masses = class_data.masses()
        positive = masses[masses > 0]
        effective = np.exp(-np.sum(positive * np.log(positive)))
        title = f"class {class_data.label}: effective number of subclasses"
        panels[f"{title} {effective:.1f}"] = {"x": np.arange(len(masses)), "y": masses}
    return panels


def _embedding_panels(data: list[ClassData], fine_labels: Any) -> dict[str, Panel]:
    by_subclass, by_fine_label = {}, {}
    for class_data in data:
        shown = slice(None, None, max(1, -(-len(class_data.rows) // _MAX_POINTS)))
        centred = class_data.embeddings - class_data.embeddings.mean(axis=0)
        _, _, axes = np.linalg.svd(centred[shown], full_matrices=False)
        points = centred[shown] @ axes[:2].T
        # A single axis is shown against itself.
        panel = {"x": points[:, 0], "y": points[:, -1]}
        by_subclass[f"class {class_data.label}: subclasses"] = panel | {
            "colour": class_data.most_likely[shown],
            "palette": np.arange(class_data.shares.shape[1]),
        }
        if fine_labels is not None:
            by_fine_label[f"class {class_data.label}: fine labels"] = panel | {
                "colour": fine_labels[class_data.rows[shown]],
                "palette": np.unique(fine_labels),
            }
    return by_subclass | by_fine_label


def _search_panel(search: Any) -> Panel:
    results = search.cv_results_
    metric = "score"
    if getattr(search, "multimetric_", False):
        metric = search.refit
        if not isinstance(metric, str):
            raise ValueError(
                f"search has several metrics and refit={metric!r} names none of them: "
                "search with refit='...', the name of the one to show."
            )
    numbers = _searched_numbers(search)
    scores, deviations = results[f"mean_test_{metric}"], results[f"std_test_{metric}"]
    is_shown = ~np.isnan(scores)
    label = metric
    if "n_resources" in results:
        resources = _comparable_resources(results["n_resources"], numbers, is_shown)
        is_shown &= results["n_resources"] == resources
        label = f"{metric}, {search.resource}={resources}"
    best: dict[Any, tuple[float, float]] = {}
    for i in np.flatnonzero(is_shown):
        if numbers[i] not in best or scores[i] > best[numbers[i]][0]:
            best[numbers[i]] = scores[i], deviations[i] / np.sqrt(search.n_splits_)
    best.pop(None, None)
    _check_scored(list(dict.fromkeys(n for n in numbers if n is not None)), best)
    automatic = best.pop("auto", None)
    sizes = sorted(best)
    pairs = np.array([best[size] for size in sizes]).reshape(-1, 2)
    panel: Panel = {"x": np.array(sizes, int), "y": pairs[:, 0], "error": pairs[:, 1]}
    panel["metric"] = label
    if automatic is not None:
        panel["auto"] = automatic
    if sizes and sizes[0] == 1:
        panel["baseline"] = panel["y"][0]
    return panel


def _searched_numbers(search: Any) -> list[Any]:
    """Return the number of subclasses of each candidate, None without subclasses."""
    ends = [name for name in search.cv_results_ if name.endswith("n_subclasses")]
    names = [end.removeprefix("param_") for end in ends if end.startswith("param_")]
    if not names:
        raise ValueError(
            "search has no parameter that ends in 'n_subclasses': add it to the grid, "
            "as in {'projector__n_subclasses': [1, 2, 5]}."
        )
    name, owner = names[0], names[0].rpartition("__")[0]
    # LELPStudentClassifierCV names its estimator `student`.
    searched = getattr(search, "student", None) or search.estimator
    own_number, numbers = searched.get_params().get(name), []
    for params in search.cv_results_["params"]:
        number = own_number
        if owner in params:
            number = getattr(params[owner], "n_subclasses", None)
        numbers.append(params.get(name, number))
    return numbers


def _comparable_resources(
    n_resources: NDArray[Any], numbers: list[Any], is_scored: NDArray[Any]
) -> int:
    """Return the largest resources with which the most numbers have a score."""

    def n_numbers(amount: int) -> int:
        shown = np.flatnonzero(is_scored & (n_resources == amount))
        return len({numbers[i] for i in shown if numbers[i] is not None})

    amounts: list[int] = np.unique(n_resources).tolist()
    return max(amounts, key=lambda amount: (n_numbers(amount), amount))


def _check_scored(numbers: list[Any], scored: dict[Any, tuple[float, float]]) -> None:
    """Raise if no number has a score; warn of those that have none."""
    if not scored:
        raise ValueError(
            "search has no score to show, all are NaN: see why its fits failed with "
            "error_score='raise'."
        )
    failed = [str(number) for number in numbers if number not in scored]
    if failed:
        warn_user(
            f"n_subclasses={', '.join(failed)} has no score, because its fits failed, "
            "and is left out."
        )


def _plot_spectrum(axis: Any, panel: Panel) -> None:
    axis.plot(panel["x"], panel["y"], marker="o")
    _use_integer_ticks(axis)
    axis.set(
        xlabel="principal direction", ylabel="explained variance ratio", ylim=(0, None)
    )


def _plot_mass(axis: Any, panel: Panel) -> None:
    axis.bar(panel["x"], panel["y"], color=_colours(len(panel["y"])))
    axis.axhline(1 / len(panel["y"]), color="grey", linestyle=":")
    _use_integer_ticks(axis)
    axis.set(xlabel="subclass", ylabel="share of the class")


def _use_integer_ticks(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _plot_embedding(axis: Any, panel: Panel) -> None:
    palette = panel["palette"]
    colours = _colours(len(palette))
    code: Any = np.searchsorted(palette, panel["colour"])
    axis.scatter(panel["x"], panel["y"], c=[colours[c] for c in code], s=6)
    axis.set(xticks=[], yticks=[])
    if len(palette) <= _MAX_COLOURS:
        for c in np.unique(code):
            axis.scatter([], [], color=colours[c], label=str(palette[c]))
        axis.legend(
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            ncols=1 if len(palette) <= 10 else 2,
            fontsize="small",
            frameon=False,
        )


def _colours(n_labels: int) -> list[Any]:
    """Return a colour for each label; the same for the same number of labels."""
    from matplotlib import colormaps

    colormap = colormaps["tab10" if n_labels <= 10 else "tab20"]
    return [colormap(label % _MAX_COLOURS) for label in range(n_labels)]


def _plot_search(axis: Any, panel: Panel) -> None:
    x, labels = list(panel["x"]), [str(size) for size in panel["x"]]
    style = {"marker": "o", "capsize": 3, "color": "C0"}
    if x:
        axis.errorbar(x, panel["y"], yerr=panel["error"], **style)
    if "auto" in panel:
        # Not a number: a point of its own, right of the largest.
        x.append(2 * x[-1] if x else 1)
        labels.append("auto")
        score, error = panel["auto"]
        axis.errorbar(x[-1], score, yerr=error, **style)
    axis.set(xlabel="subclasses per class", ylabel=panel["metric"], xscale="log")
    axis.set_xticks(x, labels=labels)
    axis.set_xticks([], minor=True)
    if "baseline" in panel:
        axis.axhline(panel["baseline"], color="grey", linestyle=":", label="vanilla KD")
        axis.legend()


_PLOTS: dict[str, Callable[[Any, Panel], None]] = {
    "spectrum": _plot_spectrum,
    "mass": _plot_mass,
    "embedding": _plot_embedding,
    "search": _plot_search,
}
