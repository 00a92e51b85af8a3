"""What stands around a BatchNorm is read from the network's graph; what cannot be followed is said, never guessed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from training.bn.structure import read_structure


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.relu(values + self.bn(self.conv(values)))


class Branching(nn.Module):
    """Its way depends on values; two of its children's ways do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1))
        self.second = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.alone = nn.BatchNorm2d(3)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.alone(self.first(values) if values.sum() > 0 else self.second(values))


class Noisy(nn.Module):
    """Dropout by a function, before a BatchNorm or behind the last one."""

    def __init__(self, *, before: bool, beside: bool = False) -> None:
        super().__init__()
        self.bn, self.before, self.beside = nn.BatchNorm1d(3), before, beside

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        noisy = functional.dropout(values, 0.5, self.training) if self.before else values
        normal = self.bn(noisy)
        normal = normal + noisy if self.beside else normal
        return normal if self.before else functional.dropout(normal, 0.5, self.training)


class Several(nn.Module):
    """Takes any number of inputs, as a network behind a front does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(6, 3), nn.BatchNorm1d(3)

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.linear(torch.cat([*columns], dim=1))))


def test_a_network_of_any_number_of_inputs_is_followed() -> None:
    read = read_structure(Several(), inputs=2)

    assert (read.unread, read.places["bn"].fed_by, read.places["bn"].clamped) == ("", "linear", True)


def test_a_layer_knows_what_feeds_it_and_what_follows() -> None:
    plain = read_structure(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU6())).places["1"]
    skip = read_structure(Skip()).places["bn"]

    assert (plain.fed_by, plain.clamped, plain.closes_block, plain.uses) == ("0", True, False, 1)
    assert (skip.fed_by, skip.clamped, skip.closes_block) == ("conv", False, True)


def test_what_cannot_be_followed_as_a_whole_is_followed_by_pieces_and_said() -> None:
    told = read_structure(Branching())

    assert told.unread.startswith("the network cannot be followed (")
    assert told.places["first.1"].clamped is True
    assert told.places["second.1"].clamped is None  # what follows its piece nobody knows
    assert "alone" not in told.places


@pytest.mark.parametrize(
    ("network", "found"),
    [
        pytest.param(nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3), nn.BatchNorm1d(3)), True, id="before"),
        pytest.param(nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 3)), False, id="behind the last"),
        pytest.param(nn.Sequential(nn.Dropout(0.0), nn.BatchNorm1d(3)), False, id="of rate 0"),
        pytest.param(Noisy(before=True), True, id="a function, before"),
        pytest.param(Noisy(before=False), False, id="a function, behind"),
        pytest.param(Noisy(before=True, beside=True), False, id="with a way around"),
    ],
)
def test_dropout_counts_where_every_way_to_the_end_goes_through_a_batchnorm(network: nn.Module, found: bool) -> None:
    assert bool(read_structure(network).dropouts) == found
