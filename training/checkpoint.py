"""One moment of a training run, as data: tensors in safetensors, everything else in JSON, nothing that runs when read.

    checkpoint.json             step, values, the tensors' file and its sha256
    step-000000420.safetensors  the tensors

The index is replaced in one rename, and always names a file that is whole: a process that is killed while it writes
leaves the moment before. Knows no loop: what the values mean is its business.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from training.errors import UserError

INDEX = "checkpoint.json"
_MODULE, _OPTIMISER, _EXTRA = "module.", "optimiser.", "extra."


class CheckpointRefused(UserError):
    """There is none, or it is damaged. The line begins with the path."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """step: how many have been made. module, optimiser: their `state_dict()`. values: anything JSON holds; floats come
    back bit for bit. extra: tensors of whatever else there is."""

    step: int
    module: Mapping[str, torch.Tensor]
    optimiser: Mapping[str, Any]
    values: Mapping[str, Any]
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)


def save(folder: Path, snapshot: Snapshot) -> None:
    """In place of what `folder` held; it is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_MODULE + name: tensor for name, tensor in snapshot.module.items()}
    tensors |= {_EXTRA + name: tensor for name, tensor in snapshot.extra.items()}
    numbers: dict[str, Any] = {}
    for index, state in snapshot.optimiser["state"].items():
        for name, value in state.items():
            (tensors if isinstance(value, torch.Tensor) else numbers)[f"{_OPTIMISER}{index}.{name}"] = value
    content = packed(tensors)
    name = f"step-{snapshot.step:09d}.safetensors"
    write_whole(folder / name, content)
    index = {
        "step": snapshot.step,
        "tensors": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "optimiser_groups": snapshot.optimiser["param_groups"],
        "optimiser_numbers": numbers,
        "values": snapshot.values,
    }
    write_whole(folder / INDEX, json.dumps(index, indent=1).encode())
    for old in folder.glob("step-*.safetensors"):
        if old.name != name:
            with suppress(FileNotFoundError):
                old.unlink()


def load(folder: Path) -> Snapshot:
    """Raises CheckpointRefused."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_bytes())
        file, expected = folder / index["tensors"], index["sha256"]
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointRefused(f"{error.filename}: there is no checkpoint to go on from") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointRefused(f"{path}: cannot be read as a checkpoint: {error}") from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise CheckpointRefused(f"{file}: is damaged: its sha256 is not the one that {INDEX} names")
    try:
        tensors = safetensors.torch.load(content)
        state: dict[int, dict[str, Any]] = {}
        for key, value in [*index["optimiser_numbers"].items(), *tensors.items()]:
            if key.startswith(_OPTIMISER):
                number, _, name = key.removeprefix(_OPTIMISER).partition(".")
                state.setdefault(int(number), {})[name] = value
        module, extra = (
            {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            for prefix in (_MODULE, _EXTRA)
        )
        optimiser = {"state": state, "param_groups": index["optimiser_groups"]}
        return Snapshot(int(index["step"]), module, optimiser, index["values"], extra)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointRefused(f"{path}: cannot be read as a checkpoint: {error}") from error


def packed(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """As a safetensors file. Each by itself: weights that are shared are one storage under two names."""
    return safetensors.torch.save({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()})


def write_whole(path: Path, content: bytes) -> None:
    """On the disk before it has its name."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
