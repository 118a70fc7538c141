"""Plots of the subclasses: the data behind them."""

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
    LELPStudentClassifierCV,
    SubclassDisplay,
    subclass_table,
)
from tests import reference
from tests.problems import fit_to_groups, make_far_groups
from tests.student_problems import make_groups

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def no_windows():
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")


@pytest.mark.parametrize("splitter", ["pca", "kmeans"])
def test_the_spectrum_is_that_of_the_class_by_any_splitter(splitter):
    projector, X, y, _ = fit_to_groups(splitter)
    display = SubclassDisplay.from_estimator(projector, X, y, kind="spectrum")
    assert list(display.panels) == ["class 0", "class 1"]
    for c in range(2):
        panel = display.panels[f"class {c}"]
        rows = reference.null_space_rows(X, y, projector.coef_)[y == c]
        values = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1]
        assert_allclose(panel["y"], values[:3] / values.sum())
        drawn = display.axes_[c].lines[0].get_xydata()
        assert_allclose(drawn, np.column_stack([panel["x"], panel["y"]]))


def test_the_mass_is_that_of_the_soft_labels():
    projector, X, y, _ = fit_to_groups(subclass_temperature=0)
    display = SubclassDisplay.from_estimator(projector, X, y, kind="mass")
    (title, panel), _ = display.panels.items()
    # Three groups of one size.
    assert_allclose(panel["y"], [1 / 3] * 3)
    assert "effective number of subclasses 3.0" in title
    heights = [bar.get_height() for bar in display.axes_[0].patches]
    assert_allclose(heights, panel["y"])


def test_the_embedding_shows_subclasses_and_beside_them_the_fine_labels():
    projector, X, y, group = fit_to_groups()
    display = SubclassDisplay.from_estimator(
        projector, X, y, kind="embedding", fine_labels=group
    )
    assert len(display.axes_) == 4
    for c in range(2):
        found = display.panels[f"class {c}: subclasses"]
        fine = display.panels[f"class {c}: fine labels"]
        assert_array_equal(fine["colour"], group[y == c])
        # One legend and one colour for a label, in both classes.
        assert_array_equal(fine["palette"], np.unique(group))
        legend = display.axes_[2 + c].get_legend()
        shown = [text.get_text() for text in legend.get_texts()]
        assert shown == [str(label) for label in np.unique(group[y == c])]
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
    X, y, group, head = make_far_groups()
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
    X, y, _, head = make_far_groups(d=12)
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

    projector, X, y, _ = fit_to_groups()
    figure, axes = pyplot.subplots(1, 2)
    display = SubclassDisplay.from_estimator(projector, X, y, axes=axes)
    assert display.figure_ is figure
    with pytest.raises(ValueError, match=r"axes holds 1 .* 2 panels"):
        SubclassDisplay.from_estimator(projector, X, y, axes=axes[0])


def searched(grid, **options):
    X, y, _, head = make_far_groups()
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


def test_the_search_of_a_student_is_drawn():
    X, y, E, head = make_groups()
    student = LELPStudentClassifier(
        projector=LELPProjector(2, head=head), max_epochs=2, random_state=0
    )
    grid = {"projector__n_subclasses": [1, 2]}
    search = LELPStudentClassifierCV(student, grid).fit(X, y, teacher_embeddings=E)
    panel = SubclassDisplay.from_search(search).panels[""]
    assert_array_equal(panel["x"], [1, 2])
    assert_allclose(panel["y"], search.cv_results_["mean_test_score"])


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
    head = make_far_groups()[-1]
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
    X, y, _, head = make_far_groups(480)
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
    X, y, _, _ = make_far_groups()
    search = GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=2).fit(X, y)
    with pytest.raises(ValueError, match="n_subclasses"):
        SubclassDisplay.from_search(search)


def test_unknown_kinds_and_labels_are_refused():
    projector, X, y, _ = fit_to_groups()
    with pytest.raises(ValueError, match="kind='pie'"):
        SubclassDisplay.from_estimator(projector, X, y, kind="pie")
    with pytest.raises(ValueError, match="7"):
        SubclassDisplay.from_estimator(projector, X, np.where(y == 1, 7, y))


def test_a_student_is_answered_with_where_its_projector_is():
    pytest.importorskip("pandas")
    projector, X, y, _ = fit_to_groups()
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


@pytest.mark.parametrize("kept", [[0], [2, 4]])
def test_a_class_without_rows_is_refused(kept):
    pytest.importorskip("pandas")
    projector, X, y, _ = fit_to_groups()
    X, y = X[kept], y[kept]
    with pytest.raises(ValueError, match=r"y has no row of class 1, .* every class"):
        subclass_table(projector, X, y, X)
    for kind in ("embedding", "mass"):
        with pytest.raises(ValueError, match="y has no row of class 1"):
            SubclassDisplay.from_estimator(projector, X, y, kind=kind)


def test_matplotlib_waits_until_it_is_needed():
    code = (
        "import sys, lelp_sklearn; lelp_sklearn.SubclassDisplay; "
        "assert not {'matplotlib', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
