"""What subclasses of texts are: tables and figures for the user guide.

    python benchmarks/see_text.py --data-dir FOLDER [--cache FOLDER] [--docs FOLDER]

Of messages to a bank, where each of two classes hides dozens of intents, and of reviews
of films, where nobody knows what a class hides: each subclass with its mass, entropy,
cohesion, its correlation with the teacher's margin and its most typical texts. The
teachers are those of ``distil_text.py``, from the same cache. Tables go to
``docs/user_guide/tables``, figures to ``docs/images``; agreement with the intents and
the correlations of principal directions are printed.
"""

import argparse
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.model_selection import GridSearchCV

from lelp_sklearn import (
    LELPProjector,
    LELPStudentClassifier,
    SubclassDisplay,
    subclass_table,
)
from methods import Lesson
from text import routing, sentiment
from text.data import split_sentiment

DOCS = Path(__file__).parents[1] / "docs"
N_CHARACTERS = 60
SIZES = [1, 2, 5, 10, 20, 40]


def fit(lesson: Lesson, **options) -> LELPProjector:
    """Fit a projector on a lesson's embeddings."""
    projector = LELPProjector(head=lesson.head, random_state=0, **options)
    return projector.fit(lesson.embeddings, lesson.y)


def print_agreement(lesson: Lesson) -> None:
    """Print the adjusted mutual information of subclasses and hidden groups."""
    for splitter in ("kmeans", "pca"):
        for n_subclasses in (10, 20, 40):
            projector = fit(lesson, splitter=splitter, n_subclasses=n_subclasses)
            soft = projector.transform(lesson.embeddings)
            soft = soft.reshape(len(soft), -1, n_subclasses)
            found = [
                adjusted_mutual_info_score(
                    lesson.groups[rows], soft[rows, c].argmax(axis=1)
                )
                for c in range(soft.shape[1])
                for rows in [lesson.y == c]
            ]
            print(f"{splitter}, {n_subclasses} a class: {np.mean(found):.2f}")


def print_margin_correlations(lesson: Lesson) -> None:
    """Print how far each principal direction is but the teacher's confidence."""
    projector = fit(lesson, splitter="pca", rotation=None, n_subclasses=5)
    table = subclass_table(projector, lesson.embeddings, lesson.y, lesson.y)
    by_class = table["margin_correlation"].unstack()
    print("Correlation of principal directions with the margin:")
    print(by_class.round(2).to_string())


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table of subclasses, the largest first, as a page shows it."""
    table = table.sort_values(["class", "mass"], ascending=[True, False])
    table = table.reset_index().drop(columns="subclass")
    table["samples"] = [
        " / ".join(shortened(text) for text in texts) for texts in table["samples"]
    ]
    table = table.rename(
        columns={
            "margin_correlation": "margin",
            "samples": "typical texts",
            "fine_label": "commonest intent",
            "fine_share": "its share",
        }
    )
    path.parent.mkdir(exist_ok=True)
    table.to_csv(path, index=False, float_format="%.2f")
    print(f"\n{path.name}\n{table.to_string(float_format='%.2f')}")


def shortened(text: str) -> str:
    """Cut a text at a length that a table bears."""
    text = " ".join(text.replace('"', "").split())
    return text if len(text) <= N_CHARACTERS else text[: N_CHARACTERS - 1] + "…"


def search_over_sizes(lesson: Lesson) -> GridSearchCV:
    """Search over the number of subclasses, 1 among them."""
    student = LELPStudentClassifier(
        module_params={"hidden_layer_sizes": (lesson.n_units,)},
        projector=LELPProjector(head=lesson.head, temperature=4.0, random_state=0),
        max_epochs=60,
        random_state=0,
    )
    grid = {"projector__n_subclasses": SIZES}
    search = GridSearchCV(student, grid, cv=5, n_jobs=2)
    return search.fit(lesson.X, lesson.y, teacher_embeddings=lesson.embeddings)


def save(display: SubclassDisplay, path: Path) -> None:
    """Write a figure."""
    display.figure_.savefig(path, dpi=110)
    print(f"Wrote {path}.")


def see_messages(folder: Path, cache: Path, docs: Path) -> None:
    """Show messages of bank customers."""
    train, test, names = routing.read(folder, cache)
    class_of = routing.desks(names)["arbitrary halves"]
    lesson = routing.make_lesson(train, test, class_of, "weighted n-grams", 0, True)
    _, rest = routing.split(train, 0)
    texts = train.texts.texts[rest[: routing.N_STUDENT]]
    intents = np.array(names)[lesson.groups]
    print_agreement(lesson)
    print_margin_correlations(lesson)
    projector = fit(lesson, n_subclasses=20)
    table = subclass_table(
        projector, lesson.embeddings, lesson.y, texts, n_samples=2, fine_labels=intents
    )
    # One of the two classes shows it.
    write_table(docs / "user_guide" / "tables" / "messages.csv", table.loc[[1]])
    shown = lesson.embeddings, lesson.y
    display = SubclassDisplay.from_estimator(
        projector, *shown, kind="embedding", fine_labels=intents
    )
    save(display, docs / "images" / "messages_embedding.png")
    display = SubclassDisplay.from_estimator(
        fit(lesson, splitter="pca", n_subclasses=20), *shown, kind="spectrum"
    )
    save(display, docs / "images" / "messages_spectrum.png")
    search = search_over_sizes(lesson)
    save(SubclassDisplay.from_search(search), docs / "images" / "messages_search.png")


def see_reviews(folder: Path, cache: Path, docs: Path) -> None:
    """Show reviews of films."""
    (task,) = sentiment.tasks(folder, cache)
    lesson = task.make_lesson("bag of n-grams", 0, True)
    texts, _ = split_sentiment(folder)
    # Whole sentences say more than their parts.
    rows = np.flatnonzero([len(text.split()) > 8 for text in texts.texts])
    print_margin_correlations(lesson)
    projector = fit(lesson, n_subclasses=10)
    table = subclass_table(
        projector, lesson.embeddings[rows], lesson.y[rows], texts.texts[rows]
    )
    write_table(docs / "user_guide" / "tables" / "reviews.csv", table)


def main(arguments: list[str] | None = None) -> None:
    """Write what there is data for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="keeps embeddings and teacher")
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args(arguments)
    mpl.use("agg")
    with tempfile.TemporaryDirectory() as temporary:
        cache = options.cache or Path(temporary)
        cache.mkdir(exist_ok=True)
        for name, see in (("banking77", see_messages), ("sst2", see_reviews)):
            if (options.data_dir / name).is_dir():
                see(options.data_dir, cache, options.docs)
            else:
                print(f"Skipped: there is no {options.data_dir / name}.")


if __name__ == "__main__":
    main()
