"""Pictures as vectors: as they are, or what random patches of them respond.

The second is the front end of Coates, Ng and Lee (2011), with random patches in place
of learned ones: whitened patches, a threshold, and sums over quarters of the picture.
"""

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d, conv2d, relu

from benchmarks.distillation.datasets.base import Array

SIDE, RIDGE, ROWS_AT_ONCE = 6, 0.1, 500


def as_vectors(X: Array, X_score: Array, n_patches: int) -> tuple[Array, Array]:
    """Return both as vectors, float32, each column scaled by the first's."""
    if not n_patches:
        return tuple(part.reshape(len(part), -1) for part in (X, X_score))
    filters, bias = whitened_patches(X, n_patches)
    parts = [responses(part, filters, bias) for part in (X, X_score)]
    mean, spread = parts[0].mean(0), parts[0].std(0) + 1e-6
    return tuple((part - mean) / spread for part in parts)


def whitened_patches(X: Array, n_patches: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return filters that whiten a patch and multiply it by random whitened ones."""
    rng = np.random.default_rng(0)
    n, _, height, width = X.shape
    draws = rng.integers(0, (n, height - SIDE + 1, width - SIDE + 1), (10_000, 3))
    patches = np.stack([X[i, :, r : r + SIDE, c : c + SIDE] for i, r, c in draws])
    patches = patches.reshape(len(draws), -1).astype(np.float64)
    mean = patches.mean(0)
    values, vectors = np.linalg.eigh(np.cov(patches, rowvar=False))
    whiten = vectors / np.sqrt(values + RIDGE) @ vectors.T
    chosen = (patches[:n_patches] - mean) @ whiten
    chosen /= np.linalg.norm(chosen, axis=1, keepdims=True)
    filters = chosen @ whiten
    shape = (n_patches, X.shape[1], SIDE, SIDE)
    bias = torch.from_numpy(-filters @ mean - 1.0).float()
    return torch.from_numpy(filters.reshape(shape)).float(), bias


def responses(X: Array, filters: torch.Tensor, bias: torch.Tensor) -> Array:
    """Return the mean response above the threshold in each quarter, (n, 4 m)."""
    found = []
    for start in range(0, len(X), ROWS_AT_ONCE):
        rows = torch.from_numpy(X[start : start + ROWS_AT_ONCE]).float()
        answers = relu(conv2d(rows, filters, bias))
        found.append(adaptive_avg_pool2d(answers, 2).flatten(1).numpy())
    return np.concatenate(found)
