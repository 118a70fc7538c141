"""What a user would write without this library, in NumPy, torch and scikit-learn."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import orth
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA, IncrementalPCA
from sklearn.utils import gen_batches

from lelp_sklearn import LELPProjector

Array = np.ndarray


def numpy_soft_labels(
    X: Array, columns: Array, offsets: Array, shape: tuple[int, int]
) -> Array:
    """Return soft labels by one product and two softmaxes in place.

    The scores have a row for each column, the logits' last: NumPy uses vector
    instructions along the many rows of X, and none along the few subclasses.
    """
    n_classes, n_subclasses = shape
    scores = columns @ X.T
    scores -= offsets[:, None]
    q = scores[: n_classes * n_subclasses].reshape(*shape, len(X))
    mass = scores[n_classes * n_subclasses :]
    for exponentials in (q, mass):
        exponentials -= exponentials.max(axis=-2, keepdims=True)
        np.exp(exponentials, out=exponentials)
    mass /= mass.sum(axis=0)
    mass /= q.sum(axis=1)
    q *= mass[:, None]
    return np.ascontiguousarray(q.reshape(-1, len(X)).T)


def torch_soft_labels(
    X: torch.Tensor,
    columns: torch.Tensor,
    offsets: torch.Tensor,
    shape: tuple[int, int],
) -> torch.Tensor:
    """Return soft labels by one product and torch's softmax along the subclasses."""
    return finish(X @ columns.T - offsets, shape)


def finish(scores: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Return soft labels of scores, (n, C * S + C), the logits last."""
    n_classes, n_subclasses = shape
    mass = torch.softmax(scores[:, n_classes * n_subclasses :], 1)
    q = torch.softmax(scores[:, : n_classes * n_subclasses].unflatten(1, shape), 2)
    return (q * mass[:, :, None]).flatten(1)


def torch_transposed_soft_labels(
    X: torch.Tensor,
    columns: torch.Tensor,
    offsets: torch.Tensor,
    shape: tuple[int, int],
) -> torch.Tensor:
    """Return soft labels as `torch_soft_labels` does, computed as in NumPy."""
    n_classes, n_subclasses = shape
    scores = columns @ X.T - offsets[:, None]
    mass = torch.softmax(scores[n_classes * n_subclasses :], 0)
    q = torch.softmax(scores[: n_classes * n_subclasses].unflatten(0, shape), 1)
    return (q * mass[:, None]).flatten(0, 1).T.contiguous()


def soft_label_columns(
    projector: LELPProjector, dtype: np.dtype
) -> tuple[Array, Array]:
    """Return directions and head as one matrix, and the offsets of the scores."""
    beta = projector.subclass_temperature_
    directions = projector.components_.reshape(-1, projector.n_features_in_)
    columns = np.vstack([directions / beta, projector.coef_])
    offsets = np.append(projector.offsets_ / beta, -projector.intercept_)
    return columns.astype(dtype), offsets.astype(dtype)


def soft_label_peers(
    X: Array, projector: LELPProjector
) -> dict[str, Callable[[], object]]:
    """Return everyone who computes the soft labels that the projector computes."""
    shape = projector.offsets_.shape
    arrays = X, *soft_label_columns(projector, X.dtype)
    tensors = [torch.from_numpy(array) for array in arrays]
    # Compiled for each shape: by default the second shape is compiled for any size.
    by_rows = torch.compile(torch_soft_labels, dynamic=False)
    transposed = torch.compile(torch_transposed_soft_labels, dynamic=False)
    return {
        "NumPy": lambda: numpy_soft_labels(*arrays, shape),
        "torch": lambda: torch_transposed_soft_labels(*tensors, shape),
        "torch.compile": lambda: by_rows(*tensors, shape),
        "torch.compile, transposed": lambda: transposed(*tensors, shape),
    }


def products_alone(
    X: Array, projector: LELPProjector
) -> dict[str, Callable[[], object]]:
    """Return the product that all soft labels need, by the libraries of the peers."""
    columns, _ = soft_label_columns(projector, X.dtype)
    rows, transposed = torch.from_numpy(X), torch.from_numpy(columns.T.copy())
    return {
        "product alone, NumPy": lambda: columns @ X.T,
        "product alone, torch": lambda: rows @ transposed,
    }


def outside_head(rows: Array, coef: Array) -> Array:
    """Return rows without what is in the head's row space."""
    basis = orth(coef.T).astype(rows.dtype)
    return rows - (rows @ basis) @ basis.T


def null_space_rows(X: Array, y: Array, label: int, coef: Array) -> Array:
    """Return rows of one class without what is in the head's row space."""
    return outside_head(X[y == label], coef)


def pca_peers(
    X: Array, y: Array, coef: Array, n_subclasses: int
) -> dict[str, Callable[[], list[Array]]]:
    """Principal directions of each class in the null space: one (S, d) a class."""

    def scikit_learn(solver: str) -> list[Array]:
        pca = PCA(n_subclasses, svd_solver=solver, random_state=0)
        return [
            pca.fit(null_space_rows(X, y, label, coef)).components_.copy()
            for label in range(len(coef))
        ]

    def lowrank(n_iterations: int) -> list[Array]:
        found = []
        for label in range(len(coef)):
            rows = torch.from_numpy(null_space_rows(X, y, label, coef))
            size = n_subclasses + 10
            vectors = torch.pca_lowrank(rows, q=size, niter=n_iterations)[2]
            found.append(vectors[:, :n_subclasses].T.numpy())
        return found

    solvers = ["randomized", "arpack"]
    if np.bincount(y).min() > X.shape[1]:
        # Takes minutes, for nothing, where a class has fewer rows than features.
        solvers.append("covariance_eigh")
    peers: dict[str, Callable[[], list[Array]]] = {
        f"PCA {solver}": lambda solver=solver: scikit_learn(solver)
        for solver in solvers
    }
    for n_iterations in (2, 4):
        name = f"torch.pca_lowrank, niter={n_iterations}"
        peers[name] = lambda n=n_iterations: lowrank(n)
    return peers


def incremental_pca(X: Array, y: Array, coef: Array, n_subclasses: int) -> list[Array]:
    """Principal directions of each class of a memory map, a block of rows at a time.

    A block has the size that scikit-learn would choose.
    """
    found = []
    for label in range(len(coef)):
        index = np.flatnonzero(y == label)
        pca = IncrementalPCA(n_subclasses)
        size = 5 * X.shape[1]
        for block in gen_batches(len(index), size, min_batch_size=n_subclasses):
            rows = X[index[block]].astype(np.float32)
            pca.partial_fit(outside_head(rows, coef))
        found.append(pca.components_)
    return found


def kmeans_peers(
    X: Array, y: Array, coef: Array, n_clusters: int
) -> dict[str, Callable[[], list[Array]]]:
    """Centroids of each class in the null space: one (S, d) a class."""
    methods = {
        "KMeans": KMeans(n_clusters, n_init=1, random_state=0),
        "MiniBatchKMeans": MiniBatchKMeans(n_clusters, n_init=1, random_state=0),
    }
    return {
        name: lambda method=method: [
            method.fit(null_space_rows(X, y, label, coef)).cluster_centers_.copy()
            for label in range(len(coef))
        ]
        for name, method in methods.items()
    }
