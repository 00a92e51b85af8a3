"""Residual networks whose BatchNorms do not follow a convolution: pre-activation, face recognition; and gated ones.

Pre-activation (He et al. 2016) and iResNet (as ArcFace uses it) read the residual stream through a BatchNorm; SE-ResNet
(Hu et al. 2018) multiplies what a BatchNorm gives by a gate that depends on the input. Where the stream grows it may do
so without weights, by channels of zeros: option A of He et al. 2015, and PyramidNet (Han et al. 2017) in every block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

Block = Callable[[int, int, int], nn.Module]
"""From (channels in, width, stride) to a block."""


def stages(block: Block, expansion: int, channels: int, width: int, blocks: Sequence[int], strides: Sequence[int]):
    """The stages of a residual network, each twice as wide as the one before; also its last number of channels."""
    layers: list[nn.Module] = []
    for stage, (count, stride) in enumerate(zip(blocks, strides, strict=True)):
        for number in range(count):
            layers.append(block(channels, width << stage, stride if number == 0 else 1))
            channels = (width << stage) * expansion
    return nn.Sequential(*layers), channels


def head(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class PreActivation(nn.Module):
    """x + convs(relu(bn(x))), each convolution behind a BatchNorm and a ReLU; a shortcut shares the first of them."""

    def __init__(self, channels: int, out: int, stride: int, convs: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(conv.in_channels) for conv in convs)
        changes = stride != 1 or channels != out
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = functional.relu(self.norms[0](x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        y = self.convs[0](active)
        for norm, conv in zip(self.norms[1:], self.convs[1:], strict=True):
            y = conv(functional.relu(norm(y)))
        return y + shortcut


def preact_bottleneck(channels: int, width: int, stride: int) -> PreActivation:
    convs = [
        nn.Conv2d(channels, width, 1, bias=False),
        nn.Conv2d(width, width, 3, stride, 1, bias=False),
        nn.Conv2d(width, 4 * width, 1, bias=False),
    ]
    return PreActivation(channels, 4 * width, stride, convs)


def preact_basic(channels: int, width: int, stride: int) -> PreActivation:
    convs = [
        nn.Conv2d(channels, width, 3, stride, 1, bias=False),
        nn.Conv2d(width, width, 3, 1, 1, bias=False),
    ]
    return PreActivation(channels, width, stride, convs)


def preact_resnet50(width: int = 64, classes: int = 1000) -> nn.Module:
    """ResNetV2-50: 16 bottlenecks with three BatchNorms each and a last one; none behind the stem."""
    stem = nn.Sequential(nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1))
    body, channels = stages(preact_bottleneck, 4, width, width, (3, 4, 6, 3), (1, 2, 2, 2))
    return nn.Sequential(stem, body, nn.BatchNorm2d(channels), nn.ReLU(), head(channels, classes))


def preact_resnet18(width: int = 64, classes: int = 10) -> nn.Module:
    """Basic blocks for small images: every BatchNorm stands before a ReLU and a zero-padded convolution."""
    stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
    body, channels = stages(preact_basic, 1, width, width, (2, 2, 2, 2), (1, 2, 2, 2))
    return nn.Sequential(stem, body, nn.BatchNorm2d(channels), nn.ReLU(), head(channels, classes))


class ZeroPadded(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), x with every other pixel and zeros on both sides where the block grows."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.stride, self.more = stride, (width - channels) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(functional.relu(self.bn2(self.conv1(functional.relu(self.bn1(x))))))
        if self.more:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return x + y


def preact_resnet20_a(width: int = 16, classes: int = 10) -> nn.Module:
    """For small images, without a weight in any shortcut."""
    stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
    body, channels = stages(ZeroPadded, 1, width, width, (3, 3, 3), (1, 2, 2))
    return nn.Sequential(stem, body, nn.BatchNorm2d(channels), nn.ReLU(), head(channels, classes))


class PyramidBlock(nn.Module):
    """bn-conv-bn-relu-conv-bn plus the input, averaged where the block shrinks, with zeros behind its channels."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.stride, self.more = stride, out - channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.stride == 1 else functional.avg_pool2d(x, self.stride)
        return self.convs(x) + functional.pad(shortcut, (0, 0, 0, 0, 0, self.more))


def pyramidnet20(width: int = 16, growth: int = 48, classes: int = 10) -> nn.Module:
    """Nine blocks, each `growth / 9` channels wider than the one before."""
    widths = [width + growth * block // 9 for block in range(10)]
    blocks = [PyramidBlock(*widths[block : block + 2], 2 if block in (3, 6) else 1) for block in range(9)]
    stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)]
    return nn.Sequential(*stem, *blocks, nn.BatchNorm2d(widths[-1]), nn.ReLU(), head(widths[-1], classes))


class FaceBlock(nn.Module):
    """bn-conv3x3-bn-prelu-conv3x3-bn plus the input or its conv-bn: the BatchNorm feeds a padded convolution."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        changes = stride != 1 or channels != width
        shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.downsample = shortcut if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(self.bn1(x))
        y = self.conv2(self.prelu(self.bn2(y)))
        return self.bn3(y) + (x if self.downsample is None else self.downsample(x))


def iresnet50(width: int = 64, side: int = 112, features: int = 512) -> nn.Module:
    """As for ArcFace: 24 blocks, images of `side` pixels, and a head of bn, dropout, linear, bn."""
    stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width))
    body, channels = stages(FaceBlock, 1, width, width, (3, 4, 14, 3), (2, 2, 2, 2))
    pixels = (side // 16) ** 2
    embedding = nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.Dropout(0.0),
        nn.Flatten(),
        nn.Linear(channels * pixels, features),
        nn.BatchNorm1d(features),
    )
    return nn.Sequential(stem, body, embedding)


class Gate(nn.Module):
    """Squeeze and excitation: x times a sigmoid of two layers on its spatial mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(channels // 16, 2)
        self.fc1, self.fc2 = nn.Linear(channels, squeezed), nn.Linear(squeezed, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.fc2(functional.relu(self.fc1(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class GatedBottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width),
        )  # fmt: skip
        self.gate = Gate(4 * width)
        changes = stride != 1 or channels != 4 * width
        shortcut = nn.Sequential(nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
        self.shortcut = shortcut if changes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.gate(self.convs(x)) + self.shortcut(x))


def se_resnet50(width: int = 64, classes: int = 1000) -> nn.Module:
    stem = nn.Sequential(
        nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    )
    body, channels = stages(GatedBottleneck, 4, width, width, (3, 4, 6, 3), (1, 2, 2, 2))
    return nn.Sequential(stem, body, head(channels, classes))
