"""Numba leaves. They trust their callers: no validation here."""

import math

import numpy as np
from numba import njit

from lelp_sklearn._common.typing import FloatArray


@njit(cache=True, nogil=True)
def subclass_probabilities(
    z: FloatArray,
    logits: FloatArray,
    temperature: float,
    subclass_temperature: float,
    out: FloatArray,
) -> None:
    r"""Write p_{c,s} = p_c q_{c,s} for every row.

    .. math:: p_c = \mathrm{softmax}_c(\ell / \tau), \quad
              q_{c,s} = \mathrm{softmax}_s(z_{c,\cdot} / \beta)

    Parameters
    ----------
    z : (n, C*S) projections; logits : (n, C); out : (n, C*S)
    temperature, subclass_temperature : float
        tau and beta; a beta of 0 gives the class mass whole to the first of the
        largest z.
    """
    n_rows, n_classes = logits.shape
    n_subclasses = z.shape[1] // n_classes
    mass = np.empty(n_classes, dtype=logits.dtype)
    for i in range(n_rows):
        softmax_into(logits[i], temperature, mass)
        for c in range(n_classes):
            columns = slice(c * n_subclasses, (c + 1) * n_subclasses)
            share = out[i, columns]
            if subclass_temperature > 0:
                softmax_into(z[i, columns], subclass_temperature, share)
                share *= mass[c]
            else:
                share[:] = 0
                share[np.argmax(z[i, columns])] = mass[c]


@njit(cache=True, nogil=True)
def softmax_into(scores: FloatArray, temperature: float, out: FloatArray) -> None:
    """Write softmax(scores / temperature), shifted by the maximum against overflow."""
    top = scores.max()
    total = 0.0
    for j in range(scores.size):
        out[j] = math.exp((scores[j] - top) / temperature)
        total += out[j]
    for j in range(scores.size):
        out[j] /= total
