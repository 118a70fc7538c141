"""
Four classes
============

Nothing changes with more classes: the head has a row for each, and each class
has its own subclasses. Here two digits side by side are a two-digit number, and
the class is the quarter of the hundred that it is in: each a union of 25
numbers, which the teacher never sees.
"""

# %%
# The labels are names. Classes are in the order of the sorted names, in
# ``classes_``, in the columns of probabilities and in the rows of the head.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.neural_network import MLPClassifier

from lelp_sklearn import (
    EmbeddingExtractor,
    LELPProjector,
    LELPStudentClassifier,
    LELPStudentClassifierCV,
)

images, digit = load_digits(return_X_y=True)
left, right = np.random.RandomState(0).randint(len(digit), size=(2, 8_000))
X = np.hstack([images[left], images[right]]) / 16
number = 10 * digit[left] + digit[right]
y = np.array(["first", "second", "third", "last"])[number // 25]

train, small, test = slice(6_000), slice(800), slice(6_000, None)
teacher = MLPClassifier((256, 64), early_stopping=True, random_state=0)
teacher.fit(X[train], y[train])
print(f"teacher: {teacher.score(X[test], y[test]):.3f}")

# %%
# A small student has four times as many outputs as subclasses, and few rows to
# learn them from: so their number is searched. One is vanilla distillation.
student = LELPStudentClassifier(
    module_params={"hidden_layer_sizes": (16,)},
    projector=LELPProjector(),
    teacher=EmbeddingExtractor(teacher),
)
values = {"projector__n_subclasses": [1, 5, 10, 20]}
search = LELPStudentClassifierCV(student, values, random_state=0)
search.fit(X[small], y[small])
print("overlap with the teacher:", search.cv_results_["mean_test_score"])
print(f"{search.best_params_}: {search.score(X[test], y[test]):.3f}")
vanilla = student.set_params(projector__n_subclasses=1, random_state=0)
vanilla.fit(X[small], y[small])
print(f"one subclass: {vanilla.score(X[test], y[test]):.3f}")
print(search.classes_, search.predict_proba(X[test][:1]).round(3))

# %%
# Which classes the student confuses.
ConfusionMatrixDisplay.from_estimator(search, X[test], y[test], colorbar=False)
plt.show()
