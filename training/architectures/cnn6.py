"""Six convolutions, each Conv-BatchNorm-ReLU, and a Linear-BatchNorm head: the plain network every fold must get right.

    image -> conv conv | conv/2 conv | conv/2 conv -> flatten -> linear -> batchnorm -> logits

The convolutions and the linear layer carry no bias: the BatchNorm behind each would subtract it again, so its gradient
is zero. Folding gives each of them the bias that beta and running mean amount to. Knows no data set and no training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from training.architectures.norms import Norms
from training.errors import UserError
from training.features import Features

STRIDES = (1, 1, 2, 1, 2, 1)


def build(features: Features, outputs: int, *, norms: Norms, widths: Sequence[int] = (16, 16, 32, 32, 64, 64)) -> Cnn6:
    """widths: output channels of each convolution. Raises UserError when something does not fit."""
    if features.kind != "image":
        raise UserError(f"cnn6 takes images; these inputs become a {features.kind} of {list(features.shape)}")
    if len(widths) != len(STRIDES):
        raise UserError(
            f"cnn6 has {len(STRIDES)} convolutions; architecture.widths names {len(widths)}: {list(widths)}"
        )
    return Cnn6(features.shape, outputs, tuple(widths), norms.eps, norms.momentum)


class ConvBlock(nn.Sequential):
    """Conv 3x3 (padding 1, no bias), BatchNorm2d, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, eps: float, momentum: float | None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=eps, momentum=momentum)
        self.relu = nn.ReLU()


class Cnn6(nn.Module):
    """float32 [rows, channels, height, width] -> float32 logits [rows, classes]."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        widths: tuple[int, ...],
        eps: float,
        momentum: float | None,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.features = nn.Sequential(
            *(
                ConvBlock(fan_in, fan_out, stride, eps, momentum)
                for fan_in, fan_out, stride in zip((channels, *widths), widths, STRIDES, strict=False)
            )
        )
        shrink = math.prod(STRIDES)  # padding 1 under a 3x3 kernel: each stride divides the size, rounded up
        pixels = -(-height // shrink) * -(-width // shrink)
        self.head = nn.Sequential()
        self.head.add_module("linear", nn.Linear(widths[-1] * pixels, classes, bias=False))
        self.head.add_module("bn", nn.BatchNorm1d(classes, eps=eps, momentum=momentum))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.features(image)
        logits: torch.Tensor = self.head(features.flatten(1))
        return logits
