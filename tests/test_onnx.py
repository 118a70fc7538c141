"""ONNX files of pipelines, compared with the pipelines by onnxruntime."""

import numpy as np
import onnxruntime
import pytest
import skl2onnx
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import (
    CountVectorizer,
    HashingVectorizer,
    TfidfVectorizer,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler
from torch import nn

from lelp_sklearn import (
    LELPMetaClassifier,
    LELPProjector,
    LELPStudentClassifier,
    LELPStudentClassifierCV,
    NoTeacherWarning,
)
from lelp_sklearn.onnx import to_onnx

WORDS = [
    *("Über", "straße", "x1", "the", "naïve", "ÉCOLE", "日本"),
    *("don't", "a", "I", "foo_bar", "cat", "dog", "½"),
]

pytestmark = pytest.mark.filterwarnings("ignore::lelp_sklearn.NoTeacherWarning")


def make_student():
    projector = LELPProjector(n_subclasses=2)
    return LELPStudentClassifier(projector=projector, max_epochs=2, random_state=0)


@pytest.fixture(scope="module")
def texts():
    """Sentences with letters beyond ASCII, short words and marks."""
    rng = np.random.default_rng(0)
    return [
        " ".join(rng.choice(WORDS, rng.integers(1, 9))) + rng.choice(list(".!? "))
        for _ in range(80)
    ]


@pytest.fixture(scope="module")
def labels(texts):
    return np.array(["cat" if "cat" in text else "none" for text in texts])


def predictions(path, rows):
    session = onnxruntime.InferenceSession(path)
    return session.run(["label", "probabilities"], {"X": rows})


@pytest.mark.parametrize(
    "vectorizer",
    [
        TfidfVectorizer(dtype=np.float32),
        # Bigrams of words that are not in the vocabulary themselves.
        TfidfVectorizer(ngram_range=(1, 2), max_features=15),
        # A text that is a stop word stays a row.
        CountVectorizer(stop_words=["the"], lowercase=False, binary=True),
    ],
    ids=["tfidf", "bigrams", "stop words"],
)
def test_the_file_takes_raw_text(vectorizer, texts, labels, tmp_path):
    model = make_pipeline(vectorizer, make_student()).fit(texts, labels)
    to_onnx(model, texts, tmp_path / "text.onnx")
    others = np.array([*texts, "", "the", "  ", "unseen words only"], dtype=object)
    label, probabilities = predictions(tmp_path / "text.onnx", others[:, None])
    np.testing.assert_array_equal(label, model.predict(others))
    np.testing.assert_allclose(probabilities, model.predict_proba(others), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_skl2onnx_converts_a_student_in_a_pipeline(dtype, tmp_path):
    X, y = load_iris(return_X_y=True)
    X = X.astype(dtype)
    model = make_pipeline(StandardScaler(), make_student()).fit(X, y)
    converted = skl2onnx.to_onnx(model, X[:1], options={"zipmap": False})
    path = tmp_path / "iris.onnx"
    path.write_bytes(converted.SerializeToString())
    label, probabilities = predictions(path, X)
    np.testing.assert_array_equal(label, model.predict(X))
    np.testing.assert_allclose(probabilities, model.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize(
    "estimator",
    [LogisticRegression(), make_pipeline(MaxAbsScaler(), Ridge())],
    ids=["classifier", "regressor in a pipeline"],
)
def test_a_meta_classifier_takes_raw_text(estimator, texts, labels, tmp_path):
    meta = LELPMetaClassifier(estimator, projector=LELPProjector(n_subclasses=2))
    model = make_pipeline(TfidfVectorizer(dtype=np.float32), meta).fit(texts, labels)
    to_onnx(model, texts, tmp_path / "text.onnx")
    rows = np.array(texts, dtype=object)
    label, probabilities = predictions(tmp_path / "text.onnx", rows[:, None])
    np.testing.assert_array_equal(label, model.predict(texts))
    np.testing.assert_allclose(probabilities, model.predict_proba(texts), atol=1e-5)


def test_the_best_student_of_a_search_is_exported(tmp_path):
    X, y = load_iris(return_X_y=True)
    search = LELPStudentClassifierCV(
        make_student(), {"learning_rate": [0.01, 0.1]}, random_state=0
    ).fit(X, y)
    to_onnx(search, X, tmp_path / "iris.onnx")
    _, probabilities = predictions(tmp_path / "iris.onnx", X.astype(np.float32))
    np.testing.assert_allclose(probabilities, search.predict_proba(X), atol=1e-5)


def test_a_search_over_a_pipeline_of_text_is_exported_as_its_best(
    texts, labels, tmp_path
):
    model = make_pipeline(TfidfVectorizer(), LELPMetaClassifier(LogisticRegression()))
    grid = {"lelpmetaclassifier__estimator__C": [1.0, 10.0]}
    with pytest.warns(NoTeacherWarning):
        search = GridSearchCV(model, grid, cv=2).fit(texts, labels)
    to_onnx(search, texts, tmp_path / "text.onnx")
    rows = np.array(texts, dtype=object)
    _, probabilities = predictions(tmp_path / "text.onnx", rows[:, None])
    np.testing.assert_allclose(probabilities, search.predict_proba(texts), atol=1e-5)


def test_a_difference_is_an_error_that_names_the_row(texts, labels, tmp_path):
    # Python lowercases this letter to two characters, onnxruntime to one.
    texts = [*texts[:-1], "İstanbul cat"]
    model = make_pipeline(TfidfVectorizer(), make_student()).fit(texts, labels)
    to_onnx(model, texts[:-1], tmp_path / "text.onnx")
    with pytest.raises(ValueError, match=r"in 1 of 80 rows of X, in row 79 by .*İst"):
        to_onnx(model, texts, tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"sublinear_tf": True}, "'tfidfvectorizer' has sublinear_tf=True"),
        ({"analyzer": "char_wb"}, "analyzer='char_wb'.*analyzer='word'"),
        ({"strip_accents": "unicode"}, "strip_accents"),
        ({"token_pattern": r"\S+"}, "token_pattern"),
        ({"tokenizer": str.split, "token_pattern": None}, "tokenizer"),
        ({"stop_words": ["a"], "ngram_range": (1, 2)}, "stop_words and ngram_range"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_onnx_cannot_reproduce_is_refused(
    parameters, match, texts, labels, tmp_path
):
    model = make_pipeline(TfidfVectorizer(**parameters), make_student())
    model.fit(texts, labels)
    with pytest.raises(ValueError, match=match):
        to_onnx(model, texts, tmp_path / "text.onnx")


def test_hashed_words_are_refused(texts, labels, tmp_path):
    model = make_pipeline(HashingVectorizer(n_features=64), make_student())
    model.fit(texts, labels)
    with pytest.raises(NotImplementedError, match="use TfidfVectorizer"):
        to_onnx(model, texts, tmp_path / "text.onnx")


def test_a_data_frame_of_numbers(tmp_path):
    frame, y = load_iris(return_X_y=True, as_frame=True)
    model = make_pipeline(StandardScaler(), make_student()).fit(frame, y)
    to_onnx(model, frame, tmp_path / "iris.onnx")
    _, probabilities = predictions(
        tmp_path / "iris.onnx", frame.to_numpy(dtype=np.float32)
    )
    np.testing.assert_allclose(probabilities, model.predict_proba(frame), atol=1e-5)
    with pytest.raises(ValueError, match="make numbers of categories"):
        to_onnx(model, frame.assign(colour="red"), tmp_path / "iris.onnx")


def test_images(tmp_path):
    images, y = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8).astype(np.float32) / 16
    template = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))
    student = LELPStudentClassifier(template, max_epochs=1, random_state=0)
    student.fit(images, y, soft_targets=np.eye(10, dtype=np.float32)[y])
    to_onnx(student, images[:50], tmp_path / "digits.onnx")
    _, probabilities = predictions(tmp_path / "digits.onnx", images[:50])
    expected = student.predict_proba(images[:50])
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_bad_arguments_are_named(texts, labels, tmp_path):
    model = make_pipeline(CountVectorizer(), make_student())
    with pytest.raises(NotFittedError):
        to_onnx(model, texts, tmp_path / "text.onnx")
    model.fit(texts, labels)
    with pytest.raises(TypeError, match="X has int in row 1"):
        to_onnx(model, ["a", 1], tmp_path / "text.onnx")
    with pytest.raises(ValueError, match="first step of model is no vectorizer"):
        to_onnx(model[-1], ["a", "b"], tmp_path / "text.onnx")
    with pytest.raises(ValueError, match=r"path=.*text.txt.*'\.onnx'"):
        to_onnx(model, texts, tmp_path / "text.txt")
