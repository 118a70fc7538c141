"""State dicts as arrays and back."""

import torch
from torch import nn

from lelp_sklearn._training.modules import to_arrays, to_tensors


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
