"""Which modules of a network hold running statistics, and by which names: the table of everything called batch norm.

    torch BatchNorm1d/2d/3d, SyncBatchNorm, timm's BatchNormAct2d and    running_mean, running_var
    every other subclass of torch's
    sb3-contrib's BatchRenorm and whatever is built like it              ra_mean, ra_var

Told by class and buffers, never by a module's name. InstanceNorm also has running_mean, but an average of rows' own
statistics, which is no population's; detectron2's and torchvision's FrozenBatchNorm2d hold constants: both are left
alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from training.bn.variants import FrozenBatchNorm

_BUFFERS = (("running_mean", "running_var"), ("ra_mean", "ra_var"))


@dataclass(frozen=True, slots=True)
class NormLayer:
    """One module; `name` as `named_modules` tells it, of its first place where it has several."""

    name: str
    module: nn.Module
    mean: torch.Tensor
    variance: torch.Tensor

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def kind(self) -> str:
        """The class, for reports."""
        return type(self.module).__name__


def norm_layers(model: nn.Module) -> list[NormLayer]:
    """Those whose statistics can be estimated, each once, in the order of the modules."""
    return [layer for name, module in model.named_modules() if (layer := _layer(name, module)) is not None]


def without_statistics(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """BatchNorms that keep none (`track_running_stats=False`): they normalise by the batch also when they serve."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
    ]


def _layer(name: str, module: nn.Module) -> NormLayer | None:
    for mean_name, variance_name in _BUFFERS:
        mean, variance = getattr(module, mean_name, None), getattr(module, variance_name, None)
        if isinstance(mean, torch.Tensor) and isinstance(variance, torch.Tensor) and _is_batch_norm(module, mean):
            return NormLayer(name, module, mean, variance)
    return None


def _is_batch_norm(module: nn.Module, mean: torch.Tensor) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return not isinstance(mean, nn.parameter.UninitializedBuffer)  # a lazy one that has never run
    # Built like one: it averages, so it has a rate to average with. Constants have none.
    return mean.dim() == 1 and hasattr(module, "momentum") and not isinstance(module, nn.modules.batchnorm._NormBase)


def frozen_layers(model: nn.Module) -> Iterator[str]:
    """Names of those that are to stay as they are: FrozenBatchNorm, and what somebody has put into eval mode inside a
    network that trains."""
    for layer in norm_layers(model):
        if isinstance(layer.module, FrozenBatchNorm) or (model.training and not layer.module.training):
            yield layer.name
