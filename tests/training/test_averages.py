"""An average of parameters, and of nothing else."""

from __future__ import annotations

import torch
from torch import nn

from training.averages import averaged


def test_early_steps_are_forgotten_and_later_ones_fade_by_what_is_kept() -> None:
    module = nn.Linear(1, 1, bias=False)
    average = averaged(module, kept=0.25)
    expected = None
    for value in (1.0, 3.0, 7.0):
        nn.init.constant_(module.weight, value)
        average.update_parameters(module)
        made = int(average.n_averaged) - 1
        kept = min(0.25, (1 + made) / (10 + made))
        expected = value if expected is None else kept * expected + (1 - kept) * value

    torch.testing.assert_close(average.module.weight.item(), expected)


def test_statistics_are_those_of_the_network_that_is_followed() -> None:
    module = nn.BatchNorm1d(2)
    average = averaged(module, kept=0.9)
    for _ in range(2):
        module(torch.randn(8, 2) + 5.0)
        average.update_parameters(module)

    assert torch.equal(average.module.running_mean, module.running_mean)
