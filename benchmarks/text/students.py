"""Small students of texts, and the numbers that they read.

Two take a text as a row of integers, 0 being padding, and have a `body`, from whose
output FitNet regresses, and a `head`. The third is the library's own perceptron.
"""

from collections import Counter
from typing import ClassVar

import numpy as np
import torch
from sklearn.feature_extraction.text import (
    CountVectorizer,
    HashingVectorizer,
    TfidfTransformer,
)
from sklearn.utils import murmurhash3_32
from torch import Tensor, nn

N_FEATURES, N_BUCKETS, MIN_COUNT = 2**11, 2**16, 2
# Small, so that what was never trained on says little.
INITIAL_SCALE = 0.1
PADDING, UNKNOWN = 0, 1


class BagOfNgrams(nn.Module):
    """The mean of the vectors of all words and pairs of words, and a hidden layer."""

    def __init__(self, n_features, n_outputs, *, n_ids, n_units=64, dropout=0.3):
        super().__init__()
        bag = nn.EmbeddingBag(n_ids, n_units // 2, padding_idx=PADDING)
        nn.init.normal_(bag.weight, std=INITIAL_SCALE)
        self.body = nn.Sequential(
            bag,
            nn.Linear(n_units // 2, n_units),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(n_units, n_outputs)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(ids))


class ConvolutionOverWords(nn.Module):
    """The largest answer, over all places, of filters upon three words."""

    def __init__(self, n_features, n_outputs, *, n_ids, n_units=64, dropout=0.3):
        super().__init__()
        self.embedding = nn.Embedding(n_ids, n_units // 2, padding_idx=PADDING)
        nn.init.normal_(self.embedding.weight, std=INITIAL_SCALE)
        self.filters = nn.Conv1d(n_units // 2, n_units, kernel_size=3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(n_units, n_outputs)

    def body(self, ids: Tensor) -> Tensor:
        vectors = self.embedding(ids).transpose(1, 2)
        return self.dropout(torch.relu(self.filters(vectors).amax(2)))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(ids))


class HashedNgrams:
    """Texts as the hashes of their words and pairs of words."""

    student = BagOfNgrams
    module_params: ClassVar = {"n_ids": N_BUCKETS}

    def __init__(self, max_words: int) -> None:
        self.length = 2 * max_words - 1
        self.split = CountVectorizer(
            ngram_range=(1, 2), token_pattern=r"\S+"
        ).build_analyzer()

    def fit(self, texts) -> "HashedNgrams":
        """Learn nothing: a hash needs no vocabulary."""
        return self

    def transform(self, texts) -> np.ndarray:
        """Return the ids, (n, length)."""
        return padded(map(self.ids_of, texts), len(texts), self.length)

    def ids_of(self, text: str) -> list[int]:
        hashes = (murmurhash3_32(n, positive=True) for n in self.split(text))
        return [1 + number % (N_BUCKETS - 1) for number in hashes]


class WordIds:
    """Texts as words of a vocabulary: those that come at least twice."""

    student = ConvolutionOverWords

    def __init__(self, max_words: int) -> None:
        self.length = max_words
        self.split = CountVectorizer(token_pattern=r"\S+").build_analyzer()

    def fit(self, texts) -> "WordIds":
        """Count the words."""
        counts = Counter(word for text in texts for word in self.split(text))
        known = sorted(word for word, n in counts.items() if n >= MIN_COUNT)
        self.id_of = {word: i for i, word in enumerate(known, start=UNKNOWN + 1)}
        self.module_params = {"n_ids": len(known) + UNKNOWN + 1}
        return self

    def transform(self, texts) -> np.ndarray:
        """Return the ids, (n, length)."""
        return padded(map(self.ids_of, texts), len(texts), self.length)

    def ids_of(self, text: str) -> list[int]:
        return [self.id_of.get(word, UNKNOWN) for word in self.split(text)]


class HashedTfidf:
    """Texts as weighted counts of hashed words and pairs of words."""

    student: ClassVar = None
    module_params: ClassVar = {}

    def __init__(self, max_words: int) -> None:
        self.counts = HashingVectorizer(n_features=N_FEATURES, ngram_range=(1, 2))
        self.weights = TfidfTransformer()

    def fit(self, texts) -> "HashedTfidf":
        """Count in how many texts each hash comes."""
        self.weights.fit(self.counts.transform(texts))
        return self

    def transform(self, texts) -> np.ndarray:
        """Return the weighted counts, (n, n_features), their mean square being 1."""
        counts = self.weights.transform(self.counts.transform(texts)).toarray()
        return (counts * N_FEATURES**0.5).astype(np.float32)


def padded(rows, n_rows: int, length: int) -> np.ndarray:
    """Return lists of ids as an array, longer ones cut."""
    ids = np.full((n_rows, length), PADDING, dtype=np.int64)
    for row, found in zip(ids, rows, strict=True):
        row[: len(found)] = found[:length]
    return ids


READERS = {
    "weighted n-grams": HashedTfidf,
    "bag of n-grams": HashedNgrams,
    "convolution": WordIds,
}
