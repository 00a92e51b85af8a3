"""A learning rate for a network and its data, by trial: rising rates on a copy, until the loss explodes.

The range test of L. N. Smith (arXiv 1506.01186): the rate grows by the same factor each step; chosen is a tenth of the
one at which the smoothed loss was lowest, which leaves the schedule its distance from the edge. Leaves no trace: the
network, its statistics and every random state are as before.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from training.datasets.dataset import Examples
from training.errors import UserError
from training.evaluation import tensors
from training.optimiser import build_optimiser
from training.randomness import generator, reseed
from training.recipe import Recipe

LOWEST, HIGHEST, STEPS = 1e-5, 10.0, 100
_MEMORY, _EXPLODED, _MARGIN = 0.9, 4.0, 10.0


def find_learning_rate(module: nn.Module, recipe: Recipe, examples: Examples) -> float:
    """For the recipe's optimiser and batch size, to two digits. Raises UserError where the loss never falls."""
    with torch.random.fork_rng(devices=[]):
        reseed(recipe.seed, "finder")
        rates, losses = _trial(copy.deepcopy(module).cpu().train(), recipe, examples)
    lowest = min(range(len(losses)), key=losses.__getitem__, default=0)
    if lowest == 0:
        raise UserError(
            f"recipe {recipe.name!r}: no learning rate from {LOWEST:g} on lowers the loss; set "
            f"optimiser.learning_rate, and have a look at the data"
        )
    return float(f"{rates[lowest] / _MARGIN:.2g}")


def _trial(module: nn.Module, recipe: Recipe, examples: Examples) -> tuple[Sequence[float], Sequence[float]]:
    """Rates, and the smoothed losses with them."""
    inputs, labels = tensors(examples), torch.from_numpy(examples.labels)
    optimiser = build_optimiser(recipe.optimiser, module)
    order = generator(recipe.seed, "finder")
    rates: list[float] = []
    losses: list[float] = []
    smooth = 0.0
    for step in range(STEPS):
        rows = torch.randperm(len(labels), generator=order)[: recipe.batch_size]
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = functional.cross_entropy(module(*(values[rows] for values in inputs)), labels[rows])
        smooth = _MEMORY * smooth + (1.0 - _MEMORY) * loss.item()
        unbiased = smooth / (1.0 - _MEMORY ** (step + 1))
        if not math.isfinite(unbiased) or (losses and unbiased > _EXPLODED * min(losses)):
            break
        rates.append(rate)
        losses.append(unbiased)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return rates, losses
