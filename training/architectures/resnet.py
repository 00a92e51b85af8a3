"""Residual networks: two convolutions beside a skip, in stages that halve the image.

    post    Conv-BN-ReLU-Conv-BN, the sum, ReLU        the last gamma of a block begins at 0: it answers its input first
    pre     BN-ReLU-Conv-BN-ReLU-Conv, the sum         (K. He, X. Zhang, S. Ren and J. Sun, arXiv 1603.05027)

A skip that has to change its width or size is a 1x1 convolution, with a BatchNorm in the order `post`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from training.architectures.blocks import PooledHead, begin_at_zero, closing, conv_block, expect, needs_bias
from training.architectures.norms import Norms
from training.errors import UserError
from training.features import Features

LARGE = 96  # pixels of the shorter side from which on the stem divides the image by four


def build(
    features: Features,
    outputs: int,
    *,
    norms: Norms,
    widths: Sequence[int] = (16, 32, 64),
    depths: Sequence[int] = (1, 1, 1),
    preactivated: bool = False,
) -> nn.Module:
    """widths, depths: channels and blocks of each stage. preactivated: the order `pre`, whatever norms say."""
    expect("resnet", features, "image")
    if len(widths) != len(depths) or not widths:
        raise UserError(f"resnet has a width and a depth for each stage; found {list(widths)} and {list(depths)}")
    if preactivated:
        norms = replace(norms, bn_order="pre")
    large = min(features.shape[1:]) >= LARGE
    stem = conv_block(
        norms, features.shape[0], widths[0], kernel=7 if large else 3, stride=2 if large else 1, is_first=True
    )
    blocks: list[nn.Module] = [nn.MaxPool2d(3, stride=2, padding=1)] if large else []
    before = widths[0]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for i in range(depth):
            blocks.append(Residual(norms, before, width, 2 if stage and i == 0 else 1))
            before = width
    return nn.Sequential(stem, *blocks, *closing(norms, before, 2), PooledHead(before, outputs))


class Residual(nn.Module):
    """[rows, channels_in, height, width] -> [rows, channels_out, ...], each side divided by `stride`."""

    def __init__(self, norms: Norms, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        pre = norms.bn_order == "pre"
        self.branch = nn.Sequential(
            conv_block(norms, channels_in, channels_out, stride=stride),
            conv_block(norms, channels_out, channels_out, activation=nn.ReLU if pre else None),
        )
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            self.skip = (
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=needs_bias(norms))
                if pre
                else conv_block(norms, channels_in, channels_out, kernel=1, stride=stride, activation=None)
            )
        self.activation: nn.Module = nn.Identity() if pre else nn.ReLU()
        if not pre:
            begin_at_zero(self.branch[1])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.activation(self.skip(image) + self.branch(image))
        return answer
