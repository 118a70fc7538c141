"""The closed-form gradient of the whole loss against autograd."""

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from lelp_sklearn._training.objective import loss_and_gradient

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
def test_gradient_is_that_of_autograd(batch, temperature, within, weight, label_weight):
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
    losses, gradient = loss_and_gradient(
        logits,
        targets,
        N_CLASSES,
        temperature=temperature,
        subclass_weight=weight,
        within_class_temperature=within,
        label_targets=one_hot if label_weight else None,
        label_weight=label_weight,
    )
    torch.testing.assert_close(losses, expected.detach())
    (by_autograd,) = torch.autograd.grad(expected.sum(), leaf)
    torch.testing.assert_close(gradient, by_autograd)


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("weight", [0.0, 0.6])
@pytest.mark.parametrize("within", [1.0, 2.5])
def test_an_impossible_subclass_is_as_an_unlikely_one(place, weight, within):
    logits = torch.linspace(-1, 2, 8, dtype=torch.float64)[None]
    targets = torch.full_like(logits, 1 / 7)
    targets[:, place] = 0
    options = {
        "temperature": 2.5,
        "within_class_temperature": within,
        "subclass_weight": weight,
    }
    found = []
    for value in (-torch.inf, -1e5):
        logits[:, place] = value
        found.append(loss_and_gradient(logits, targets, 2, **options))
    torch.testing.assert_close(*found)
