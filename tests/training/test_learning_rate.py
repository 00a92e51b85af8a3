"""A rate found by trial on a copy, without a trace."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from training.datasets.dataset import Examples
from training.errors import UserError
from training.learning_rate import find_learning_rate
from training.recipe import Recipe
from training.recipe_sources import find_recipe
from training.train import torch_set_up_for

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(200, 4)).astype(np.float32)
EXAMPLES = Examples({"row": ROWS}, (ROWS[:, 0] > 0).astype(np.int64))


@pytest.fixture
def recipe() -> Recipe:
    return find_recipe("digits", ["batch_size=20"])


@pytest.fixture(autouse=True)
def set_up(recipe: Recipe) -> Iterator[None]:
    """One thread, as where it is used."""
    with torch_set_up_for(recipe):
        yield


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize(("scale", "range_"), [(1.0, (0.01, 1.0)), (100.0, (1e-5, 0.03))])
def test_the_rate_follows_the_problem(recipe: Recipe, scale: float, range_: tuple[float, float]) -> None:
    """Outputs a hundred times as large explode at a rate that is far lower."""
    module = network()
    module[4] = nn.Sequential(module[4], Times(scale))

    assert range_[0] <= find_learning_rate(module, recipe, EXAMPLES) <= range_[1]


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.factor * values


def test_nothing_is_left_of_the_trial(recipe: Recipe) -> None:
    module = network().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    first, again = (find_learning_rate(module, recipe, EXAMPLES) for _ in range(2))

    assert first == again
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not module.training
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_loss_that_never_falls_is_told(recipe: Recipe) -> None:
    rows = np.full((40, 4), np.nan, np.float32)

    with pytest.raises(UserError, match="no learning rate from 1e-05 on lowers the loss"):
        find_learning_rate(network(), recipe, Examples({"row": rows}, np.zeros(40, np.int64)))
