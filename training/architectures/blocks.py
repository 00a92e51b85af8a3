"""What all families build with: a normalisation as `Norms` has it, and layers with one behind or in front of them.

Knows no family. Lengths, sizes and channels are checked where a network is built, never where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from training.architectures.norms import Norms
from training.bn.replacing import replace
from training.errors import UserError
from training.features import Features

Activation = Callable[[], nn.Module]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (None, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def norm_layer(norms: Norms, channels: int, dims: int, *, masked: bool = False) -> nn.Module:
    """Of [rows, channels] and `dims` more axes. masked: where it is plain BatchNorm, one that leaves padding out.

    gn:G has G groups, or as many below that as divide the channels and leave two in each: widths differ within a
    network, and a group of one number has nothing to normalise by. Raises UserError for a kind there is not.
    """
    kind, _, number = norms.norm.partition(":")
    if kind in ("gn", "ln"):
        return _group_norm(norms, channels, dims, _groups(norms.norm, kind, number, channels))
    options: dict[str, Any] = {"eps": norms.eps, "momentum": norms.momentum, "affine": norms.affine}
    if norms.affine:
        options["bias"] = norms.bn_bias
    plain = _BATCH_NORMS[dims](channels, **options)
    if norms.norm == "bn":
        return replace(plain, "masked") if masked else plain
    if norms.norm == "masked":
        raise UserError("norm=masked is not asked for by name: text networks with norm=bn leave padding out themselves")
    return replace(plain, norms.norm)


def is_normalised(norms: Norms) -> bool:
    return norms.norm != "none"


def needs_bias(norms: Norms) -> bool:
    """Does a layer whose answers are normalised have one?"""
    return norms.conv_bias or not is_normalised(norms)


def convolution(dims: int) -> type[nn.Module]:
    """Of this many axes behind the channels."""
    found = _CONVOLUTIONS[dims]
    assert found is not None
    return found


class Block(nn.Sequential):
    """A layer, its normalisation and its activation: in this order, or (pre) normalisation, activation, layer.

    `activation` None: there is none. `is_first`: of a chain in the order `pre`, whose input is neither normalised nor
    cut off below zero. Without normalisation the part is missing, and the layer has a bias.
    """

    def __init__(
        self,
        norms: Norms,
        layer: nn.Module,
        channels_in: int,
        channels_out: int,
        dims: int,
        activation: Activation | None,
        *,
        masked: bool = False,
        is_first: bool = False,
    ) -> None:
        pre = norms.bn_order == "pre"
        around: dict[str, nn.Module] = {}
        if is_normalised(norms) and not (pre and is_first):
            around["bn"] = norm_layer(norms, channels_in if pre else channels_out, dims, masked=masked)
        if activation is not None and not (pre and is_first):
            around["activation"] = activation()
        named = {"linear" if isinstance(layer, nn.Linear) else "conv": layer}
        super().__init__()
        for name, part in ({**around, **named} if pre else {**named, **around}).items():
            self.add_module(name, part)


def conv_block(
    norms: Norms,
    channels_in: int,
    channels_out: int,
    *,
    dims: int = 2,
    kernel: int = 3,
    stride: int | tuple[int, ...] = 1,
    groups: int = 1,
    activation: Activation | None = nn.ReLU,
    masked: bool = False,
    is_first: bool = False,
) -> Block:
    """An odd `kernel`; padded so that it keeps the size, but for the stride."""
    layer = convolution(dims)(
        channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=needs_bias(norms)
    )
    return Block(norms, layer, channels_in, channels_out, dims, activation, masked=masked, is_first=is_first)


def linear_block(
    norms: Norms,
    features_in: int,
    features_out: int,
    *,
    activation: Activation | None = nn.ReLU,
    is_first: bool = False,
) -> Block:
    """Of [rows, features]."""
    layer = nn.Linear(features_in, features_out, bias=needs_bias(norms))
    return Block(norms, layer, features_in, features_out, 0, activation, is_first=is_first)


class PooledHead(nn.Sequential):
    """The mean over all positions, then scores: [rows, channels, ...] -> [rows, outputs]."""

    def __init__(self, channels: int, outputs: int, dims: int = 2) -> None:
        super().__init__()
        pools = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
        self.pool = pools[dims](1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(channels, outputs)


def closing(norms: Norms, channels: int, dims: int, *, masked: bool = False) -> list[nn.Module]:
    """What the last layer of a chain is still without: in the order `pre` its normalisation and activation."""
    if norms.bn_order == "post":
        return []
    return [*([norm_layer(norms, channels, dims, masked=masked)] if is_normalised(norms) else []), nn.ReLU()]


def begin_at_zero(block: nn.Module) -> None:
    """gamma 0: a residual branch that ends in `block` adds nothing until it has learned something."""
    weight = getattr(getattr(block, "bn", None), "weight", None)
    if isinstance(weight, torch.Tensor):
        nn.init.zeros_(weight)


def expect(family: str, features: Features, kind: str) -> None:
    """Raises UserError unless the inputs are of this kind."""
    if features.kind != kind:
        wanted = {"image": "images", "clip": "clips", "row": "rows of numbers", "tokens": "tokens of text"}[kind]
        raise UserError(f"{family} takes {wanted}; these inputs become a {features.kind} of {list(features.shape)}")


def expect_divisible(family: str, size: Sequence[int], by: int) -> None:
    """Raises UserError unless each side can be halved as often as the family does it."""
    if any(side % by or side == 0 for side in size):
        near = [max(by, -(-side // by) * by) for side in size]
        raise UserError(
            f"{family} takes sizes that {by} divides; these inputs are {'x'.join(map(str, size))}, the next that fit "
            f"are {'x'.join(map(str, near))}: give the data another size"
        )


def expect_post(family: str, norms: Norms) -> None:
    """Raises UserError for the other order."""
    if norms.bn_order != "post":
        raise UserError(f"{family} knows bn_order=post only; cnn6, mlp, resnet, tcn and video3d know pre as well")


def _group_norm(norms: Norms, channels: int, dims: int, groups: int) -> nn.Module:
    if dims == 0 and channels == 1:
        raise UserError(f"norm={norms.norm} of a row of one number is always 0; expected bn, none or another input")
    made = nn.GroupNorm(groups, channels, eps=norms.eps, affine=norms.affine)
    if norms.affine and not norms.bn_bias:
        made.register_parameter("bias", None)
    return made


def _groups(norm: str, kind: str, number: str, channels: int) -> int:
    if kind == "ln" and not number:
        return 1
    if kind == "ln" or not (number.isascii() and number.isdigit() and int(number)):
        raise UserError(f"norm={norm} is not understood; expected ln, or gn:G with G groups of channels, from 1 on")
    return max(
        n for n in range(1, channels + 1) if n <= int(number) and channels % n == 0 and (n == 1 or 2 * n <= channels)
    )
