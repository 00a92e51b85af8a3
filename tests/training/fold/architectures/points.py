"""PointNet (Qi et al. 2017): convolutions along points, a maximum over them, small networks that predict matrices."""

from __future__ import annotations

import torch
from torch import nn


def shared_layer(inputs: int, outputs: int) -> nn.Sequential:
    """One Linear for every point."""
    return nn.Sequential(nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs), nn.ReLU())


def dense_layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU())


class TransformNet(nn.Module):
    """A `size` x `size` matrix for each cloud of points; near the identity."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.points = nn.Sequential(
            shared_layer(size, width), shared_layer(width, 2 * width), shared_layer(2 * width, 16 * width)
        )
        self.cloud = nn.Sequential(dense_layer(16 * width, 8 * width), dense_layer(8 * width, 4 * width))
        self.last = nn.Linear(4 * width, size * size)
        self.register_buffer("identity", torch.eye(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = len(self.identity)
        return self.last(self.cloud(self.points(x).max(2).values)).view(-1, size, size) + self.identity


class PointNet(nn.Module):
    """Points [rows, 3, points] -> log probabilities. `width`: 64 as published. 15 BatchNorms."""

    def __init__(self, width: int = 64, classes: int = 40) -> None:
        super().__init__()
        self.align_points, self.align_features = TransformNet(3, width), TransformNet(width, width)
        self.first = shared_layer(3, width)
        self.second = shared_layer(width, 2 * width)
        self.third = nn.Sequential(nn.Conv1d(2 * width, 16 * width, 1), nn.BatchNorm1d(16 * width))
        self.head = nn.Sequential(
            dense_layer(16 * width, 8 * width),
            nn.Linear(8 * width, 4 * width),
            nn.Dropout(0.3),
            nn.BatchNorm1d(4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, classes),
        )

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        x = torch.bmm(points.transpose(2, 1), self.align_points(points)).transpose(2, 1)
        x = self.first(x)
        x = torch.bmm(x.transpose(2, 1), self.align_features(x)).transpose(2, 1)
        x = self.third(self.second(x)).max(2).values
        return self.head(x).log_softmax(1)
