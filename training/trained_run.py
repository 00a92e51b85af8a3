"""A run's folder as something to work with: its network, its data, and what is known of its training.

Weights are those of the run's end, or of its last checkpoint where that is newer: a run that was killed can be looked
at, too. The folder is read, never written. Knows no check and no repository.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from training import checkpoint, datasets, remedies
from training.bn.facts import Facts
from training.datasets.dataset import Dataset
from training.health_check import facts_of
from training.networks import opened_network
from training.recipe import Recipe
from training.remedies import remedy_of
from training.run_folder import CHECKPOINT, MODEL, REPORT, RunFolder, RunRefused
from training.train import steps_of, torch_set_up_for
from training.weights_file import load_weights


@dataclass(frozen=True, slots=True, eq=False)
class TrainedRun:
    """module: in eval mode, on the CPU. weights: where they were read. steps: that they have seen. report: of the run's
    end; None where the weights are a checkpoint's."""

    folder: Path
    recipe: Recipe
    dataset: Dataset
    module: nn.Module
    weights: Path
    steps: int
    report: Mapping[str, Any] | None

    @property
    def total_steps(self) -> int:
        """That the recipe asks for."""
        return steps_of(self.recipe, self.dataset) * self.recipe.epochs

    def facts(self) -> Facts:
        """Of its training."""
        return facts_of(self.module, self.recipe, self.dataset, steps=self.steps, finished=self.report is not None)


def open_run(folder: Path) -> TrainedRun:
    """Raises UserError: the folder is no run, has no weights yet, or what it holds does not fit together."""
    recipe = RunFolder(folder).recipe()
    dataset = datasets.load(recipe.data.source, recipe.data.options())
    with torch_set_up_for(recipe), opened_network(recipe, dataset) as module:
        remedies.apply(module, remedy_of(recipe), batch_rows=recipe.batch_size, total_steps=1)
        weights, steps, report = _load(module, folder)
    return TrainedRun(folder, recipe, dataset, module.eval(), weights, steps, report)


def _load(module: nn.Module, folder: Path) -> tuple[Path, int, Mapping[str, Any] | None]:
    """The newest weights; where they were, how many steps they have seen, and the report if they are the run's end."""
    report, ended_at = _end(folder)
    kept = checkpoint.load(folder / CHECKPOINT) if (folder / CHECKPOINT / checkpoint.INDEX).exists() else None
    if report is not None and (kept is None or kept.step <= ended_at):
        load_weights(module, folder / MODEL)
        return folder / MODEL, ended_at, report
    if kept is None:
        raise RunRefused(
            f"{folder}: holds neither {MODEL} nor a checkpoint: the run was stopped before its first; go on with it: "
            f"foldtrain resume {folder}"
        )
    weights = folder / CHECKPOINT
    try:
        module.load_state_dict(kept.module)
    except RuntimeError as error:
        raise RunRefused(f"{weights}: is not of the network that {folder}'s recipe describes; begin anew") from error
    return weights, kept.step, None


def _end(folder: Path) -> tuple[Mapping[str, Any] | None, int]:
    """The report of the run's end and the number of its steps; None where it has not ended."""
    path = folder / REPORT
    if not (path.exists() and (folder / MODEL).exists()):
        return None, 0
    try:
        report = json.loads(path.read_bytes())
        return report, int(report["train"]["steps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunRefused(f"{path}: cannot be read as the report of a run: {error!r}") from error
