"""Weights from a file into a module, strictly: every name and shape, or one line that says which do not fit.

Reads .safetensors, and .pt files with `weights_only=True`: a file is data and runs nothing. Knows no model.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from training.errors import UserError

NESTINGS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep the weights beside the optimiser."""

WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""

_SHOWN = 4


class WeightsRefused(UserError):
    """The file cannot be read, or is not this module's. The line begins with the path."""


def load_weights(module: nn.Module, path: Path) -> None:
    """Set all parameters and buffers of `module` from `path`. Raises WeightsRefused; `module` is then as it was."""
    found = _state_dict(path)
    for wrapper in WRAPPERS:
        if found and all(name.startswith(wrapper) for name in found):
            found = {name.removeprefix(wrapper): tensor for name, tensor in found.items()}
    expected = module.state_dict()
    unmade = next((name for name, tensor in expected.items() if is_lazy(tensor) or tensor.is_meta), None)
    if unmade is not None:
        raise WeightsRefused(
            f"{path}: the model's own {unmade} has no values yet (a lazy module, or the device meta), expected one to "
            f"load weights into; let the factory give it a shape, as by a call with one batch"
        )
    wrong = [
        f"{name} has shape {list(found[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    # Counts batches, means nothing in inference, and is not in files of old versions of torch.
    missing = [name for name in expected if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in expected]
    problems = [
        text
        for text in (_listed("missing", missing), _listed("unexpected", unexpected), _listed("wrong:", wrong))
        if text
    ]
    if problems:
        raise WeightsRefused(f"{path}: is not for this model: {'; '.join(problems)}")
    module.load_state_dict(found, strict=False)  # judged above


def _state_dict(path: Path) -> dict[str, torch.Tensor]:
    try:
        held = _read(path)
    except pickle.UnpicklingError as error:
        # Not torch's words: they recommend weights_only=False, which runs what a file says.
        raise WeightsRefused(
            f"{path}: holds more than tensors, or is no file of torch's; save the state dict: "
            f"torch.save(module.state_dict(), ...), or safetensors"
        ) from error
    except Exception as error:  # a pickle is a program: what its opcodes may raise on any bytes, nobody has listed
        cause = getattr(error, "strerror", None) or "it is no file of weights, or damaged"
        raise WeightsRefused(f"{path}: cannot be read: {cause}") from error
    for key in NESTINGS:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in held.values()):
        keys = f" with {', '.join(map(str, list(held)[:_SHOWN]))}" if isinstance(held, Mapping) else ""
        raise WeightsRefused(
            f"{path}: holds a {type(held).__name__}{keys}, expected tensors by name, or such a dict under one of "
            f"{', '.join(NESTINGS)}"
        )
    return {str(name): tensor for name, tensor in held.items()}


def _read(path: Path) -> Any:
    if path.suffix.lower() == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what} {', '.join(names[:_SHOWN])}{more}" if names else ""
