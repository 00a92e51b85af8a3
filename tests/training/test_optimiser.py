"""Which parameters decay, and the rate of each step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from training.bn.replacing import replace
from training.optimiser import build_optimiser, learning_rate_factor, parameter_groups
from training.recipe import Optimiser


@given(steps=st.integers(1, 3000), warmup=st.floats(0, 1, exclude_max=True))
def test_the_rate_rises_to_its_peak_then_falls_and_never_stands_still(steps, warmup) -> None:
    factors = [learning_rate_factor(step, steps, warmup) for step in range(steps + 1)]
    peak = factors.index(max(factors))

    assert factors[peak] == 1.0
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert min(factors[:-1]) > 0
    assert factors[-1] == pytest.approx(0, abs=1e-12)


def test_decay_touches_weights_and_neither_gamma_nor_beta_nor_a_bias() -> None:
    class Odd(nn.BatchNorm2d):
        """A subclass, as timm has them: the module's type tells, not its exact class."""

    network = nn.Sequential(nn.Conv2d(1, 3, 1), Odd(3), nn.Flatten(), nn.Linear(3, 2), nn.BatchNorm1d(2))

    decayed, spared = parameter_groups(network, 0.5)

    assert decayed["weight_decay"] == 0.5
    assert spared["weight_decay"] == 0.0
    assert [parameter.shape for parameter in decayed["params"]] == [(3, 1, 1, 1), (2, 3)]
    assert len(spared["params"]) == 6


@pytest.mark.parametrize("norm", ["ghost:2", "renorm", "sync", "masked", "frozen", "gn:2", "ln"])
def test_whatever_normalises_is_spared(norm: str) -> None:
    network = replace(nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4)), norm)

    decayed, spared = parameter_groups(network, 0.5)

    assert [parameter.shape for parameter in decayed["params"]] == [(4, 1, 1, 1)]
    assert len(spared["params"]) == len(list(network[1].parameters()))


def test_a_tied_weight_is_moved_once() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight

    assert [len(group["params"]) for group in parameter_groups(network, 0.5)] == [1, 2]


@pytest.mark.parametrize(("kind", "expected"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_recipe_names_the_optimiser(kind: str, expected: type) -> None:
    settings = Optimiser(kind=kind, learning_rate=0.25, weight_decay=0.5)

    optimiser = build_optimiser(settings, nn.Linear(2, 2))

    assert type(optimiser) is expected
    assert [(group["lr"], group["weight_decay"]) for group in optimiser.param_groups] == [(0.25, 0.5), (0.25, 0.0)]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_moving_all_parameters_at_once_gives_the_bits_of_torchs_one_by_one(kind: str) -> None:
    def trained(*, at_once: bool) -> list[torch.Tensor]:
        rng = torch.Generator().manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 3))
        for parameter in network.parameters():
            nn.init.normal_(parameter, generator=rng)
        optimiser = build_optimiser(Optimiser(kind=kind, learning_rate=0.01), network)
        for group in optimiser.param_groups:
            assert group["foreach"]
            group["foreach"] = at_once
        for _ in range(20):
            loss = network(torch.randn(8, 1, 5, 5, generator=rng)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return [parameter.detach() for parameter in network.parameters()]

    for together, one_by_one in zip(trained(at_once=True), trained(at_once=False), strict=True):
        assert torch.equal(together, one_by_one)
