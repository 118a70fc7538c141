"""A student learns what its teacher knows, on numbers made of scikit-learn's digits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from lelp_sklearn import LELPProjector, LELPStudentClassifier

PRIMES = [n for n in range(100) if n > 1 and all(n % k for k in range(2, n))]


def make_pairs(images, digits, n_pairs, rng):
    """Two digits side by side, and the number that they make."""
    pairs = rng.randint(len(images), size=(n_pairs, 2))
    tens, ones = digits[pairs].T
    return images[pairs].reshape(n_pairs, 128), 10 * tens + ones


@pytest.fixture(scope="module")
def problem():
    """Pairs for the student with the embeddings of a teacher that knows primes only."""
    rng = np.random.RandomState(0)
    images, digits = load_digits(return_X_y=True)
    images = (images - images.mean()) / images.std()
    training = rng.permutation(len(images)) < 1200
    X, number = make_pairs(images[training], digits[training], 8000, rng)
    X_test, number_test = make_pairs(images[~training], digits[~training], 4000, rng)
    prime, prime_test = np.isin(number, PRIMES), np.isin(number_test, PRIMES)
    teacher = MLPClassifier((256,), max_iter=12, batch_size=100, random_state=0)
    with pytest.warns(match="Maximum iterations"):
        teacher.fit(X, prime)
    rows = slice(0, 1500)
    E = np.maximum(X[rows] @ teacher.coefs_[0] + teacher.intercepts_[0], 0)
    head = teacher.coefs_[1].T, teacher.intercepts_[1]
    return X[rows], prime[rows], E, head, X_test, prime_test


def accuracy(problem, embeddings, seed):
    """Accuracy of a student whose class targets do not depend on the embeddings."""
    X, prime, E, head, X_test, prime_test = problem
    coef, intercept = head
    student = LELPStudentClassifier(
        module_params={"hidden_layer_sizes": (32,)},
        projector=LELPProjector(20, head=head, temperature=2.0),
        max_epochs=40,
        random_state=seed,
    )
    student.fit(
        X,
        prime,
        teacher_embeddings=embeddings,
        teacher_logits=E @ coef.T + intercept,
    )
    return student.score(X_test, prime_test)


def test_embeddings_of_other_rows_of_the_class_teach_less(problem):
    _, prime, E, *_ = problem
    rng = np.random.RandomState(0)
    shuffled = E.copy()
    for each in (False, True):
        rows = np.flatnonzero(prime == each)
        shuffled[rows] = E[rng.permutation(rows)]
    for seed in range(2):
        gain = accuracy(problem, E, seed) - accuracy(problem, shuffled, seed)
        assert gain > 0.02
