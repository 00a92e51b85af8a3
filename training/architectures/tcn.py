"""Convolutions that look back only, over distances that double from block to block, beside skips.

(S. Bai, J. Z. Kolter and V. Koltun, arXiv 1803.01271, with BatchNorm.) Zeros stand before the beginning of a text, on
one side only: a BatchNorm behind a convolution folds into it, one before it (bn_order=pre) has a ReLU between.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from training.architectures.blocks import Block, begin_at_zero, closing, expect, needs_bias
from training.architectures.norms import Norms
from training.architectures.words import Words, mean_of
from training.bn.variants import valid_positions
from training.features import Features


def build(
    features: Features,
    outputs: int,
    *,
    norms: Norms,
    width: int = 128,
    depth: int = 4,
    kernel: int = 3,
    answers: Literal["mean", "each"] = "mean",
) -> Tcn:
    """depth: blocks; the last looks back 2^(depth-1) positions a step. answers: scores of the mean over the text,
    [rows, outputs], or of each position, [rows, outputs, positions]."""
    expect("tcn", features, "tokens")
    return Tcn(norms, features, outputs, width, depth, kernel, answers)


class Tcn(nn.Module):
    """int64 [rows, positions] -> scores, see `build`."""

    def __init__(
        self, norms: Norms, features: Features, outputs: int, width: int, depth: int, kernel: int, answers: str
    ) -> None:
        super().__init__()
        self.answers = answers
        self.words = Words(features, width)
        self.blocks = nn.ModuleList(Residual(norms, width, kernel, 2**i) for i in range(depth))
        self.closing = nn.Sequential(*closing(norms, width, 1, masked=True))
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        values, mask = self.words(tokens)
        with valid_positions(self, mask[:, 0]):
            for block in self.blocks:
                values = block(values)
            values = self.closing(values)
        scores: torch.Tensor
        if self.answers == "each":
            scores = self.head(values.transpose(1, 2)).transpose(1, 2)
        else:
            scores = self.head(mean_of(values, mask))
        return scores


class Residual(nn.Module):
    """[rows, width, positions] -> the same."""

    def __init__(self, norms: Norms, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        pre = norms.bn_order == "pre"
        first, second = (CausalConv(width, kernel, dilation, needs_bias(norms)) for _ in range(2))
        self.first = Block(norms, first, width, width, 1, nn.ReLU, masked=True)
        self.second = Block(norms, second, width, width, 1, nn.ReLU if pre else None, masked=True)
        self.activation: nn.Module = nn.Identity() if pre else nn.ReLU()
        if not pre:
            begin_at_zero(self.second)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.activation(values + self.second(self.first(values)))
        return answer


class CausalConv(nn.Conv1d):
    """A position's answer comes of it and of those before it."""

    def __init__(self, width: int, kernel: int, dilation: int, bias: bool) -> None:
        super().__init__(width, width, kernel, dilation=dilation, bias=bias)
        self.before = dilation * (kernel - 1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return super().forward(functional.pad(values, (self.before, 0)))
