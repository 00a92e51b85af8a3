"""The work of `foldtrain doctor`: a checkpoint's BatchNorm layers examined, and what was found as text, JSON or a page.

    SPEC -> module (+ weights) (+ data) (+ facts) -> examine -> text, JSON, page

Promises: a file is data and runs nothing (safetensors, or torch's with weights_only; JSON; arrays without pickles);
nothing is written but the reports, whole or not at all. Knows no check: those are in bn/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from training.bn.diagnosis import Diagnosis, examine
from training.bn.facts import Facts
from training.bn.findings import CHECKS, SEVERITIES
from training.bn.layers import norm_layers, without_statistics
from training.command_files import CannotUseFile, check_places, read_samples, write_json, write_text
from training.doctor_page import render
from training.errors import UserError
from training.model_source import opened
from training.reference.op import Array
from training.weights_file import load_weights

BATCH_ROWS = 64
"""Of the examination, whatever the training's: enough that layers normalise well, few enough that batches are many."""

LABELS, MASK = "labels", "mask"
"""Names in the data with a meaning of their own; every other array is an input."""

_SEED = 0


class CannotExamine(UserError):
    """There is nothing to examine."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What came out, and of what."""

    checkpoint: Path
    diagnosis: Diagnosis

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"checkpoint": str(self.checkpoint), **self.diagnosis.as_dict()}

    def as_text(self) -> str:
        told, examined = self.diagnosis, self.diagnosis.examined
        data = f"{examined.rows} rows in {examined.batches} batches" if examined.rows else "no data"
        lines = [f"{self.checkpoint}: BatchNorm layers with running statistics: {len(examined.layers)}; {data}"]
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
    spec: str,
    *,
    data: Path | None = None,
    facts: Path | None = None,
    ranks: Sequence[Path] = (),
    in_order: bool = False,
    json_file: Path | None = None,
    html_file: Path | None = None,
    torchvision_shim: bool = False,
) -> Examination:
    """data: an .npz; see `LABELS`. ranks: checkpoints of the run's other processes. in_order: rows stay as the data
    have them, as a loader without shuffling would bring them. Raises UserError."""
    reports = [path for path in (json_file, html_file) if path]
    if not checkpoint.is_file():
        raise CannotUseFile(f"{checkpoint}: there is no such file")
    check_places([checkpoint, *reports], sources=[path for path in (data, facts, *ranks) if path])
    told = _facts(facts) if facts else None
    with opened(spec, torchvision_shim=torchvision_shim) as source:
        module = source.module
        if not norm_layers(module) and not without_statistics(module):
            raise CannotExamine(f"{spec}: has no BatchNorm layer that could be examined")
        others = [_statistics(module, path) for path in ranks]
        _load(module, checkpoint)
        batches = _Batches.read(data, module, in_order=in_order) if data else _Batches()
        diagnosis = examine(
            module, batches.inputs, labels=batches.labels, masks=batches.masks, facts=told, ranks=others,
            forward=_forward,
        )  # fmt: skip
    result = Examination(checkpoint, diagnosis)
    if json_file:
        write_json(json_file, result.as_dict())
    if html_file:
        write_text(html_file, render(str(checkpoint), diagnosis, told))
    return result


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
        edges = list(range(0, rows, BATCH_ROWS))
        if len(edges) > 1 and rows - edges[-1] == 1:
            del edges[-1]  # a single row has no variance: it joins the batch before
        pieces = np.split(order, edges[1:])
        dtype = next((value.dtype for value in module.parameters() if value.is_floating_point()), torch.float32)
        tensors = {name: _tensor(path, name, array, dtype) for name, array in arrays.items()}
        cut = {name: [tensor[torch.from_numpy(piece)] for piece in pieces] for name, tensor in tensors.items()}
        labels, masks = cut.pop(LABELS, None), cut.pop(MASK, None)
        inputs = [dict(zip(cut, batch, strict=True)) for batch in zip(*cut.values(), strict=True)]
        return cls(inputs, labels, [mask > 0 for mask in masks] if masks else None)


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


def _forward(model: nn.Module, batch: dict[str, torch.Tensor]) -> object:
    return model(*batch.values()) if len(batch) == 1 else model(**batch)
