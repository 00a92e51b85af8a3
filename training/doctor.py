"""The work of `foldtrain doctor`: a checkpoint's BatchNorm layers examined, and what was found as text, JSON or a page.

    SPEC -> module (+ weights) (+ data) (+ facts) -> examine -> text, JSON, page
    RUN  -> all of these

Promises: a file is data and runs nothing (safetensors, or torch's with weights_only; JSON; arrays without pickles);
nothing is written but the reports, whole or not at all. Knows no check: those are in bn/.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import nn

from training.bn.diagnosis import Diagnosis, examine
from training.bn.facts import Facts
from training.bn.findings import CHECKS, SEVERITIES
from training.bn.layers import norm_layers, without_statistics
from training.bn.measure import Ranks
from training.bn.population import Forward
from training.command_files import CannotUseFile, check_places, read_samples, write_json, write_text
from training.doctor_page import render
from training.errors import UserError
from training.evaluation import tensors
from training.health_check import MOST_ROWS, edges
from training.model_source import opened
from training.reference.op import Array
from training.run_folder import RECIPE
from training.trained_run import open_run
from training.weights_file import load_weights

LABELS, MASK = "labels", "mask"
"""Names in the data with a meaning of their own; every other array is an input."""

_SEED = 0


class CannotExamine(UserError):
    """There is nothing to examine."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What came out, and of what. of_run: where the run stands, if it was one."""

    checkpoint: Path
    diagnosis: Diagnosis
    of_run: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"checkpoint": str(self.checkpoint), **self.diagnosis.as_dict()}

    def as_text(self) -> str:
        told, examined = self.diagnosis, self.diagnosis.examined
        data = f"{examined.rows} rows in {examined.batches} batches" if examined.rows else "no data"
        where = f"{self.checkpoint}{f', {self.of_run}' if self.of_run else ''}"
        lines = [f"{where}: BatchNorm layers with running statistics: {len(examined.layers)}; {data}"]
        for finding in told.findings:
            at = f"{finding.layer}: " if finding.layer else ""
            lines += [
                f"{finding.severity:<7} {finding.check:<4} {CHECKS[finding.check]}: {at}{finding.found}",
                f"             expected {finding.expected}; {finding.fix}",
            ]
        for each in told.not_made:
            layers = f" ({len(each.layers)} layers)" if each.layers else ""
            lines.append(f"not made {each.check:<3} {CHECKS[each.check]}: {each.reason}{layers}")
        return "\n".join([*lines, ", ".join(f"{len(told.of(severity))} {severity}" for severity in SEVERITIES)])


def doctor(
    checkpoint: Path,
    spec: str | None = None,
    *,
    data: Path | None = None,
    facts: Path | None = None,
    ranks: Sequence[Path] = (),
    in_order: bool = False,
    json_file: Path | None = None,
    html_file: Path | None = None,
    torchvision_shim: bool = False,
) -> Examination:
    """checkpoint: a file, whose network `spec` names, or the folder of a run, which knows its own network and training,
    and its own data where none are given.

    data: an .npz; see `LABELS`. ranks: checkpoints of the run's other processes. in_order: rows stay as the data
    have them, as a loader without shuffling would bring them. Raises UserError."""
    reports = [path for path in (json_file, html_file) if path]
    if not checkpoint.exists():
        raise CannotUseFile(f"{checkpoint}: there is no such file, nor a folder of a run")
    model_file = checkpoint / RECIPE if checkpoint.is_dir() else checkpoint
    check_places([model_file, *reports], sources=[path for path in (data, facts, *ranks) if path])
    told = _facts(facts) if facts else None
    with _subject(checkpoint, spec, told, ranks, torchvision_shim=torchvision_shim) as subject:
        module = subject.module
        batches = _Batches.read(data, module, in_order=in_order) if data else subject.batches
        diagnosis = examine(
            module, batches.inputs, labels=batches.labels, masks=batches.masks, facts=subject.facts,
            ranks=subject.ranks, forward=subject.forward, inputs=subject.inputs,
        )  # fmt: skip
    result = Examination(subject.weights, diagnosis, subject.of_run)
    if json_file:
        write_json(json_file, result.as_dict())
    if html_file:
        write_text(html_file, render(str(checkpoint), diagnosis, subject.facts))
    return result


# --- who is examined ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Subject:
    """batches: its own, where it has data of its own."""

    module: nn.Module
    weights: Path
    facts: Facts | None
    ranks: Ranks
    batches: _Batches
    forward: Forward
    inputs: int = 1
    of_run: str = ""


@contextmanager
def _subject(
    checkpoint: Path, spec: str | None, facts: Facts | None, ranks: Sequence[Path], *, torchvision_shim: bool
) -> Iterator[_Subject]:
    if checkpoint.is_dir():
        yield _run(checkpoint, spec, facts, ranks)
        return
    if spec is None:
        raise CannotExamine(f"{checkpoint}: whose weights are these? name the network with --model SPEC, as of export")
    with opened(spec, torchvision_shim=torchvision_shim) as source:
        _require_layers(source.module, spec)
        others = [_statistics(source.module, path) for path in ranks]
        _load(source.module, checkpoint)
        yield _Subject(source.module, checkpoint, facts, others, _Batches(), _by_name)


def _run(folder: Path, spec: str | None, facts: Facts | None, ranks: Sequence[Path]) -> _Subject:
    if spec is not None or facts is not None:
        raise CannotExamine(f"{folder}: a run knows its network and its training; leave out --model and --facts")
    run = open_run(folder)
    _require_layers(run.module, str(folder))
    others = [_statistics(copy.deepcopy(run.module), path) for path in ranks]
    batches = _Batches.cut(
        dict(zip(run.dataset.train.inputs, tensors(run.dataset.train), strict=True)),
        np.random.default_rng(_SEED).permutation(len(run.dataset.train))[:MOST_ROWS],
        labels=torch.from_numpy(run.dataset.train.labels),
    )
    forward = partial(_by_place, names=tuple(run.dataset.train.inputs))
    of_run = f"step {run.steps} of {run.total_steps}"
    return _Subject(run.module, run.weights, run.facts(), others, batches, forward, len(run.dataset.inputs), of_run)


def _require_layers(module: nn.Module, name: str) -> None:
    if not norm_layers(module) and not without_statistics(module):
        raise CannotExamine(f"{name}: has no BatchNorm layer that could be examined")


# --- what is read -------------------------------------------------------------------------------------------------


def _load(module: nn.Module, path: Path) -> None:
    """A counter that the file does not hold is no count of 0."""
    counters = [(inner, getattr(inner, "num_batches_tracked", None)) for inner in module.modules()]
    held = [(inner, counter) for inner, counter in counters if isinstance(counter, torch.Tensor)]
    for _, counter in held:
        counter.fill_(-1)
    load_weights(module, path)
    for inner, counter in held:
        if int(counter) < 0:
            inner.register_buffer("num_batches_tracked", None)


def _statistics(module: nn.Module, path: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    load_weights(module, path)
    return {layer.name: (layer.mean.clone(), layer.variance.clone()) for layer in norm_layers(module)}


def _facts(path: Path) -> Facts:
    try:
        return Facts.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CannotUseFile(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        known = f"; known are {', '.join(Facts.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise CannotUseFile(f"{path}: {f'{where}: ' if where else ''}{first['msg']}{known}") from error


@dataclass(frozen=True, slots=True)
class _Batches:
    """Inputs are a dict of tensors by name; a single one goes in by position."""

    inputs: Sequence[dict[str, torch.Tensor]] = ()
    labels: Sequence[torch.Tensor] | None = None
    masks: Sequence[torch.Tensor] | None = None

    @classmethod
    def read(cls, path: Path, module: nn.Module, *, in_order: bool) -> _Batches:
        """Raises CannotUseFile."""
        arrays = read_samples(path)
        rows = _common_rows(path, arrays)
        order = np.arange(rows) if in_order else np.random.default_rng(_SEED).permutation(rows)
        dtype = next((value.dtype for value in module.parameters() if value.is_floating_point()), torch.float32)
        held = {name: _tensor(path, name, array, dtype) for name, array in arrays.items()}
        labels, mask = held.pop(LABELS, None), held.pop(MASK, None)
        return cls.cut(held, order, labels=labels, mask=mask)

    @classmethod
    def cut(
        cls,
        held: Mapping[str, torch.Tensor],
        order: npt.NDArray[np.int64],
        *,
        labels: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> _Batches:
        """The rows `order`, in batches."""
        pieces = [torch.from_numpy(piece) for piece in np.split(order, edges(len(order)))]
        inputs = [{name: values[piece] for name, values in held.items()} for piece in pieces]
        return cls(
            inputs,
            None if labels is None else [labels[piece] for piece in pieces],
            None if mask is None else [mask[piece] > 0 for piece in pieces],
        )


def _common_rows(path: Path, arrays: Mapping[str, Array]) -> int:
    inputs = [name for name in arrays if name not in (LABELS, MASK)]
    if not inputs:
        raise CannotUseFile(f"{path}: holds no input; {LABELS} and {MASK} are none")
    counts = {name: len(array) if np.ndim(array) else 0 for name, array in arrays.items()}
    odd = next((name for name in counts if counts[name] != counts[inputs[0]]), None)
    if odd is not None:
        raise CannotUseFile(f"{path}: {odd} has {counts[odd]} rows along axis 0, {inputs[0]} has {counts[inputs[0]]}")
    if counts[inputs[0]] < 2:
        raise CannotUseFile(f"{path}: holds {counts[inputs[0]] or 'no'} row, expected two at least, better hundreds")
    return counts[inputs[0]]


def _tensor(path: Path, name: str, array: Array, dtype: torch.dtype) -> torch.Tensor:
    """Real numbers in the network's own type; whole numbers as they are."""
    try:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
    except TypeError as error:
        raise CannotUseFile(f"{path}: {name} holds {array.dtype}, expected numbers") from error
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        row = int((~torch.isfinite(tensor)).nonzero()[0, 0])
        raise CannotUseFile(f"{path}: {name} holds a value that is no finite number, in row {row}; leave such rows out")
    return tensor.to(dtype) if tensor.is_floating_point() and name not in (LABELS, MASK) else tensor


def _by_name(model: nn.Module, batch: dict[str, torch.Tensor]) -> object:
    return model(*batch.values()) if len(batch) == 1 else model(**batch)


def _by_place(model: nn.Module, batch: dict[str, torch.Tensor], names: Sequence[str]) -> object:
    return model(*(batch[name] for name in names))
