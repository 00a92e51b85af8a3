"""Inverted residuals: 1x1 up, depthwise 3x3, squeeze and excitation, 1x1 down without an activation.

(M. Sandler and others, arXiv 1801.04381; A. Howard and others, arXiv 1905.02244.) A block whose ends have one shape
adds its input. ReLU in the first half, hard swish in the second.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from training.architectures.blocks import PooledHead, conv_block, expect, expect_post
from training.architectures.norms import Norms
from training.features import Features

LARGE = 64  # pixels of the shorter side from which on the stem halves the image

# Expansion, channels, stride, squeeze and excitation, hard swish.
BLOCKS = (
    (2, 24, 2, False, False),
    (4, 24, 1, False, False),
    (4, 40, 2, True, True),
    (6, 40, 1, True, True),
    (6, 80, 2, True, True),
    (6, 80, 1, True, True),
    (3, 80, 1, True, True),
)


def build(
    features: Features,
    outputs: int,
    *,
    norms: Norms,
    stem: int = 16,
    blocks: Sequence[tuple[int, int, int, bool, bool]] = BLOCKS,
    last: int = 288,
) -> nn.Module:
    """stem, last: channels of the first and the last convolution. blocks: see `BLOCKS`."""
    expect("mobilenet", features, "image")
    expect_post("mobilenet", norms)
    stride = 2 if min(features.shape[1:]) >= LARGE else 1
    parts: list[nn.Module] = [conv_block(norms, features.shape[0], stem, stride=stride, activation=nn.Hardswish)]
    width = stem
    for expansion, channels, stride, squeezes, swishes in blocks:
        parts.append(InvertedResidual(norms, width, expansion * width, channels, stride, squeezes, swishes))
        width = channels
    parts.append(conv_block(norms, width, last, kernel=1, activation=nn.Hardswish))
    return nn.Sequential(*parts, PooledHead(last, outputs))


class InvertedResidual(nn.Module):
    """`inner` channels between its two 1x1 convolutions."""

    def __init__(
        self, norms: Norms, channels_in: int, inner: int, channels_out: int, stride: int, squeezes: bool, swishes: bool
    ) -> None:
        super().__init__()
        activation = nn.Hardswish if swishes else nn.ReLU
        self.adds = stride == 1 and channels_in == channels_out
        self.branch = nn.Sequential(
            conv_block(norms, channels_in, inner, kernel=1, activation=activation),
            conv_block(norms, inner, inner, stride=stride, groups=inner, activation=activation),
            *([SqueezeExcitation(inner, max(4, inner // 4))] if squeezes else []),
            conv_block(norms, inner, channels_out, kernel=1, activation=None),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.branch(image)
        return image + answer if self.adds else answer


class SqueezeExcitation(nn.Module):
    """Each channel times a number from 0 to 1 that the means of all channels decide."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = image * self.gate(image)
        return answer
