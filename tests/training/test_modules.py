"""Modules as they are built, and state dicts as arrays and back."""

import pytest
import torch
from torch import nn

from lelp_sklearn import LELPStudentClassifier
from lelp_sklearn._training.modules import to_arrays, to_tensors
from tests.student_problems import MyNet, TemplateNet, make_soft_targets


def test_state_of_an_optimizer_comes_back_as_it_was():
    net = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    other = torch.optim.AdamW(nn.Linear(3, 2).parameters())
    other.load_state_dict(to_tensors(to_arrays(optimizer.state_dict())))
    torch.testing.assert_close(other.state_dict(), optimizer.state_dict())


def test_half_precision_comes_back_exactly():
    net = nn.Linear(3, 2).bfloat16()
    twin = nn.Linear(3, 2).bfloat16()
    twin.load_state_dict(to_tensors(to_arrays(net.state_dict())))
    assert torch.equal(twin.weight, net.weight)


def zeroed(gradient):
    return torch.zeros_like(gradient)


def vanished(parameter):
    parameter.grad = None


@pytest.mark.parametrize(
    ("register", "hook"),
    [("register_hook", zeroed), ("register_post_accumulate_grad_hook", vanished)],
)
@pytest.mark.parametrize("as_template", [False, True])
def test_gradient_hooks_of_parameters_are_called(register, hook, as_template):
    X, y, targets = make_soft_targets()

    def module(n_features=6, n_outputs=6):
        net = TemplateNet() if as_template else MyNet(n_features, n_outputs)
        for layer in (net.top, net.body if as_template else net.body[0]):
            getattr(layer.weight, register)(hook)
        return net

    options = {"weight_decay": 0.0, "random_state": 0, "device": "cpu"}
    given = module() if as_template else module
    students = [
        LELPStudentClassifier(given, max_epochs=n, **options).fit(
            X, y, soft_targets=targets
        )
        for n in (1, 3)
    ]
    first, last = (student.module_.state_dict() for student in students)
    fixed = {"top.weight", "body.weight" if as_template else "body.0.weight"}
    assert {name for name in first if torch.equal(first[name], last[name])} == fixed
