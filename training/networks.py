"""Recipe and data to a freshly initialised network: the data's front, behind it a family of ours or anybody's model.

Drawn from torch's global generator. Knows no loop.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from training import architectures
from training.architectures.norms import Norms
from training.bn.replacing import replace
from training.datasets.dataset import Dataset, Pixels, Task
from training.errors import UserError
from training.fronts import Network, build_front, features_of
from training.model_source import opened
from training.recipe import Architecture, Recipe
from training.user_code import first_line

_OURS = ("front", "features", "outputs", "norms")


@contextmanager
def opened_network(recipe: Recipe, dataset: Dataset) -> Iterator[Network]:
    """The network; inside the block a user's own code may import what it lies beside. Raises UserError."""
    architecture, outputs = recipe.architecture, len(dataset.classes)
    _check_augmentation(recipe, dataset)
    if architecture.model is None:
        yield Network(build_front(dataset.front), _of_family(architecture, dataset, outputs))
        return
    channels = features_of(dataset).shape[0]
    with opened(
        architecture.model, torchvision_shim=architecture.torchvision_shim, classes=outputs, channels=channels
    ) as source:
        body = replace(source.module, architecture.norm) if architecture.norm != "bn" else source.module
        network = Network(build_front(dataset.front), body)
        _check_answers(network, architecture.model, dataset, outputs)
        yield network


def _check_augmentation(recipe: Recipe, dataset: Dataset) -> None:
    """What is moved is an image, and no labels with it. Raises UserError."""
    front = dataset.front
    if not recipe.data.shift_pixels:
        return
    found = None
    if not isinstance(front, Pixels):
        found = f"rows of {type(front).__name__.lower()}"
    elif dataset.train.only.ndim != 4:
        found = f"arrays of {dataset.train.only.ndim - 1} axes a row"
    elif dataset.task is not Task.CLASSIFY:
        found = "a class a pixel, which would have to move, too"
    if found is not None:
        raise UserError(
            f"data.shift_pixels={recipe.data.shift_pixels}: {recipe.data.source} gives {found}, expected images "
            f"with one class each; leave it at 0"
        )


def _of_family(architecture: Architecture, dataset: Dataset, outputs: int) -> nn.Module:
    assert architecture.family is not None
    norms = Norms(
        architecture.norm, architecture.eps, architecture.momentum, architecture.affine, architecture.bn_bias,
        architecture.conv_bias, architecture.bn_order,
    )  # fmt: skip
    builder = importlib.import_module(architectures.FAMILIES[architecture.family]).build
    known = [name for name in inspect.signature(builder).parameters if name not in _OURS]
    if unknown := [name for name in architecture.options if name not in known]:
        raise UserError(
            f"architecture.options.{unknown[0]}: {architecture.family} has no such option; it has "
            f"{', '.join(known) or 'none'}"
        )
    try:
        return architectures.build(
            architecture.family, features_of(dataset), outputs, norms=norms, **architecture.options
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"architecture.options={dict(architecture.options)} do not fit {architecture.family}: {first_line(error)}"
        ) from error


def _check_answers(network: Network, spec: str, dataset: Dataset, outputs: int) -> None:
    """A model of anybody's is asked about two rows before it is trained for hours; nothing random is used up."""
    inputs = [torch.from_numpy(values) for values in dataset.train.at(slice(2)).inputs.values()]
    expected: tuple[int, ...] = (len(inputs[0]), outputs)
    if dataset.task is Task.SEGMENT:
        expected += dataset.train.labels.shape[1:]
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):  # what a lazy layer makes now is trained later
            answer = network(*inputs)
    except Exception as error:  # anybody's code raises what it likes
        raise UserError(f"{spec}: cannot take these inputs: {first_line(error)}") from error
    found = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
    if found != expected:
        raise UserError(f"{spec}: gives {found} for {expected[0]} rows, expected scores of shape {expected}")
    if not any(parameter.requires_grad for parameter in network.body.parameters()):
        raise UserError(f"{spec}: none of its parameters has requires_grad, expected one to learn; set it on some")
