"""What the text families share: tokens to vectors, and padding that never counts.

Token 0 is padding, behind the text. Its vector is zero, as is everything beyond the ends of a text, and what layers
make of it is set to zero again: an answer does not depend on how much padding there is. Nor do statistics, with
norm=bn: the BatchNorms leave padded positions out. The other kinds of batch normalisation have no mask: they count all.
"""

from __future__ import annotations

import torch
from torch import nn

from training.features import Features


class Words(nn.Module):
    """Tokens [rows, positions] -> vectors [rows, width, positions], and [rows, 1, positions]: 1 where a token is."""

    def __init__(self, features: Features, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(features.vocabulary, width, padding_idx=0)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mask = (tokens != 0).to(torch.float32).unsqueeze(1)
        return self.embedding(tokens).transpose(1, 2), mask


def mean_of(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[rows, channels]: over the positions that count. Of a text without any: 0."""
    return (values * mask).sum(2) / mask.sum(2).clamp(min=1.0)


def maximum_of(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[rows, channels]: of values that are not negative, over the positions that count. Of a text without any: 0."""
    return (values * mask).amax(2)
