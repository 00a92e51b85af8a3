"""Four branches side by side, of windows of 1, 3, 5 and a pool, joined: each convolution with a BatchNorm behind it.

(C. Szegedy and others, arXiv 1512.00567; two 3x3 in place of a 5x5.) The family's eps is 1e-3, as its networks have it
everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from training.architectures.blocks import PooledHead, conv_block, expect, expect_post
from training.architectures.norms import DEFAULT, Norms
from training.features import Features

LARGE = 64  # pixels of the shorter side from which on the stem halves the image


def build(
    features: Features,
    outputs: int,
    *,
    norms: Norms,
    stem: int = 32,
    widths: Sequence[int] = (96, 128, 128, 192, 192),
    eps: float = 1e-3,
) -> nn.Module:
    """widths: channels of each block, in quarters; the second and the fourth begin with half the size. eps: where norms
    leave torch's."""
    expect("inception", features, "image")
    expect_post("inception", norms)
    if norms.eps == DEFAULT.eps:
        norms = replace(norms, eps=eps)
    stride = 2 if min(features.shape[1:]) >= LARGE else 1
    parts: list[nn.Module] = [conv_block(norms, features.shape[0], stem, stride=stride)]
    before = stem
    for i, width in enumerate(widths):
        if i % 2:
            parts.append(nn.MaxPool2d(3, stride=2, padding=1))
        parts.append(Inception(norms, before, width // 4))
        before = 4 * (width // 4)
    return nn.Sequential(*parts, PooledHead(before, outputs))


class Inception(nn.Module):
    """[rows, channels, ...] -> [rows, 4 * quarter, ...]."""

    def __init__(self, norms: Norms, channels: int, quarter: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            (
                conv_block(norms, channels, quarter, kernel=1),
                nn.Sequential(conv_block(norms, channels, quarter, kernel=1), conv_block(norms, quarter, quarter)),
                nn.Sequential(
                    conv_block(norms, channels, quarter, kernel=1),
                    conv_block(norms, quarter, quarter),
                    conv_block(norms, quarter, quarter),
                ),
                nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), conv_block(norms, channels, quarter, kernel=1)),
            )
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(image) for branch in self.branches], dim=1)
