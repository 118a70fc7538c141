"""The losses of other methods, held to plain loops over rows in double precision."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from scipy.stats import entropy, norm, pearsonr

from benchmarks.distillation.methods import (
    crd,
    dist,
    dkd,
    losses,
    rkd,
    subclass_distillation,
    vid,
)

# Two data sets, three settings, rows; units, embeddings.
G, M, N, H, E = 2, 3, 7, 5, 6
TAU = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def of_students(rng, width):
    return torch.from_numpy(2 * rng.normal(size=(G, M, N, width)))


def of_teachers(rng, width):
    return torch.from_numpy(2 * rng.normal(size=(G, 1, N, width)))


def labels_of(rng, n_classes):
    return torch.from_numpy(rng.permutation(np.resize(np.arange(n_classes), (G, 1, N))))


def each(loss, *tensors):
    """Call a plain loss for every student with its part of tensors, as (G, M)."""
    parts = [t.expand(G, M, *t.shape[2:]).detach().numpy() for t in tensors]
    return np.array(
        [[loss(*(p[g, m] for p in parts), m) for m in range(M)] for g in range(G)]
    )


@pytest.mark.parametrize("n_classes", [2, 4])
def test_distillation_is_the_mean_divergence_times_tau_squared(rng, n_classes):
    outputs, teacher = of_students(rng, n_classes), of_teachers(rng, n_classes)

    def plain(a, t, m):
        tau = TAU[m].item()
        rows = zip(softmax(t / tau, 1), softmax(a / tau, 1), strict=True)
        return tau**2 * np.mean([entropy(p, q) for p, q in rows])

    found = losses.distillation(outputs, teacher, TAU.expand(1, M))
    np.testing.assert_allclose(found, each(plain, outputs, teacher))


def test_labels_see_the_sum_of_a_class_over_its_subclasses(rng):
    outputs, labels = of_students(rng, 6), labels_of(rng, 2)

    def plain(a, y, m):
        p = softmax(a, axis=1)
        mass = np.stack([p[:, :3].sum(1), p[:, 3:].sum(1)], 1)
        return np.mean([-np.log(mass[i, y[i]]) for i in range(N)])

    found = losses.label_loss(outputs, labels, 2)
    np.testing.assert_allclose(found, each(plain, outputs, labels))
    logits = losses.class_logits(outputs, 2)
    np.testing.assert_allclose(
        torch.softmax(logits, -1)[..., 0], softmax(outputs, -1)[..., :3].sum(-1)
    )


def test_decoupled_distillation_of_many_classes(rng):
    outputs, teacher = of_students(rng, 4), of_teachers(rng, 4)
    labels = labels_of(rng, 4)

    def plain(a, t, y, m):
        tau, total = TAU[m].item(), 0.0
        for i in range(N):
            p, q = softmax(t[i] / tau), softmax(a[i] / tau)
            others = np.delete(np.arange(4), y[i])
            total += entropy([p[y[i]], 1 - p[y[i]]], [q[y[i]], 1 - q[y[i]]])
            total += 8 * entropy(p[others], q[others])  # it normalises them
        return tau**2 * total / N

    found = dkd.decoupled(outputs, teacher, labels, TAU.expand(1, M))
    np.testing.assert_allclose(found, each(plain, outputs, teacher, labels))


def test_decoupled_distillation_of_two_classes_is_vanilla(rng):
    """What the table says of DKD: its second part is gone, whatever its weight."""
    outputs, teacher = of_students(rng, 2), of_teachers(rng, 2)
    labels = labels_of(rng, 2)
    vanilla = losses.distillation(outputs, teacher, TAU.expand(1, M))
    for weight in (0.0, 8.0, 1e6):
        found = dkd.decoupled(outputs, teacher, labels, TAU.expand(1, M), weight)
        np.testing.assert_allclose(found, vanilla)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_correlations_are_those_of_scipy(rng, n_classes):
    outputs, teacher = of_students(rng, n_classes), of_teachers(rng, n_classes)

    def plain(a, t, m):
        tau = TAU[m].item()
        p, q = softmax(t / tau, 1), softmax(a / tau, 1)
        between = [1 - pearsonr(q[i], p[i]).statistic for i in range(N)]
        within = [1 - pearsonr(q[:, c], p[:, c]).statistic for c in range(n_classes)]
        return tau**2 * (np.mean(within) + (n_classes > 2) * np.mean(between))

    found = dist.correlations(outputs, teacher, TAU.expand(1, M))
    np.testing.assert_allclose(found, each(plain, outputs, teacher), atol=1e-5)


def test_correlation_of_two_classes_in_a_row_is_one_without_gradient(rng):
    """What the table says of DIST: left out, the term within rows would be no help."""
    outputs = of_students(rng, 2).requires_grad_()
    target = torch.softmax(of_teachers(rng, 2), -1)
    found = dist.pearson(torch.softmax(outputs, -1), target)
    np.testing.assert_allclose(found.detach().abs(), 1, atol=1e-5)
    found.sum().backward()
    np.testing.assert_allclose(outputs.grad, 0, atol=1e-4)


def smooth_l1(x):
    return np.where(abs(x) < 1, 0.5 * x**2, abs(x) - 0.5)


def test_relations_of_pairs_and_of_triples(rng):
    hidden, embeddings = of_students(rng, H), of_teachers(rng, E)
    n_angle_rows = 4

    def distances(rows):
        d = np.array([[np.linalg.norm(a - b) for b in rows] for a in rows])
        return d / d[d > 0].mean()

    def angles(rows):
        found = np.zeros((n_angle_rows,) * 3)
        for i, j, k in product(range(n_angle_rows), repeat=3):
            a, b = rows[j] - rows[i], rows[k] - rows[i]
            if a.any() and b.any():
                found[i, j, k] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        return found

    def plain(s, t, m):
        pairs = smooth_l1(distances(s) - distances(t)).mean()
        return 25 * pairs + 50 * smooth_l1(angles(s) - angles(t)).mean()

    found = rkd.relations(hidden, embeddings, n_angle_rows)
    np.testing.assert_allclose(found, each(plain, hidden, embeddings), rtol=1e-6)


def test_relations_of_rows_that_coincide_have_finite_gradients(rng):
    """Students whose units are all off on two rows do not leave the rails."""
    hidden = of_students(rng, H)
    hidden[..., 1, :] = hidden[..., 0, :]
    hidden.requires_grad_()
    rkd.relations(hidden, of_teachers(rng, E)).sum().backward()
    assert hidden.grad.abs().max() < 1e3


def test_variational_information_is_the_likelihood_of_a_gaussian(rng):
    predicted, embeddings = of_students(rng, E), of_teachers(rng, E)
    variances = torch.from_numpy(rng.uniform(0.5, 6, size=(G, M, 1, E)))

    def plain(mean, x, variance, m):
        likelihood = norm.logpdf(x, mean, np.sqrt(variance))
        return -likelihood.mean() - 0.5 * np.log(2 * np.pi)

    found = vid.variational_information(predicted, embeddings, variances)
    np.testing.assert_allclose(found, each(plain, predicted, embeddings, variances))


def test_contrast_tells_a_row_from_those_of_other_classes(rng):
    student, teacher = of_students(rng, E), of_students(rng, E)
    labels = labels_of(rng, 3)

    def plain(s, t, y, m):
        s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s, t))
        total = 0.0
        for i in range(N):
            others = [j for j in range(N) if y[j] != y[i]]
            for anchor, candidates in ((s[i], t), (t[i], s)):
                scores = [anchor @ candidates[j] / 0.07 for j in [i, *others]]
                total += logsumexp(scores) - scores[0]
        return total / N

    found = crd.contrast(student, teacher, labels)
    np.testing.assert_allclose(found, each(plain, student, teacher, labels))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_auxiliary_loss_of_a_teacher_of_subclasses(rng, temperature):
    outputs = of_students(rng, 6)

    def plain(a, m):
        v = np.array([(row - row.mean()) / row.std() for row in a])
        rows = [
            np.log(sum(np.exp(v[i] @ v[j] / (temperature * 6)) for j in range(N)))
            for i in range(N)
        ]
        return np.mean(rows) - 1 / temperature - np.log(N)

    found = subclass_distillation.alike_subclasses(outputs, temperature)
    np.testing.assert_allclose(found, each(plain, outputs))
    assert (found < 0).all()
    alike = outputs[..., :1, :].expand_as(outputs)
    assert subclass_distillation.alike_subclasses(alike, temperature).abs().max() < 1e-6
