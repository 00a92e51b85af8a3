"""Six small networks of different kinds with healthy statistics, and the data they learnt: what faults are put into.

    cnn6         plain convolutions                     tcn      text: an embedding, dilated 1-D convolutions, residual
    residual     two-layer blocks around a skip         unet     down, up by a transposed convolution, skip by concat
    mobile       inverted residuals, squeeze-excite     mlp      residual blocks of Linear layers

All learn from scikit-learn's digits (8x8, 0 to 16): images, their 64 values as a row, as 64 words, or as a mask of ink.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from training.architectures import build
from training.features import Features

ROWS = 64
"""In a batch, of training and of examination alike."""


class Block(nn.Module):
    """Two layers around a skip; the second BatchNorm is the one that may stay asleep."""

    def __init__(self, width: int, layer: Callable[[], nn.Module], norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.first_bn, self.relu = layer(), norm(width), nn.ReLU()
        self.second, self.second_bn = layer(), norm(width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        inner = self.second_bn(self.second(self.relu(self.first_bn(self.first(values)))))
        return torch.relu(values + inner)


class Mobile(nn.Module):
    """An inverted residual with squeeze and excitation."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        wide = 3 * width
        self.expand, self.expand_bn = nn.Conv2d(width, wide, 1, bias=False), norm(wide)
        self.depthwise, self.depthwise_bn = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), norm(wide)
        self.squeeze, self.excite = nn.Conv2d(wide, width, 1), nn.Conv2d(width, wide, 1)
        self.project, self.project_bn = nn.Conv2d(wide, width, 1, bias=False), norm(width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        inner = functional.relu6(self.expand_bn(self.expand(values)))
        inner = functional.relu6(self.depthwise_bn(self.depthwise(inner)))
        gate = self.excite(functional.relu(self.squeeze(inner.mean((2, 3), keepdim=True))))
        return values + self.project_bn(self.project(inner * torch.sigmoid(gate)))


class UNet(nn.Module):
    """One level: down, a block, up by a transposed convolution, and the skip beside it."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), norm(width), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 2, 2, bias=False), norm(2 * width), nn.ReLU())
        self.deep = Block(2 * width, lambda: nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False), norm)
        self.up = nn.Sequential(nn.ConvTranspose2d(2 * width, width, 2, 2, bias=False), norm(width), nn.ReLU())
        self.leave = nn.Conv2d(2 * width, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        near = self.enter(image)
        return self.leave(torch.cat([near, self.up(self.deep(self.down(near)))], dim=1))


class Words(nn.Module):
    """[rows, positions] of words -> [rows, width, positions]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, width)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.embedding(words).transpose(1, 2)


class Mean(nn.Module):
    """Over all positions."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.flatten(2).mean(2)


def mlp(width: int) -> nn.Module:
    enter = [nn.Linear(64, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    blocks = [Block(width, lambda: nn.Linear(width, width, bias=False), nn.BatchNorm1d) for _ in range(2)]
    return nn.Sequential(*enter, *blocks, nn.Linear(width, 10))


def residual(width: int) -> nn.Module:
    enter = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    blocks = [Block(width, lambda: nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d) for _ in range(2)]
    return nn.Sequential(*enter, *blocks, Mean(), nn.Linear(width, 10))


def mobile(width: int) -> nn.Module:
    enter = [nn.Conv2d(1, width, 3, 2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*enter, *(Mobile(width, nn.BatchNorm2d) for _ in range(2)), Mean(), nn.Linear(width, 10))


def tcn(width: int) -> nn.Module:
    enter = [Words(width), nn.Conv1d(width, width, 3, padding=1, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    blocks = [
        Block(width, lambda d=d: nn.Conv1d(width, width, 3, padding=d, dilation=d, bias=False), nn.BatchNorm1d)
        for d in (1, 4)
    ]
    return nn.Sequential(*enter, *blocks, Mean(), nn.Linear(width, 10))


def cnn6(width: int) -> nn.Module:
    widths = (width, width, width, width, 2 * width, 2 * width)
    return build("cnn6", Features("image", (1, 8, 8)), 10, widths=widths)


@dataclass(frozen=True)
class Kind:
    """One architecture. `victim`: the BatchNorm that faults are put into: behind a layer without bias, before a ReLU.
    `closing`: one that closes a residual block, where there are blocks."""

    build: Callable[[int], nn.Module]
    inputs: str
    victim: str
    closing: str | None = None


KINDS: Mapping[str, Kind] = {
    "cnn6": Kind(cnn6, "image", "features.3.bn"),
    "mlp": Kind(mlp, "row", "3.first_bn", "4.second_bn"),
    "residual": Kind(residual, "image", "3.first_bn", "4.second_bn"),
    "mobile": Kind(mobile, "image", "4.expand_bn", "3.project_bn"),
    "unet": Kind(lambda width: UNet(width, nn.BatchNorm2d), "image", "deep.first_bn", "deep.second_bn"),
    "tcn": Kind(tcn, "words", "4.first_bn", "5.second_bn"),
}


@cache
def digits(inputs: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All rows in a fixed random order, and their classes."""
    images, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    pixels = torch.from_numpy(images)[order]
    shaped = {
        "image": lambda: pixels.float().reshape(-1, 1, 8, 8) / 16,
        "row": lambda: pixels.float() / 16,
        "words": lambda: pixels.long(),
    }
    return shaped[inputs](), torch.from_numpy(classes)[order]


def batches(inputs: str, rows: int = 768) -> list[torch.Tensor]:
    """For an examination: rows from the end, which training sees too; statistics are of all data."""
    return list(digits(inputs)[0][-rows:].split(ROWS))


def trained(kind: str, *, seed: int = 0, width: int = 16, momentum: float = 0.1, steps: int = 150) -> nn.Module:
    """A network of this kind, trained for `steps` batches with a rate that ends at 0, in eval mode."""
    torch.manual_seed(seed)
    network = KINDS[kind].build(width).train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum
    inputs, classes = digits(KINDS[kind].inputs)
    if kind == "unet":
        classes = (inputs[:, 0] > 0.5).long()
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(inputs), (ROWS,))
        optimiser.zero_grad()
        functional.cross_entropy(network(inputs[rows]), classes[rows]).backward()
        optimiser.step()
        schedule.step()
    return network.eval()
