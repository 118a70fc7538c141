"""The loss of stacked students beside that of one student each."""

import pytest
import torch
from numpy.testing import assert_allclose

from lelp_sklearn._training.batches import TrainingTensors
from lelp_sklearn._training.objective import Objective


@pytest.mark.parametrize("n_subclasses", [1, 4])
@pytest.mark.parametrize("has_labels", [False, True])
@pytest.mark.parametrize("is_impossible", [False, True])
def test_losses_are_those_of_each_student(n_subclasses, has_labels, is_impossible):
    n, C, K = 5, 3, 3 * n_subclasses
    generator = torch.Generator().manual_seed(0)
    double = {"dtype": torch.float64, "generator": generator}
    numbers = [(1.0, 1.0, 0.0, 1.0), (4.0, 4.0, 0.3, 0.5), (2.0, 1.0, 1.0, 0.0)]
    outputs = 3 * torch.randn(len(numbers), n, K, **double)
    targets = torch.rand(len(numbers), n, K, **double)
    targets /= targets.sum(2, keepdim=True)
    if is_impossible and n_subclasses > 1:
        outputs[:, :, 1], targets[:, :, 1] = -torch.inf, 0
    labels = torch.eye(C, dtype=torch.float64)[torch.tensor([0, 1, 2, 2, 0])]
    labels[1] = 0  # a row without a label
    tau, within, alpha, weight = torch.tensor(numbers, dtype=torch.float64).T
    alpha = alpha * has_labels
    stacked = Objective(C, *(v.unsqueeze(1) for v in (tau, within, alpha)))
    found = stacked.losses(
        outputs.mT,
        TrainingTensors(outputs, targets.mT, labels.T if has_labels else None),
        weight.unsqueeze(1),
    )
    for i in range(len(numbers)):
        objective = Objective(C, float(tau[i]), float(within[i]), float(alpha[i]))
        batch = TrainingTensors(outputs[i], targets[i], labels if has_labels else None)
        losses = objective.losses(outputs[i], batch, float(weight[i]))
        assert_allclose(found[i], losses, rtol=1e-12)
