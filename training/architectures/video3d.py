"""Convolutions over frames, height and width, each Conv3d-BatchNorm3d-ReLU, for short clips."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from training.architectures.blocks import PooledHead, closing, conv_block, expect
from training.architectures.norms import Norms
from training.errors import UserError
from training.features import Features


def build(features: Features, outputs: int, *, norms: Norms, widths: Sequence[int] = (16, 32, 64, 64)) -> nn.Module:
    """widths: channels of each convolution. The first halves height and width, the middle ones frames as well."""
    expect("video3d", features, "clip")
    if not widths:
        raise UserError("video3d has at least one convolution; widths names none")
    strides = [(1, 2, 2), *((2, 2, 2) for _ in widths[1:-1]), *((1, 1, 1) for _ in widths[1:][-1:])]
    pairs = zip((features.shape[0], *widths), widths, strides, strict=False)
    return nn.Sequential(
        *(
            conv_block(norms, before, after, dims=3, stride=stride, is_first=i == 0)
            for i, (before, after, stride) in enumerate(pairs)
        ),
        *closing(norms, widths[-1], 3),
        PooledHead(widths[-1], outputs, dims=3),
    )
