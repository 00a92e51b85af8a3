"""A training run on disk, and how it is found again: `foldtrain train SPEC --out DIR`, `foldtrain resume DIR`.

    recipe.json          all settings, in full
    metrics.jsonl        a line an epoch
    checkpoint/          the last moment that was kept (checkpoint.py)
    model.safetensors    the weights, when the run has ended
    report.json          what was trained, and how good it is
    curves.svg           the metrics as a picture

Written so that a kill at any point leaves a run that can be resumed: lines of metrics that are newer than the
checkpoint are cut off then. Knows no loop.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from training import checkpoint
from training.checkpoint import Snapshot
from training.curves import curves_picture
from training.datasets.dataset import Dataset
from training.errors import UserError
from training.recipe import Recipe

RECIPE, METRICS, CHECKPOINT, MODEL, REPORT, CURVES = (
    "recipe.json", "metrics.jsonl", "checkpoint", "model.safetensors", "report.json", "curves.svg",
)  # fmt: skip
CHECKPOINT_EVERY_S = 30.0


class RunRefused(UserError):
    """The folder is no run, or holds another one."""


class RunFolder:
    """One run's folder."""

    def __init__(
        self, path: Path, *, every_s: float = CHECKPOINT_EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """every_s: a checkpoint so often, 0: after each step."""
        self.path = path
        self._every_s = every_s
        self._clock = clock
        self._saved_at_s = clock()
        self._data = ""
        self.listener: Callable[[Mapping[str, Any]], object] = lambda _: None
        """Is told each line of metrics, too."""

    # --- beginning and finding again ---

    def check_free(self) -> None:
        """Raises RunRefused where something lies there already."""
        try:
            taken = self.path.exists() and any(self.path.iterdir())
        except OSError as error:
            raise RunRefused(f"{self.path}: cannot be written: {error.strerror}") from error
        if taken:
            raise RunRefused(
                f"{self.path}: is not empty; go on with it (foldtrain resume {self.path}), or name another folder"
            )

    def begin(self, recipe: Recipe) -> None:
        """Raises RunRefused where something lies there already."""
        self.check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / RECIPE).write_text(recipe.model_dump_json(indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise RunRefused(f"{self.path}: cannot be written: {error.strerror}") from error

    def recipe(self) -> Recipe:
        """Raises RunRefused."""
        path = self.path / RECIPE
        try:
            return Recipe.model_validate_json(path.read_bytes())
        except OSError as error:
            raise RunRefused(f"{path}: {error.strerror}; {self.path} is not the folder of a run") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise RunRefused(f"{path}: {place or 'the file'}: {first['msg']}") from error

    # --- while it runs ---

    def last(self, dataset: Dataset) -> Snapshot | None:
        """Where to go on, None at the beginning; metrics that are newer are cut off. Raises RunRefused for other data,
        CheckpointRefused for a damaged checkpoint."""
        self._saved_at_s = self._clock()
        self._data = fingerprint(dataset)
        folder = self.path / CHECKPOINT
        if not (folder / checkpoint.INDEX).exists():
            (self.path / METRICS).unlink(missing_ok=True)
            return None
        snapshot = checkpoint.load(folder)
        if snapshot.values.get("data") != self._data:
            raise RunRefused(
                f"{self.path}: was trained on other data than {dataset.inputs[0].name!r} is now; begin anew"
            )
        with (self.path / METRICS).open("ab") as file:
            file.truncate(snapshot.values["metrics_bytes"])
        return snapshot

    def is_due(self) -> bool:
        """Whether a checkpoint is to be made behind this step."""
        return self._clock() - self._saved_at_s >= self._every_s

    def keep(self, snapshot: Snapshot) -> None:
        """As the run's checkpoint, of the data that `last` was given. Raises RunRefused for a full disk, as do all that
        write; the checkpoint before is then still there."""
        path = self.path / METRICS
        with self._written():
            size_bytes = path.stat().st_size if path.exists() else 0
            values = {**snapshot.values, "metrics_bytes": size_bytes, "data": self._data}
            checkpoint.save(self.path / CHECKPOINT, replace(snapshot, values=values))
        self._saved_at_s = self._clock()

    def tell(self, line: Mapping[str, Any]) -> None:
        """One line of metrics."""
        with self._written(), (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.listener(line)

    def metrics(self) -> list[Mapping[str, Any]]:
        """The lines so far."""
        path = self.path / METRICS
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    # --- the end ---

    def finish(self, module: nn.Module, report: Mapping[str, Any]) -> None:
        """The weights, and what is known of them."""
        with self._written():
            checkpoint.write_whole(self.path / CURVES, curves_picture(self.metrics()).encode())
            checkpoint.write_whole(self.path / MODEL, checkpoint.packed(module.state_dict()))
            checkpoint.write_whole(self.path / REPORT, json.dumps(report, indent=1).encode() + b"\n")

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunRefused(
                f"{self.path}: cannot be written: {error.strerror or error}; see to that, and go on with it: foldtrain "
                f"resume {self.path}"
            ) from error


def fingerprint(dataset: Dataset) -> str:
    """Of the examples that are trained on."""
    seen = hashlib.sha256()
    for name, array in (*dataset.train.inputs.items(), ("", dataset.train.labels)):
        seen.update(f"{name}{array.dtype}{array.shape}".encode())
        seen.update(array.tobytes())
    return seen.hexdigest()
