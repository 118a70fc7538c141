"""
Images: the number of subclasses by a search
============================================

Two digits side by side are a two-digit number, and the classes are numbers
divisible by three and all others: each a union of many numbers. The teacher is
a network in torch; the student has 24 hidden units and a fifth of the rows.
"""

# %%
# The teacher sees the two classes only.
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

from lelp_sklearn import (
    EmbeddingExtractor,
    LELPProjector,
    LELPStudentClassifier,
    LELPStudentClassifierCV,
    SubclassDisplay,
)

images, digit = load_digits(return_X_y=True)
left, right = np.random.RandomState(0).randint(len(digit), size=(2, 6_000))
X = np.hstack([images[left], images[right]]).astype("float32") / 16
number = 10 * digit[left] + digit[right]
y = (number % 3 == 0).astype(int)

torch.manual_seed(0)
layers = torch.nn.Linear(128, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2)
teacher = torch.nn.Sequential(*layers)
optimizer = torch.optim.AdamW(teacher.parameters(), lr=0.003)
for rows in torch.randint(5_000, (1_500, 128)):
    loss = torch.nn.functional.cross_entropy(
        teacher(torch.from_numpy(X)[rows]), torch.from_numpy(y)[rows]
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
extractor = EmbeddingExtractor(teacher)
E = extractor.fit_transform(X)

# %%
# ``GridSearchCV`` over the number of subclasses: 1 is vanilla distillation, so
# the search tells whether subclasses help.
student = LELPStudentClassifier(
    module_params={"hidden_layer_sizes": (24,)},
    projector=LELPProjector(head=extractor.head_),
    max_epochs=40,
    random_state=0,
)
train = slice(1_000)
grid = GridSearchCV(
    student, {"projector__n_subclasses": [1, 2, 5, 10, 20]}, cv=3
)
grid.fit(X[train], y[train], teacher_embeddings=E[train])
SubclassDisplay.from_search(grid)
plt.show()

# %%
# :class:`~lelp_sklearn.LELPStudentClassifierCV` trains all candidates
# together, and judges them by how far their class probabilities are
# those of the teacher.
values = {
    "projector__n_subclasses": [1, 20],
    "learning_rate": [0.01, 0.03, 0.1],
}
search = LELPStudentClassifierCV(student, values, cv=3, random_state=0)
search.fit(X[train], y[train], teacher_embeddings=E[train])
print(search.best_params_, f"{search.score(X[5_000:], y[5_000:]):.3f}")

# %%
# Rows of the four largest subclasses of the multiples of three: similar
# numbers.
projector = search.best_estimator_.projector_
subclass = projector.transform(E)[:, 20:].argmax(axis=1)
largest = np.bincount(subclass[y == 1]).argsort()[::-1][:4]
_, axes = plt.subplots(4, 6, figsize=(6, 3), layout="constrained")
for s, pictures in zip(largest, axes, strict=True):
    members = np.flatnonzero((y == 1) & (subclass == s))[:6]
    for axis, i in zip(pictures, members, strict=True):
        axis.imshow(np.hstack(X[i].reshape(2, 8, 8)), cmap="gray_r")
        axis.axis("off")
plt.show()
