"""What the subclasses are: pictures of them, and a table to read."""

import warnings
from typing import Any

import numpy as np
from sklearn.utils import _safe_indexing, check_consistent_length
from sklearn.utils.validation import check_is_fitted

from lelp_sklearn import _validation
from lelp_sklearn._diagnostics import display_validation
from lelp_sklearn._subclasses.directions import row_space_basis, to_null_space

# Rows of a class that are drawn; more are a blot.
_MOST_POINTS = 2000


class SubclassDisplay:
    """Pictures of the subclasses of a fitted projector, or of a search over S.

    Made by :meth:`from_estimator` or :meth:`from_search`, which also plot.

    Parameters
    ----------
    kind : {"spectrum", "embedding", "mass", "search"}
        What is shown.
    panels : dict of dict
        By the title of a panel, what is drawn in it: arrays ``x`` and ``y``, and
        depending on the kind ``colour`` (labels), ``error``, ``baseline``, ``auto``
        (score and error of ``n_subclasses="auto"``) or ``metric``.

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
    axes_ : ndarray of matplotlib.axes.Axes
    """

    def __init__(self, *, kind, panels):
        self.kind = kind
        self.panels = panels

    @classmethod
    def from_estimator(
        cls,
        projector,
        X,
        y,
        *,
        kind="spectrum",
        teacher_logits=None,
        fine_labels=None,
        axes=None,
    ):
        """Show what a projector makes of rows.

        Parameters
        ----------
        projector : LELPProjector
            Fitted; that of a student is ``student.projector_``.
        X : array-like of shape (n_samples, n_features)
            Embeddings.
        y : array-like of shape (n_samples,)
            Their classes.
        kind : {"spectrum", "embedding", "mass"}, default="spectrum"
            "spectrum": the variance along each direction, as a share of that of the
            class; "embedding": the rows of each class in the plane of their largest
            variance in the null space, coloured by subclass, and below by
            `fine_labels`; "mass": what part of a class each subclass has, and in the
            title of the panel how evenly: the exponential of the entropy.
        teacher_logits : array-like of shape (n_samples, n_classes), default=None
            As in :meth:`LELPProjector.transform`.
        fine_labels : array-like of shape (n_samples,), default=None
            Known groups inside the classes, drawn beside the subclasses.
        axes : array of matplotlib.axes.Axes, default=None
            Where to draw, one for each panel. None makes a figure.

        Returns
        -------
        SubclassDisplay

        Raises
        ------
        TypeError
            If `projector` is no projector, but a student for instance.
        ValueError
            If there is no such kind, if the lengths, labels or axes do not fit, or if
            a class of the projector has no row.
        """
        display_validation.check_kind(kind)
        rows = _Rows.read(projector, X, y, teacher_logits)
        if kind == "spectrum":
            panels = _spectrum_panels(projector)
        elif kind == "mass":
            panels = _mass_panels(rows)
        else:
            if fine_labels is not None:
                check_consistent_length(X, fine_labels)
                fine_labels = np.asarray(fine_labels)
            panels = _embedding_panels(rows, fine_labels)
        return cls(kind=kind, panels=panels).plot(axes=axes)

    @classmethod
    def from_search(cls, search, *, axes=None):
        """Show the score against the number of subclasses.

        Parameters
        ----------
        search : GridSearchCV or another search
            Fitted; one of its parameters ends in ``n_subclasses``. Where others were
            searched too, the best of them counts for each number. A candidate whose
            grid has no such parameter has the number of the estimator. Of several
            metrics the one is shown that `refit` names. Scores of a halving search
            compare within an iteration only, where resources are equal: the last one
            is shown in which every number is left, and its resources stand beside the
            metric.
        axes : array of matplotlib.axes.Axes, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        SubclassDisplay
            With error bars of one standard error over the folds; S = 1, vanilla
            distillation, is the line to beat where it was searched; "auto" stands
            beside the numbers.

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

    def plot(self, axes=None):
        """Draw the panels.

        Parameters
        ----------
        axes : array of matplotlib.axes.Axes, default=None
            One for each panel. None makes a figure.

        Returns
        -------
        self : SubclassDisplay
            The display, with the axes that were drawn on.
        """
        # Matplotlib is an extra, and slow to import.
        from matplotlib import pyplot

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
        display_validation.check_n_axes(self.axes_.size, n_panels)
        self.figure_ = self.axes_[0].figure
        draw = {
            "spectrum": _draw_lines,
            "mass": _draw_bars,
            "embedding": _draw_points,
            "search": _draw_search,
        }[self.kind]
        for axis, (title, panel) in zip(self.axes_, self.panels.items(), strict=True):
            draw(axis, panel)
            axis.set_title(title)
        return self


def subclass_table(
    projector,
    X,
    y,
    samples=None,
    *,
    n_samples=3,
    teacher_logits=None,
    fine_labels=None,
):
    r"""Tell of each subclass how large, how sharp and how coherent it is, and what of.

    Parameters
    ----------
    projector : LELPProjector
        Fitted; that of a student is ``student.projector_``.
    X : array-like of shape (n_samples, n_features)
        Embeddings.
    y : array-like of shape (n_samples,)
        Their classes.
    samples : sequence, array, Series or DataFrame of length n_samples, default=None
        What the rows are, texts for instance, in their order: an index does not
        matter. The rows of a DataFrame are shown as dicts. None: no samples are shown.
    n_samples : int, default=3
        How many typical samples are shown, at least one.
    teacher_logits : array-like of shape (n_samples, n_classes), default=None
        As in :meth:`LELPProjector.transform`.
    fine_labels : array-like of shape (n_samples,), default=None
        Known groups inside the classes.

    Returns
    -------
    pandas.DataFrame
        Indexed by class and subclass, with the columns

        ``mass``
            The part of the class that it has, by its soft labels.
        ``entropy``
            Mean entropy (nats) of q over the rows for which it is the likeliest: 0
            where these belong to it alone.
        ``cohesion``
            Mean cosine similarity, in the null space and about the class mean, of two
            of these rows, less that of one of them and one of the others of the class.
        ``margin_correlation``
            Correlation over the class of its score z with the teacher's margin, the
            logit of the class less the largest other: near 1 or -1 it tells how
            confident the teacher is.
        ``samples``
            Only with `samples`. The typical ones: those of these rows most like their
            mean.
        ``fine_label``, ``fine_share``
            Only with `fine_labels`: the commonest among these rows, and its share.

    Raises
    ------
    TypeError
        If `projector` is no projector, but a student for instance, or `n_samples` no
        integer.
    ValueError
        If the lengths or labels do not fit, if a class of the projector has no row, or
        if `n_samples` is less than one.
    """
    # pandas is no dependency of the library.
    import pandas

    display_validation.check_n_samples(n_samples)
    if samples is not None:
        check_consistent_length(X, samples)
    rows = _Rows.read(projector, X, y, teacher_logits)
    if fine_labels is not None:
        check_consistent_length(X, fine_labels)
        fine_labels = np.asarray(fine_labels)
    lines, index = [], []
    for c, label in enumerate(projector.classes_):
        own = rows.of_class(c)
        for s in range(own.shares.shape[1]):
            line = own.describe(s)
            if samples is not None:
                shown = _safe_indexing(samples, own.typical(s, n_samples))
                is_table = isinstance(shown, pandas.DataFrame)
                line["samples"] = shown.to_dict("records") if is_table else list(shown)
            if fine_labels is not None:
                line |= _commonest(fine_labels[own.places[own.members(s)]])
            lines.append(line)
            index.append((label, s))
    names = ["class", "subclass"]
    return pandas.DataFrame(
        lines, index=pandas.MultiIndex.from_tuples(index, names=names)
    )


class _Rows:
    """Rows with their classes, what a projector makes of them, and the null space."""

    def __init__(self, classes, embeddings, codes, soft_labels, scores, margins):
        self.classes, self.embeddings, self.codes = classes, embeddings, codes
        self.soft_labels, self.scores = soft_labels, scores
        self.margins = margins

    @classmethod
    def read(cls, projector, X, y, teacher_logits):
        display_validation.check_is_projector(projector)
        check_is_fitted(projector)
        options = {} if teacher_logits is None else {"teacher_logits": teacher_logits}
        soft = np.asarray(projector.transform(X, **options), dtype=np.float64)
        shape = len(projector.classes_), projector.n_subclasses_
        check_consistent_length(soft, y)
        codes = _codes(y, projector.classes_)
        display_validation.check_every_class(codes, projector.classes_)
        X = np.asarray(X, dtype=np.float64)
        scores = np.einsum("nd,csd->ncs", X, projector.components_)
        scores -= projector.offsets_
        if teacher_logits is None:
            logits = X @ projector.coef_.T + projector.intercept_
        else:
            logits = _validation.check_logits(teacher_logits, len(X))
            logits = _validation.logits_of_classes(logits)
        centred = X - projector.mean_[codes]
        inside = to_null_space(centred.T, row_space_basis(projector.coef_)).T
        soft, margins = soft.reshape(-1, *shape), _margins(logits)
        return cls(projector.classes_, inside, codes, soft, scores, margins)

    def of_class(self, c):
        places = np.flatnonzero(self.codes == c)
        soft = self.soft_labels[places, c]
        mass = np.maximum(soft.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        return _ClassRows(
            places,
            self.embeddings[places],
            soft / mass,
            self.scores[places, c],
            self.margins[places, c],
        )


class _ClassRows:
    """Rows of one class: null-space embeddings about its mean, shares q, scores z."""

    def __init__(self, places, embeddings, shares, scores, margins):
        self.places, self.embeddings, self.shares = places, embeddings, shares
        self.scores, self.margins = scores, margins
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        self.units = embeddings / np.where(lengths > 0, lengths, 1)
        self.likeliest = shares.argmax(axis=1)

    def members(self, s):
        return np.flatnonzero(self.likeliest == s)

    def entropies(self):
        safe = np.where(self.shares > 0, self.shares, 1)
        return -np.sum(self.shares * np.log(safe), axis=1)

    def masses(self):
        return self.shares.mean(axis=0)

    def describe(self, s):
        mine = self.members(s)
        correlation = np.nan
        if self.scores[:, s].std() > 0 and self.margins.std() > 0:
            correlation = np.corrcoef(self.scores[:, s], self.margins)[0, 1]
        return {
            "mass": self.masses()[s],
            "entropy": self.entropies()[mine].mean() if mine.size else np.nan,
            "cohesion": self._cohesion(mine),
            "margin_correlation": correlation,
        }

    def typical(self, s, n_samples):
        mine = self.members(s)
        likeness = self.units[mine] @ self.units[mine].sum(axis=0)
        return self.places[mine[np.argsort(-likeness, kind="stable")[:n_samples]]]

    def _cohesion(self, mine):
        n, n_others = len(mine), len(self.units) - len(mine)
        if n < 2 or not n_others:
            return np.nan
        total = self.units[mine].sum(axis=0)
        others = self.units.sum(axis=0) - total
        itself = np.einsum("nd,nd->", self.units[mine], self.units[mine])
        within = (total @ total - itself) / (n * (n - 1))
        return within - total @ others / (n * n_others)


def _codes(y, classes):
    """Give the place of each label among the classes."""
    labels, labelled = _validation.check_labels(y, len(y), None)
    _validation.check_classes(np.unique(labels), classes, None)
    return _validation.encode(labels, labelled, classes)


def _margins(logits):
    """Logit of each class less the largest other (n, C)."""
    order = np.sort(logits, axis=1)
    best, second = order[:, -1:], order[:, -2:-1]
    return logits - np.where(logits == best, second, best)


def _commonest(labels: Any) -> dict[str, Any]:
    if not len(labels):
        return {"fine_label": None, "fine_share": np.nan}
    found, counts = np.unique(labels, return_counts=True)
    place = counts.argmax()
    return {"fine_label": found[place], "fine_share": counts[place] / len(labels)}


def _spectrum_panels(projector):
    panels = {}
    for c, label in enumerate(projector.classes_):
        # Centroids are no unit vectors, and z is as many times longer.
        lengths = np.linalg.norm(projector.components_[c], axis=1)
        ratio = projector.explained_variance_ratio_[c]
        ratio = np.sort(ratio / np.where(lengths > 0, lengths, 1) ** 2)[::-1]
        if hasattr(projector, "spectrum_"):
            # Before the rotation, which gives all directions the same variance.
            share = projector.explained_variance_ratio_[c].sum()
            total = projector.spectrum_[c].sum()
            ratio = projector.spectrum_[c] * (share / total if total else 0)
        panels[f"class {label}"] = {"x": np.arange(1, len(ratio) + 1), "y": ratio}
    return panels


def _mass_panels(rows):
    panels = {}
    for c, label in enumerate(rows.classes):
        masses = rows.of_class(c).masses()
        present = masses[masses > 0]
        even = np.exp(-np.sum(present * np.log(present)))
        title = f"class {label}: as {even:.1f} even ones"
        panels[title] = {"x": np.arange(len(masses)), "y": masses}
    return panels


def _embedding_panels(rows, fine_labels):
    found, fine = {}, {}
    for c, label in enumerate(rows.classes):
        own = rows.of_class(c)
        step = -(-len(own.places) // _MOST_POINTS)
        shown = slice(None, None, max(step, 1))
        centred = own.embeddings - own.embeddings.mean(axis=0)
        _, _, axes = np.linalg.svd(centred[shown], full_matrices=False)
        points = centred[shown] @ axes[:2].T
        x, y = points[:, 0], points[:, -1]
        found[f"class {label}: subclasses"] = {
            "x": x,
            "y": y,
            "colour": own.likeliest[shown],
        }
        if fine_labels is not None:
            colour = fine_labels[own.places[shown]]
            fine[f"class {label}: fine labels"] = {"x": x, "y": y, "colour": colour}
    return found | fine


def _search_panel(search):
    results = search.cv_results_
    names = [name.removeprefix("param_") for name in results if _is_searched(name)]
    display_validation.check_searched(names)
    metric = _metric(search)
    candidates = results["params"]
    searched = [_n_subclasses(search, names[0], params) for params in candidates]
    scores, deviations = results[f"mean_test_{metric}"], results[f"std_test_{metric}"]
    is_scored = ~np.isnan(scores)
    shown = np.flatnonzero(is_scored)
    if "n_resources" in results:
        resources = _comparable_resources(results["n_resources"], searched, is_scored)
        shown = shown[results["n_resources"][shown] == resources]
        metric = f"{metric}, {search.resource}={resources}"
    found, failed = {}, []
    for size in dict.fromkeys(size for size in searched if size is not None):
        scored = [i for i in shown if searched[i] == size]
        if scored:
            best = max(scored, key=lambda i: scores[i])
            found[size] = scores[best], deviations[best] / np.sqrt(search.n_splits_)
        else:
            failed.append(size)
    display_validation.check_scored(found)
    if failed:
        warnings.warn(display_validation.failed_fits(failed), stacklevel=3)
    automatic = found.pop("auto", None)
    sizes = sorted(found)
    pairs = np.array([found[size] for size in sizes]).reshape(-1, 2)
    panel = {"x": np.array(sizes, int), "y": pairs[:, 0], "error": pairs[:, 1]}
    panel["metric"] = metric
    if automatic is not None:
        panel["auto"] = automatic
    if sizes and sizes[0] == 1:
        panel["baseline"] = panel["y"][0]
    return panel


def _comparable_resources(resources, searched, is_scored):
    """Give the largest with which as many numbers as possible were scored."""

    def n_numbers(amount):
        places = np.flatnonzero(is_scored & (resources == amount))
        return len({searched[i] for i in places if searched[i] is not None})

    return max(np.unique(resources).tolist(), key=lambda each: (n_numbers(each), each))


def _is_searched(name):
    return name.startswith("param_") and name.endswith("n_subclasses")


def _metric(search):
    """Name the metric that is shown, "score" where there is one only."""
    if not getattr(search, "multimetric_", False):
        return "score"
    display_validation.check_refit(search.refit)
    return search.refit


def _n_subclasses(search, name, params):
    """Give that of a candidate: the estimator's own where its grid has none."""
    if name in params:
        return params[name]
    owner = name.rpartition("__")[0]
    if owner in params:
        return getattr(params[owner], "n_subclasses", None)
    return search.estimator.get_params().get(name)


def _draw_lines(axis, panel):
    axis.plot(panel["x"], panel["y"], marker="o")
    _count_along_x(axis)
    axis.set(xlabel="direction", ylabel="share of the variance", ylim=(0, None))


def _draw_bars(axis, panel):
    axis.bar(panel["x"], panel["y"])
    axis.axhline(1 / len(panel["y"]), color="grey", linestyle=":")
    _count_along_x(axis)
    axis.set(xlabel="subclass", ylabel="mass")


def _count_along_x(axis):
    """Have ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _draw_points(axis, panel):
    colours = np.unique(panel["colour"], return_inverse=True)[1]
    axis.scatter(panel["x"], panel["y"], c=colours, s=6, cmap="tab20")
    axis.set(xticks=[], yticks=[])


def _draw_search(axis, panel):
    x, labels = list(panel["x"]), [str(size) for size in panel["x"]]
    style = {"marker": "o", "capsize": 3, "color": "C0"}
    if x:
        axis.errorbar(x, panel["y"], yerr=panel["error"], **style)
    if "auto" in panel:
        # It is no number: one step to the right of the largest, and not joined to it.
        x.append(2 * x[-1] if x else 1)
        labels.append("auto")
        score, error = panel["auto"]
        axis.errorbar(x[-1], score, yerr=error, **style)
    axis.set(xlabel="subclasses of a class", ylabel=panel["metric"], xscale="log")
    axis.set_xticks(x, labels=labels)
    axis.set_xticks([], minor=True)
    if "baseline" in panel:
        axis.axhline(panel["baseline"], color="grey", linestyle=":", label="vanilla KD")
        # A legend finds a place where nothing is drawn.
        axis.legend()
