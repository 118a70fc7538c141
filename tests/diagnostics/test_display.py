"""Pictures and a table of the subclasses: the data behind them."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.decomposition import PCA
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV
from sklearn.pipeline import make_pipeline

from lelp_sklearn import (
    LELPProjector,
    LELPStudentClassifier,
    SubclassDisplay,
    subclass_table,
)
from tests import reference

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def no_windows():
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")


def grouped(n_rows=240, d=8, seed=0):
    """Two classes of three far groups each, a head, and what the groups are."""
    rng = np.random.RandomState(seed)
    group = np.arange(n_rows) % 6
    X = 8 * rng.normal(size=(6, d))[group] + rng.normal(size=(n_rows, d))
    return X, group % 2, group, (rng.normal(size=(2, d)), np.zeros(2))


def fitted(splitter="kmeans", **options):
    X, y, group, head = grouped()
    projector = LELPProjector(
        3, splitter=splitter, head=head, random_state=0, **options
    ).fit(X, y)
    return projector, X, y, group


@pytest.mark.parametrize("splitter", ["pca", "kmeans"])
def test_the_spectrum_is_the_share_of_the_variance(splitter):
    projector, X, y, _ = fitted(splitter)
    display = SubclassDisplay.from_estimator(projector, X, y)
    assert list(display.panels) == ["class 0", "class 1"]
    for c in range(2):
        panel = display.panels[f"class {c}"]
        rows = reference.null_space_rows(X, y, projector.coef_)[y == c]
        values = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1]
        if splitter == "pca":
            assert_allclose(panel["y"], values[:3] / values.sum())
        else:
            # Centroids are directions of any length, and not orthogonal.
            units = projector.components_[c]
            units = units / np.linalg.norm(units, axis=1, keepdims=True)
            along = (rows @ units.T).var(axis=0) / values.sum()
            assert_allclose(panel["y"], np.sort(along)[::-1])
        drawn = display.axes_[c].lines[0].get_xydata()
        assert_allclose(drawn, np.column_stack([panel["x"], panel["y"]]))


def test_the_mass_is_that_of_the_soft_labels():
    projector, X, y, _ = fitted(subclass_temperature=0)
    display = SubclassDisplay.from_estimator(projector, X, y, kind="mass")
    (title, panel), _ = display.panels.items()
    # Three groups of one size.
    assert_allclose(panel["y"], [1 / 3] * 3)
    assert "effective number of subclasses 3.0" in title
    heights = [bar.get_height() for bar in display.axes_[0].patches]
    assert_allclose(heights, panel["y"])


def test_the_embedding_shows_subclasses_and_beside_them_the_fine_labels():
    projector, X, y, group = fitted()
    display = SubclassDisplay.from_estimator(
        projector, X, y, kind="embedding", fine_labels=group
    )
    assert len(display.axes_) == 4
    for c in range(2):
        found = display.panels[f"class {c}: subclasses"]
        fine = display.panels[f"class {c}: fine labels"]
        assert_array_equal(fine["colour"], group[y == c])
        # Each subclass is one of the groups.
        pairs = set(zip(found["colour"], fine["colour"], strict=True))
        assert len(pairs) == 3
        rows = reference.null_space_rows(X, y, projector.coef_)[y == c]
        values = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1]
        assert_allclose(found["x"].var(), values[0])
        assert_allclose(found["y"].var(), values[1])
        assert_allclose(
            display.axes_[c].collections[0].get_offsets(),
            np.column_stack([found["x"], found["y"]]),
        )


def test_panels_are_named_by_the_labels_of_the_classes():
    X, y, group, head = grouped()
    names = np.array(["ham", "spam"])[y]
    projector = LELPProjector(3, head=head, random_state=0).fit(X, names)
    for kind in ("spectrum", "mass", "embedding"):
        display = SubclassDisplay.from_estimator(
            projector, X, names, kind=kind, fine_labels=group
        )
        titles = [axis.get_title() for axis in display.axes_]
        assert titles == list(display.panels)
        assert {title.split()[1].strip(":") for title in titles} == {"ham", "spam"}


@pytest.mark.parametrize(
    ("kind", "n_subclasses"),
    [("spectrum", 4), ("spectrum", 2), ("mass", 1), ("mass", 4)],
)
def test_directions_and_subclasses_are_counted_in_whole_numbers(kind, n_subclasses):
    X, y, _, head = grouped(d=12)
    projector = LELPProjector(n_subclasses, head=head, random_state=0).fit(X, y)
    display = SubclassDisplay.from_estimator(projector, X, y, kind=kind)
    display.figure_.draw_without_rendering()
    for axis in display.axes_:
        low, high = axis.get_xlim()
        ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
        assert ticks == [int(tick) for tick in ticks]
        assert len(ticks) > 0


def test_axes_may_be_given():
    from matplotlib import pyplot

    projector, X, y, _ = fitted()
    figure, axes = pyplot.subplots(1, 2)
    display = SubclassDisplay.from_estimator(projector, X, y, axes=axes)
    assert display.figure_ is figure
    with pytest.raises(ValueError, match=r"axes holds 1 .* 2 panels"):
        SubclassDisplay.from_estimator(projector, X, y, axes=axes[0])


def searched(grid, **options):
    X, y, _, head = grouped()
    pipe = make_pipeline(
        LELPProjector(2, head=head, random_state=0), LogisticRegression()
    )
    return GridSearchCV(pipe, grid, cv=3, **options).fit(X, y)


SIZE = "lelpprojector__n_subclasses"


def test_a_search_is_drawn_with_vanilla_distillation_as_the_line_to_beat():
    search = searched({SIZE: [1, 2, 3], "logisticregression__C": [0.001, 1.0]})
    panel = SubclassDisplay.from_search(search).panels[""]
    assert_array_equal(panel["x"], [1, 2, 3])
    scores = search.cv_results_["mean_test_score"]
    spread = search.cv_results_["std_test_score"]
    sizes = search.cv_results_["param_lelpprojector__n_subclasses"].astype(int)
    for x, score, error in zip(panel["x"], panel["y"], panel["error"], strict=True):
        assert score == scores[sizes == x].max()
        assert error in spread[sizes == x] / np.sqrt(3)
    assert panel["baseline"] == panel["y"][0]


def test_a_search_has_a_tick_for_each_number_and_a_legend_for_vanilla_kd():
    display = SubclassDisplay.from_search(searched({SIZE: [1, 2, 3, 5]}))
    axis = display.axes_[0]
    display.figure_.draw_without_rendering()
    assert [label.get_text() for label in axis.get_xticklabels()] == list("1235")
    assert not [label for label in axis.get_xticklabels(minor=True) if label.get_text()]
    legend = axis.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["vanilla KD"]
    # The dotted line does not run through the text.
    baseline = display.panels[""]["baseline"]
    height = axis.transData.transform((1, baseline))[1]
    box = legend.get_texts()[0].get_window_extent()
    assert not box.y0 <= height <= box.y1


def test_auto_stands_beside_the_numbers_of_a_search():
    search = searched({SIZE: ["auto", 1, 3]})
    display = SubclassDisplay.from_search(search)
    panel = display.panels[""]
    assert_array_equal(panel["x"], [1, 3])
    results = search.cv_results_
    score, error = results["mean_test_score"][0], results["std_test_score"][0]
    assert panel["auto"] == (score, error / np.sqrt(3))
    labels = [label.get_text() for label in display.axes_[0].get_xticklabels()]
    assert labels == ["1", "3", "auto"]
    # It is a point of its own, right of the largest number.
    lines = [line.get_xydata() for line in display.axes_[0].lines]
    assert_allclose(lines[0], np.column_stack([panel["x"], panel["y"]]))
    (own,) = [
        line for line in lines if np.allclose(line[:, 1], score) and line[0, 0] > 3
    ]
    assert len(own) == 1


def test_auto_may_be_all_that_was_searched():
    display = SubclassDisplay.from_search(searched({SIZE: ["auto"]}))
    assert len(display.panels[""]["x"]) == 0
    labels = [label.get_text() for label in display.axes_[0].get_xticklabels()]
    assert labels == ["auto"]


def test_a_candidate_without_a_number_has_that_of_the_estimator():
    head = grouped()[-1]
    other = LELPProjector(4, head=head, random_state=0)
    grids = [
        {SIZE: [1, 3]},
        {"logisticregression__C": [0.1]},
        {"lelpprojector": [other, "passthrough"]},
    ]
    search = searched(grids)
    panel = SubclassDisplay.from_search(search).panels[""]
    assert_array_equal(panel["x"], [1, 2, 3, 4])
    assert_array_equal(panel["y"], search.cv_results_["mean_test_score"][[0, 2, 1, 3]])


def test_of_several_metrics_that_of_refit_is_shown():
    metrics = ["accuracy", "neg_log_loss"]
    search = searched({SIZE: [1, 3]}, scoring=metrics, refit="neg_log_loss")
    display = SubclassDisplay.from_search(search)
    panel = display.panels[""]
    assert_array_equal(panel["y"], search.cv_results_["mean_test_neg_log_loss"])
    assert display.axes_[0].get_ylabel() == "neg_log_loss"
    search = searched({SIZE: [1, 3]}, scoring=metrics, refit=False)
    with pytest.raises(ValueError, match=r"several metrics and refit=False names none"):
        SubclassDisplay.from_search(search)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning")
@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_numbers_whose_fits_failed_are_left_out_with_a_warning():
    search = searched({SIZE: [1, 3, 99]})
    with pytest.warns(UserWarning, match=r"n_subclasses=99 has no score"):
        display = SubclassDisplay.from_search(search)
    assert_array_equal(display.panels[""]["x"], [1, 3])
    search.cv_results_["mean_test_score"][:] = np.nan
    with pytest.raises(ValueError, match="no score to show"):
        SubclassDisplay.from_search(search)


def test_numbers_of_a_halving_search_are_compared_at_equal_resources():
    X, y, _, head = grouped(480)
    pipe = make_pipeline(
        LELPProjector(2, head=head, random_state=0), LogisticRegression()
    )
    grid = {SIZE: [1, 2, 3], "logisticregression__C": [1e-3, 1.0]}
    search = HalvingGridSearchCV(
        pipe, grid, cv=3, factor=2, min_resources=60, random_state=0
    ).fit(X, y)
    results = search.cv_results_
    # More rows, and a score that every candidate gains by them.
    results["mean_test_score"] = results["mean_test_score"] / 10 + results["iter"]
    sizes = results[f"param_{SIZE}"].astype(int)
    complete = [i for i in range(3) if set(sizes[results["iter"] == i]) == {1, 2, 3}]
    assert max(complete) < results["iter"].max()
    display = SubclassDisplay.from_search(search)
    panel = display.panels[""]
    assert_array_equal(panel["x"], [1, 2, 3])
    last = results["iter"] == max(complete)
    for x, score in zip(panel["x"], panel["y"], strict=True):
        assert score == results["mean_test_score"][last & (sizes == x)].max()
    (resources,) = set(results["n_resources"][last])
    assert display.axes_[0].get_ylabel() == f"score, n_samples={resources}"
    results["mean_test_score"][sizes == 3] = np.nan
    with pytest.warns(UserWarning, match="n_subclasses=3 has no score") as warned:
        SubclassDisplay.from_search(search)
    assert warned[0].filename == __file__


def test_a_search_without_subclasses_is_refused():
    X, y, _, _ = grouped()
    search = GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=2).fit(X, y)
    with pytest.raises(ValueError, match="n_subclasses"):
        SubclassDisplay.from_search(search)


def test_unknown_kinds_and_labels_are_refused():
    projector, X, y, _ = fitted()
    with pytest.raises(ValueError, match="kind='pie'"):
        SubclassDisplay.from_estimator(projector, X, y, kind="pie")
    with pytest.raises(ValueError, match="7"):
        SubclassDisplay.from_estimator(projector, X, np.where(y == 1, 7, y))


def test_the_table_tells_of_each_subclass():
    pytest.importorskip("pandas")
    projector, X, y, group = fitted()
    names = [f"row {i}" for i in range(len(X))]
    table = subclass_table(projector, X, y, names, n_samples=2, fine_labels=group)
    assert table.index.names == ["class", "subclass"]
    assert table.index.tolist() == [(c, s) for c in range(2) for s in range(3)]
    soft = projector.transform(X).reshape(-1, 2, 3)
    margin = X @ (projector.coef_[0] - projector.coef_[1])
    for (c, s), line in table.iterrows():
        q = soft[y == c, c] / soft[y == c, c].sum(axis=1, keepdims=True)
        mine = q.argmax(axis=1) == s
        assert_allclose(line["mass"], q[:, s].mean())
        entropy = -np.sum(q * np.log(np.maximum(q, 1e-300)), axis=1)
        assert_allclose(line["entropy"], entropy[mine].mean(), atol=1e-12)
        rows = reference.null_space_rows(X, y, projector.coef_)[y == c]
        rows = rows - rows.mean(axis=0)
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        likeness = units @ units.T
        within = likeness[np.ix_(mine, mine)]
        within = within[~np.eye(len(within), dtype=bool)].mean()
        between = likeness[np.ix_(mine, ~mine)].mean()
        assert_allclose(line["cohesion"], within - between)
        z = X[y == c] @ projector.components_[c, s]
        own_margin = margin[y == c] * (1 if c == 0 else -1)
        correlation = np.corrcoef(z, own_margin)[0, 1]
        assert_allclose(line["margin_correlation"], correlation)
        assert line["fine_share"] == 1
        places = [int(name.split()[1]) for name in line["samples"]]
        assert len(places) == 2
        assert {group[place] for place in places} == {line["fine_label"]}


def test_the_table_without_samples_is_the_same_but_for_them():
    pytest.importorskip("pandas")
    projector, X, y, group = fitted()
    options = {"fine_labels": group}
    shown = subclass_table(projector, X, y, X, **options)
    table = subclass_table(projector, X, y, **options)
    assert table.equals(shown.drop(columns="samples"))


@pytest.mark.parametrize("indexed", ["list", "tuple", "array", "Series", "DataFrame"])
def test_samples_are_taken_by_their_place(indexed):
    pandas = pytest.importorskip("pandas")
    projector, X, y, _ = fitted()
    texts = [f"row {i}" for i in range(len(X))]
    # An index that is a permutation leads elsewhere, and none to the right place.
    index = np.roll(np.arange(len(X)), 7)
    samples = {
        "list": texts,
        "tuple": tuple(texts),
        "array": np.array(texts),
        "Series": pandas.Series(texts, index=index),
        "DataFrame": pandas.DataFrame({"text": texts, "place": range(len(X))}, index),
    }[indexed]
    table = subclass_table(projector, X, y, samples)
    for s, shown in table.loc[0, "samples"].items():
        rows = reference.null_space_rows(X, y, projector.coef_)[y == 0]
        rows = rows - rows.mean(axis=0)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        soft = projector.transform(X[y == 0]).reshape(-1, 2, 3)[:, 0]
        mine = np.flatnonzero(soft.argmax(axis=1) == s)
        likeness = rows[mine] @ rows[mine].sum(axis=0)
        places = np.flatnonzero(y == 0)[mine[np.argsort(-likeness)[:3]]]
        expected = [texts[place] for place in places]
        if indexed == "DataFrame":
            expected = [{"text": texts[place], "place": place} for place in places]
        assert shown == expected


def test_a_student_is_answered_with_where_its_projector_is():
    pytest.importorskip("pandas")
    projector, X, y, _ = fitted()
    student = LELPStudentClassifier(
        projector=projector, max_epochs=1, random_state=0
    ).fit(X, y, teacher_embeddings=X)
    for found, mend in [
        (student, r"LELPStudentClassifier: .*student\.projector_"),
        (LELPStudentClassifier(), r"fit the student .*student\.projector_"),
        (PCA(), r"PCA: pass a fitted LELPProjector"),
    ]:
        with pytest.raises(TypeError, match=mend):
            SubclassDisplay.from_estimator(found, X, y)
        with pytest.raises(TypeError, match=mend):
            subclass_table(found, X, y, X)
    SubclassDisplay.from_estimator(student.projector_, X, y)


def test_the_table_wants_a_sample_a_row():
    projector, X, y, _ = fitted()
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        subclass_table(projector, X, y, ["one"])


@pytest.mark.parametrize("kept", [[0], [2, 4]])
def test_a_class_without_rows_is_refused(kept):
    pytest.importorskip("pandas")
    projector, X, y, _ = fitted()
    X, y = X[kept], y[kept]
    with pytest.raises(ValueError, match=r"y has no row of class 1, .* every class"):
        subclass_table(projector, X, y, X)
    for kind in ("embedding", "mass"):
        with pytest.raises(ValueError, match="y has no row of class 1"):
            SubclassDisplay.from_estimator(projector, X, y, kind=kind)


def test_a_row_of_each_class_makes_a_table():
    pytest.importorskip("pandas")
    projector, X, y, _ = fitted()
    table = subclass_table(projector, X[:2], y[:2], ["a", "b"])
    assert [each for each in table["samples"] if each] == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("n_samples", "error"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)],
)
def test_the_number_of_samples_is_checked(n_samples, error):
    pytest.importorskip("pandas")
    projector, X, y, _ = fitted()
    with pytest.raises(error, match=f"n_samples={n_samples} must be a"):
        subclass_table(projector, X, y, X, n_samples=n_samples)


def test_matplotlib_waits_until_it_is_needed():
    code = (
        "import sys, lelp_sklearn; lelp_sklearn.SubclassDisplay; "
        "assert not {'matplotlib', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
