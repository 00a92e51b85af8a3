"""From recipe and data to a network: families with their options, and models of anybody's behind our front."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service import repository as layout
from training import datasets
from training.datasets.dataset import Columns, Dataset, Examples, InputDescription, Pixels, Task
from training.errors import UserError
from training.networks import opened_network
from training.pipeline import build
from training.recipe import Recipe
from training.recipe_sources import find_recipe
from training.train import train

NETS = """
import torch
from torch import nn

def classify():
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 10))

def segment():
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))

class Two(nn.Module):
    def forward(self, x):
        return x, x

def two():
    return Two()

class Raises(nn.Module):
    def forward(self, x):
        raise KeyError("layer")

def raises():
    return Raises()

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d(), nn.LazyLinear(10))

def held():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)).requires_grad_(False)
"""


@pytest.fixture(scope="module")
def digits() -> Dataset:
    dataset = datasets.load("digits")
    return dataclasses.replace(dataset, train=dataset.train.at(slice(200)), test=dataset.test.at(slice(50)))


def recipe(network: str, *overrides: str) -> Recipe:
    return find_recipe("digits", [f"architecture.{network}", *overrides])


@pytest.fixture
def nets(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NETS)
    return f"model=file:{tmp_path}/nets.py"


def test_somebodys_model_is_the_body_behind_our_front(digits: Dataset, nets: str) -> None:
    with opened_network(recipe(f"{nets}:classify", "architecture.norm=ghost:8"), digits) as network:
        assert network.eval()(torch.from_numpy(digits.test.only)).shape == (50, 10)
        assert type(network.body[1]).__name__ == "GhostBatchNorm"


def test_a_model_of_torchvisions_answers_with_our_classes(digits: Dataset) -> None:
    pixels = digits.train.only.repeat(3, axis=1).repeat(4, axis=2).repeat(4, axis=3)
    colour = dataclasses.replace(
        digits,
        front=Pixels((0.0,) * 3, (16.0,) * 3),
        train=Examples({"image": pixels}, digits.train.labels),
    )  # fmt: skip
    with opened_network(
        recipe("model=torchvision:shufflenet_v2_x0_5", "architecture.torchvision_shim=true"), colour
    ) as network:
        assert network.eval()(torch.from_numpy(colour.train.only[:2])).shape == (2, 10)


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("segment", r"segment: gives \(2, 2, 8, 8\) for 2 rows, expected scores of shape \(2, 10\)"),
        ("two", r"two: gives tuple for 2 rows, expected scores"),
        ("three", r"has no 'three'; it has"),
        ("raises", r"raises: cannot take these inputs: 'layer'"),
        ("held", r"held: none of its parameters has requires_grad, expected one to learn"),
    ],
)
def test_a_model_that_does_not_fit_is_told_before_it_is_trained(
    digits: Dataset, nets: str, factory: str, told: str
) -> None:
    with pytest.raises(UserError, match=told), opened_network(recipe(f"{nets}:{factory}"), digits):
        pass


def test_a_layer_that_learns_its_size_from_its_inputs_is_trained(digits: Dataset, nets: str) -> None:
    module, report = train(recipe(f"{nets}:lazy", "epochs=1"), digits)
    assert report.is_finished
    assert module.state_dict()["body.1.running_mean"].abs().max() > 0.01


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"front": Columns((0.0,))}, "rows of columns"),
        ({"task": Task.SEGMENT}, "a class a pixel"),
    ],
)
def test_what_the_augmentation_would_spoil_is_refused(digits: Dataset, change: dict[str, Any], told: str) -> None:
    """It moves images, whose class stays what it is."""
    with (
        pytest.raises(UserError, match=rf"^data\.shift_pixels=1: digits gives {told}.*; leave it at 0$"),
        opened_network(find_recipe("digits"), dataclasses.replace(digits, **change)),
    ):
        pass


def test_a_model_for_other_inputs_is_told(digits: Dataset) -> None:
    with (
        pytest.raises(UserError, match=r"resnet18: cannot take these inputs: .*channels"),
        opened_network(recipe("model=torchvision:resnet18", "architecture.torchvision_shim=true"), digits),
    ):
        pass


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("options.depth=3", r"architecture\.options\.depth: cnn6 has no such option; it has widths"),
        (
            "options.widths=[-1,1,2,3,4,5]",
            r"architecture\.options=\{'widths': \[-1, 1, 2, 3, 4, 5\]\} do not fit cnn6: ",
        ),
        ("options.widths=3", r"do not fit cnn6: "),
    ],
)
def test_options_that_do_not_fit_are_told(digits: Dataset, option: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught, opened_network(recipe(option), digits):
        pass
    assert "\n" not in str(caught.value)


def spots(rows: int, seed: int) -> Examples:
    """Bright squares on noise; which pixels belong to one?"""
    generator = np.random.default_rng(seed)
    labels = np.zeros((rows, 6, 8), np.int64)
    for row in range(rows):
        top, left = generator.integers(0, 4, 2)
        labels[row, top : top + 3, left : left + 3] = 1
    image = labels[:, None] * 2.0 + generator.normal(size=(rows, 1, 6, 8)) * 0.3
    return Examples({"photo": image.astype(np.float32)}, labels)


def test_each_pixel_of_an_image_is_classified_from_data_to_published_version(nets: str, tmp_path: Path) -> None:
    dataset = Dataset(
        inputs=(InputDescription("photo", "grey"),), front=Pixels((0.0,), (1.0,)), classes=("ground", "spot"),
        train=spots(64, 0), test=spots(16, 1), task=Task.SEGMENT, notes=("scale it to 6x8",),
    )  # fmt: skip
    settings = ["epochs=8", "batch_size=16", "minimum_test_accuracy=0.9", "data.shift_pixels=0"]

    result = build(recipe(f"{nets}:segment", *settings), tmp_path / "models", dataset=dataset)

    assert result.batchnorms_left == 0
    assert result.freeze.scores.test_mean_iou is not None
    assert 0.7 < result.freeze.scores.test_mean_iou <= result.freeze.scores.test_accuracy
    config = layout.read_config(result.path.parent)
    assert config.notes == ("scale it to 6x8",)
    assert config.outputs[0].shape == (-1, 6, 8, 2)
    assert config.outputs[0].description.startswith("one score a class for each pixel")
