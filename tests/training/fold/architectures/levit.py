"""LeViT-128S (Graham et al. 2021): convolutional stem, then attention on [N, T, C], a BatchNorm behind each Linear.

The BatchNorm sees the sequence flattened to [N * T, C] and the result is shaped back: no tool that matches pairs sees
through that. The two heads begin with a BatchNorm of their own and share their input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class LinearNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        return self.bn(x.flatten(0, 1)).reshape_as(x)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class Subsample(nn.Module):
    """Every second row and column of the sequence's square."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], self.side, self.side, x.shape[-1])[:, ::2, ::2].flatten(1, 2)


class Attention(nn.Module):
    """Heads of `key` wide keys; values are `ratio` times that. Adds nothing to its input; `out` channels."""

    def __init__(self, out: int, key: int, heads: int, ratio: int, queries: int, keys: int) -> None:
        super().__init__()
        self.key, self.heads, self.value = key, heads, ratio * key
        self.biases = nn.Parameter(0.1 * torch.randn(heads, queries, keys))
        self.project = nn.Sequential(nn.Hardswish(), LinearNorm(heads * self.value, out))

    def split(self, x: torch.Tensor, sizes: list[int]) -> tuple[torch.Tensor, ...]:
        """[N, T, heads * sum(sizes)] -> parts [N, heads, T, size]."""
        parts = x.view(x.shape[0], -1, self.heads, sum(sizes)).split(sizes, dim=3)
        return tuple(part.permute(0, 2, 1, 3) for part in parts)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        weights = (q @ k.transpose(-2, -1)) * self.key**-0.5 + self.biases
        return self.project((weights.softmax(-1) @ v).transpose(1, 2).reshape(q.shape[0], -1, self.heads * self.value))


class SelfAttention(Attention):
    def __init__(self, width: int, key: int, heads: int, side: int) -> None:
        super().__init__(width, key, heads, 2, side * side, side * side)
        self.qkv = LinearNorm(width, heads * (2 * key + self.value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attend(*self.split(self.qkv(x), [self.key, self.key, self.value]))


class ShrinkingAttention(Attention):
    """Queries come from a quarter of the sequence."""

    def __init__(self, width: int, out: int, key: int, heads: int, side: int) -> None:
        super().__init__(out, key, heads, 4, (-(-side // 2)) ** 2, side * side)
        self.kv = LinearNorm(width, heads * (key + self.value))
        self.q = nn.Sequential(Subsample(side), LinearNorm(width, heads * key))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (q,) = self.split(self.q(x), [self.key])
        return self.attend(q, *self.split(self.kv(x), [self.key, self.value]))


def mlp(width: int) -> Residual:
    return Residual(nn.Sequential(LinearNorm(width, 2 * width), nn.Hardswish(), LinearNorm(2 * width, width)))


def stem(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.Hardswish()]
    return nn.Sequential(*layers[:-1])


class LeViT(nn.Module):
    """`widths` and `depths` of the three stages, `key` of every head; images of `side` pixels, cut into side / 16."""

    def __init__(
        self,
        side: int = 224,
        widths: Sequence[int] = (128, 256, 384),
        depths: Sequence[int] = (2, 3, 4),
        key: int = 16,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.stem = stem([widths[0] // 8, widths[0] // 4, widths[0] // 2, widths[0]])
        side, layers = side // 16, []
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            heads = max(width // (2 * key), 1)
            for _ in range(depth):
                layers += [Residual(SelfAttention(width, key, heads, side)), mlp(width)]
            if number + 1 < len(widths):
                wider = widths[number + 1]
                layers += [ShrinkingAttention(width, wider, key, width // key, side), mlp(wider)]
                side = -(-side // 2)
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(widths[-1]), nn.Linear(widths[-1], classes)) for _ in range(2)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.body(self.stem(image).flatten(2).transpose(1, 2)).mean(1)
        return (self.heads[0](x) + self.heads[1](x)) / 2
