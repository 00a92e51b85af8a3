"""Which statistics are frozen: the running averages that training left, or those of the whole training data.

These are measured (bn/population.py) over the examples as clients send them, without the augmentation that the
averages have seen. Kept is whichever gives the lower loss on the training examples; but averages so far off that the
doctor would refuse them only where they are worth `WORTH` in accuracy, too, which means that something else is wrong,
and the doctor tells. Examples held out for the test decide nothing, their accuracy with either is told. Knows no ONNX
and no repository.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from training.bn.health import LOG_RATIO, RED_DRIFT, SHIFT
from training.bn.layers import frozen_layers, norm_layers
from training.bn.population import Estimate, estimate
from training.datasets.dataset import Dataset, Examples
from training.distributed import ALONE, Processes
from training.evaluation import EVALUATION_ROWS, measure, tensors
from training.recipe import Recipe
from training.train import torch_set_up_for

WORTH = 0.01


@dataclass(frozen=True, slots=True)
class Scores:
    """In eval mode, with one kind of statistics. train_loss: mean cross-entropy; accuracies are shares of 1.
    test_mean_iou: where each pixel has a class (evaluation.py)."""

    train_loss: float
    train_accuracy: float
    test_accuracy: float
    test_mean_iou: float | None = None


@dataclass(frozen=True, slots=True)
class FreezeReport:
    """kept: `population` or `running`, and why. `population` and `estimate` are None where nothing was measured."""

    kept: str
    reason: str
    running: Scores
    population: Scores | None = None
    estimate: Mapping[str, Any] | None = None

    @property
    def scores(self) -> Scores:
        """Of the network as it is frozen."""
        return self.population if self.kept == "population" and self.population else self.running

    def as_dict(self) -> dict[str, Any]:
        """For report.json."""
        return asdict(self)

    def as_text(self) -> str:
        """One line for a terminal."""
        if self.population is None or self.estimate is None:
            return f"running averages: {self.reason}"
        layers = self.estimate["layers"]
        shifts = [layer["mean_shift"] for layer in layers if layer["mean_shift"] is not None]
        if not shifts:
            return (
                f"no data reach any of the {len(layers)} BatchNorm layers; {self.kept} statistics kept: {self.reason}"
            )
        return (
            f"{len(layers)} BatchNorm layers measured; the running averages were off by up to {max(shifts):.2g} "
            f"standard deviations; {self.kept} statistics kept: {self.reason}"
        )


def freeze_statistics(
    module: nn.Module, recipe: Recipe, dataset: Dataset, processes: Processes = ALONE
) -> FreezeReport:
    """Leaves the better statistics in `module`, which is in eval mode on the CPU, and stays so.

    Where its weights are an average, no statistics but those measured are its own. Of several processes, which hold the
    same, each measures a part, and all come to the same. Raises CannotEstimate.
    """
    with torch_set_up_for(recipe), _on(recipe.device, module):
        running = processes.of_first(lambda: _scores(module, dataset))
        if recipe.statistics == "running":
            return FreezeReport("running", "the recipe asks for them", running)
        layers = norm_layers(module)
        if not layers:
            return FreezeReport("running", "there is no BatchNorm layer", running)
        if {layer.name for layer in layers} <= {*frozen_layers(module)}:
            return FreezeReport("running", f"all {len(layers)} BatchNorm layers were frozen from the start", running)
        batches = _batches(recipe, dataset.train)[processes.rank :: processes.count]
        found = estimate(module, batches, mode=recipe.statistics, forward=_forward)
        population = processes.of_first(lambda: _scores(module, dataset))
        told = found.as_dict()
        if recipe.optimiser.average is not None:
            reason = "the running averages are those of other weights than these"
            return FreezeReport("population", reason, running, population, told)
        if population.train_loss <= running.train_loss:
            reason = f"the training loss is {population.train_loss:.4g}, {running.train_loss:.4g} with running averages"
            return FreezeReport("population", reason, running, population, told)
        if _is_far_off(found) and population.train_accuracy > running.train_accuracy - WORTH:
            reason = (
                f"the running averages are too far off to be trusted, though the training loss is "
                f"{population.train_loss:.4g}, {running.train_loss:.4g} with them"
            )
            return FreezeReport("population", reason, running, population, told)
        found.undo()
        reason = f"the training loss is {running.train_loss:.4g}, {population.train_loss:.4g} with those measured"
        return FreezeReport("running", reason, running, population, told)


def _is_far_off(found: Estimate) -> bool:
    """As the doctor judges drift; a variance of 0, before or now, is not for this to judge."""
    shifts = [layer.mean_shift or 0.0 for layer in found.layers]
    ratios = [layer.log_variance_ratio or 0.0 for layer in found.layers]
    return any(
        RED_DRIFT * limit < value < math.inf
        for limit, values in ((SHIFT, shifts), (LOG_RATIO, ratios))
        for value in values
    )


def _batches(recipe: Recipe, examples: Examples) -> list[tuple[torch.Tensor, ...]]:
    """In one piece size where that decides nothing, in the recipe's where layers normalise by them."""
    rows = recipe.batch_size if recipe.statistics == "minibatch" else EVALUATION_ROWS
    return list(zip(*(values.split(rows) for values in tensors(examples)), strict=True))


def _forward(module: nn.Module, batch: tuple[torch.Tensor, ...]) -> object:
    device = next(module.parameters()).device
    return module(*(values.to(device) for values in batch))


@contextmanager
def _on(device: str, module: nn.Module) -> Iterator[None]:
    module.to(device)
    try:
        yield
    finally:
        module.cpu()


def _scores(module: nn.Module, dataset: Dataset) -> Scores:
    seen, unseen = (measure(module, part) for part in (dataset.train, dataset.test))
    return Scores(seen.loss, seen.accuracy, unseen.accuracy, unseen.mean_iou)
