"""Sparse rows: the student that they train is the one that dense rows train."""

import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from lelp_sklearn import (
    LELPProjector,
    LELPStudentClassifier,
    NoTeacherWarning,
    labeled_scorer,
    subclass_report,
)
from lelp_sklearn._files import content_hash
from lelp_sklearn._training.process_group import Ranks
from tests.student_problems import MyNet, TemplateNet, make_soft_targets, weights_of

N_FEATURES = 30
MAKERS = [
    getattr(sparse, f"{name}_{kind}")
    for name in ("csr", "csc", "coo", "bsr", "lil", "dok", "dia")
    for kind in ("array", "matrix")
]


def make_rows(dtype=np.float64):
    """Rows of which four fifths are zero, labels, and soft targets."""
    X, y, soft = make_soft_targets(n_features=N_FEATURES)
    is_stored = np.random.RandomState(0).uniform(size=X.shape) < 0.2
    return (X * is_stored).astype(dtype), y, soft


X, Y, SOFT = make_rows()
CSR = sparse.csr_array(X)


def quick(**options):
    defaults = {"max_epochs": 3, "batch_size": 50, "random_state": 0, "device": "cpu"}
    return LELPStudentClassifier(**{**defaults, **options})


def fitted(rows=CSR, **options):
    return quick(**options).fit(rows, Y, soft_targets=SOFT)


def assert_same_logits(student, other, rows=X, atol=1e-10):
    assert_allclose(
        student.decision_function(rows), other.decision_function(rows), atol=atol
    )


# --- the dense fit --------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(), (16,), (16, 8)])
@pytest.mark.parametrize(
    ("dtype", "n_epochs", "atol"), [("f8", 8, 1e-10), ("f4", 3, 1e-5)]
)
def test_fit_is_the_dense_fit(sizes, dtype, n_epochs, atol):
    rows = X.astype(dtype)
    options = {"max_epochs": n_epochs, "module_params": {"hidden_layer_sizes": sizes}}
    dense = fitted(rows, **options)
    of_sparse = fitted(sparse.csr_array(rows), **options)
    assert_same_logits(of_sparse, dense, rows, atol)
    assert_allclose(of_sparse.loss_curve_, dense.loss_curve_, atol=atol)


@pytest.mark.parametrize("as_rows", [sparse.csr_array, np.asarray, torch.tensor])
def test_both_kinds_of_student_predict_both_kinds_of_rows(as_rows):
    rows = as_rows(X)
    for student in (fitted(CSR), fitted(X)):
        expected = student.predict_subclass_proba(CSR)
        assert_allclose(student.predict_subclass_proba(rows), expected, atol=1e-12)
        assert_array_equal(student.predict(rows), student.predict(CSR))
        classes = expected.reshape(len(X), 2, -1).sum(axis=2)
        assert_allclose(student.predict_proba(rows), classes, atol=1e-12)
        assert_allclose(student.predict_log_proba(rows), np.log(classes), atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"label_weight": 0.4, "class_weight": "balanced"},
        {"early_stopping": True, "n_iter_no_change": 1, "max_epochs": 8},
        {"max_grad_norm": 0.1, "learning_rate_schedule": "one_cycle"},
        {"optimizer": torch.optim.SGD},
        {"precision": "bfloat16"},
    ],
)
def test_options_do_what_they_do_with_dense_rows(options):
    weight = np.random.RandomState(1).uniform(0, 2, size=len(Y)).round()
    single = X.astype(np.float32)
    dense, of_sparse = (
        quick(**options).fit(rows, Y, soft_targets=SOFT, sample_weight=weight)
        for rows in (single, sparse.csr_array(single))
    )
    # Half precision multiplies dense rows only.
    atol = 0.05 if "precision" in options else 1e-5
    assert_same_logits(of_sparse, dense, single, atol)
    assert of_sparse.n_epochs_ == dense.n_epochs_


def test_validation_rows_may_be_sparse():
    options = {"early_stopping": True, "max_epochs": 5, "n_iter_no_change": 2}
    held_out = {"y_val": Y[::3]}
    dense, of_sparse = (
        quick(**options).fit(
            rows, Y, soft_targets=SOFT, X_val=sparse.csc_array(X)[::3], **held_out
        )
        for rows in (X, CSR)
    )
    assert_allclose(of_sparse.validation_scores_, dense.validation_scores_, atol=1e-10)


def test_stream_and_warm_start_are_those_of_dense_rows():
    students = []
    for rows in (X, CSR):
        student = quick(warm_start=True)
        for part in (slice(0, 100), slice(100, None)):
            student.partial_fit(rows[part], Y[part], [0, 1], soft_targets=SOFT[part])
        students.append(student.fit(rows, Y, soft_targets=SOFT))
    assert_same_logits(*students)
    assert len(students[0].loss_curve_) == 5


@pytest.mark.parametrize("optimizer", ["adamw", "sparse_adam"])
def test_rows_may_change_their_kind_in_a_stream(optimizer):
    students = []
    for kinds in ((X, X), (X, CSR), (CSR, X), (CSR, CSR)):
        student = quick(optimizer=optimizer)
        for rows in kinds:
            student.partial_fit(rows, Y, [0, 1], soft_targets=SOFT)
        students.append(student)
    # Each batch has entries of each feature, so that "sparse_adam" leaves out nothing.
    for student in students[1:]:
        assert_same_logits(student, students[0])


@pytest.mark.parametrize("optimizer", ["adamw", "sparse_adam"])
def test_rows_may_change_their_kind_before_a_warm_start(optimizer):
    kinds = [(X, X), (X, CSR), (CSR, X)]
    students = [fitted(rows, optimizer=optimizer, warm_start=True) for rows, _ in kinds]
    for student, (_, rows) in zip(students, kinds, strict=True):
        student.fit(rows, Y, soft_targets=SOFT)
        assert_same_logits(student, students[0])


# --- updates of touched rows ----------------------------------------------------------


def test_feature_that_never_occurs_only_decays():
    rows = sparse.csr_array(X * (np.arange(N_FEATURES) != 3))
    first_layers = {
        name: fitted(rows, optimizer=name).module_[0].weight[3].detach()
        for name in ("sparse_adam", "adamw")
    }
    start = fitted(rows, optimizer="sparse_adam", weight_decay=0.0).module_[0].weight[3]
    assert_allclose(first_layers["sparse_adam"], first_layers["adamw"], rtol=1e-12)
    assert (first_layers["adamw"].abs() < start.abs()).all()


def test_touched_rows_learn_what_all_rows_learn():
    # Each feature is spread over ten, which then occur in some batches only.
    column = np.random.RandomState(0).randint(10, size=CSR.nnz) + 10 * CSR.indices
    rows = sparse.csr_array((CSR.data, column, CSR.indptr), (len(X), 10 * N_FEATURES))
    options = {"early_stopping": True, "max_epochs": 8, "learning_rate": 0.003}
    student, of_all = (
        fitted(rows, optimizer=name, **options) for name in ("sparse_adam", "adamw")
    )
    assert_allclose(student.loss_curve_, of_all.loss_curve_, rtol=0.05)
    assert_allclose(student.validation_scores_, of_all.validation_scores_, rtol=0.05)


def test_stream_of_touched_rows_goes_on_after_a_pickle():
    student = quick(optimizer="sparse_adam")
    student.partial_fit(CSR, Y, [0, 1], soft_targets=SOFT)
    twin = pickle.loads(pickle.dumps(student))
    for each in (student, twin):
        each.partial_fit(CSR, Y, soft_targets=SOFT)
    assert_array_equal(weights_of(twin), weights_of(student))
    # Another optimizer starts again.
    twin.set_params(optimizer="adamw").partial_fit(CSR, Y, soft_targets=SOFT)
    assert len(twin.loss_curve_) == 3


def test_gradients_of_touched_rows_are_clipped_too():
    options = {"optimizer": "sparse_adam", "weight_decay": 0.0, "max_epochs": 1}
    free, clipped, tiny = (
        weights_of(fitted(max_grad_norm=norm, batch_size=1000, **options))
        for norm in (None, 1e6, 1e-7)
    )
    assert_array_equal(clipped, free)
    # So short a gradient is not large beside the epsilon of Adam.
    assert np.abs(tiny - free).max() > 1e-3


def test_touched_rows_are_of_one_process():
    with pytest.raises(ValueError, match="trains in one process and there are 2"):
        quick(optimizer="sparse_adam")._check_params(Ranks(0, 2))


def test_with_dense_rows_it_is_adamw():
    student = fitted(X, optimizer="sparse_adam")
    assert_allclose(weights_of(student), weights_of(fitted(X)), atol=1e-10)


# --- what is sparse -------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")
@pytest.mark.parametrize("make", MAKERS)
def test_every_format_of_scipy(make):
    rows = make(X)
    student = fitted(rows)
    assert_array_equal(weights_of(student), weights_of(fitted(CSR)))
    assert_array_equal(student.predict(rows), student.predict(CSR))


def test_rows_in_disorder_are_read_right_and_stay_as_they_are():
    order = np.random.RandomState(0).permutation(CSR.nnz)
    row = np.repeat(np.arange(len(X)), np.diff(CSR.indptr))[order]
    column, value = CSR.indices[order], CSR.data[order]
    # Each entry is stored as two halves, and each row has zeros of its own.
    row = np.concatenate([row, row, np.arange(len(X))])
    column = np.concatenate([column, column, np.zeros(len(X), int)])
    value = np.concatenate([value / 2, value / 2, np.zeros(len(X))])
    by_row = np.argsort(row, kind="stable")
    offsets = np.append(0, np.cumsum(np.bincount(row)))
    parts = value[by_row], column[by_row].astype(np.int64), offsets.astype(np.int64)
    given = [part.copy() for part in parts]
    for part in given:
        part.flags.writeable = False
    rows = sparse.csr_array(tuple(given), shape=X.shape)
    student = fitted(rows)
    assert_same_logits(student, fitted(CSR))
    for part, before in zip((rows.data, rows.indices, rows.indptr), parts, strict=True):
        assert_array_equal(part, before)


def test_integers_are_counts_and_an_empty_row_is_all_zeros():
    counts = np.random.RandomState(0).poisson(0.3, size=X.shape)
    counts[3] = 0
    student = fitted(sparse.csr_array(counts), module=MyNet)
    dense = fitted(counts.astype(np.float32), module=MyNet)
    assert_same_logits(student, dense, counts, atol=1e-5)
    assert student.module_.top.weight.dtype == torch.float32


def test_sparse_table_of_pandas():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame.sparse.from_spmatrix(CSR)
    table.columns = [f"word{i}" for i in range(N_FEATURES)]
    student = fitted(table)
    assert_array_equal(student.feature_names_in_, table.columns)
    assert_array_equal(weights_of(student), weights_of(fitted(CSR)))


def test_nothing_is_made_dense():
    n_rows, n_features = 400, 2**18
    rng = np.random.default_rng(0)
    columns = np.sort(rng.integers(0, n_features, (n_rows, 20)), axis=1)
    offsets = np.arange(0, 20 * n_rows + 1, 20)
    values = rng.random(20 * n_rows, dtype=np.float32)
    shape = n_rows, n_features
    rows = sparse.csr_array((values, columns.ravel(), offsets), shape=shape)
    y = np.arange(n_rows) % 2
    soft = np.tile([0.5, 0.0, 0.25, 0.25], (n_rows, 1))
    student = quick(module_params={"hidden_layer_sizes": (2,)}, max_epochs=1)
    tracemalloc.start()
    try:
        student.fit(rows, y, soft_targets=soft).predict(rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < n_rows * n_features


# --- modules of a user ----------------------------------------------------------------


class DenseNet(MyNet):
    """Refuses sparse rows unless it is asked to make them dense."""

    def __init__(self, n_features, n_outputs, makes_dense=True):
        super().__init__(n_features, n_outputs)
        self.norm, self.makes_dense = nn.BatchNorm1d(n_features), makes_dense

    def forward(self, X):
        if self.makes_dense:
            X = X.to_dense()
        return super().forward(self.norm(X))


@pytest.mark.parametrize(
    "module", [MyNet, TemplateNet(N_FEATURES), DenseNet, nn.Linear]
)
def test_module_of_a_user_reads_csr_batches(module):
    student = fitted(module=module)
    assert_same_logits(student, fitted(X, module=module))
    assert student.module_ is not module


def test_module_that_refuses_sparse_rows_is_told_what_to_call():
    options = {"module": DenseNet, "module_params": {"makes_dense": False}}
    with pytest.raises(ValueError, match=r"sparse CSR tensor .*x\.to_dense\(\)"):
        fitted(**options)
    of_dense = fitted(X, **options)
    with pytest.raises(ValueError, match=r"x\.to_dense\(\)"):
        of_dense.predict(CSR)
    with pytest.raises(ValueError, match=r"x\.to_dense\(\)"):
        of_dense.partial_fit(CSR, Y, soft_targets=SOFT)


def test_augment_is_given_csr_batches():
    seen = []

    def halved(batch):
        seen.append(batch.layout)
        return batch * 0.5

    student = fitted(augment=halved)
    assert set(seen) == {torch.sparse_csr}
    assert_allclose(weights_of(student), weights_of(fitted(CSR * 0.5)), atol=1e-10)


# --- files and exports ----------------------------------------------------------------


def test_pickled_student_goes_on_as_if_it_had_not_been():
    student = quick().partial_fit(CSR, Y, [0, 1], soft_targets=SOFT)
    twin = pickle.loads(pickle.dumps(student))
    for each in (student, twin):
        each.partial_fit(CSR, Y, soft_targets=SOFT)
    assert_array_equal(weights_of(twin), weights_of(student))


@pytest.mark.parametrize("optimizer", ["adamw", "sparse_adam"])
def test_interrupted_fit_goes_on_from_its_checkpoint(tmp_path, optimizer):
    options = {"checkpoint": tmp_path / "student.ckpt", "optimizer": optimizer}

    def weight(progress):
        if progress > 0.7 and not calls:
            raise KeyboardInterrupt
        return 1.0

    calls = ["the check of the schedule"]
    student = quick(subclass_weight=weight, **options)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        student.fit(CSR, Y, soft_targets=SOFT)
    calls.append("again")
    found = clone(student).fit(sparse.csr_array(X), Y, soft_targets=SOFT)
    student.set_params(checkpoint=None)
    assert_array_equal(
        weights_of(found), weights_of(student.fit(CSR, Y, soft_targets=SOFT))
    )
    with pytest.raises(ValueError, match="another X"):
        clone(found).fit(CSR * 2, Y, soft_targets=SOFT)


def test_content_hash_of_a_sparse_matrix_is_that_of_its_entries():
    expected = content_hash(CSR)
    wide = sparse.csr_array(X)
    wide.indices, wide.indptr = wide.indices.astype("i8"), wide.indptr.astype("i8")
    assert content_hash(wide) == content_hash(CSR.copy()) == expected
    changed = CSR.copy()
    changed.data[5] += 1
    moved = CSR.copy()
    moved.indices[0] = N_FEATURES - 1
    others = [changed, moved, sparse.csr_matrix(X), CSR.astype(np.float32)]
    assert expected not in map(content_hash, others)


def test_exported_module_takes_sparse_and_dense_rows():
    student = fitted()
    expected, module = student.predict_proba(X), student.to_module()
    assert_allclose(module(torch.tensor(X)), expected, atol=1e-12)
    assert_allclose(module(torch.tensor(X).to_sparse_csr()), expected, atol=1e-12)


@pytest.mark.slow
def test_onnx_file_takes_dense_rows(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    single = X.astype(np.float32)
    student = fitted(sparse.csr_array(single))
    expected = student.predict_proba(single)
    student.to_onnx(tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    (found,) = session.run(["probabilities"], {"X": single})
    assert_allclose(found, expected, atol=1e-5)


# --- teachers and tools ---------------------------------------------------------------


def test_without_a_teacher_the_svd_takes_the_place_of_embeddings():
    with pytest.warns(NoTeacherWarning, match="TruncatedSVD"):
        student = quick().fit(CSR, Y)
    svd = FrozenEstimator(TruncatedSVD(N_FEATURES, random_state=0).fit(CSR))
    with pytest.warns(NoTeacherWarning):
        of_dense = quick().fit(X, Y)
    # At full rank it only rotates the rows.
    assert student.projector_.n_features_in_ == N_FEATURES
    assert_allclose(
        student.projector_.transform(svd.transform(CSR)).sum(axis=1), 1, rtol=1e-6
    )
    assert student.projector_.n_subclasses_ == of_dense.projector_.n_subclasses_
    saved = pickle.loads(pickle.dumps(student))
    for each in (student, saved):
        each.partial_fit(CSR, Y)
    assert_array_equal(weights_of(saved), weights_of(student))


def test_wide_rows_have_a_hundred_components():
    rng = np.random.RandomState(0)
    rows = sparse.csr_array(rng.normal(size=(200, 500)) * (rng.rand(200, 500) < 0.05))
    with pytest.warns(NoTeacherWarning):
        student = quick(projector=LELPProjector(2)).fit(rows, np.arange(200) % 2)
    assert student.projector_.n_features_in_ == 100


def test_head_without_embeddings_is_an_error():
    head = LogisticRegression().fit(CSR, Y)
    student = quick(projector=LELPProjector(2, head=head))
    with pytest.raises(ValueError, match="teacher_embeddings are missing: X is sparse"):
        student.fit(CSR, Y)


def test_transformer_as_teacher_is_given_the_sparse_rows():
    teacher = TruncatedSVD(8, random_state=0)
    embeddings = teacher.fit_transform(CSR)
    student = quick(teacher=teacher, projector=LELPProjector(3)).fit(CSR, Y)
    expected = quick(projector=LELPProjector(3)).fit(
        CSR, Y, teacher_embeddings=embeddings
    )
    assert_same_logits(student, expected, CSR)


def test_text_pipeline_is_searched():
    texts = [f"{'good fine' if y else 'bad poor'} word{i % 7}" for i, y in enumerate(Y)]
    pipe = make_pipeline(
        TfidfVectorizer(dtype=np.float32), quick(projector=LELPProjector(2))
    )
    grid = {"lelpstudentclassifier__module_params": [None, {"hidden_layer_sizes": ()}]}
    with pytest.warns(NoTeacherWarning):
        search = GridSearchCV(pipe, grid, cv=2).fit(texts, Y)
    assert search.best_score_ > 0.9


def test_report_of_sparse_rows_is_that_of_dense_ones():
    student = quick(projector=LELPProjector(2))
    reports = [
        subclass_report(
            student,
            rows,
            Y,
            teacher_embeddings=X,
            n_splits=2,
            max_samples=90,
            max_steps=1,
            random_state=0,
        )
        for rows in (X, sparse.coo_array(X))
    ]
    assert reports[0].pilot_gain == pytest.approx(reports[1].pilot_gain)


def test_scorer_of_labelled_rows():
    student = fitted()
    y = np.where(np.arange(len(Y)) % 3, Y, -1)
    scorer = labeled_scorer("accuracy", unlabeled=-1)
    assert scorer(student, CSR, y) == scorer(student, X, y)


# --- errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("make", [sparse.csr_array, sparse.csc_matrix])
def test_entry_that_is_not_finite_is_named(make, value):
    rows = X.copy()
    rows[7, 4] = value
    found = "NaN" if np.isnan(value) else "infinity"
    with pytest.raises(ValueError, match=rf"X contains {found}.*row 7, column 4"):
        fitted(make(rows))
    with pytest.raises(ValueError, match="row 7, column 4"):
        fitted().predict(make(rows))


def test_entries_that_are_no_real_numbers():
    with pytest.raises(ValueError, match="Complex data not supported: X has dtype"):
        fitted(CSR.astype(complex))
    rows = sparse.csr_array(X)
    rows.data = rows.data.astype(object)
    with pytest.raises(TypeError, match=r"X is a sparse matrix of dtype object"):
        fitted(rows)


@pytest.mark.parametrize(
    ("name", "values"),
    [("teacher_embeddings", X), ("teacher_logits", X[:, :2]), ("soft_targets", SOFT)],
)
def test_teacher_data_must_be_dense(name, values):
    fix = rf"{name} is a csr_array; pass a dense array, {name}\.toarray\(\)"
    with pytest.raises(TypeError, match=fix):
        quick().fit(CSR, Y, **{name: sparse.csr_array(values)})


def test_other_width_at_predict():
    with pytest.raises(ValueError, match=f"expecting {N_FEATURES} features"):
        fitted().predict(CSR[:, 1:])


def test_sparse_rows_are_no_token_ids():
    bag = nn.EmbeddingBag(5, 4)
    ids = np.arange(3 * len(Y)).reshape(-1, 3) % 5
    student = fitted(
        ids, module=lambda n_features, n_outputs: nn.Sequential(bag, nn.Linear(4, 6))
    )
    with pytest.raises(ValueError, match=r"X is sparse and .* token ids"):
        student.predict(sparse.csr_array(ids))


def test_weights_of_counts_are_kept_in_the_components():
    counts = sparse.csr_array(np.random.RandomState(0).poisson(0.3, (40, 12)))
    y, weight = np.arange(40) % 2, np.repeat([0.5, 2.0], 20)
    with pytest.warns(NoTeacherWarning):
        of_counts = quick().fit(counts, y, sample_weight=weight)
    with pytest.warns(NoTeacherWarning):
        of_numbers = quick().fit(counts.astype(np.float64), y, sample_weight=weight)
    # Integers are trained in single precision.
    assert_same_logits(of_counts, of_numbers, counts, atol=1e-5)
