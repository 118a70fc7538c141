"""Methods of the literature beside those of ``methods.py``, each as it is trained here.

FitNet, VID, RKD and CRD add a term on the student's hidden units to vanilla
distillation, at a constant weight or at one that falls as the library's subclass
weight does. DKD, DIST and Subclass Distillation learn from the labels too, as their
authors have it. Clusters of the teacher's raw embeddings, and random directions, are
subclass targets. The weight of its own that a method has is searched for from where
its authors have it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.manifold import TSNE

from methods import Lesson, Method
from tasks import Array

# As many as the library's default, also for the teacher of Subclass Distillation.
N_SUBCLASSES = 20

SUBCLASS = "Subclass"

CONSTANT = {"subclass_weight": 1.0}


def warm_up(progress: float) -> float:
    """Rise to 1 over a twelfth of the training: DKD's 20 of 240 epochs."""
    return min(1.0, 12 * progress)


@dataclass(frozen=True)
class Peer(Method):
    """A method with a loss of ``peer_losses.py``: a key of ``peer_students.TERMS``."""

    term: str = ""


def clusters(lesson: Lesson, find: Callable[[Array, Array], Array]) -> Array:
    """Return the subclasses that clusters of embeddings make, (n, C, S).

    `find` is called for each class with its embeddings and their numbers. In another
    class than its own a row has the cluster whose mean is nearest.
    """
    E, y = lesson.embeddings, lesson.y
    within = np.zeros((len(y), len(np.unique(y)), N_SUBCLASSES), np.float32)
    for label in range(within.shape[1]):
        rows = np.flatnonzero(y == label)
        names = find(E[rows], rows)
        means = np.stack([E[rows[names == s]].mean(0) for s in range(N_SUBCLASSES)])
        nearest = (0.5 * np.sum(means**2, 1) - E @ means.T).argmin(1)
        nearest[rows] = names
        within[np.arange(len(y)), label, nearest] = 1
    return within


def agglomerative(lesson: Lesson) -> Array:
    """Ward's clusters of the raw embeddings of each class."""
    ward = AgglomerativeClustering(N_SUBCLASSES)
    return clusters(lesson, lambda E, rows: ward.fit_predict(E))


def raw_kmeans(lesson: Lesson) -> Array:
    """Clusters of k-means among the raw embeddings of each class."""
    return clusters(lesson, lambda E, rows: _kmeans(lesson).fit_predict(E))


def tsne_kmeans(lesson: Lesson) -> Array:
    """Clusters of k-means among the embeddings of each class, laid out by t-SNE."""
    layout = lesson.layout if lesson.layout is not None else lay_out(lesson)
    return clusters(lesson, lambda E, rows: _kmeans(lesson).fit_predict(layout[rows]))


def lay_out(lesson: Lesson) -> Array:
    """Return the places that t-SNE gives the rows of each class, (n, 2)."""
    layout = np.empty((len(lesson.y), 2), np.float32)
    for label in np.unique(lesson.y):
        rows = np.flatnonzero(lesson.y == label)
        tsne = TSNE(random_state=lesson.seed, perplexity=min(30.0, len(rows) / 4))
        layout[rows] = tsne.fit_transform(lesson.embeddings[rows])
    return layout


def _kmeans(lesson: Lesson) -> KMeans:
    return KMeans(N_SUBCLASSES, n_init=10, random_state=lesson.seed)


PEERS = {
    "FitNet, constant": Method({"n_subclasses": 1}, CONSTANT, is_fitnet=True),
    "VID, annealed": Peer(term="VID"),
    "VID, constant": Peer(term="VID", training=CONSTANT),
    "RKD, annealed": Peer(term="RKD"),
    "RKD, constant": Peer(term="RKD", training=CONSTANT),
    "CRD, annealed": Peer(term="CRD"),
    "CRD, constant": Peer(term="CRD", training=CONSTANT),
    "DKD": Peer(term="DKD", training={"subclass_weight": warm_up}),
    "DIST": Peer(term="DIST", training=CONSTANT),
    "Subclass Distillation": Peer(term=SUBCLASS, training=CONSTANT),
    "agglomerative": Method(training=CONSTANT, within=agglomerative),
    "agglomerative, annealed": Method(within=agglomerative),
    "k-means, raw": Method(training=CONSTANT, within=raw_kmeans),
    "k-means, raw, annealed": Method(within=raw_kmeans),
    "t-SNE + k-means": Method(training=CONSTANT, within=tsne_kmeans),
    "t-SNE + k-means, annealed": Method(within=tsne_kmeans),
    "random directions": Method({"splitter": "random"}, CONSTANT),
    "random directions, annealed": Method({"splitter": "random"}),
}

# The weight that its authors' code gives each term: beside labels of weight 1 for the
# last three, here beside vanilla distillation for the others.
OWN_WEIGHTS = {
    "VID": 1.0,
    "RKD": 1.0,
    "CRD": 0.8,
    "DKD": 1.0,
    "DIST": 2.0,
    SUBCLASS: 1.0,
}
# That of ours for FitNet, whose embeddings are scaled to a mean variance of one.
FITNET_WEIGHT = 30.0


def own_weight(method: Method) -> float | None:
    """Return where the search for a method's own weight begins, None without one."""
    if method.is_fitnet:
        return FITNET_WEIGHT
    return OWN_WEIGHTS[method.term] if isinstance(method, Peer) else None
