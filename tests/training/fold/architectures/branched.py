"""RepVGG-A0 (Ding et al. 2021) and MobileOne-S0 (Vasu et al. 2023) as trained, and as their authors deploy them.

As trained, a block is a sum of parallel convolutions with a BatchNorm each, and of a BatchNorm alone; as deployed it is
one convolution. The deployed form here has the authors' structure with weights of its own: it is there to be counted.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def conv_norm(channels: int, out: int, kernel: int, stride: int, padding: int, groups: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


def deployed_block(channels: int, out: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups), nn.ReLU())


class RepVGGBlock(nn.Module):
    """relu(bn(conv3x3(x)) + bn(conv1x1(x)) + bn(x)), the last only where input and output have the same shape."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.dense = conv_norm(channels, out, 3, stride, 1, 1)
        self.pointwise = conv_norm(channels, out, 1, stride, 0, 1)
        self.identity = nn.BatchNorm2d(channels) if channels == out and stride == 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dense(x) + self.pointwise(x)
        return functional.relu(y if self.identity is None else y + self.identity(x))


def repvgg_a0(width: int = 64, classes: int = 1000, deployed: bool = False) -> nn.Module:
    """`width`: 64 as published; the stages are 0.75, 0.75, 1.5, 3 and 20 times as wide."""

    def block(channels: int, out: int, stride: int) -> nn.Module:
        return deployed_block(channels, out, 3, stride, 1) if deployed else RepVGGBlock(channels, out, stride)

    channels = int(0.75 * width)
    layers = [block(3, channels, 2)]
    widths = (int(0.75 * width), int(1.5 * width), 3 * width, 20 * width)
    for out, count in zip(widths, (2, 4, 14, 1), strict=True):
        for number in range(count):
            layers.append(block(channels, out, 2 if number == 0 else 1))
            channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class MobileOneBlock(nn.Module):
    """relu of the sum of `branches` kxk conv-bn, a 1x1 conv-bn (if k > 1), and a BatchNorm alone where shapes agree."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, groups: int, branches: int) -> None:
        super().__init__()
        padding = kernel // 2
        self.skip = nn.BatchNorm2d(channels) if channels == out and stride == 1 else None
        self.scale = conv_norm(channels, out, 1, stride, 0, groups) if kernel > 1 else None
        self.convs = nn.ModuleList(conv_norm(channels, out, kernel, stride, padding, groups) for _ in range(branches))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alone = [part(x) for part in (self.scale, self.skip) if part is not None]
        parts = alone + [conv(x) for conv in self.convs]
        return functional.relu(sum(parts[1:], start=parts[0]))


def mobileone_s0(width: int = 64, classes: int = 1000, branches: int = 4, deployed: bool = False) -> nn.Module:
    """`width`: 64 as published. 21 pairs of a depthwise and a pointwise block behind a stem of one branch."""

    def block(channels: int, out: int, kernel: int, stride: int, groups: int, count: int = branches) -> nn.Module:
        if deployed:
            return deployed_block(channels, out, kernel, stride, groups)
        return MobileOneBlock(channels, out, kernel, stride, groups, count)

    channels = int(0.75 * width)
    layers = [block(3, channels, 3, 2, 1, 1)]
    for out, count in zip((int(0.75 * width), 2 * width, 4 * width, 16 * width), (2, 8, 10, 1), strict=True):
        for number in range(count):
            layers.append(block(channels, channels, 3, 2 if number == 0 else 1, channels))
            layers.append(block(channels, out, 1, 1, 1))
            channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
