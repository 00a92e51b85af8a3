"""When it gets no better: held-out examples judge each epoch, and the best one's weights are kept. Knows no loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from training.datasets.dataset import Examples
from training.distributed import ALONE, Processes
from training.evaluation import measure


class Patience:
    """best: the `state_dict` of the epoch with the lowest held-out loss; empty before the first."""

    def __init__(self, examples: Examples, epochs: int) -> None:
        """epochs: so many without a lower loss, and it is over."""
        self._examples, self._epochs = examples, epochs
        self._loss = math.inf
        self._epoch = 0
        self.best_epoch: int | None = None
        self.best: Mapping[str, torch.Tensor] = {}

    @property
    def is_over(self) -> bool:
        return self.best_epoch is not None and self._epoch - self.best_epoch >= self._epochs

    def judge(self, module: nn.Module, epoch: int, processes: Processes = ALONE) -> dict[str, float]:
        """The module behind an epoch, as figures for the metrics; it is left in eval mode. Of several processes the
        first measures, so that all stop at the same epoch."""
        module.eval()
        found = processes.of_first(lambda: measure(module, self._examples))
        self._epoch = epoch
        loss = found.loss if math.isfinite(found.loss) else math.inf
        if loss < self._loss or self.best_epoch is None:
            self._loss, self.best_epoch = loss, epoch
            self.best = {name: value.detach().clone() for name, value in module.state_dict().items()}
        return {"held_out_loss": found.loss, "held_out_accuracy": found.accuracy}

    def as_values(self) -> dict[str, Any]:
        """For a checkpoint, without the weights."""
        return {"loss": None if math.isinf(self._loss) else self._loss, "epoch": self._epoch, "best": self.best_epoch}

    def restore(self, values: Mapping[str, Any], best: Mapping[str, torch.Tensor]) -> None:
        """As it was."""
        self._loss = math.inf if values["loss"] is None else values["loss"]
        self._epoch, self.best_epoch, self.best = values["epoch"], values["best"], best
