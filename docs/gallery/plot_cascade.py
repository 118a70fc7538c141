"""
When to trust the student: a cascade
====================================

The student answers where it is confident enough, and the teacher takes the
rest. The threshold is calibrated on rows that neither of them has learned
from, so that the two agree on at least 97 % of the rows that the student
keeps. The better the student, the fewer rows are left to the teacher.
"""

# %%
# Two handwritten digits make a number; the class is whether it is prime. The
# teacher never sees the numbers, only the two classes.
import numpy as np
from scipy.stats import binomtest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from lelp_sklearn import (
    EmbeddingExtractor,
    LELPProjector,
    LELPStudentClassifier,
)

PRIMES = [n for n in range(2, 100) if all(n % k for k in range(2, n))]
images, digit = load_digits(return_X_y=True)
train, held_out = train_test_split(
    np.arange(len(digit)), train_size=1200, random_state=0, stratify=digit
)


def draw(digits, n_rows, seed):
    """Return images of two digits, and whether the number is prime."""
    left, right = np.random.default_rng(seed).choice(digits, (2, n_rows))
    X = np.hstack([images[left], images[right]]).astype(np.float32) / 16
    return X, np.isin(10 * digit[left] + digit[right], PRIMES).astype(int)


teacher = MLPClassifier((128, 64), early_stopping=True, random_state=0)
teacher.fit(*draw(train, 10_000, seed=0))
X_calibration, _ = draw(held_out, 4_000, seed=1)
X_test, _ = draw(held_out, 4_000, seed=2)

# %%
# The threshold
# -------------
#
# From the most confident rows down, a twentieth of the rows is added at a
# time, as long as the lower confidence bound of the agreement (of Clopper and
# Pearson) is above the target. As the search stops at the first failure, the
# bound holds for the threshold that is chosen, with a probability of 95 %.
TARGET = 0.97


def trust(student, X):
    """Return the student's confidence, and where it agrees with the teacher."""
    probability = student.predict_proba(X)
    agrees = probability.argmax(axis=1) == teacher.predict(X)
    return probability.max(axis=1), agrees


def calibrate(confidence, agrees):
    """Return the lowest confidence down to which the student is trusted."""
    order, threshold = np.argsort(-confidence), np.inf
    for n_rows in range(len(order) // 20, len(order) + 1, len(order) // 20):
        kept = order[:n_rows]
        test = binomtest(int(agrees[kept].sum()), n_rows, alternative="greater")
        if test.proportion_ci(0.95, method="exact").low < TARGET:
            break
        threshold = confidence[kept[-1]]
    return threshold


# %%
# Subclasses against vanilla distillation
# ---------------------------------------
#
# With one subclass for each class the student learns the teacher's
# probabilities alone, which is vanilla distillation.
coverage = {1: [], 20: []}
for seed in range(3):
    X, y = draw(train, 2_000, seed=10 + seed)
    for n_subclasses, shares in coverage.items():
        student = LELPStudentClassifier(
            module_params={"hidden_layer_sizes": (32,)},
            projector=LELPProjector(n_subclasses),
            teacher=EmbeddingExtractor(teacher),
            max_epochs=60,
            random_state=seed,
        ).fit(X, y)
        threshold = calibrate(*trust(student, X_calibration))
        confidence, agrees = trust(student, X_test)
        kept = confidence >= threshold
        shares.append(kept.mean())
        agreement = f"agrees on {agrees[kept].mean():.1%}"
        print(f"S = {n_subclasses:2}: keeps {kept.mean():.0%}, {agreement}")
vanilla, subclasses = (np.mean(shares) for shares in coverage.values())
print(f"mean coverage: {vanilla:.0%} vanilla, {subclasses:.0%} with subclasses")
