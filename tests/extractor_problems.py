"""Rows, models and tokenizers that the tests of extractors share."""

import numpy as np
import torch
from torch import nn


def rows(n=50, d=6, seed=0):
    return np.random.RandomState(seed).normal(size=(n, d)).astype(np.float32)


def make_model(d=6, width=5):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(d, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 2),
    )  # fmt: skip


def logits_of(model, X):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(X)).numpy()


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.n_rows = nn.Linear(6, 2), 0

    def forward(self, x):
        self.n_rows += len(x)
        return self.head(x)


class Texts:
    """A tokenizer: characters as numbers, zeros after them."""

    def __call__(self, texts, *, padding, truncation, max_length, return_tensors):
        assert (padding, truncation, return_tensors) == (True, True, "pt")
        cut = [text[:max_length] for text in texts]
        length = max(1, *map(len, cut))
        codes = [[ord(c) for c in text.ljust(length, "\0")] for text in cut]
        ids = torch.tensor(codes)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


class TextModel(nn.Module):
    """Mean of character vectors, then a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.vectors = nn.Embedding(128, 7)
        self.head = nn.Linear(7, 2)
        self.lengths = []

    def forward(self, input_ids, attention_mask):
        self.lengths.append(input_ids.shape[1])
        mask = attention_mask[:, :, None]
        total = (self.vectors(input_ids) * mask).sum(1)
        return self.head(total / mask.sum(1).clamp(min=1))


class Spoiled(nn.Module):
    """Gives what is not finite for one of the rows."""

    def __init__(self, value):
        super().__init__()
        self.value, self.head = value, nn.Linear(6, 2)

    def forward(self, x):
        return self.head(torch.where(x[:, :1] == 77, self.value, x))
