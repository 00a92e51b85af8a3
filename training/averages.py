"""An average of a network's parameters over its steps, which often generalises better than where the last step ended.

Of parameters only: an average of BatchNorm's buffers would be statistics of no network at all (ignite#2590, timm#245).
The average's buffers are those of the network it follows, until freeze.py measures its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

_WARM_UP = 10


def averaged(module: nn.Module, kept: float) -> AveragedModel:
    """kept: what a step leaves of the average, `w = kept * w + (1 - kept) * new`; less in the first steps, so that
    where the network was born is forgotten."""

    def average(averages: Sequence[torch.Tensor], current: Sequence[torch.Tensor], made: torch.Tensor | int) -> None:
        steps = int(made)
        torch._foreach_lerp_([*averages], [*current], 1.0 - min(kept, (1 + steps) / (_WARM_UP + steps)))

    return AveragedModel(module, multi_avg_fn=average, use_buffers=False)
