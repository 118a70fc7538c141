"""What subclasses of texts are: tables and figures for the user guide.

    python benchmarks/text/see.py --data-dir FOLDER [--cache FOLDER] [--docs FOLDER]

Of messages to a bank, where each of two classes hides dozens of intents, and of reviews
of films, where nobody knows what a class hides: each subclass with its mass, entropy,
cohesion, its correlation with the teacher's margin and its most typical texts. The
teachers are those of ``run.py``, from the same cache. Tables go to
``docs/user_guide/tables``, figures to ``docs/images``; agreement with the intents and
the correlations of principal directions are printed.
"""

import argparse
import sys
import tempfile
from pathlib import Path

if __package__ is None:  # run as a script
    sys.path[0] = str(Path(__file__).parents[2])

import matplotlib as mpl
import numpy as np
import pandas as pd
from sklearn.model_selection import GridSearchCV

from benchmarks.distillation.methods.base import DistillationData
from benchmarks.distillation.statistics import agreement
from benchmarks.text import routing, sentiment
from benchmarks.text.data import split_sentiment
from lelp_sklearn import (
    LELPProjector,
    LELPStudentClassifier,
    SubclassDisplay,
    subclass_table,
)

DOCS = Path(__file__).parents[2] / "docs"
N_CHARACTERS = 60
SIZES = [1, 2, 5, 10, 20, 40]


def fit(data: DistillationData, **options) -> LELPProjector:
    """Fit a projector on the embeddings."""
    projector = LELPProjector(head=data.head, random_state=0, **options)
    return projector.fit(data.embeddings, data.y)


def print_agreement(data: DistillationData) -> None:
    """Print the adjusted mutual information of subclasses and hidden groups."""
    for splitter in ("kmeans", "pca"):
        for n_subclasses in (10, 20, 40):
            projector = fit(data, splitter=splitter, n_subclasses=n_subclasses)
            soft = projector.transform(data.embeddings)
            soft = soft.reshape(len(soft), -1, n_subclasses)
            print(f"{splitter}, {n_subclasses} a class: {agreement(data, soft):.2f}")


def print_margin_correlations(data: DistillationData) -> None:
    """Print how far each principal direction is but the teacher's confidence."""
    projector = fit(data, splitter="pca", rotation=None, n_subclasses=5)
    table = subclass_table(projector, data.embeddings, data.y, data.y)
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


def search_over_sizes(data: DistillationData) -> GridSearchCV:
    """Search over the number of subclasses, 1 among them."""
    student = LELPStudentClassifier(
        module_params={"hidden_layer_sizes": (data.n_units,)},
        projector=LELPProjector(head=data.head, temperature=4.0, random_state=0),
        within_class_temperature=4.0,
        learning_rate=0.01,
        batch_size=128,
        max_epochs=60,
        random_state=0,
    )
    grid = {"projector__n_subclasses": SIZES}
    search = GridSearchCV(student, grid, cv=5, n_jobs=2)
    return search.fit(data.X, data.y, teacher_embeddings=data.embeddings)


def save(display: SubclassDisplay, path: Path) -> None:
    """Write a figure."""
    display.figure_.savefig(path, dpi=110)
    print(f"Wrote {path}.")


def see_messages(folder: Path, cache: Path, docs: Path) -> None:
    """Show messages of bank customers."""
    train, test, names = routing.read(folder, cache)
    class_of = routing.desks(names)["arbitrary halves"]
    data = routing.make_data(train, test, class_of, "weighted n-grams", 0, True)
    _, rest = routing.split(train, 0)
    texts = train.texts.texts[rest[: routing.N_STUDENT]]
    intents = np.array(names)[data.groups]
    print_agreement(data)
    print_margin_correlations(data)
    projector = fit(data, n_subclasses=20)
    table = subclass_table(
        projector, data.embeddings, data.y, texts, n_samples=2, fine_labels=intents
    )
    # One of the two classes shows it.
    write_table(docs / "user_guide" / "tables" / "messages.csv", table.loc[[1]])
    shown = data.embeddings, data.y
    display = SubclassDisplay.from_estimator(
        projector, *shown, kind="embedding", fine_labels=intents
    )
    save(display, docs / "images" / "messages_embedding.png")
    display = SubclassDisplay.from_estimator(
        fit(data, splitter="pca", n_subclasses=20), *shown, kind="spectrum"
    )
    save(display, docs / "images" / "messages_spectrum.png")
    search = search_over_sizes(data)
    save(SubclassDisplay.from_search(search), docs / "images" / "messages_search.png")


def see_reviews(folder: Path, cache: Path, docs: Path) -> None:
    """Show reviews of films."""
    (task,) = sentiment.tasks(folder, cache)
    data = task.make_data("bag of n-grams", 0, True)
    texts, _ = split_sentiment(folder)
    # Whole sentences say more than their parts.
    rows = np.flatnonzero([len(text.split()) > 8 for text in texts.texts])
    print_margin_correlations(data)
    projector = fit(data, n_subclasses=10)
    table = subclass_table(
        projector, data.embeddings[rows], data.y[rows], texts.texts[rows]
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
