"""
A gradient boosting into a linear model and a small network
===========================================================

The teacher is a gradient boosting that tells odd from even digits. Each class
is a union of five digits, which the teacher never sees. Two students learn
from it: a logistic regression, and a network of eight hidden units.
"""

# %%
# A teacher that is not fitted yet is fitted with the student, on the labelled
# rows. The class targets of a row come from a fit that has not seen it
# (``teacher_cv``).
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from lelp_sklearn import (
    LELPMetaClassifier,
    LELPProjector,
    LELPStudentClassifier,
)

X, digit = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X / 16, digit % 2, random_state=0, stratify=digit
)
teacher = HistGradientBoostingClassifier(max_iter=60, random_state=0)
print(f"teacher: {teacher.fit(X_train, y_train).score(X_test, y_test):.3f}")

# %%
# The linear student
# ------------------
#
# One subclass a class is vanilla distillation. With forty, the linear model
# predicts which of eighty regions a row is in, and sums the regions of a class.
plain = LogisticRegression(C=10, max_iter=1000).fit(X_train, y_train)
print(f"logistic regression on labels: {plain.score(X_test, y_test):.3f}")
for n_subclasses in (1, 40):
    linear = LELPMetaClassifier(
        LogisticRegression(C=10, max_iter=1000),
        projector=LELPProjector(n_subclasses),
        teacher=HistGradientBoostingClassifier(max_iter=60, random_state=0),
        teacher_cv=3,
        random_state=0,
    ).fit(X_train, y_train)
    print(f"{n_subclasses:2} subclasses: {linear.score(X_test, y_test):.3f}")

# %%
# The network
# -----------
for n_subclasses in (1, 20):
    network = LELPStudentClassifier(
        module_params={"hidden_layer_sizes": (8,)},
        projector=LELPProjector(n_subclasses),
        teacher=HistGradientBoostingClassifier(max_iter=60, random_state=0),
        max_epochs=60,
        random_state=0,
    ).fit(X_train, y_train)
    print(f"{n_subclasses:2} subclasses: {network.score(X_test, y_test):.3f}")
