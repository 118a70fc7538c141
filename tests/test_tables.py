"""Tables, lists and sparse arrays: what is no number is named, with its column."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import coo_matrix, csr_array
from torch import nn

from lelp_sklearn import EmbeddingExtractor, LELPProjector, LELPStudentClassifier
from tests.student_problems import make_groups

X, Y, E, HEAD = make_groups(n_rows=60)
LOGITS = E @ HEAD[0].T + HEAD[1]
TARGETS = LELPProjector(2, head=HEAD, random_state=0).fit_transform(E, Y)
N = len(X)


def student(**options):
    projector = LELPProjector(2, head=HEAD)
    options = {"projector": projector, "max_epochs": 1, "random_state": 0} | options
    return LELPStudentClassifier(**options)


# Every argument that may be a table, as a function that passes one, by its name.
USES = {
    "X": lambda table: student().fit(table, Y, soft_targets=TARGETS),
    "teacher_embeddings": lambda table: student().fit(X, Y, teacher_embeddings=table),
    "teacher_logits": lambda table: student().fit(
        X, Y, teacher_embeddings=E, teacher_logits=table
    ),
    "soft_targets": lambda table: student().fit(X, Y, soft_targets=table),
    "X (of the projector)": lambda table: LELPProjector(2).fit(table, Y),
    "teacher_logits (of the projector)": lambda table: LELPProjector(2).fit(
        E, Y, teacher_logits=table
    ),
    "X (of the extractor)": lambda table: EmbeddingExtractor(nn.Linear(2, 2)).fit(
        table
    ),
}
every_argument = pytest.mark.parametrize("argument", USES)


def refused(argument, table, message, error):
    name = argument.partition(" ")[0]
    with pytest.raises(error, match=message.format(name=name)):
        USES[argument](table)


def pandas_columns():
    """A column of each kind that holds no numbers, and what is said of it."""
    pandas = pytest.importorskip("pandas")
    days = pandas.date_range("2020", periods=N)
    names = ["Bern", "Basel"] * (N // 2)
    return {
        "category": (pandas.Categorical(names), "dtype category.*Encoder"),
        "string": (pandas.Series(names), "dtype (str|object).*Encoder"),
        "object": (pandas.Series(names, dtype=object), "dtype object.*Encoder"),
        "time zone": (days.tz_localize("UTC"), "times .dtype datetime64.*UTC"),
        "date": (days, "times .dtype datetime64"),
        "duration": (pandas.to_timedelta(np.arange(N), unit="s"), "dtype timedelta64"),
        "period": (pandas.period_range("2020", periods=N), "dtype period"),
    }


def polars_columns():
    polars = pytest.importorskip("polars")
    names = ["Bern", "Basel"] * (N // 2)
    seconds = polars.Series(range(N))
    return {
        "string": (polars.Series(names), "dtype String.*Encoder"),
        "category": (
            polars.Series(names, dtype=polars.Categorical),
            "dtype Categorical.*Encoder",
        ),
        "time zone": (
            seconds.cast(polars.Datetime("us", "UTC")),
            "times .dtype Datetime.*UTC",
        ),
        "date": (seconds.cast(polars.Date), "times .dtype Date"),
        "duration": (seconds.cast(polars.Duration), "times .dtype Duration"),
    }


@every_argument
@pytest.mark.parametrize("kind", ["category", "string", "object", "time zone", "date"])
def test_column_of_pandas_that_holds_no_numbers(argument, kind):
    pandas = pytest.importorskip("pandas")
    column, message = pandas_columns()[kind]
    table = pandas.DataFrame({"age": np.arange(N * 1.0), "city": column})
    if argument.startswith("X (of the ext") and "Encoder" in message:
        # A model may read texts: their column by itself.
        with pytest.raises(ValueError, match=r"pass the column by itself, X\['city'\]"):
            USES[argument](table)
        return
    refused(argument, table, f"Column 'city' of {{name}} .*{message}", TypeError)


@every_argument
@pytest.mark.parametrize("kind", ["string", "category", "time zone", "date"])
def test_column_of_polars_that_holds_no_numbers(argument, kind):
    polars = pytest.importorskip("polars")
    column, message = polars_columns()[kind]
    table = polars.DataFrame({"age": np.arange(N * 1.0), "city": column})
    if argument.startswith("X (of the ext") and "Encoder" in message:
        with pytest.raises(ValueError, match=r"pass the column by itself, X\['city'\]"):
            USES[argument](table)
        return
    refused(argument, table, f"Column 'city' of {{name}} .*{message}", TypeError)


@pytest.mark.parametrize("kind", ["duration", "period"])
def test_other_columns_that_hold_no_numbers(kind):
    pandas = pytest.importorskip("pandas")
    column, message = pandas_columns()[kind]
    table = pandas.DataFrame({"age": np.arange(N * 1.0), "city": column})
    refused("X", table, f"Column 'city' of X .*{message}", TypeError)


@every_argument
@pytest.mark.parametrize("dtype", ["Int64", "Float64", "boolean", "object"])
def test_nullable_column_with_a_missing_value(argument, dtype):
    pandas = pytest.importorskip("pandas")
    flags = pandas.Series([1] * (N - 1) + [None], dtype=dtype)
    table = pandas.DataFrame({"age": np.arange(N * 1.0), "flag": flags})
    message = f"Column 'flag' of {{name}} .dtype {dtype}. contains NaN.*row {N - 1}"
    refused(argument, table, message, ValueError)


@every_argument
def test_null_of_polars(argument):
    polars = pytest.importorskip("polars")
    table = polars.DataFrame(
        {"age": np.arange(N * 1.0), "flag": [1] * (N - 1) + [None]}
    )
    message = f"Column 'flag' of {{name}} .dtype Int64. contains NaN.*row {N - 1}"
    refused(argument, table, message, ValueError)


@pytest.mark.parametrize("dtype", ["datetime64[s]", "timedelta64[s]", complex])
@pytest.mark.parametrize("argument", ["X", "X (of the projector)", "teacher_logits"])
def test_array_of_other_than_numbers(argument, dtype):
    array = np.arange(N * 2).reshape(N, 2).astype(dtype)
    error, message = TypeError, "{name} holds dates or times .dtype"
    if dtype is complex:
        error, message = ValueError, "Complex data not supported: {name} has dtype"
    refused(argument, array, message, error)


def numbers_of_all_kinds(library):
    """The same numbers as a table and as an array."""
    array = np.column_stack([X, Y, Y, Y])
    if library == "polars":
        polars = pytest.importorskip("polars")
        table = polars.DataFrame(X)
        columns = [
            polars.Series("bool", Y == 1),
            polars.Series("decimal", Y).cast(polars.Decimal(10, 2)),
            polars.Series("int", Y).cast(polars.UInt8),
        ]
        return table.with_columns(columns), array
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=list("abcdef"))
    table["nullable"] = pandas.array(Y, dtype="Int64")
    table["category"] = pandas.Categorical(Y)
    table["bool"] = pandas.array(Y == 1, dtype="boolean")
    return table, array


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_numbers_of_all_kinds_are_numbers(library):
    table, array = numbers_of_all_kinds(library)
    from_table, from_array = (
        student().fit(rows, Y, soft_targets=TARGETS) for rows in (table, array)
    )
    assert_allclose(from_table.predict_proba(table), from_array.predict_proba(array))
    from_table, from_array = (
        LELPProjector(2, random_state=0).fit(rows, Y) for rows in (table, array)
    )
    assert_allclose(from_table.transform(table), from_array.transform(array))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_what_comes_with_the_rows_may_be_tables(library):
    module = pytest.importorskip(library)
    given = {"teacher_embeddings": E, "teacher_logits": LOGITS}
    weight = np.arange(1.0, N + 1)
    tables = {name: module.DataFrame(array) for name, array in given.items()}
    from_tables = student().fit(X, Y, **tables, sample_weight=module.Series(weight))
    from_arrays = student().fit(X, Y, **given, sample_weight=weight)
    assert_array_equal(from_tables.predict_proba(X), from_arrays.predict_proba(X))
    from_tables, from_arrays = (
        student().fit(X, Y, soft_targets=targets)
        for targets in (module.DataFrame(TARGETS), TARGETS)
    )
    assert_array_equal(from_tables.predict_proba(X), from_arrays.predict_proba(X))


# Sparse and ragged


METADATA = {
    "teacher_embeddings": E,
    "teacher_logits": LOGITS,
    "soft_targets": TARGETS,
}


@pytest.mark.parametrize("kind", [csr_array, coo_matrix, "tensor"])
@pytest.mark.parametrize("name", METADATA)
def test_sparse_metadata(name, kind):
    array, method = METADATA[name], "toarray"
    if kind == "tensor":
        sparse, method = torch.tensor(array).to_sparse(), "to_dense"
    else:
        sparse = kind(array)
    message = rf"Sparse data was passed: {name} is a .*{name}\.{method}\(\)"
    refused(name, sparse, message, TypeError)
    if name == "teacher_logits":
        refused(f"{name} (of the projector)", sparse, message, TypeError)
        projector = LELPProjector(2, head=HEAD).fit(E, Y)
        with pytest.raises(TypeError, match=message):
            projector.transform(E, teacher_logits=sparse)


@pytest.mark.parametrize("estimator", [LELPProjector(2), student()], ids=str)
def test_sparse_weights_and_ragged_ones(estimator):
    sparse = csr_array(np.ones((1, N)))
    with pytest.raises(TypeError, match="Sparse data was passed: sample_weight is a "):
        estimator.fit(E, Y, sample_weight=sparse)
    sparse = torch.ones(N).to_sparse()
    with pytest.raises(TypeError, match=r"sample_weight\.to_dense\(\)"):
        estimator.fit(E, Y, sample_weight=sparse)
    ragged = [[1.0]] * (N - 1) + [[1.0, 2.0]]
    message = (
        f"sample_weight is not an array of numbers, row 0 has 1 .*row {N - 1} has 2"
    )
    with pytest.raises(ValueError, match=message):
        estimator.fit(E, Y, sample_weight=ragged)


@pytest.mark.parametrize("name", METADATA)
def test_ragged_metadata(name):
    rows = METADATA[name].tolist()
    width = len(rows[0])
    rows[7] = rows[7][:-1]
    message = (
        f"{name} is not an array of numbers, row 0 has {width} entries and row 7 has "
        f"{width - 1}: pass numbers, in rows of equal length"
    )
    refused(name, rows, message, ValueError)
    if name == "teacher_logits":
        refused(f"{name} (of the projector)", rows, message, ValueError)


@pytest.mark.parametrize("name", METADATA)
def test_lists_are_arrays(name):
    fitted = [
        student().fit(X, Y, **{"teacher_embeddings": E} | {name: given})
        for given in (METADATA[name].tolist(), METADATA[name])
    ]
    assert_array_equal(*(each.predict_proba(X) for each in fitted))


def test_sparse_head():
    sparse = csr_array(HEAD[0])
    with pytest.raises(TypeError, match="Sparse data was passed: head coef is a csr"):
        LELPProjector(2, head=(sparse, HEAD[1])).fit(E, Y)


# Classes


@pytest.mark.parametrize(
    "classes", [["a", 0], np.array([0, "a"], dtype=object), [0, None], [1, 2, "c"]]
)
@pytest.mark.parametrize("estimator", [LELPProjector(2), student()], ids=str)
def test_classes_of_several_types(estimator, classes):
    with pytest.raises(TypeError, match=r"classes=\[.*several types.*one type"):
        estimator.partial_fit(E, Y, classes=classes)


@pytest.mark.parametrize("kind", [list, np.asarray, torch.tensor])
def test_classes_of_any_kind_are_sorted(kind):
    projector = LELPProjector(2, head=HEAD).partial_fit(E, Y, classes=kind([1, 0, 1]))
    assert_array_equal(projector.classes_, [0, 1])
