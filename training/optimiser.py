"""What moves the parameters: SGD or AdamW over groups with and without decay, and the rate of each step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from training.bn.layers import norm_layers
from training.recipe import Optimiser

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)


def build_optimiser(settings: Optimiser, module: nn.Module) -> torch.optim.Optimizer:
    """Over all parameters of `module`, moved at once (`foreach`): the same bits as one by one, which is torch's choice
    on a CPU, in three quarters of the time."""
    groups = parameter_groups(module, settings.weight_decay)
    rate = settings.learning_rate
    if settings.kind == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(settings.momentum, 0.999), foreach=True)
    return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, nesterov=True, foreach=True)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay on weights only. Told by module type, not by name or rank: a BatchNorm's gamma is also called `weight`.

    L2 on gamma and beta changes what the network can say; L2 on a weight before BatchNorm sets its effective learning
    rate (van Laarhoven, arXiv 1706.05350). A norm is a subclass of torch's, or whatever keeps statistics as one does.
    """
    built_like_one = {id(layer.module) for layer in norm_layers(module)}
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    seen: set[int] = set()
    for owner in module.modules():
        is_norm = isinstance(owner, _NORMS) or id(owner) in built_like_one
        for name, parameter in owner.named_parameters(recurse=False):
            if id(parameter) not in seen:  # of tied weights one
                seen.add(id(parameter))
                (spared if is_norm or name == "bias" else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def learning_rate_factor(step: int, steps: int, warmup_fraction: float) -> float:
    """Share of the peak rate at `step` of `steps`: a linear warm-up to 1, then half a cosine down to 0 (SGDR, arXiv
    1608.03983, without restarts). The first step already moves, and no step stands still."""
    warmup = min(int(warmup_fraction * steps), steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
