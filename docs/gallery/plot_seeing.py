"""
Seeing what the subclasses are
==============================

Are the subclasses groups, or only levels of the teacher's confidence? A table
and three plots answer that before a student is trained. The classes are odd
and even digits, and the digits, which the teacher never sees, are shown for
comparison.
"""

# %%
# A network of scikit-learn is the teacher; its hidden layer is the embedding.
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from lelp_sklearn import (
    EmbeddingExtractor,
    LELPProjector,
    SubclassDisplay,
    subclass_table,
)

X, digit = load_digits(return_X_y=True)
X, y = X / 16, digit % 2
teacher = MLPClassifier(64, early_stopping=True, random_state=0).fit(X, y)
extractor = EmbeddingExtractor(teacher)
E = extractor.fit_transform(X)
projector = LELPProjector(5, head=extractor.head_, random_state=0).fit(E, y)

# %%
# One row for each subclass: its share of the class, how alike its rows are
# (``cohesion``), whether it follows the teacher's confidence
# (``margin_correlation``), and the most common digit in it.
table = subclass_table(projector, E, y, fine_labels=digit)
table.drop(columns="samples", errors="ignore").round(2)

# %%
# The rows of each class in the plane of their largest variance: above by
# subclass, below by digit.
SubclassDisplay.from_estimator(projector, E, y, fine_labels=digit)
plt.show()

# %%
# The share of its class that each subclass has. The effective number is near
# five if they are equally large.
SubclassDisplay.from_estimator(projector, E, y, kind="mass")
plt.show()

# %%
# The variance along principal directions. A few large ones are groups; one
# that is far larger than the rest is often the confidence.
SubclassDisplay.from_estimator(projector, E, y, kind="spectrum")
plt.show()
