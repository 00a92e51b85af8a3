"""Normalisations as flags name them, and layers with one behind or in front of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from training.architectures.blocks import closing, conv_block, linear_block, norm_layer
from training.architectures.norms import DEFAULT, Norms
from training.bn.variants import BatchRenorm, FrozenBatchNorm, GhostBatchNorm, MaskedBatchNorm, SyncBatchNorm
from training.errors import UserError


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("bn", nn.BatchNorm2d),
        ("ghost:4", GhostBatchNorm),
        ("renorm", BatchRenorm),
        ("sync", SyncBatchNorm),
        ("frozen", FrozenBatchNorm),
        ("gn:4", nn.GroupNorm),
        ("ln", nn.GroupNorm),
        ("none", nn.Identity),
    ],
)
def test_a_flag_names_a_kind_of_layer(norm, kind) -> None:
    assert type(norm_layer(Norms(norm=norm), 8, 2)) is kind


@pytest.mark.parametrize(
    ("dims", "kind"), [(0, nn.BatchNorm1d), (1, nn.BatchNorm1d), (2, nn.BatchNorm2d), (3, nn.BatchNorm3d)]
)
def test_plain_batchnorm_is_torchs_for_the_axes_there_are(dims, kind) -> None:
    layer = norm_layer(DEFAULT, 4, dims)

    assert type(layer) is kind
    assert layer(torch.randn(3, 4, *(2,) * dims)).shape == (3, 4, *(2,) * dims)


@pytest.mark.parametrize("norm", ["bn", "ghost:4", "renorm", "sync", "frozen", "gn:4", "ln"])
def test_eps_and_what_is_learned_are_as_the_flags_say(norm) -> None:
    def learned(**flags: bool) -> tuple[bool, bool]:
        layer = norm_layer(Norms(norm=norm, eps=0.5, **flags), 8, 2)
        assert layer.eps == 0.5
        return layer.weight is not None, layer.bias is not None

    assert learned() == (True, True)
    assert learned(bn_bias=False) == (True, False)
    assert learned(affine=False) == (False, False)


@pytest.mark.parametrize("norm", ["bn", "ghost:4", "renorm", "sync", "frozen"])
@pytest.mark.parametrize("momentum", [0.25, None])
def test_momentum_reaches_everything_that_averages(norm, momentum) -> None:
    assert norm_layer(Norms(norm=norm, momentum=momentum), 8, 2).momentum == momentum


def test_padding_is_left_out_by_plain_batchnorm_only() -> None:
    assert type(norm_layer(DEFAULT, 8, 1, masked=True)) is MaskedBatchNorm
    assert type(norm_layer(Norms(norm="renorm"), 8, 1, masked=True)) is BatchRenorm


@pytest.mark.parametrize(
    ("groups", "channels", "chosen"),
    [(4, 8, 4), (4, 6, 3), (7, 64, 4), (32, 8, 4), (8, 8, 4), (4, 7, 1), (1, 8, 1), (4, 1, 1)],
)
def test_groups_divide_the_channels_and_have_two_at_least(groups, channels, chosen) -> None:
    assert norm_layer(Norms(norm=f"gn:{groups}"), channels, 2).num_groups == chosen


@pytest.mark.parametrize(
    ("norm", "text"),
    [
        ("batch", "unknown normalisation 'batch'; expected one of bn, ghost:ROWS, renorm"),
        ("ghost", "'ghost' is not understood; expected ghost:ROWS"),
        ("ghost:0", "a ghost batch of 0 row has no variance; expected at least 2"),
        ("bn:2", "'bn:2' is not understood; expected bn"),
        ("gn", "norm=gn is not understood; expected ln, or gn:G with G groups of channels, from 1 on"),
        ("gn:0", "norm=gn:0 is not understood"),
        ("gn:x", "norm=gn:x is not understood"),
        ("ln:2", "norm=ln:2 is not understood"),
        ("masked", "text networks with norm=bn leave padding out themselves"),
    ],
)
def test_a_flag_that_means_nothing_is_refused_in_one_line(norm, text) -> None:
    with pytest.raises(UserError) as caught:
        norm_layer(Norms(norm=norm), 8, 2)

    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_row_of_one_number_has_nothing_to_normalise_by() -> None:
    with pytest.raises(UserError, match="norm=ln of a row of one number is always 0"):
        norm_layer(Norms(norm="ln"), 1, 0)


@pytest.mark.parametrize(
    ("flags", "has_bias"),
    [({}, False), ({"conv_bias": True}, True), ({"norm": "none"}, True), ({"bn_order": "pre"}, False)],
)
def test_a_layer_has_a_bias_where_nothing_subtracts_it_again_or_somebody_asks_for_it(flags, has_bias) -> None:
    norms = replace(DEFAULT, **flags)

    assert (conv_block(norms, 2, 4).conv.bias is not None) is has_bias
    assert (linear_block(norms, 2, 4).linear.bias is not None) is has_bias


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        pytest.param({}, ["conv", "bn", "activation"], id="post"),
        pytest.param({"bn_order": "pre"}, ["bn", "activation", "conv"], id="pre"),
        pytest.param({"norm": "none"}, ["conv", "activation"], id="none"),
        pytest.param({"norm": "none", "bn_order": "pre"}, ["activation", "conv"], id="none, pre"),
    ],
)
def test_the_order_of_a_block(flags, parts) -> None:
    assert [name for name, _ in conv_block(replace(DEFAULT, **flags), 2, 4).named_children()] == parts


def test_a_chain_in_the_other_order_begins_bare_and_is_closed() -> None:
    pre = Norms(bn_order="pre")

    assert [name for name, _ in conv_block(pre, 2, 4, is_first=True).named_children()] == ["conv"]
    assert [type(part) for part in closing(pre, 4, 2)] == [nn.BatchNorm2d, nn.ReLU]
    assert closing(DEFAULT, 4, 2) == []


@pytest.mark.parametrize(("dims", "kernel", "stride", "size"), [(1, 5, 1, 7), (2, 3, 2, 4), (3, 3, 2, 4), (2, 1, 1, 7)])
def test_a_convolution_keeps_the_size_but_for_the_stride(dims, kernel, stride, size) -> None:
    block = conv_block(DEFAULT, 2, 4, dims=dims, kernel=kernel, stride=stride)

    assert block(torch.randn(2, 2, *(7,) * dims)).shape == (2, 4, *(size,) * dims)
