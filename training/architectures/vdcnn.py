"""Many small convolutions over characters: stages of two, each with a BatchNorm, and a pool that halves the text.

(A. Conneau, H. Schwenk, L. Barrault and Y. LeCun, arXiv 1606.01781, without skips, the maximum in place of the eight
largest.) With four stages: nine convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from training.architectures.blocks import conv_block, expect, expect_post
from training.architectures.norms import Norms
from training.architectures.words import Words, maximum_of
from training.bn.variants import valid_positions
from training.errors import UserError
from training.features import Features


def build(
    features: Features, outputs: int, *, norms: Norms, width: int = 16, widths: Sequence[int] = (64, 64, 128, 128)
) -> Vdcnn:
    """width: of a token's vector. widths: channels of each stage."""
    expect("vdcnn", features, "tokens")
    expect_post("vdcnn", norms)  # in the other one, what a BatchNorm makes of padding would reach a convolution
    if not widths:
        raise UserError("vdcnn has at least one stage; widths names none")
    return Vdcnn(norms, features, outputs, width, widths)


class Vdcnn(nn.Module):
    """int64 [rows, positions] -> [rows, outputs]."""

    def __init__(self, norms: Norms, features: Features, outputs: int, width: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.words = Words(features, width)
        self.stem = nn.Conv1d(width, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                (
                    conv_block(norms, before, after, dims=1, masked=True),
                    conv_block(norms, after, after, dims=1, masked=True),
                )
            )
            for before, after in zip((widths[0], *widths), widths, strict=False)
        )
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        values, mask = self.words(tokens)
        values = self.stem(values) * mask
        for number, stage in enumerate(self.stages):
            if number:
                values, mask = halved(values), halved(mask)
            with valid_positions(stage, mask[:, 0]):
                for block in stage.children():
                    values = block(values) * mask
        scores: torch.Tensor = self.head(maximum_of(values, mask))
        return scores


def halved(values: torch.Tensor) -> torch.Tensor:
    """[rows, channels, positions]: the maximum of three from each second position on; zeros are beyond the end, as in
    padding."""
    return functional.max_pool1d(functional.pad(values, (0, 2)), 3, stride=2)
