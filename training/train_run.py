"""The work of `foldtrain train` and `foldtrain resume`: a run in a folder, begun or gone on with, to its end or Ctrl-C.

Ctrl-C finishes the step, keeps a checkpoint, and leaves weights with population statistics as any end does; a second
one ends at once, and the run is as of its last checkpoint. Of several processes that are joined (distributed.py) only
the first reads and writes the folder.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from training import datasets
from training.datasets.dataset import Dataset
from training.distributed import present
from training.freeze import FreezeReport, freeze_statistics
from training.prepare import prepare
from training.recipe import Recipe
from training.recipe_sources import Asked
from training.run_folder import CHECKPOINT_EVERY_S, CURVES, MODEL, RunFolder
from training.tensorboard import writing
from training.train import TrainReport, train


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run has come to."""

    path: Path
    train: TrainReport
    freeze: FreezeReport

    def as_text(self) -> str:
        """The summary for a terminal."""
        scores = self.freeze.scores
        loss = "none yet" if self.train.train_loss is None else f"{self.train.train_loss:.4f}"
        state = "trained" if self.train.is_finished else "stopped"
        overlap = "" if scores.test_mean_iou is None else f", mean IoU {scores.test_mean_iou:.2%}"
        accuracy = (
            f"{scores.test_accuracy:.2%} of {self.train.n_test} held-out examples "
            f"(training examples: {scores.train_accuracy:.2%}){overlap}"
        )
        lines = [
            f"{state}: {self.train.steps} of {self.train.total_steps} steps, training loss {loss}",
            f"accuracy: {accuracy}",
            f"frozen: {self.freeze.as_text()}",
            f"weights: {self.path / MODEL}",
            f"curves: {self.path / CURVES}",
        ]
        return "\n".join(lines if self.train.is_finished else [*lines, f"go on: foldtrain resume {self.path}"])


def start(recipe: Recipe, folder: Path, *, every_s: float = CHECKPOINT_EVERY_S) -> RunResult:
    """Begins a run in a folder that is empty or not there. Raises RunRefused, TrainingFailed."""
    run = RunFolder(folder, every_s=every_s)
    present().of_first(lambda: run.begin(recipe))
    return _to_its_end(run, recipe, datasets.load(recipe.data.source, recipe.data.options()))


def start_asked(
    asked: Asked,
    folder: Path,
    *,
    every_s: float = CHECKPOINT_EVERY_S,
    announce: Callable[[str], None] = lambda _: None,
) -> RunResult:
    """The same of what was said; `announce` is told what was chosen. Raises UserError."""
    run = RunFolder(folder, every_s=every_s)
    processes = present()
    processes.of_first(run.check_free)
    found, dataset = prepare(asked, announce)
    recipe = processes.of_first(lambda: found)  # on other machines other things may have been chosen
    processes.of_first(lambda: run.begin(recipe))
    return _to_its_end(run, recipe, dataset)


def resume(folder: Path, *, every_s: float = CHECKPOINT_EVERY_S) -> RunResult:
    """Goes on from the last checkpoint. Raises RunRefused, CheckpointRefused, TrainingFailed."""
    run = RunFolder(folder, every_s=every_s)
    recipe = present().of_first(run.recipe)
    return _to_its_end(run, recipe, datasets.load(recipe.data.source, recipe.data.options()))


def _to_its_end(run: RunFolder, recipe: Recipe, dataset: Dataset) -> RunResult:
    processes = present()
    listens = recipe.tensorboard and processes.is_first
    with _stopped_by_ctrl_c() as stop, writing(run.path) if listens else nullcontext() as listener:
        if listener is not None:
            run.listener = listener
        module, report = train(recipe, dataset, run=run, should_stop=stop.is_asked, processes=processes)
    freeze = freeze_statistics(module, recipe, dataset, processes)
    if processes.is_first:
        told = {key: value for key, value in report.as_dict().items() if key != "seconds"}
        run.finish(module, {"train": told, "freeze": freeze.as_dict()})
    return RunResult(run.path, report, freeze)


class _Stop:
    def __init__(self) -> None:
        self.was_asked = False

    def is_asked(self) -> bool:
        return self.was_asked


@contextmanager
def _stopped_by_ctrl_c() -> Iterator[_Stop]:
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.was_asked:
            signal.default_int_handler(number, frame)
        stop.was_asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
