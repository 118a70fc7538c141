"""
A linear student that beats a network
=====================================

Forty groups of points belong to two classes at random. A network that learns
the teacher's class probabilities has to find the groups; a linear model that
learns the subclasses has them as outputs.
"""

# %%
# The teacher has many rows, the students a few hundred.
import numpy as np
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from lelp_sklearn import (
    EmbeddingExtractor,
    LELPMetaClassifier,
    LELPProjector,
    LELPStudentClassifier,
)

X, group = make_blobs(8_000, 20, centers=40, cluster_std=4.5, random_state=0)
X = X / X.std()
y = np.random.RandomState(0).permutation(np.arange(40) % 2)[group]
few, test = slice(600), slice(6_000, None)
teacher = MLPClassifier((256,), early_stopping=True, random_state=0)
teacher.fit(X[:6_000], y[:6_000])
extractor = EmbeddingExtractor(teacher).fit(X[few])
E = extractor.transform(X[few])
print(f"teacher: {teacher.score(X[test], y[test]):.3f}")

# %%
# A network of 32 hidden units, and a logistic regression with twenty
# subclasses a class.
network = LELPStudentClassifier(
    module_params={"hidden_layer_sizes": (32,)},
    projector=LELPProjector(n_subclasses=1, head=extractor.head_),
    random_state=0,
).fit(X[few], y[few], teacher_embeddings=E)
print(f"network, one subclass: {network.score(X[test], y[test]):.3f}")

for n_subclasses in (1, 20):
    linear = LELPMetaClassifier(
        LogisticRegression(C=10, max_iter=1000),
        projector=LELPProjector(n_subclasses, head=extractor.head_),
        random_state=0,
    ).fit(X[few], y[few], teacher_embeddings=E)
    score = linear.score(X[test], y[test])
    print(f"linear, {n_subclasses} subclasses: {score:.3f}")

# %%
# The control: the same subclasses, shuffled among the rows of a class. They
# tell the student nothing, so what the linear model gained is due to the
# subclasses themselves.
soft = LELPProjector(20, head=extractor.head_, random_state=0).fit_transform(
    E, y[few]
)
rng = np.random.RandomState(0)
for label in (0, 1):
    rows = np.flatnonzero(y[few] == label)
    within = soft[rows].reshape(len(rows), 2, 20)
    mass = within.sum(axis=2, keepdims=True)
    shares = rng.permutation(within / mass.clip(1e-12))
    soft[rows] = (shares * mass).reshape(len(rows), -1)
control = LELPMetaClassifier(LogisticRegression(C=10, max_iter=1000))
control.fit(X[few], y[few], soft_targets=soft / soft.sum(axis=1, keepdims=True))
print(f"linear, 20 shuffled subclasses: {control.score(X[test], y[test]):.3f}")
