"""NASNet-A's normal cells (Zoph et al. 2018), with its factorised reduction: a BatchNorm behind a concat of two paths.

epsilon is 1e-3, as published: whoever splits a BatchNorm and forgets it is wrong in the third digit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

EPSILON = 1e-3


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON)


def fit(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(channels, width, 1, bias=False), norm(width))


def separable(width: int, kernel: int) -> nn.Sequential:
    """relu, separable convolution, BatchNorm; twice."""
    layers: list[nn.Module] = []
    for _ in range(2):
        depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        layers += [nn.ReLU(), depthwise, nn.Conv2d(width, width, 1, bias=False), norm(width)]
    return nn.Sequential(*layers)


class FactorizedReduction(nn.Module):
    """Every second pixel, and every second of those between them, side by side: `final_path_bn` follows the concat."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(channels, width // 2, 1, bias=False)
        self.odd = nn.Conv2d(channels, width - width // 2, 1, bias=False)
        self.final_path_bn = norm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(x)
        shifted = functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        paths = [self.even(functional.avg_pool2d(x, 1, 2)), self.odd(functional.avg_pool2d(shifted, 1, 2))]
        return self.final_path_bn(torch.cat(paths, 1))


class Cell(nn.Module):
    """Five sums of separable convolutions, average pools and the inputs themselves, side by side."""

    def __init__(self, before: int, channels: int, width: int, halved: bool) -> None:
        super().__init__()
        self.fit_before: Any = FactorizedReduction(before, width) if halved else fit(before, width)
        self.fit_now = fit(channels, width)
        self.separables = nn.ModuleList(separable(width, kernel) for kernel in (5, 3, 5, 3, 3))
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
        left, right = self.fit_before(before), self.fit_now(now)
        by = self.separables
        pooled = self.pool(left)
        sums = [
            by[0](right) + by[1](left),
            by[2](left) + by[3](left),
            self.pool(right) + left,
            pooled + pooled,
            by[4](right) + right,
        ]
        return torch.cat([left, *sums], 1)


class NasNet(nn.Module):
    """Stages of `cells` normal cells, a strided convolution between them, images of even size."""

    def __init__(self, width: int = 44, stages: int = 2, cells: int = 2, classes: int = 1000) -> None:
        super().__init__()
        stem = 32
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, 2, 1, bias=False), norm(stem))
        self.cells, self.reductions = nn.ModuleList(), nn.ModuleList()
        before, channels = stem, stem
        for stage in range(stages):
            for number in range(cells):
                self.cells.append(Cell(before, channels, width << stage, halved=stage > 0 and number == 0))
                before, channels = channels, 6 * (width << stage)
            reduced = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, 2, 1, bias=False), norm(channels))
            self.reductions.append(reduced if stage + 1 < stages else nn.Identity())
        self.per_stage = cells
        self.classifier = nn.Linear(channels, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        before = now = self.stem(image)
        for stage, reduction in enumerate(self.reductions):
            for cell in self.cells[stage * self.per_stage : (stage + 1) * self.per_stage]:
                before, now = now, cell(before, now)
            now = reduction(now)
        return self.classifier(functional.relu(now).mean((2, 3)))
