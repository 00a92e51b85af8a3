"""Six convolutions, each Conv-BatchNorm-ReLU, and a Linear-BatchNorm head: the plain network every fold must get right.

    image -> conv conv | conv/2 conv | conv/2 conv -> flatten -> linear -> batchnorm -> logits

The convolutions and the linear layer carry no bias: the BatchNorm behind each would subtract it again, so its gradient
is zero. Folding gives each of them the bias that beta and running mean amount to. In the order `pre` the first
convolution and the linear layer are bare. Knows no data set and no training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from training.architectures.blocks import closing, conv_block, expect, is_normalised, needs_bias, norm_layer
from training.architectures.norms import Norms
from training.errors import UserError
from training.features import Features

STRIDES = (1, 1, 2, 1, 2, 1)


def build(features: Features, outputs: int, *, norms: Norms, widths: Sequence[int] = (16, 16, 32, 32, 64, 64)) -> Cnn6:
    """widths: output channels of each convolution. Raises UserError when something does not fit."""
    expect("cnn6", features, "image")
    if len(widths) != len(STRIDES):
        raise UserError(
            f"cnn6 has {len(STRIDES)} convolutions; architecture.options.widths names {len(widths)}: {list(widths)}"
        )
    return Cnn6(features.shape, outputs, tuple(widths), norms)


class Cnn6(nn.Module):
    """float32 [rows, channels, height, width] -> float32 logits [rows, classes]."""

    def __init__(self, input_shape: tuple[int, ...], classes: int, widths: tuple[int, ...], norms: Norms) -> None:
        super().__init__()
        channels, height, width = input_shape
        pairs = zip((channels, *widths), widths, STRIDES, strict=False)
        self.features = nn.Sequential(
            *(
                conv_block(norms, fan_in, fan_out, stride=stride, is_first=i == 0)
                for i, (fan_in, fan_out, stride) in enumerate(pairs)
            )
        )
        self.features.extend(closing(norms, widths[-1], 2))
        shrink = math.prod(STRIDES)  # padding 1 under a 3x3 kernel: each stride divides the size, rounded up
        pixels = -(-height // shrink) * -(-width // shrink)
        pre = norms.bn_order == "pre"
        self.head = nn.Sequential()
        self.head.add_module("linear", nn.Linear(widths[-1] * pixels, classes, bias=pre or needs_bias(norms)))
        if is_normalised(norms) and not pre:
            self.head.add_module("bn", norm_layer(norms, classes, 0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.features(image)
        logits: torch.Tensor = self.head(features.flatten(1))
        return logits
