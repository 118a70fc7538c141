"""Devices, precision and random states of training."""

from threading import Thread

import numpy as np
import pytest
import torch

from lelp_sklearn._training.device import (
    denormals_are_zero,
    derive_seed,
    input_dtype,
    resolve_device,
    seeded,
)

CPU = torch.device("cpu")


def test_seeded_block_draws_from_its_seed_and_leaves_no_trace():
    before = torch.get_rng_state()
    with seeded(3, CPU):
        drawn = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn, torch.rand(4, generator=torch.Generator().manual_seed(3)))


def test_seeded_block_leaves_no_trace_of_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="negative"), seeded(3, CPU):
        torch.rand(-1)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_blocks_of_threads_do_not_meet():
    """Each draws what it draws alone, and the generator is left as it was."""
    before = torch.get_rng_state()
    drawn = {}

    def draw(seed):
        with seeded(seed, CPU):
            drawn[seed] = torch.cat([torch.rand(1) for _ in range(2000)])

    threads = [Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.get_rng_state(), before)
    for seed, found in drawn.items():
        generator = torch.Generator().manual_seed(seed)
        alone = torch.cat([torch.rand(1, generator=generator) for _ in range(2000)])
        assert torch.equal(found, alone)


def test_derived_seeds_differ_and_are_seeds():
    seeds = {derive_seed(seed, epoch) for seed in range(30) for epoch in range(30)}
    assert len(seeds) == 900
    for seed in seeds:
        torch.Generator().manual_seed(seed)
        assert seed >= 0


def test_automatic_device_is_one_that_works():
    device = resolve_device("auto", np.zeros((2, 2)))
    assert torch.ones(2, device=device).sum() == 2


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_accelerators_take_single_precision(device):
    """Naming an accelerator is enough; none needs to be there."""
    dtype = input_dtype(
        np.zeros((2, 2)), torch.device(device), integers_are_token_ids=False
    )
    assert dtype == torch.float32
    tokens = np.zeros((2, 2), dtype=np.int32)
    dtype = input_dtype(tokens, torch.device(device), integers_are_token_ids=True)
    assert dtype == torch.int64


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_zero_in_the_block_alone(before):
    tiny = torch.tensor(1e-310, dtype=torch.float64)
    torch.set_flush_denormal(before)
    try:
        with denormals_are_zero():
            assert tiny * 0.5 == 0
        assert (tiny * 0.5 == 0) == before
    finally:
        torch.set_flush_denormal(False)
