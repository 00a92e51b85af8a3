"""A network for tables: the columns are normalised first, and that BatchNorm feeds a deep and a wide part at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class TabularMLP(nn.Module):
    """[rows, columns] -> [rows, classes]. 1 + len(widths) BatchNorms, and no convolution anywhere."""

    def __init__(self, columns: int = 20, widths: Sequence[int] = (128, 64, 32), classes: int = 3) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(columns)
        layers: list[nn.Module] = []
        for inputs, outputs in zip((columns, *widths), widths, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.BatchNorm1d(outputs), nn.Dropout(0.1)]
        self.deep = nn.Sequential(*layers)
        self.last = nn.Linear(widths[-1] + columns, classes)
        self.wide = nn.Linear(columns, classes, bias=False)

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        x = self.norm(row)
        return self.last(torch.cat([self.deep(x), x], 1)) + self.wide(x)
