"""The whole loss against its formula, and its gradient."""

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from lelp_sklearn._training.batches import TrainingTensors
from lelp_sklearn._training.objective import Objective

# Nothing is trained here.
NO_INPUTS = torch.empty(0)
N_ROWS, N_CLASSES, N_SUBCLASSES = 11, 3, 4


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    shape = N_ROWS, N_CLASSES * N_SUBCLASSES
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    targets = torch.rand(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, N_CLASSES, (N_ROWS,), generator=generator)
    assert (labels == -1).any()
    return logits, targets / targets.sum(1, keepdim=True), labels


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("within", [1.0, 2.5])
@pytest.mark.parametrize("weight", [0.0, 0.6])
@pytest.mark.parametrize("label_weight", [0.0, 0.3, 1.0])
def test_loss_and_gradient_follow_the_formula(
    batch, temperature, within, weight, label_weight
):
    logits, targets, labels = batch
    leaf = logits.clone().requires_grad_()
    a = leaf.reshape(N_ROWS, N_CLASSES, N_SUBCLASSES)
    p = targets.reshape(a.shape)
    folded = torch.logsumexp(a / temperature, 2)
    expected = temperature**2 * cross_entropy(folded, p.sum(2), reduction="none")
    inner = (p * log_softmax(a / within, 2)).sum((1, 2))
    expected = (1 - label_weight) * (expected - weight * within**2 * inner)
    on_labels = cross_entropy(
        temperature * folded, labels, ignore_index=-1, reduction="none"
    )
    expected = expected + label_weight * on_labels
    one_hot = (labels[:, None] == torch.arange(N_CLASSES)).double()
    objective = Objective(N_CLASSES, temperature, within, label_weight)
    batch = TrainingTensors(NO_INPUTS, targets, one_hot if label_weight else None)
    losses = objective.losses(leaf, batch, weight)
    torch.testing.assert_close(losses, expected)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), leaf)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("weight", [0.0, 0.6])
@pytest.mark.parametrize("within", [1.0, 2.5])
def test_an_impossible_subclass_is_as_an_unlikely_one(place, weight, within):
    logits = torch.linspace(-1, 2, 8, dtype=torch.float64)[None]
    targets = torch.full_like(logits, 1 / 7)
    targets[:, place] = 0
    objective = Objective(2, 2.5, within, label_weight=0.0)
    found = []
    for value in (-torch.inf, -1e5):
        leaf = logits.clone()
        leaf[:, place] = value
        leaf.requires_grad_()
        losses = objective.losses(leaf, TrainingTensors(NO_INPUTS, targets), weight)
        found.append((losses, *torch.autograd.grad(losses.sum(), leaf)))
    torch.testing.assert_close(*found)
