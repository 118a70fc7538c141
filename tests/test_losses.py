"""The loss for subclass targets against torch's own and against its definition."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from lelp_sklearn.losses import (
    SubclassCrossEntropyLoss,
    class_logits,
    subclass_cross_entropy,
)

N_CLASSES, N_SUBCLASSES = 3, 4
TEMPERATURES = pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])


def make_batch(n_rows=17, n_subclasses=N_SUBCLASSES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = n_rows, N_CLASSES * n_subclasses
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    targets = torch.rand(shape, generator=generator, dtype=torch.float64) ** 3
    return logits.requires_grad_(), targets / targets.sum(1, keepdim=True)


def gradient(loss, logits):
    return torch.autograd.grad(loss.sum(), logits)[0]


def folded(columns):
    return columns.detach().numpy().reshape(len(columns), N_CLASSES, -1)


@TEMPERATURES
def test_full_weight_is_cross_entropy_over_all_subclasses(temperature):
    logits, targets = make_batch()
    loss = subclass_cross_entropy(logits, targets, N_CLASSES, temperature=temperature)
    expected = cross_entropy(logits / temperature, targets, reduction="none")
    expected = temperature**2 * expected
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, logits), gradient(expected, logits))


@TEMPERATURES
def test_no_weight_is_cross_entropy_over_the_classes(temperature):
    logits, targets = make_batch()
    loss = subclass_cross_entropy(
        logits, targets, N_CLASSES, temperature=temperature, subclass_weight=0.0
    )
    mass = targets.reshape(-1, N_CLASSES, N_SUBCLASSES).sum(2)
    summed = class_logits(logits, N_CLASSES, temperature=temperature)
    expected = cross_entropy(summed / temperature, mass, reduction="none")
    expected = temperature**2 * expected
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, logits), gradient(expected, logits))


def test_one_subclass_is_vanilla_distillation_whatever_the_weight():
    logits, targets = make_batch(n_subclasses=1)
    for weight in [0.0, 0.3, 1.0]:
        loss = subclass_cross_entropy(
            logits, targets, N_CLASSES, temperature=2.0, subclass_weight=weight
        )
        expected = 4 * cross_entropy(logits / 2, targets, reduction="none")
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient(loss, logits), gradient(expected, logits))


@pytest.mark.parametrize("within", [None, 1.0, 0.7])
def test_definition(within):
    logits, targets = make_batch()
    loss = subclass_cross_entropy(
        logits,
        targets,
        N_CLASSES,
        temperature=2.0,
        subclass_weight=0.4,
        within_class_temperature=within,
    )
    a, p = folded(logits), folded(targets)
    student = np.exp(a / 2) / np.exp(a / 2).sum((1, 2), keepdims=True)
    class_part = -np.sum(p.sum(2) * np.log(student.sum(2)), axis=1)
    scale = within or 2.0
    inner = np.exp(a / scale) / np.exp(a / scale).sum(2, keepdims=True)
    inner_part = -np.sum(p * np.log(inner), axis=(1, 2))
    expected = 4 * class_part + 0.4 * scale**2 * inner_part
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-12)


@pytest.mark.parametrize("within", [None, 0.7])
@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_gradient_is_that_of_finite_differences(weight, within):
    logits, targets = make_batch(n_rows=3)
    # Rows that do not sum to one: the mass is part of the gradient.
    targets = targets * torch.tensor([[1.0], [0.5], [2.0]], dtype=torch.float64)

    def loss(logits):
        return subclass_cross_entropy(
            logits,
            targets,
            N_CLASSES,
            temperature=1.5,
            subclass_weight=weight,
            within_class_temperature=within,
        )

    assert torch.autograd.gradcheck(loss, logits)


def test_large_logits_stay_finite():
    logits = torch.tensor([[2e4, -2e4, 0.0, 1e4, 0.0, 0.0]], requires_grad=True)
    targets = torch.tensor([[0.0, 0.5, 0.0, 0.0, 0.5, 0.0]])
    loss = subclass_cross_entropy(logits, targets, 3)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient(loss, logits)).all()


def test_half_precision_logits_are_computed_in_the_precision_of_the_targets():
    logits, targets = make_batch()
    half = logits.detach().half().requires_grad_()
    loss = subclass_cross_entropy(half, targets, N_CLASSES)
    expected = cross_entropy(half.double(), targets, reduction="none")
    torch.testing.assert_close(loss, expected)
    assert gradient(loss, half).dtype == torch.float16


@TEMPERATURES
def test_class_logits_give_the_summed_probabilities(temperature):
    logits, _ = make_batch()
    mass = torch.softmax(logits / temperature, 1)
    mass = mass.reshape(-1, N_CLASSES, N_SUBCLASSES).sum(2)
    A = class_logits(logits, N_CLASSES, temperature=temperature)
    torch.testing.assert_close(torch.softmax(A / temperature, 1), mass)


def test_class_logits_of_one_subclass_are_the_logits():
    logits, _ = make_batch(n_subclasses=1)
    torch.testing.assert_close(class_logits(logits, N_CLASSES, temperature=3.0), logits)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_module_reduces_the_rows(reduction):
    logits, targets = make_batch()
    criterion = SubclassCrossEntropyLoss(
        N_CLASSES,
        temperature=2.0,
        subclass_weight=0.5,
        within_class_temperature=1.0,
        reduction=reduction,
    )
    rows = subclass_cross_entropy(
        logits,
        targets,
        N_CLASSES,
        temperature=2.0,
        subclass_weight=0.5,
        within_class_temperature=1.0,
    )
    expected = rows if reduction == "none" else getattr(rows, reduction)()
    torch.testing.assert_close(criterion(logits, targets), expected)


def test_weight_of_the_module_may_change_between_steps():
    logits, targets = make_batch()
    criterion = SubclassCrossEntropyLoss(N_CLASSES)
    for weight in [1.0, 0.3, 0.0]:
        criterion.subclass_weight = weight
        expected = subclass_cross_entropy(
            logits, targets, N_CLASSES, subclass_weight=weight
        )
        torch.testing.assert_close(criterion(logits, targets), expected.mean())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"subclass_weight": -1.0}, "subclass_weight=-1.0 must not be negative"),
        ({"within_class_temperature": 0.0}, "within_class_temperature=0.0 must be"),
        ({"reduction": "max"}, "reduction='max' must be one of"),
    ],
)
def test_bad_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        SubclassCrossEntropyLoss(2, **arguments)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"shape \(3, 5\) and n_classes=2"):
        subclass_cross_entropy(torch.zeros(3, 5), torch.zeros(3, 5), 2)
    with pytest.raises(ValueError, match=r"shape \(3, 2\) and logits has \(3, 4\)"):
        subclass_cross_entropy(torch.zeros(3, 4), torch.zeros(3, 2), 2)
    with pytest.raises(ValueError, match=r"n_samples, n_classes \* n_subclasses"):
        class_logits(torch.zeros(4), 2)
