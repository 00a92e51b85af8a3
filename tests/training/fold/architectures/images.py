"""Networks whose BatchNorms stand behind convolutions, with splits, shuffles, concats, pools and sums around them.

ShuffleNetV2 (Ma et al. 2018), VGG-11 with BatchNorm, the U-Net of pix2pix (Isola et al. 2017), Xception (Chollet 2017),
and HRNet's exchange between resolutions (Wang et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


def conv_norm_relu(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())


def depthwise_norm(channels: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


class Shuffle(nn.Module):
    """Half of the channels pass; at stride 2 both halves are worked on. Then the two halves' channels alternate."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        half = out // 2
        self.stride = stride
        if stride == 2:
            self.left = nn.Sequential(depthwise_norm(channels, 2), conv_norm_relu(channels, half, 1))
        self.right = nn.Sequential(
            conv_norm_relu(channels if stride == 2 else half, half, 1),
            depthwise_norm(half, stride),
            conv_norm_relu(half, half, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == 2:
            y = torch.cat([self.left(x), self.right(x)], 1)
        else:
            left, right = x.chunk(2, 1)
            y = torch.cat([left, self.right(right)], 1)
        rows, channels, height, width = y.shape
        return y.view(rows, 2, channels // 2, height, width).transpose(1, 2).reshape(rows, channels, height, width)


def shufflenet_v2(width: int = 116, classes: int = 1000) -> nn.Module:
    """`width` of the first stage; 116 is the published 1.0x. 56 BatchNorms."""
    channels, layers = 24, []
    for stage, count in enumerate((4, 8, 4)):
        for number in range(count):
            layers.append(Shuffle(channels, width << stage, 2 if number == 0 else 1))
            channels = width << stage
    return nn.Sequential(
        conv_norm_relu(3, 24, 3, 2),
        nn.MaxPool2d(3, 2, 1),
        *layers,
        conv_norm_relu(channels, 8 * width, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, classes),
    )


def vgg11(width: int = 64, side: int = 224, classes: int = 1000) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for multiple in (1, "pool", 2, "pool", 4, 4, "pool", 8, 8, "pool", 8, 8, "pool"):
        if isinstance(multiple, str):
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers += [nn.Conv2d(channels, multiple * width, 3, padding=1), nn.BatchNorm2d(multiple * width), nn.ReLU()]
        channels = multiple * width
    hidden = 64 * width
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(channels * (side // 32) ** 2, hidden), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden, classes),
    )  # fmt: skip


class UNetLevel(nn.Module):
    """concat(x, up(inner(down(x)))): halves the image and doubles it again; the innermost level has no `inner`."""

    def __init__(self, channels: int, width: int, inner: UNetLevel | None) -> None:
        super().__init__()
        down: list[nn.Module] = [nn.LeakyReLU(0.2), nn.Conv2d(channels, width, 4, 2, 1, bias=False)]
        if inner is not None:
            down.append(nn.BatchNorm2d(width))
        self.down, self.inner = nn.Sequential(*down), inner
        widened = width if inner is None else 2 * width
        up = nn.ConvTranspose2d(widened, channels, 4, 2, 1, bias=False)
        self.up = nn.Sequential(nn.ReLU(), up, nn.BatchNorm2d(channels), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(x)
        return torch.cat([x, self.up(y if self.inner is None else self.inner(y))], 1)


def unet(width: int = 64, depth: int = 5) -> nn.Module:
    """Images of at least 2 ** depth pixels in, images of the same size out. 2 * depth - 3 BatchNorms."""
    level = None
    for number in range(depth - 1, 0, -1):
        level = UNetLevel(width * min(1 << (number - 1), 8), width * min(1 << number, 8), level)
    assert level is not None
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1), level, nn.ReLU(), nn.ConvTranspose2d(2 * width, 3, 4, 2, 1), nn.Tanh()
    )


def separable_norm(channels: int, out: int) -> list[nn.Module]:
    depthwise = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)
    return [depthwise, nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out)]


class XceptionBlock(nn.Module):
    """Separable convolutions behind a ReLU each; a wider block halves the image, and its shortcut too."""

    def __init__(self, channels: int, widths: Sequence[int], relu_first: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.shortcut = None
        if widths[-1] != channels:
            conv = nn.Conv2d(channels, widths[-1], 1, 2, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(widths[-1]))
        inputs = channels
        for out in widths:
            layers += [nn.ReLU(), *separable_norm(inputs, out)]
            inputs = out
        layers = layers if relu_first else layers[1:]
        self.body = nn.Sequential(*layers, *([] if self.shortcut is None else [nn.MaxPool2d(3, 2, 1)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + (x if self.shortcut is None else self.shortcut(x))


def xception(width: int = 32, classes: int = 1000) -> nn.Module:
    """`width`: 32 as published. 40 BatchNorms."""
    middle = 91 * width // 4  # 728
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
        XceptionBlock(2 * width, (4 * width, 4 * width), relu_first=False),
        XceptionBlock(4 * width, (8 * width, 8 * width)),
        XceptionBlock(8 * width, (middle, middle)),
        *(XceptionBlock(middle, (middle, middle, middle)) for _ in range(8)),
        XceptionBlock(middle, (middle, 32 * width)),
        *separable_norm(32 * width, 48 * width), nn.ReLU(),
        *separable_norm(48 * width, 64 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64 * width, classes),
    )  # fmt: skip


class BasicBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            conv_norm_relu(width, width, 3), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.convs(x) + x)


class Exchange(nn.Module):
    """Every resolution becomes relu of the sum of all: brought up by conv1x1-bn and resizing, down by strided convs."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.ModuleList(self._path(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    @staticmethod
    def _path(widths: Sequence[int], source: int, target: int) -> nn.Module:
        inputs, outputs = widths[source], widths[target]
        if source > target:
            up = nn.Upsample(scale_factor=2 ** (source - target), mode="nearest")
            return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), up)
        if source == target:
            return nn.Identity()
        halvings = [conv_norm_relu(inputs, inputs, 3, 2) for _ in range(target - source - 1)]
        last = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        return nn.Sequential(*halvings, last, nn.BatchNorm2d(outputs))

    def forward(self, xs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        sums = ([path(x) for path, x in zip(paths, xs, strict=True)] for paths in self.paths)
        return [functional.relu(sum(parts[1:], start=parts[0])) for parts in sums]


class HRNet(nn.Module):
    """Stages of two and three resolutions, `modules` exchanges each, then all resolutions side by side."""

    def __init__(self, width: int = 18, modules: int = 2, classes: int = 1000) -> None:
        super().__init__()
        widths = [width << level for level in range(3)]
        self.stem = nn.Sequential(conv_norm_relu(3, width, 3, 2), conv_norm_relu(width, width, 3, 2))
        self.enter = nn.ModuleList(conv_norm_relu(widths[i], widths[i + 1], 3, 2) for i in range(2))
        self.stages = nn.ModuleList(
            nn.ModuleList(self._module(widths[:resolutions]) for _ in range(modules)) for resolutions in (2, 3)
        )
        self.head = nn.Sequential(
            conv_norm_relu(sum(widths), 8 * width, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8 * width, classes),
        )

    @staticmethod
    def _module(widths: Sequence[int]) -> nn.ModuleList:
        return nn.ModuleList([nn.ModuleList(BasicBlock(width) for width in widths), Exchange(widths)])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        xs = [self.stem(image)]
        for enter, stage in zip(self.enter, self.stages, strict=True):
            xs.append(enter(xs[-1]))
            for blocks, exchange in stage:
                xs = exchange([block(x) for block, x in zip(blocks, xs, strict=True)])
        same_size = [xs[0], *(functional.interpolate(x, size=xs[0].shape[2:], mode="bilinear") for x in xs[1:])]
        return self.head(torch.cat(same_size, 1))
