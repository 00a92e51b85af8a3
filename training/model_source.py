"""SPEC to nn.Module: a user's own factory by module or by file, or a name of timm's or torchvision's.

    py:package.module:factory     the current folder can be imported from
    file:path/model.py:factory    the file's folder and the current one can be imported from
    timm:NAME, torchvision:NAME   untrained weights; --weights brings one's own

A factory takes nothing and returns an nn.Module, or (module, example_inputs); a module stands for itself. Promises: the
user's folders may hold a `training` or a `service` of their own, which are then theirs inside their code and ours
outside of it; whatever their code raises becomes one line (user_code.py). Nothing is downloaded. Knows no ONNX.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.user_code import SourceRefused, first_line, importable, made_by, told_of

_MISSING_OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
"""What torchvision's Python part registers more for, at import, than its compiled part brings."""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """(x - mean) / std, one entry a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What a SPEC leads to.

    `examples`: what the factory gave beside the module, as it gave it, else None. `row`: the shape of one row of the
    only input, where the model says it. `normalisation`: what its pretrained weights expect, where it says it.
    """

    module: nn.Module
    examples: Any = None
    row: tuple[int, ...] | None = None
    normalisation: Normalisation | None = None


@contextmanager
def opened(
    spec: str, *, torchvision_shim: bool = False, classes: int | None = None, channels: int | None = None
) -> Iterator[Source]:
    """The module of `spec`. Its folders can be imported from for the block, for code that imports when it runs.

    classes, channels: what a network of a zoo is to answer and take; None: as its weights do. torchvision's take 3.

    torchvision_shim: declare the operators that keep torchvision's wheel from importing beside another build of torch.
    Raises SourceRefused.
    """
    kind, _, rest = spec.partition(":")
    openers: Mapping[str, Callable[[str, str, bool, Mapping[str, int]], Source]]
    openers = {"timm": _of_timm, "torchvision": _of_torchvision}
    if kind in openers and rest:
        sizes = {"num_classes": classes, "in_chans": channels if kind == "timm" else None}
        yield openers[kind](spec, rest, torchvision_shim, {k: size for k, size in sizes.items() if size is not None})
        return
    where, _, factory = rest.rpartition(":")
    if kind not in ("py", "file") or not where or not factory:
        raise SourceRefused(
            f"{spec!r}: expected py:package.module:factory, file:path/model.py:factory, timm:NAME or torchvision:NAME"
        )
    folders = [Path.cwd()] if kind == "py" else [Path(where).resolve().parent, Path.cwd()]
    with importable(folders, first=False):  # torch, at work now, must not find the user's modules for its own
        yield _of_user(spec, where, factory, folders)


# --- the user's own code ------------------------------------------------------------------------------------------


def _of_user(spec: str, where: str, factory: str, folders: Sequence[Path]) -> Source:
    made, examples = made_by(spec, where, factory, folders, ready=nn.Module), None
    if isinstance(made, tuple) and len(made) == 2:
        made, examples = made
    if not isinstance(made, nn.Module):
        raise SourceRefused(
            f"{spec}: {factory!r} gave {type(made).__name__}, expected an nn.Module or (module, example_inputs)"
        )
    return _described(made, examples)


# --- the zoos -----------------------------------------------------------------------------------------------------


def _of_timm(spec: str, name: str, shim: bool, sizes: Mapping[str, int]) -> Source:
    timm = _zoo(spec, "timm", shim)
    with told_of(spec):
        module: nn.Module = timm.create_model(name, pretrained=False, exportable=True, **sizes)
    return _described(module.eval(), None)


def _of_torchvision(spec: str, name: str, shim: bool, sizes: Mapping[str, int]) -> Source:
    _zoo(spec, "torchvision", shim)
    with told_of(spec):
        models = importlib.import_module("torchvision.models")
        module: nn.Module = models.get_model(name, weights=None, **sizes)
        transforms = models.get_model_weights(name).DEFAULT.transforms()
    crop = tuple(getattr(transforms, "crop_size", ()))
    return Source(
        module.eval(),
        row=(3, *(crop * 2)[:2]) if crop else None,
        normalisation=_normalisation(getattr(transforms, "mean", None), getattr(transforms, "std", None)),
    )


def _described(module: nn.Module, examples: Any) -> Source:
    """With what timm's models, and those that follow its custom, say of themselves."""
    config = getattr(module, "pretrained_cfg", None)
    config = config if isinstance(config, dict) else {}
    size = config.get("input_size")
    return Source(
        module, examples, tuple(size) if size else None, _normalisation(config.get("mean"), config.get("std"))
    )


def _normalisation(mean: Any, std: Any) -> Normalisation | None:
    return Normalisation(tuple(map(float, mean)), tuple(map(float, std))) if mean and std else None


def _zoo(spec: str, package: str, shim: bool) -> Any:
    """timm imports torchvision, whose compiled part fits one build of torch only."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise SourceRefused(
            f"{spec}: this needs {error.name}, which is not installed: pip install {package}"
        ) from error
    except (RuntimeError, ImportError) as error:
        if not shim:
            raise SourceRefused(
                f"{spec}: torchvision does not import beside this build of torch ({first_line(error)}); install one "
                f"that was built for it, or add --torchvision-shim (of a recipe: --set "
                f"architecture.torchvision_shim=true), which declares what is missing as empty operators"
            ) from error
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torchvision", package)]:
        del sys.modules[name]  # half imported
    _declare_missing_operators()
    with told_of(spec):
        return importlib.import_module(package)


_declared: list[torch.library.Library] = []  # a declaration lives as long as its Library


def _declare_missing_operators() -> None:
    """Schemas without kernels: whoever calls one of them is told by torch that there is none."""
    if not _declared:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name, schema in _MISSING_OPERATORS.items():
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}{schema}")
        _declared.append(library)
