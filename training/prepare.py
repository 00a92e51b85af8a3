"""From what was said to what can be trained: the data are read, and everything nobody said is chosen and told.

The work that `foldtrain train` and `foldtrain build` share.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from training import datasets
from training.datasets.dataset import Dataset
from training.fronts import features_of
from training.learning_rate import find_learning_rate
from training.networks import opened_network
from training.recipe import Recipe
from training.recipe_defaults import Facts, complete
from training.recipe_sources import Asked, merged
from training.remedies import remedy_of
from training.train import torch_set_up_for

_FOUND = "found by a trial with rising rates on a copy"


def prepare(asked: Asked, announce: Callable[[str], None] = lambda _: None) -> tuple[Recipe, Dataset]:
    """`announce` is told the choices, a line for each reason. Raises UserError."""
    told = asked.data()
    dataset = datasets.load(told.source, told.options())
    recipe = complete(asked, _facts(dataset))
    remedy_of(recipe)
    with torch_set_up_for(recipe), opened_network(recipe, dataset) as network:  # what does not fit is told before a run
        rate = find_learning_rate(network, recipe, dataset.train) if asked.finds_rate else None
    if rate is not None:
        values = recipe.model_dump()
        found = {"optimiser": {"learning_rate": rate}, "chosen": {"optimiser.learning_rate": _FOUND}}
        recipe = Recipe.model_validate(merged([values, found]))
    for reason in dict.fromkeys(recipe.chosen.values()):
        keys = [key for key, why in recipe.chosen.items() if why == reason]
        announce(f"chosen: {', '.join(f'{key}={_value(recipe, key)}' for key in keys)} ({reason})")
    return recipe, dataset


def _facts(dataset: Dataset) -> Facts:
    cuda = torch.cuda.is_available()
    fast = cuda and torch.cuda.get_device_capability() >= (8, 0)  # from Ampere on there are units for it
    features = features_of(dataset)
    return Facts(
        features.kind, dataset.task.value, len(dataset.train), cuda, fast, features.shape, dataset.classes
    )  # fmt: skip


def _value(recipe: Recipe, key: str) -> object:
    found: object = recipe
    for name in key.split("."):
        found = getattr(found, name)
    return found
