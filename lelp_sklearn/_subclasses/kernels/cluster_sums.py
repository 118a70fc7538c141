"""Numba leaves of k-means in memory. They trust their callers: no validation here."""

import numpy as np
from numpy.typing import NDArray

from lelp_sklearn._subclasses.kernels import fallback
from lelp_sklearn._subclasses.kernels.fallback import PATIENCE
from lelp_sklearn._subclasses.kernels.jit import compiled, kernel
from lelp_sklearn._subclasses.kernels.simd import REGISTER_BYTES, multiply_add
from lelp_sklearn._typing import FloatArray, IntArray

# Points of a tile: a multiple of three vectors, whatever the processor.
_TILE_POINTS = 192
# Centroids that are multiplied at once.
_AT_ONCE = 4


def tiles(points: FloatArray) -> FloatArray:
    """Copy points (n, m) into tiles (n_tiles, m, points), zeros after the last."""
    n_points, n_axes = points.shape
    n_tiles = -(-n_points // _TILE_POINTS)
    padded = np.zeros((n_tiles * _TILE_POINTS, n_axes), points.dtype)
    padded[:n_points] = points
    by_tile = padded.reshape(n_tiles, _TILE_POINTS, n_axes)
    return np.ascontiguousarray(by_tile.transpose(0, 2, 1))


@kernel(plain=fallback.lloyd)
def lloyd(
    tiles: FloatArray,
    weight: FloatArray,
    centroids: FloatArray,
    labels: NDArray[np.int32],
    tolerance: float,
    max_iterations: int,
    goal: float,
) -> None:
    """Move centroids (k, m) to the means of their points until that gains little.

    Writes the centroids and the labels (n,) of the points of which they are the means;
    a centroid without points stays where it is. The end comes when no point moves, when
    an iteration lowers the inertia by less than `tolerance` of itself, or when it is
    not expected to fall to `goal`.
    """
    n_clusters, n_axes = centroids.shape
    # Rows of zeros after the last one, to a number that is multiplied at once.
    n_rows = -(-n_clusters // _AT_ONCE) * _AT_ONCE
    factors, half_squares = np.zeros((n_rows, n_axes)), np.zeros(n_clusters)
    scores = np.zeros((n_rows, _TILE_POINTS))
    nearest = np.empty(_TILE_POINTS, np.int32)
    # Sums change only by the points that move: after a few iterations these are few.
    sums = np.zeros((n_clusters, n_axes))
    held = np.zeros(n_clusters)
    counts = np.zeros(n_clusters, np.int64)
    labels[:] = -1
    squares, explained = 0.0, 0.0
    for iteration in range(max_iterations):
        half_squares[:] = 0
        for k in range(n_clusters):
            for j in range(n_axes):
                factors[k, j] = centroids[k, j]
                half_squares[k] += centroids[k, j] * centroids[k, j] / 2
        n_moved = 0
        for t in range(len(tiles)):
            tile, start = tiles[t], t * _TILE_POINTS
            _find_nearest(tile, factors, half_squares, scores, nearest)
            for r in range(min(_TILE_POINTS, len(labels) - start)):
                old, new = labels[start + r], nearest[r]
                if old == new:
                    continue
                n_moved += 1
                labels[start + r] = new
                w = weight[start + r]
                held[new] += w
                counts[new] += 1
                for j in range(n_axes):
                    sums[new, j] += w * tile[j, r]
                    if old < 0:
                        squares += w * tile[j, r] * tile[j, r]
                    else:
                        sums[old, j] -= w * tile[j, r]
                if old >= 0:
                    held[old] -= w
                    counts[old] -= 1
        if not n_moved:
            break
        before, explained = explained, 0.0
        for k in range(n_clusters):
            if counts[k]:
                for j in range(n_axes):
                    centroids[k, j] = sums[k, j] / held[k]
                    explained += sums[k, j] * centroids[k, j]
        # Less than this part of what is explained may be rounding.
        inertia = max(squares - explained, tolerance * explained)
        gain = explained - before
        if iteration and gain <= max(tolerance * inertia, (inertia - goal) / PATIENCE):
            break


@kernel(plain=fallback.measure)
def measure(
    points: FloatArray,
    weight: FloatArray,
    centroids: FloatArray,
    labels: NDArray[np.int32],
    rounding: float,
    sizes: FloatArray,
    inertias: FloatArray,
    farthest: IntArray,
) -> None:
    """Add weights and inertias of the clusters to zeros (k,); write who is farthest.

    A squared distance of at most `rounding` counts as none. First the centroids are
    moved by the mean of what points are off them: that is what rounding left in the
    long sums of which they came.
    """
    shifts = np.zeros(centroids.shape)
    for i in range(len(points)):
        k = labels[i]
        sizes[k] += weight[i]
        for j in range(points.shape[1]):
            shifts[k, j] += weight[i] * (points[i, j] - centroids[k, j])
    for k in range(len(centroids)):
        if sizes[k] > 0:
            for j in range(points.shape[1]):
                centroids[k, j] += shifts[k, j] / sizes[k]
    most = np.full(len(centroids), -1.0)
    for i in range(len(points)):
        k, square = labels[i], 0.0
        for j in range(points.shape[1]):
            apart = points[i, j] - centroids[k, j]
            square += apart * apart
        if square > rounding:
            inertias[k] += weight[i] * square
        if square > most[k]:
            most[k], farthest[k] = square, i


@compiled
def _find_nearest(
    tile: FloatArray,
    factors: FloatArray,
    half_squares: FloatArray,
    scores: FloatArray,
    nearest: NDArray[np.int32],
) -> None:
    """Write the first of the centroids nearest to each point of a tile.

    That is the one whose product with the point less half of its own square is largest.
    """
    width = 3 * (REGISTER_BYTES // tile.itemsize)
    for k in range(len(half_squares)):
        scores[k] = -half_squares[k]
    for first in range(0, _TILE_POINTS, width):
        panel = slice(first, first + width)
        columns, sums = tile[:, panel], scores[:, panel]
        for k in range(0, len(factors), _AT_ONCE):
            multiply_add(factors[k:], columns, sums[k:], 4, 3)
    top = scores[0]
    nearest[:] = 0
    for k in range(1, len(half_squares)):
        mine = scores[k]
        for r in range(_TILE_POINTS):
            nearest[r] = k if mine[r] > top[r] else nearest[r]
            top[r] = max(mine[r], top[r])
