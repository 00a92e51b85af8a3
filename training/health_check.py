"""A trained network examined on the data that it was trained on, with what is known of its training.

The same eyes for `foldtrain build`, for `doctor RUN` and for `recalibrate`. Knows no command and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from training.bn.diagnosis import Diagnosis, examine
from training.bn.facts import Facts, Group
from training.bn.findings import CHECKS
from training.datasets.dataset import Dataset, Examples
from training.errors import UserError
from training.evaluation import tensors
from training.optimiser import parameter_groups
from training.recipe import Recipe
from training.train import steps_of, torch_set_up_for

BATCH_ROWS = 64
"""Of the examination, whatever the training's: enough that layers normalise well, few enough that batches are many."""

MOST_ROWS = 4096
"""Drift of a tenth of a standard deviation is seen in a tenth of them."""

_SEED = 0


class Unhealthy(UserError):
    """A finding is red. Nothing was published."""


def facts_of(module: nn.Module, recipe: Recipe, dataset: Dataset, *, steps: int, finished: bool) -> Facts:
    """As the doctor wants them told. No batch is smaller than the others: what remains of an epoch is spread over its
    batches."""
    rows, accumulate = len(dataset.train), recipe.optimiser.accumulate
    names = {parameter: name for name, parameter in module.named_parameters()}
    groups = tuple(
        Group(parameters=tuple(names[one] for one in group["params"]), weight_decay=group["weight_decay"])
        for group in parameter_groups(module, recipe.optimiser.weight_decay)
    )
    return Facts(
        steps=steps or None, accumulation=accumulate, batch_rows=rows // (steps_of(recipe, dataset) * accumulate),
        rows=rows, drop_last=True, shuffle=True, learning_rate=recipe.optimiser.learning_rate, groups=groups,
        fullgraph=False, finished=finished,
    )  # fmt: skip


def examine_trained(module: nn.Module, recipe: Recipe, dataset: Dataset, *, steps: int) -> Diagnosis:
    """steps: that the network has seen."""
    rows = np.random.default_rng(_SEED).permutation(len(dataset.train))[:MOST_ROWS]
    some = dataset.train.at(rows)
    with torch_set_up_for(recipe):
        return examine(
            module, batches_of(some, BATCH_ROWS), labels=torch.from_numpy(some.labels).tensor_split(edges(len(some))),
            facts=facts_of(module, recipe, dataset, steps=steps, finished=True), forward=run_on,
            inputs=len(dataset.inputs),
        )  # fmt: skip


def batches_of(examples: Examples, rows: int) -> list[tuple[torch.Tensor, ...]]:
    """The inputs, cut."""
    return list(zip(*(values.tensor_split(edges(len(examples), rows)) for values in tensors(examples)), strict=True))


def edges(count: int, rows: int = BATCH_ROWS) -> list[int]:
    """Where batches begin, but the first. A last row alone has no variance: it joins the batch before."""
    return list(range(rows, count - 1, rows))


def run_on(module: nn.Module, batch: Sequence[torch.Tensor]) -> Any:
    return module(*batch)


def require_health(diagnosis: Diagnosis, of: str, instead: str = "") -> None:
    """of: what was examined. instead: what else can be done. Raises Unhealthy."""
    if red := diagnosis.of("red"):
        first = red[0]
        where = f"{first.layer}: " if first.layer else ""
        raise Unhealthy(
            f"{of}: {len(red)} findings are red; nothing was published. The first is "
            f"{first.check} {CHECKS[first.check]}: {where}{first.found}; expected {first.expected}; {first.fix}"
            f"{instead}"
        )


def health_of(diagnosis: Diagnosis) -> dict[str, Any]:
    """For report.json."""
    told = diagnosis.as_dict()
    return {key: told[key] for key in ("healthy", "counts", "findings")}
