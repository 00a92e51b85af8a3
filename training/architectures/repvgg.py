"""Plain convolutions that are trained as three: 3x3-BN, 1x1-BN and, where nothing changes shape, a BN alone, summed.

(X. Ding and others, arXiv 2101.03697.) Folding merges a block's branches into one 3x3 convolution; the network holds no
code for that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from training.architectures.blocks import PooledHead, conv_block, expect, expect_post, is_normalised, norm_layer
from training.architectures.norms import Norms
from training.errors import UserError
from training.features import Features


def build(
    features: Features,
    outputs: int,
    *,
    norms: Norms,
    widths: Sequence[int] = (32, 48, 80, 112),
    depths: Sequence[int] = (1, 2, 3, 1),
) -> nn.Module:
    """widths, depths: channels and blocks of each stage; all but the first stage halve the image."""
    expect("repvgg", features, "image")
    expect_post("repvgg", norms)
    if len(widths) != len(depths) or not widths:
        raise UserError(f"repvgg has a width and a depth for each stage; found {list(widths)} and {list(depths)}")
    blocks: list[nn.Module] = []
    before = features.shape[0]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for i in range(depth):
            blocks.append(RepBlock(norms, before, width, 2 if stage and i == 0 else 1))
            before = width
    return nn.Sequential(*blocks, PooledHead(before, outputs))


class RepBlock(nn.Module):
    """The branches' sum, and ReLU."""

    def __init__(self, norms: Norms, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.dense = conv_block(norms, channels_in, channels_out, stride=stride, activation=None)
        self.pointwise = conv_block(norms, channels_in, channels_out, kernel=1, stride=stride, activation=None)
        self.identity: nn.Module | None = None
        if stride == 1 and channels_in == channels_out:
            self.identity = norm_layer(norms, channels_in, 2) if is_normalised(norms) else nn.Identity()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        total = self.dense(image) + self.pointwise(image)
        if self.identity is not None:
            total = total + self.identity(image)
        return torch.relu(total)
