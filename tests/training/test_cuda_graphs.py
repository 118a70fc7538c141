"""Which training steps are captured as CUDA graphs; replays are tested on a GPU."""

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lelp_sklearn._training.cuda_graphs import can_capture
from lelp_sklearn._training.modules import multilayer_perceptron
from tests.student_problems import MyNet


def layers(*others):
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), *others)


def fused(module, kind=torch.optim.AdamW):
    return kind(module.parameters(), lr=0.01, fused=True)


def do_nothing(*of):
    return None


@pytest.mark.parametrize(
    "module",
    [
        multilayer_perceptron(6, 4),
        nn.Sequential(nn.Flatten(), multilayer_perceptron(6, 4, (5, 3))),
        layers(nn.BatchNorm1d(4), nn.Dropout(), nn.LayerNorm(4)),
        layers(nn.TransformerEncoderLayer(4, 2)),
        nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 2)),
    ],
    ids=["default", "flattened", "norms", "transformer", "tokens"],
)
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_steps_of_torchs_own_layers_and_optimizers_are_captured(module, kind):
    assert can_capture(module, fused(module, kind))


class OwnLinear(nn.Linear):
    pass


def with_own_forward(module):
    module.forward = lambda X: X
    return module


@pytest.mark.parametrize(
    "module",
    [
        MyNet(6, 4),
        layers(OwnLinear(4, 2)),
        layers(with_own_forward(nn.Linear(4, 2))),
        layers(nn.BatchNorm1d(4, momentum=None)),
        nn.Sequential(nn.Embedding(9, 4, max_norm=1.0), nn.Linear(4, 2)),
    ],
    ids=["user's", "subclass", "own forward", "counted batches", "renormalised"],
)
def test_other_layers_are_not_captured(module):
    """A replay would not run their Python, or they ask the device for a number."""
    assert not can_capture(module, fused(module))


@pytest.mark.parametrize(
    "register",
    [
        lambda net: net[0].register_forward_pre_hook(do_nothing),
        lambda net: net[0].register_forward_hook(do_nothing),
        lambda net: net.register_full_backward_pre_hook(do_nothing),
        lambda net: net.register_full_backward_hook(do_nothing),
        lambda net: net[0].weight.register_hook(do_nothing),
        lambda net: net[0].bias.register_post_accumulate_grad_hook(do_nothing),
    ],
)
def test_hooks_of_a_module_keep_steps_plain(register):
    net = layers()
    optimizer = fused(net)
    assert can_capture(net, optimizer)
    register(net)
    assert not can_capture(net, optimizer)


@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_full_backward_hook,
        register_optimizer_step_pre_hook,
    ],
)
def test_hooks_of_everything_keep_steps_plain(register):
    net = layers()
    handle = register(do_nothing)
    try:
        assert not can_capture(net, fused(net))
    finally:
        handle.remove()
    assert can_capture(net, fused(net))


class OwnAdamW(torch.optim.AdamW):
    pass


def with_hook(optimizer):
    optimizer.register_step_post_hook(do_nothing)
    return optimizer


def with_own_step(optimizer):
    optimizer.step = lambda: None
    return optimizer


@pytest.mark.parametrize(
    "make",
    [
        lambda net: fused(net, OwnAdamW),
        lambda net: with_hook(fused(net)),
        lambda net: with_own_step(fused(net)),
        lambda net: torch.optim.AdamW(net.parameters()),
        lambda net: torch.optim.SGD(net.parameters(), fused=True),
    ],
    ids=["subclass", "hook", "own step", "not fused", "not capturable"],
)
def test_other_optimizers_keep_steps_plain(make):
    net = layers()
    assert not can_capture(net, make(net))
