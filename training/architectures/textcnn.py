"""Windows of three, four and five words, each Conv1d-BatchNorm-ReLU and its maximum over the text; a Linear on top.

(Y. Kim, arXiv 1408.5882.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from training.architectures.blocks import Block, expect, expect_post, needs_bias
from training.architectures.norms import Norms
from training.architectures.words import Words, maximum_of
from training.bn.variants import valid_positions
from training.errors import UserError
from training.features import Features


def build(
    features: Features,
    outputs: int,
    *,
    norms: Norms,
    width: int = 128,
    channels: int = 128,
    windows: Sequence[int] = (3, 4, 5),
    dropout: float = 0.0,
) -> TextCnn:
    """width: of a token's vector. channels: of each window. dropout: before the Linear."""
    expect("textcnn", features, "tokens")
    expect_post("textcnn", norms)
    if not windows:
        raise UserError("textcnn has at least one window; windows names none")
    return TextCnn(norms, features, outputs, width, channels, tuple(windows), dropout)


class TextCnn(nn.Module):
    """int64 [rows, positions] -> [rows, outputs]."""

    def __init__(
        self,
        norms: Norms,
        features: Features,
        outputs: int,
        width: int,
        channels: int,
        windows: tuple[int, ...],
        dropout: float,
    ) -> None:
        super().__init__()
        self.words = Words(features, width)
        self.windows = windows
        self.blocks = nn.ModuleList(
            Block(
                norms, nn.Conv1d(width, channels, window, bias=needs_bias(norms)), width, channels, 1, nn.ReLU,
                masked=True,
            )
            for window in windows
        )  # fmt: skip
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(len(windows) * channels, outputs)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        values, mask = self.words(tokens)
        found = []
        with valid_positions(self, mask[:, 0]):
            for window, block in zip(self.windows, self.blocks, strict=True):
                # One window begins at each token, whatever is left of it beyond the end.
                found.append(maximum_of(block(functional.pad(values, (0, window - 1))), mask))
        scores: torch.Tensor = self.head(self.dropout(torch.cat(found, dim=1)))
        return scores
