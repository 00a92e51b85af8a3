"""Residual blocks for rows of numbers: BatchNorm-Linear-ReLU-dropout-Linear beside a skip.

    row -> linear -> [+ block] ... -> BatchNorm-ReLU-Linear -> scores

(Y. Gorishniy, I. Rubachev, V. Khrulkov and A. Babenko, arXiv 2106.11959.) A block's BatchNorm stands behind a sum that
goes on without it, and before a Linear: it folds forward. The order is always `pre`.
"""

from __future__ import annotations

import torch
from torch import nn

from training.architectures.blocks import expect, is_normalised, norm_layer
from training.architectures.norms import Norms
from training.features import Features


def build(
    features: Features,
    outputs: int,
    *,
    norms: Norms,
    width: int = 128,
    depth: int = 3,
    expansion: int = 2,
    dropout: float = 0.0,
) -> nn.Module:
    """depth: blocks. expansion: of the width within a block. dropout: within each; its noise enters the statistics of
    the BatchNorms behind, so that these have to be measured again without it."""
    expect("tabresnet", features, "row")
    return nn.Sequential(
        nn.Linear(features.shape[0], width),
        *(Block(norms, width, expansion * width, dropout) for _ in range(depth)),
        *([norm_layer(norms, width, 0)] if is_normalised(norms) else []),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )


class Block(nn.Module):
    """[rows, width] -> the same."""

    def __init__(self, norms: Norms, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.branch = nn.Sequential()
        if is_normalised(norms):
            self.branch.add_module("bn", norm_layer(norms, width, 0))
        self.branch.add_module("first", nn.Linear(width, inner))
        self.branch.add_module("activation", nn.ReLU())
        if dropout:
            self.branch.add_module("dropout", nn.Dropout(dropout))
        self.branch.add_module("second", nn.Linear(inner, width))

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = row + self.branch(row)
        return answer
