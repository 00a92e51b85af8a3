"""The first part of a network: from what clients send to what a body computes with. Part of the graph that is exported,
so that nobody has to preprocess anything.

    Pixels -> an image     Columns -> a row of numbers     Tokens -> numbers of words or bytes, and which are padding
"""

from __future__ import annotations

import math

import torch
from torch import nn

from training.datasets.dataset import Columns, Dataset, Front, Pixels, Tokens
from training.features import Features


class PixelsFront(nn.Module):
    """See `Pixels`."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, front: Pixels) -> None:
        super().__init__()
        self._channels_last = front.channels_last
        # Buffers, not Python numbers: they then travel with the weights and are exported as named initializers.
        std = torch.tensor(front.std, dtype=torch.float64)
        self.register_buffer("scale", (1.0 / std).float().reshape(-1, 1, 1))
        self.register_buffer("shift", (-torch.tensor(front.mean, dtype=torch.float64) / std).float().reshape(-1, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self._channels_last:
            image = image.permute(0, 3, 1, 2)
        return image.to(torch.float32) * self.scale + self.shift


class ColumnsFront(nn.Module):
    """See `Columns`. A category's vector has the square root of their number of entries, at most 16."""

    fills: torch.Tensor

    def __init__(self, front: Columns) -> None:
        super().__init__()
        self.register_buffer("fills", torch.tensor(front.fills, dtype=torch.float32))
        self.embeddings = nn.ModuleList(nn.Embedding(count, _width(count)) for count in front.categories)

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        numeric, categories = columns[: len(columns) - len(self.embeddings)], columns[-len(self.embeddings) :]
        parts = []
        if numeric:
            row = torch.cat([column.to(torch.float32) for column in numeric], dim=1)
            parts.append(torch.where(torch.isnan(row), self.fills, row))
        if len(self.embeddings):
            parts += [embed(column[:, 0]) for embed, column in zip(self.embeddings, categories, strict=True)]
        return torch.cat(parts, dim=1)


class TokensFront(nn.Module):
    """See `Tokens`."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.to(torch.int64)


class Network(nn.Module):
    """A front and the body behind it: what is trained, folded and served."""

    def __init__(self, front: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.front = front
        self.body = body

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = self.body(self.front(*inputs))
        return answers


def build_front(front: Front) -> nn.Module:
    """Its vectors are drawn from torch's global generator."""
    if isinstance(front, Pixels):
        return PixelsFront(front)
    if isinstance(front, Columns):
        return ColumnsFront(front)
    return TokensFront()


def features_of(dataset: Dataset) -> Features:
    """What a body behind the dataset's front computes with."""
    shapes = [values.shape[1:] for values in dataset.train.inputs.values()]
    front = dataset.front
    if isinstance(front, Pixels):
        (shape,) = shapes
        return Features("image", (shape[2], *shape[:2]) if front.channels_last else tuple(shape))
    if isinstance(front, Tokens):
        return Features("tokens", tuple(shapes[0]), front.vocabulary)
    return Features("row", (len(front.fills) + sum(map(_width, front.categories)),))


def _width(count: int) -> int:
    return max(1, min(16, math.isqrt(count)))
