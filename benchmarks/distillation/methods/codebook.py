"""Global codebook: clusters of all rows, whatever their class, beside the class loss.

A second linear layer on the student's hidden units predicts the cluster of k-means that
the teacher's embedding belongs to, as in QuEST (arXiv:1912.01540), with hard
assignments of whole rows.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from benchmarks.distillation.methods.base import (
    CONSTANT,
    Batch,
    DistillationData,
    Peer,
    Term,
)

# As many as the library's default has subclasses in two classes.
N_CLUSTERS = 40


@dataclass(frozen=True)
class Codebook(Peer):
    """A peer whose embeddings are clusters, one-hot."""

    term: str = "codebook"
    n_clusters: int = N_CLUSTERS

    def select_layer(self, data: DistillationData) -> DistillationData:
        """Return the data with clusters of all rows in place of the embeddings."""
        kmeans = KMeans(self.n_clusters, n_init=10, random_state=data.seed)
        clusters = np.eye(self.n_clusters, dtype=np.float32)[
            kmeans.fit_predict(data.embeddings)
        ]
        return replace(data, embeddings=clusters, head=None, given_logits=data.logits)


def loss(batch: Batch, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the cross-entropy to the clusters."""
    log_p = torch.log_softmax(batch.hidden @ weight.mT + bias, -1)
    # Embeddings come centred and scaled: of a one-hot row the one is still the largest.
    cluster = batch.embeddings.argmax(-1, keepdim=True)
    cluster = cluster.expand(*log_p.shape[:-1], 1)
    return -torch.take_along_dim(log_p, cluster, -1).mean((-2, -1))


TERM = Term(
    loss,
    own_weight=1.0,
    modules=lambda n_units, n_clusters: [nn.Linear(n_units, n_clusters)],
)
METHODS = {
    "global codebook, annealed": Codebook(),
    "global codebook, constant": Codebook(training=CONSTANT),
}
