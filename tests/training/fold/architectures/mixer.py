"""ConvMixer (Trockman and Kolter 2022): convolution, activation, *then* BatchNorm; residual around the depthwise part.

The published networks use GELU or ReLU by size; ConvMixer-768/32 uses ReLU. Behind a GELU no affine can be undone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Residual(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x


def convmixer(
    activation: Callable[[], nn.Module] = nn.ReLU,
    width: int = 768,
    depth: int = 32,
    kernel: int = 7,
    patch: int = 7,
    classes: int = 1000,
) -> nn.Module:
    """1 + 2 * depth BatchNorms."""
    mixing = [
        nn.Sequential(
            Residual(
                nn.Conv2d(width, width, kernel, groups=width, padding="same"), activation(), nn.BatchNorm2d(width)
            ),
            nn.Conv2d(width, width, 1),
            activation(),
            nn.BatchNorm2d(width),
        )
        for _ in range(depth)
    ]
    return nn.Sequential(
        nn.Conv2d(3, width, patch, stride=patch),
        activation(),
        nn.BatchNorm2d(width),
        *mixing,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )
