"""Reviews of films, good or bad (SST-2; Socher et al., 2013), as in the paper.

The teacher is the all-MiniLM-L6-v2 sentence encoder, all of it fine-tuned on the two
classes. Teacher and students learn from the same phrases; validation is on 1 000 whole
sentences, of which no part is trained on. Seeds differ in the student's initial weights
and order of rows, not in the teacher, which takes a quarter of an hour.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.distillation.config import ORACLE
from benchmarks.distillation.datasets.base import Array
from benchmarks.distillation.methods import METHODS
from benchmarks.distillation.methods.base import TRAINING, DistillationData
from benchmarks.text import encoder
from benchmarks.text.comparison import TextTask
from benchmarks.text.data import Texts, read_sentiment, split_sentiment
from benchmarks.text.students import READERS
from lelp_sklearn import EmbeddingExtractor

MAX_WORDS = 40
TEST_SETS = {"GLUE dev": "test", "SST test": "sst_test_labelled"}


def tasks(folder: Path, cache: Path, quick: bool = False) -> list[TextTask]:
    """Fine-tune the teacher, or load it, and return the one task.

    A quick look takes a tenth of the phrases, and a teacher that has seen these once.
    """
    train, validation = split_sentiment(folder)
    name, n_epochs = "sst2", 2
    if quick:
        train, name, n_epochs = train[::10], "sst2_quick", 1
    tests = {name: read_sentiment(folder, part) for name, part in TEST_SETS.items()}
    test = Texts(
        np.concatenate([part.texts for part in tests.values()]),
        np.concatenate([part.labels for part in tests.values()]),
    )
    model = encoder.fine_tuned(
        train.texts, train.labels, cache / f"{name}_teacher.pt", n_epochs=n_epochs
    )
    tokens = encoder.tokenizer()
    extractor = EmbeddingExtractor(
        model,
        tokenizer=tokens,
        max_length=encoder.MAX_TOKENS,
        verbose=True,
    ).fit(train.texts)
    embeddings = extractor.extract(
        train.texts, cache / f"{name}_train.npy", dtype="float32"
    )
    head = as_linear(*extractor.head_)
    correct = {
        part: right(extractor, head, texts)
        for part, texts in (("validation", validation), ("test", test))
    }
    prepared = partial(
        make_data, train, np.array(embeddings), head, validation, test, correct
    )
    return [
        TextTask(
            title="sentiment",
            make_data=prepared,
            methods=[name for name in METHODS if name != ORACLE],
            learning_rates=[0.001, 0.002, 0.004],
            epochs=4,
            epoch_bounds=(1, 32),
            search_seeds=[100],
            seeds=range(5),
            scored_on={name: len(part) for name, part in tests.items()},
            teacher=model,
            ask_teacher=lambda text: (
                model(**tokens([text], return_tensors="pt")).logits
            ),
            fit_reader=lambda reader: READERS[reader](MAX_WORDS).fit(train.texts),
            texts=test.texts.tolist(),
        )
    ]


def as_linear(coef: Array, intercept: Array) -> nn.Linear:
    """Return a linear layer of given weights."""
    layer = nn.Linear(coef.shape[1], len(coef))
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(coef))
        layer.bias.copy_(torch.as_tensor(intercept))
    return layer


def right(extractor: EmbeddingExtractor, head: nn.Linear, texts: Texts) -> float:
    """Return the accuracy of the teacher."""
    with torch.no_grad():
        logits = head(torch.as_tensor(extractor.transform(texts.texts)))
    return float(np.mean(logits.argmax(1).numpy() == texts.labels))


def make_data(
    train: Texts,
    embeddings: Array,
    head: nn.Linear,
    validation: Texts,
    test: Texts,
    teacher_accuracy: dict[str, float],
    reader: str,
    seed: int,
    is_final: bool,
) -> DistillationData:
    """Give a student the phrases, and the sentences to score it on."""
    score = test if is_final else validation
    read = READERS[reader](MAX_WORDS).fit(train.texts)
    return DistillationData(
        X=read.transform(train.texts),
        y=train.labels,
        groups=None,
        embeddings=embeddings,
        head=head,
        n_units=64,
        X_score=read.transform(score.texts),
        y_score=score.labels,
        teacher_accuracy=teacher_accuracy["test" if is_final else "validation"],
        seed=seed,
        module=read.student,
        module_params=read.module_params,
        training={**TRAINING, "batch_size": 256},
    )
