"""Which statistics are frozen: those measured over the training data, unless the running averages serve it better."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from training import datasets
from training.datasets.dataset import Dataset
from training.freeze import freeze_statistics
from training.recipe import Recipe
from training.recipe_sources import find_recipe
from training.train import train


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return datasets.load("digits")


def recipe(*overrides: str) -> Recipe:
    return find_recipe("digits", ["epochs=1", "architecture.options.widths=[8,8,16,16,16,16]", *overrides])


@pytest.fixture(scope="module")
def trained(dataset: Dataset) -> nn.Module:
    """22 steps at a rate that keeps 80 % of what the layers were born with."""
    return train(recipe("architecture.momentum=0.01"), dataset, show_progress=False)[0]


@pytest.mark.parametrize("mode", ["sequential", "minibatch"])
def test_averages_that_trail_behind_are_replaced(mode: str, trained: nn.Module, dataset: Dataset):
    module = copy.deepcopy(trained)

    report = freeze_statistics(module, recipe(f"statistics={mode}"), dataset)

    assert report.kept == "population"
    assert report.population is not None
    assert report.estimate is not None
    assert report.estimate["mode"] == mode
    assert report.population.train_loss < report.running.train_loss
    assert report.scores.test_accuracy > report.running.test_accuracy + 0.2
    assert "population statistics kept: the training loss is" in report.as_text()
    assert not module.training


def test_averages_that_serve_better_stay_bit_for_bit(trained: nn.Module, dataset: Dataset):
    """By a network whose last scale has been trained for other statistics: measuring makes it worse."""
    module = copy.deepcopy(trained)
    freeze_statistics(module, recipe(), dataset)
    last = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm1d)][-1]
    assert last.running_var is not None
    with torch.no_grad():
        last.running_var *= 0.7
        better = copy.deepcopy(module.state_dict())

    report = freeze_statistics(module, recipe(), dataset)

    assert report.kept == "running"
    assert report.scores == report.running
    assert all(torch.equal(value, better[name]) for name, value in module.state_dict().items())
    assert "running statistics kept: the training loss is" in report.as_text()


def test_averages_that_the_doctor_would_refuse_are_replaced_though_the_loss_is_a_little_lower(
    trained: nn.Module, dataset: Dataset
):
    module = copy.deepcopy(trained)
    freeze_statistics(module, recipe(), dataset)
    good = copy.deepcopy(module.state_dict())
    last = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm1d)][-1]
    assert last.running_var is not None
    with torch.no_grad():
        last.running_var *= 0.25

    report = freeze_statistics(module, recipe(), dataset)

    assert report.population is not None
    assert report.population.train_loss > report.running.train_loss
    assert report.kept == "population"
    assert "population statistics kept: the running averages are too far off to be trusted" in report.as_text()
    torch.testing.assert_close(module.state_dict(), good)


def test_a_recipe_may_ask_for_the_averages(trained: nn.Module, dataset: Dataset):
    module = copy.deepcopy(trained)

    report = freeze_statistics(module, recipe("statistics=running"), dataset)

    assert (report.kept, report.population, report.estimate) == ("running", None, None)
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in module.state_dict().items())
    assert report.as_text() == "running averages: the recipe asks for them"


def test_layers_that_never_learned_stay_as_they_are(dataset: Dataset):
    settings = recipe("architecture.norm=frozen")
    module, _ = train(settings, dataset, show_progress=False)
    before = copy.deepcopy(module.state_dict())

    report = freeze_statistics(module, settings, dataset)

    assert report.as_text() == "running averages: all 7 BatchNorm layers were frozen from the start"
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.unused = nn.Linear(64, 10), nn.BatchNorm1d(10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.linear(image.flatten(1))  # type: ignore[no-any-return]


def test_layers_that_no_data_reach_are_told(dataset: Dataset):
    report = freeze_statistics(Unused().eval(), recipe(), dataset)
    assert report.as_text().startswith("no data reach any of the 1 BatchNorm layers; population statistics kept")
