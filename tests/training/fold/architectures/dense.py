"""DenseNet-121 (Huang et al. 2017): every layer reads the concatenation of all before it, through its own BatchNorm.

stem conv-bn-relu-pool, then blocks of [bn-relu-conv1x1-bn-relu-conv3x3, concat], transitions bn-relu-conv1x1-pool
"""

from __future__ import annotations

import torch
from torch import nn

BLOCKS = (6, 12, 24, 16)
BOTTLENECK = 4  # the 1x1 convolution is that many times as wide as what a layer adds


class Layer(nn.Sequential):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(channels), nn.ReLU()
        self.conv1 = nn.Conv2d(channels, BOTTLENECK * growth, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(BOTTLENECK * growth), nn.ReLU()
        self.conv2 = nn.Conv2d(BOTTLENECK * growth, growth, 3, padding=1, bias=False)


class Block(nn.Module):
    def __init__(self, layers: int, channels: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(channels + i * growth, growth) for i in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


def densenet121(growth: int = 32, classes: int = 1000) -> nn.Module:
    """121 BatchNorms; 59 directly behind a convolution, 62 in front of ReLU and a 1x1 convolution or the head."""
    channels = 2 * growth
    net = nn.Sequential()
    net.add_module("conv0", nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False))
    net.add_module("norm0", nn.BatchNorm2d(channels))
    net.add_module("relu0", nn.ReLU())
    net.add_module("pool0", nn.MaxPool2d(3, stride=2, padding=1))
    for number, layers in enumerate(BLOCKS, start=1):
        net.add_module(f"block{number}", Block(layers, channels, growth))
        channels += layers * growth
        if number < len(BLOCKS):
            transition = nn.Sequential(
                nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)
            )
            net.add_module(f"transition{number}", transition)
            channels //= 2
    net.add_module("norm5", nn.BatchNorm2d(channels))
    net.add_module("relu5", nn.ReLU())
    net.add_module("pool5", nn.AdaptiveAvgPool2d(1))
    net.add_module("flatten", nn.Flatten())
    net.add_module("classifier", nn.Linear(channels, classes))
    return net
