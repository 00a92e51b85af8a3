"""Half of the channels pass by, half go through 1x1, depthwise 3x3, 1x1; then the halves are shuffled.

(N. Ma, X. Zhang, H. Zheng and J. Sun, arXiv 1807.11164.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from training.architectures.blocks import PooledHead, conv_block, expect, expect_post
from training.architectures.norms import Norms
from training.errors import UserError
from training.features import Features

LARGE = 64  # pixels of the shorter side from which on the stem divides the image by four


def build(
    features: Features,
    outputs: int,
    *,
    norms: Norms,
    stem: int = 24,
    widths: Sequence[int] = (48, 96, 192),
    depths: Sequence[int] = (4, 8, 4),
    last: int = 1024,
) -> nn.Module:
    """widths, depths: channels and units of each stage, which halves the image. stem, last: channels around them."""
    expect("shufflenet", features, "image")
    expect_post("shufflenet", norms)
    if len(widths) != len(depths) or any(width % 2 for width in widths):
        raise UserError(
            f"shufflenet has an even width and a depth for each stage; found {list(widths)} and {list(depths)}"
        )
    large = min(features.shape[1:]) >= LARGE
    parts: list[nn.Module] = [conv_block(norms, features.shape[0], stem, stride=2 if large else 1)]
    if large:
        parts.append(nn.MaxPool2d(3, stride=2, padding=1))
    before = stem
    for width, depth in zip(widths, depths, strict=True):
        parts += [Down(norms, before, width), *(Unit(norms, width) for _ in range(depth - 1))]
        before = width
    parts.append(conv_block(norms, before, last, kernel=1))
    return nn.Sequential(*parts, PooledHead(last, outputs))


class Unit(nn.Module):
    """Keeps width and size."""

    def __init__(self, norms: Norms, width: int) -> None:
        super().__init__()
        self.branch = _branch(norms, width // 2, width // 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        passing, taken = image.chunk(2, dim=1)
        return shuffled(torch.cat([passing, self.branch(taken)], dim=1))


class Down(nn.Module):
    """Halves the size; both branches take all channels."""

    def __init__(self, norms: Norms, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.side = nn.Sequential(
            conv_block(norms, channels_in, channels_in, stride=2, groups=channels_in, activation=None),
            conv_block(norms, channels_in, half, kernel=1),
        )
        self.branch = _branch(norms, channels_in, half, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return shuffled(torch.cat([self.side(image), self.branch(image)], dim=1))


def shuffled(image: torch.Tensor) -> torch.Tensor:
    """The channels of both halves in turn."""
    _, channels, height, width = image.shape
    return image.reshape(-1, 2, channels // 2, height, width).transpose(1, 2).reshape(-1, channels, height, width)


def _branch(norms: Norms, channels_in: int, channels_out: int, stride: int) -> nn.Module:
    return nn.Sequential(
        conv_block(norms, channels_in, channels_out, kernel=1),
        conv_block(norms, channels_out, channels_out, stride=stride, groups=channels_out, activation=None),
        conv_block(norms, channels_out, channels_out, kernel=1),
    )
