"""ONNX files of whole pipelines, raw text included, through skl2onnx.

Importing this module registers the classifiers of this package with skl2onnx, so that
``skl2onnx.to_onnx`` converts them and pipelines that end in one.
"""

import copy
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import skl2onnx
from onnx import TensorProto, helper, numpy_helper
from skl2onnx.common.data_types import (
    FloatTensorType,
    Int64TensorType,
    StringTensorType,
)
from skl2onnx.helpers.integration import add_onnx_graph
from sklearn.base import is_regressor
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils.validation import check_is_fitted

from lelp_sklearn._files import check_writable, new_file
from lelp_sklearn._meta import LELPMetaClassifier
from lelp_sklearn._student import LELPStudentClassifier
from lelp_sklearn._student_cv import LELPStudentClassifierCV
from lelp_sklearn._typing import FloatArray

__all__ = ["to_onnx"]

_DEFAULT_TOKEN_PATTERN = CountVectorizer().token_pattern
# The same tokens, in the syntax of the regular expressions of onnxruntime.
_TOKEN_PATTERN = r"[\p{L}\p{N}_]{2,}"
# The version of ONNX's operators that torch's exporter writes.
_OPSET = 20
# The largest difference of a probability between file and pipeline.
_TOLERANCE = 1e-5
# Parameters of a vectorizer that ONNX has no counterpart for, and what it has instead.
_REQUIRED = {
    "input": "content",
    "analyzer": "word",
    "strip_accents": None,
    "preprocessor": None,
    "tokenizer": None,
    "token_pattern": _DEFAULT_TOKEN_PATTERN,
    "sublinear_tf": False,
}


def to_onnx(model: Any, X: Any, path: str | PathLike[str]) -> None:
    """Write a fitted pipeline as one ONNX file, and compare the file with it.

    The file takes what the first step takes: raw strings of shape (n, 1) in the input
    ``X`` if the first step is a CountVectorizer or a TfidfVectorizer, otherwise numbers
    of shape (n, n_features), or of the shape of images, in single precision. Its
    outputs are ``label`` of shape (n,) and ``probabilities`` of shape (n, n_classes),
    in the order of `classes_`. The number of rows is free. The pipeline is converted by
    skl2onnx; the tokens of a vectorizer are in a sparse matrix in scikit-learn and in a
    dense one in ONNX, which has 4 bytes for each row and word of the vocabulary.

    Parameters
    ----------
    model : Pipeline, LELPStudentClassifier, LELPStudentClassifierCV or \
            LELPMetaClassifier
        The fitted model, or a search whose best estimator is one. Steps before the
        classifier, and the estimator of a LELPMetaClassifier, must be such as skl2onnx
        converts.
    X : array-like of str of shape (n_samples,) or of shape (n_samples, ...)
        Rows on which the file is compared with `model`. They should be such as the
        file will be used on.
    path : str or os.PathLike
        A name that ends in ``.onnx``. An existing file is replaced.

    Raises
    ------
    NotFittedError
        If `model` is not fitted.
    ValueError
        If `path` cannot be written, if a step has a parameter that ONNX has no
        counterpart for, or if a probability of a row of `X` in the file differs from
        that of `model` by more than 1e-5. The row is named, and nothing is written.
    NotImplementedError
        If a step is a HashingVectorizer.

    Notes
    -----
    Text is lowercased in the locale "C", which leaves letters beyond ASCII as they are,
    if all words of the vocabulary are in ASCII, and otherwise in the locale "C.UTF-8",
    which the machine that runs the file needs.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from sklearn.feature_extraction.text import TfidfVectorizer
    >>> from sklearn.pipeline import make_pipeline
    >>> import lelp_sklearn.onnx
    >>> from lelp_sklearn import LELPStudentClassifier
    >>> texts, y = ["good film", "bad film", "so good", "too bad"], [1, 0, 1, 0]
    >>> soft = np.eye(2)[y]
    >>> student = LELPStudentClassifier(max_epochs=2, random_state=0)
    >>> model = make_pipeline(TfidfVectorizer(dtype=np.float32), student)
    >>> model.fit(texts, y, lelpstudentclassifier__soft_targets=soft)
    Pipeline(...)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lelp_sklearn.onnx.to_onnx(model, texts, Path(folder) / "film.onnx")
    """
    check_is_fitted(model)
    model = getattr(model, "best_estimator_", model)
    pipeline = model if isinstance(model, Pipeline) else make_pipeline(model)
    if _is_vectorizer(pipeline[0]):
        X = _as_strings(X)
        rows, kind = X[:, None], StringTensorType([None, 1])
    else:
        X = _as_numbers(X)
        rows, kind = np.asarray(X), FloatTensorType([None, *X.shape[1:]])
    target = Path(path)
    check_writable(target, "path", ".onnx")
    steps = [(name, _convertible(name, step)) for name, step in pipeline.steps]
    pipeline = Pipeline(steps)
    content = skl2onnx.to_onnx(
        pipeline,
        initial_types=[("X", kind)],
        options=_tokenizer_options(pipeline) | {id(pipeline[-1]): {"zipmap": False}},
        target_opset=_OPSET,
    ).SerializeToString()
    _compare(content, rows, model, X)
    with new_file(target, len(content), "path") as file:
        file.write(content)


def _as_numbers(X: Any) -> Any:
    """Return rows as numbers in single precision; a pandas data frame stays one."""
    try:
        is_frame = hasattr(X, "iloc")
        return X.astype(np.float32) if is_frame else np.asarray(X, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "X must be dense rows of numbers, since the first step of model is no "
            "vectorizer: to export a model of text, pass a Pipeline whose first step "
            "is a TfidfVectorizer or a CountVectorizer; make numbers of categories "
            "before the pipeline."
        ) from error


def _as_strings(X: Any) -> Any:
    """Return texts as an array of objects (n,)."""
    texts = np.asarray(X, dtype=object)
    for row, text in enumerate(texts.ravel()):
        if not isinstance(text, str):
            raise TypeError(
                f"X has {type(text).__name__} in row {row}; it must hold strings, "
                "which the first step of the pipeline takes."
            )
    return texts.ravel()


def _is_vectorizer(step: Any) -> bool:
    return isinstance(step, CountVectorizer | HashingVectorizer)


def _convertible(name: str, step: Any) -> Any:
    """Return a step as skl2onnx converts it right; a vectorizer is copied."""
    if isinstance(step, HashingVectorizer):
        raise NotImplementedError(
            f"step {name!r} is a HashingVectorizer, whose hash skl2onnx does not "
            "have: use TfidfVectorizer(max_features=...), which has a vocabulary."
        )
    if not isinstance(step, CountVectorizer):
        return step
    for parameter, required in _REQUIRED.items():
        value = getattr(step, parameter, required)
        if value != required:
            raise ValueError(
                f"step {name!r} has {parameter}={value!r}, which ONNX files cannot "
                f"reproduce: fit the pipeline with {parameter}={required!r}."
            )
    has_several_words = step.ngram_range[1] > 1
    if has_several_words and step.stop_words is not None:
        raise ValueError(
            f"step {name!r} has stop_words and ngram_range={step.ngram_range!r}: in an "
            "ONNX file words are joined that a stop word stands between. Fit the "
            "pipeline with stop_words=None or ngram_range=(1, 1)."
        )
    step = copy.copy(step)
    # Single stop words are in no vocabulary; skl2onnx would remove texts.
    step.stop_words = None
    # As tuples of words, none of which has to be in the vocabulary itself.
    step.vocabulary_ = {
        tuple(words.split(" ")): index for words, index in step.vocabulary_.items()
    }
    return step


def _tokenizer_options(pipeline: Pipeline) -> dict[int, dict[str, Any]]:
    """Return the options of skl2onnx for vectorizers: their tokens and locale."""
    options = {}
    for _, step in pipeline.steps:
        if _is_vectorizer(step):
            is_ascii = all("".join(words).isascii() for words in step.vocabulary_)
            locale = "C" if is_ascii else "C.UTF-8"
            options[id(step)] = {"tokenexp": _TOKEN_PATTERN, "locale": locale}
    return options


def _compare(content: bytes, rows: Any, model: Any, X: Any) -> None:
    """Raise if a file that reads `rows` differs from a model that reads X."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    label, probabilities = session.run(["label", "probabilities"], {"X": rows})
    expected: FloatArray = model.predict_proba(X)
    differences = np.abs(probabilities - expected).max(axis=1)
    # The label of a file is that of its own probabilities.
    differences[label != model.classes_[probabilities.argmax(axis=1)]] = 1
    if not (differences <= _TOLERANCE).all():
        row, n_rows = int(differences.argmax()), (differences > _TOLERANCE).sum()
        raise ValueError(
            f"The ONNX file differs from model in {n_rows} of "
            f"{len(X)} rows of X, in row {row} by {differences[row]:.1e} (tolerance "
            f"{_TOLERANCE:.0e}): {rows[row]!r}. Export the steps before the classifier "
            "by themselves to find the one that differs."
        )


# --- converters -----------------------------------------------------------------------


def _set_output_types(operator: Any) -> None:
    """Declare labels and probabilities."""
    classes = operator.raw_operator.classes_
    n_rows = operator.inputs[0].get_first_dimension()
    label = StringTensorType if _is_text(classes) else Int64TensorType
    operator.outputs[0].type = label([n_rows])
    operator.outputs[1].type = FloatTensorType([n_rows, len(classes)])


def _is_text(classes: Any) -> bool:
    return isinstance(classes[0], str)


def _convert_student(scope: Any, operator: Any, container: Any) -> None:
    """Add the graph of a student, and of its labels."""
    student = operator.raw_operator
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.onnx"
        student.to_onnx(path)
        model = onnx.load(path)
    graph = model.graph
    number = graph.input[0].type.tensor_type.elem_type
    for node in graph.node:
        node.input[:] = ["numbers" if each == "X" else each for each in node.input]
    cast = helper.make_node("Cast", ["X"], ["numbers"], "cast", to=number)
    graph.node.insert(0, cast)
    _add_labels(graph, student.classes_)
    add_onnx_graph(scope, operator, container, model)


def _convert_meta_classifier(scope: Any, operator: Any, container: Any) -> None:
    """Add the graph of the inner estimator, and the sums over its subclasses."""
    meta = operator.raw_operator
    estimator, n_classes = meta.estimator_, len(meta.classes_)
    last_step = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    options = None if is_regressor(last_step) else {id(last_step): {"zipmap": False}}
    rows = operator.inputs[0].type
    model = skl2onnx.to_onnx(
        estimator,
        initial_types=[("X", type(rows)([None, *rows.shape[1:]]))],
        options=options,
        target_opset=container.target_opset,
    )
    graph = model.graph
    outputs = [output.name for output in graph.output]
    del graph.output[:]
    subclass_of_output = np.arange(meta._n_outputs)
    if not is_regressor(last_step):
        subclass_of_output = meta._seen_subclasses
    n_subclasses = meta._n_outputs // n_classes
    indicator = np.eye(n_classes, dtype=np.float32)[subclass_of_output // n_subclasses]
    tiny = np.array([np.finfo(np.float32).tiny])
    axis = np.array([1])
    for name, value in (("indicator", indicator), ("tiny", tiny), ("axis", axis)):
        graph.initializer.append(numpy_helper.from_array(value, f"lelp_{name}"))
    # Predictions of a regressor are no probabilities before they are divided.
    sums = [
        ("Max", [outputs[-1], "lelp_tiny"], "lelp_shares"),
        ("MatMul", ["lelp_shares", "lelp_indicator"], "lelp_masses"),
        ("ReduceSum", ["lelp_masses", "lelp_axis"], "lelp_total"),
        ("Div", ["lelp_masses", "lelp_total"], "lelp_probabilities"),
    ]
    graph.node.extend(
        helper.make_node(kind, inputs, [output], output)
        for kind, inputs, output in sums
    )
    probabilities = helper.make_tensor_value_info(
        "lelp_probabilities", TensorProto.FLOAT, [None, n_classes]
    )
    graph.output.append(probabilities)
    _add_labels(graph, meta.classes_)
    add_onnx_graph(scope, operator, container, model)


def _add_labels(graph: Any, classes: Any) -> None:
    """Put the most likely class before the probabilities, the only output so far."""
    (probabilities,) = graph.output
    is_text = _is_text(classes)
    values = classes.astype(object if is_text else np.int64)
    graph.initializer.append(numpy_helper.from_array(values, "lelp_classes"))
    index = helper.make_node(
        "ArgMax", [probabilities.name], ["lelp_index"], "lelp_index", axis=1, keepdims=0
    )
    label = helper.make_node(
        "Gather", ["lelp_classes", "lelp_index"], ["lelp_label"], "lelp_label"
    )
    graph.node.extend([index, label])
    kind = TensorProto.STRING if is_text else TensorProto.INT64
    graph.output.insert(0, helper.make_tensor_value_info("lelp_label", kind, [None]))


for _classifier, _convert in (
    (LELPStudentClassifier, _convert_student),
    (LELPStudentClassifierCV, _convert_student),
    (LELPMetaClassifier, _convert_meta_classifier),
):
    skl2onnx.update_registered_converter(
        _classifier,
        _classifier.__name__,
        _set_output_types,
        _convert,
        options={"zipmap": [True, False, "columns"]},
    )
