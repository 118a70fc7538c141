"""The table of the subclasses against its definitions."""

import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lelp_sklearn import SubclassDisplay, subclass_table
from tests import reference
from tests.problems import fit_to_groups

pandas = pytest.importorskip("pandas")


def test_the_table_tells_of_each_subclass():
    projector, X, y, group = fit_to_groups()
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
    projector, X, y, group = fit_to_groups()
    options = {"fine_labels": group}
    shown = subclass_table(projector, X, y, X, **options)
    table = subclass_table(projector, X, y, **options)
    assert table.equals(shown.drop(columns="samples"))


@pytest.mark.parametrize("indexed", ["list", "tuple", "array", "Series", "DataFrame"])
def test_samples_are_taken_by_their_place(indexed):
    projector, X, y, _ = fit_to_groups()
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


def test_the_table_wants_a_sample_a_row():
    projector, X, y, _ = fit_to_groups()
    with pytest.raises(ValueError, match="samples has 1 rows and X has"):
        subclass_table(projector, X, y, ["one"])


def test_errors_name_the_package_that_is_not_installed(monkeypatch):
    projector, X, y, _ = fit_to_groups()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"needs pandas.*lelp-sklearn\[plot\]"):
        subclass_table(projector, X, y)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"needs Matplotlib.*lelp-sklearn\[plot\]"):
        SubclassDisplay.from_estimator(projector, X, y)


def test_a_row_of_each_class_makes_a_table():
    projector, X, y, _ = fit_to_groups()
    table = subclass_table(projector, X[:2], y[:2], ["a", "b"])
    assert [each for each in table["samples"] if each] == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("n_samples", "error"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)],
)
def test_the_number_of_samples_is_checked(n_samples, error):
    projector, X, y, _ = fit_to_groups()
    with pytest.raises(error, match=f"n_samples={n_samples} must be a"):
        subclass_table(projector, X, y, X, n_samples=n_samples)
