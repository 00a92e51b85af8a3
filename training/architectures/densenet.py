"""Layers that are given what all before them in their stage have answered: BN-ReLU-Conv over growing concatenations.

(G. Huang, Z. Liu, L. van der Maaten and K. Weinberger, arXiv 1608.06993.) The order is always `pre`: each layer looks
at the same channels through a BatchNorm of its own, so the first of a layer has nothing behind it to fold into that
others would not see too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from training.architectures.blocks import PooledHead, closing, conv_block, expect, needs_bias
from training.architectures.norms import Norms
from training.errors import UserError
from training.features import Features


def build(
    features: Features,
    outputs: int,
    *,
    norms: Norms,
    growth: int = 12,
    depths: Sequence[int] = (6, 6, 6),
    bottleneck: int = 4,
) -> nn.Module:
    """growth: channels that a layer adds. depths: layers of each stage. bottleneck: 1x1 channels, in growths."""
    expect("densenet", features, "image")
    if not depths:
        raise UserError("densenet has at least one stage; depths names none")
    halvings = 2 ** (len(depths) - 1)
    if min(features.shape[1:]) < halvings:
        raise UserError(f"densenet halves images {len(depths) - 1} times; {list(features.shape)} has too few pixels")
    norms = replace(norms, bn_order="pre")
    width = 2 * growth
    parts: list[nn.Module] = [nn.Conv2d(features.shape[0], width, 3, padding=1, bias=needs_bias(norms))]
    for stage, depth in enumerate(depths):
        if stage:
            parts += [conv_block(norms, width, width // 2, kernel=1), nn.AvgPool2d(2)]
            width //= 2
        for _ in range(depth):
            parts.append(DenseLayer(norms, width, growth, bottleneck * growth))
            width += growth
    return nn.Sequential(*parts, *closing(norms, width, 2), PooledHead(width, outputs))


class DenseLayer(nn.Module):
    """[rows, channels, ...] -> the same channels, and `growth` new ones behind them."""

    def __init__(self, norms: Norms, channels: int, growth: int, inner: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv_block(norms, channels, inner, kernel=1), conv_block(norms, inner, growth))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([image, self.branch(image)], dim=1)
