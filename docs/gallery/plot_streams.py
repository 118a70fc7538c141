"""
Streams, memory maps and dask
=============================

Embeddings of a large teacher need not fit into memory. The projector reads a
memory map in blocks, takes a stream by ``partial_fit``, and runs on the
workers of dask. All three make the same subclasses.
"""

# %%
# The embeddings are written to a file, as
# :meth:`~lelp_sklearn.EmbeddingExtractor.extract` does it, and opened without
# reading them.
import tempfile
from pathlib import Path

import dask.array as da
import numpy as np
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.linear_model import SGDClassifier

from lelp_sklearn import LELPProjector

folder = tempfile.TemporaryDirectory()
path = Path(folder.name, "embeddings.npy")
E, group = make_blobs(50_000, 128, centers=20, cluster_std=5, random_state=0)
y = group % 2
np.save(path, E.astype("float32"))
E = np.load(path, mmap_mode="r")
head = SGDClassifier(loss="log_loss", alpha=0.01, random_state=0).fit(E, y)

# %%
# In blocks of a memory map; ``out`` writes the soft labels to a file too.
projector = LELPProjector(
    10, splitter="pca", svd_solver="covariance_eigh", head=head, random_state=0
)
soft = projector.fit_transform(E, y)
print(projector.transform(E, out=Path(folder.name, "soft.npy")))

# %%
# As a stream. The temperature "auto" is that of the first block, so it is
# given.
streamed = clone(projector).set_params(temperature=projector.temperature_)
for rows in np.array_split(np.arange(len(E)), 10):
    streamed.partial_fit(E[rows], y[rows], classes=[0, 1])
print(
    f"stream: largest difference {abs(streamed.transform(E) - soft).max():.0e}"
)

# %%
# On dask. ``fit`` sends sums and samples between the workers, not rows;
# ``transform`` is lazy.
chunks, labels = (
    da.from_array(E, chunks=(5_000, -1)),
    da.from_array(y, chunks=5_000),
)
lazy = clone(projector).fit(chunks, labels).transform(chunks)
print(lazy)
print(f"dask: largest difference {abs(lazy.compute() - soft).max():.0e}")

# %%
folder.cleanup()
