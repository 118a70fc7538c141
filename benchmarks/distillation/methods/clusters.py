"""Clusters of the teacher's raw embeddings as subclasses, assigned hard."""

from collections.abc import Callable

import numpy as np
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.manifold import TSNE

from benchmarks.distillation.datasets.base import Array
from benchmarks.distillation.methods.base import CONSTANT, DistillationData, Method

# As many as the library's default.
N_SUBCLASSES = 20


def clusters(data: DistillationData, find: Callable[[Array, Array], Array]) -> Array:
    """Return the subclasses that clusters of embeddings make, (n, C, S).

    `find` is called for each class with its embeddings and their numbers. In another
    class than its own a row has the cluster whose mean is nearest.
    """
    E, y = data.embeddings, data.y
    within = np.zeros((len(y), len(np.unique(y)), N_SUBCLASSES), np.float32)
    for label in range(within.shape[1]):
        rows = np.flatnonzero(y == label)
        names = find(E[rows], rows)
        means = np.stack([E[rows[names == s]].mean(0) for s in range(N_SUBCLASSES)])
        nearest = (0.5 * np.sum(means**2, 1) - E @ means.T).argmin(1)
        nearest[rows] = names
        within[np.arange(len(y)), label, nearest] = 1
    return within


def agglomerative(data: DistillationData) -> Array:
    """Ward's clusters of the raw embeddings of each class."""
    ward = AgglomerativeClustering(N_SUBCLASSES)
    return clusters(data, lambda E, rows: ward.fit_predict(E))


def raw_kmeans(data: DistillationData) -> Array:
    """Clusters of k-means among the raw embeddings of each class."""
    return clusters(data, lambda E, rows: _kmeans(data).fit_predict(E))


def tsne_kmeans(data: DistillationData) -> Array:
    """Clusters of k-means among the embeddings of each class, laid out by t-SNE."""
    layout = data.layout if data.layout is not None else lay_out(data)
    return clusters(data, lambda E, rows: _kmeans(data).fit_predict(layout[rows]))


def lay_out(data: DistillationData) -> Array:
    """Return the t-SNE layout of the rows of each class, (n, 2)."""
    layout = np.empty((len(data.y), 2), np.float32)
    for label in np.unique(data.y):
        rows = np.flatnonzero(data.y == label)
        tsne = TSNE(random_state=data.seed, perplexity=min(30.0, len(rows) / 4))
        layout[rows] = tsne.fit_transform(data.embeddings[rows])
    return layout


def _kmeans(data: DistillationData) -> KMeans:
    return KMeans(N_SUBCLASSES, n_init=10, random_state=data.seed)


METHODS = {
    "agglomerative": Method(training=CONSTANT, within=agglomerative),
    "agglomerative, annealed": Method(within=agglomerative),
    "k-means, raw": Method(training=CONSTANT, within=raw_kmeans),
    "k-means, raw, annealed": Method(within=raw_kmeans),
    "t-SNE + k-means": Method(training=CONSTANT, within=tsne_kmeans),
    "t-SNE + k-means, annealed": Method(within=tsne_kmeans),
}
