"""Down by pooling, up by transposed convolutions, and what each level saw on the way down beside what comes up.

    image -> [2 convs] -> pool -> [2 convs] -> pool -> [2 convs] -> up, join, conv -> up, join, conv -> 1x1 -> scores

(O. Ronneberger, P. Fischer and T. Brox, arXiv 1505.04597, padded, so that sizes stay.) Conv-BN-ReLU and
ConvTranspose-BN-ReLU throughout; a score for each pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from training.architectures.blocks import Block, conv_block, expect, expect_divisible, expect_post, needs_bias
from training.architectures.norms import Norms
from training.errors import UserError
from training.features import Features


def build(features: Features, outputs: int, *, norms: Norms, widths: Sequence[int] = (16, 32, 64)) -> UNet:
    """widths: channels of each level, from the top; there is a pool between any two."""
    expect("unet", features, "image")
    expect_post("unet", norms)
    if not widths:
        raise UserError("unet has at least one level; widths names none")
    expect_divisible("unet", features.shape[1:], 2 ** (len(widths) - 1))
    return UNet(norms, features.shape[0], outputs, widths)


class UNet(nn.Module):
    """[rows, channels, height, width] -> [rows, outputs, height, width]."""

    def __init__(self, norms: Norms, channels: int, outputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Sequential(conv_block(norms, before, width), conv_block(norms, width, width))
            for before, width in zip((channels, *widths), widths, strict=False)
        )
        upwards = [*zip(widths[:0:-1], widths[-2::-1], strict=True)]
        self.up = nn.ModuleList(_up(norms, below, width) for below, width in upwards)
        self.join = nn.ModuleList(conv_block(norms, 2 * width, width) for _, width in upwards)
        self.pool = nn.MaxPool2d(2)
        self.scores = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        seen = [self.down[0](image)]
        for level in self.down[1:]:
            seen.append(level(self.pool(seen[-1])))
        values = seen.pop()
        for up, join in zip(self.up, self.join, strict=True):
            values = join(torch.cat([seen.pop(), up(values)], dim=1))
        scores: torch.Tensor = self.scores(values)
        return scores


def _up(norms: Norms, channels_in: int, channels_out: int) -> Block:
    layer = nn.ConvTranspose2d(channels_in, channels_out, 2, stride=2, bias=needs_bias(norms))
    return Block(norms, layer, channels_in, channels_out, 2, nn.ReLU)
