"""Six Conv-BatchNorm-ReLU blocks and a Linear-BatchNorm head, over raw pixels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training import architectures
from training.architectures.norms import DEFAULT, Norms
from training.errors import UserError
from training.features import Features

IMAGE = Features("image", (1, 8, 8))


def build(features=IMAGE, norms=DEFAULT, widths=(4, 4, 8, 8, 16, 16)) -> nn.Module:
    return architectures.build("cnn6", features, 10, norms=norms, widths=widths)


def test_each_convolution_is_followed_by_batchnorm_and_relu_and_the_linear_layer_by_batchnorm() -> None:
    leaves = [type(part).__name__ for part in build().modules() if not list(part.children())]

    assert leaves == ["Conv2d", "BatchNorm2d", "ReLU"] * 6 + ["Linear", "BatchNorm1d"]


def test_nothing_that_batchnorm_would_cancel_is_learned() -> None:
    layers = [part for part in build().modules() if isinstance(part, nn.Conv2d | nn.Linear)]

    assert [layer.bias for layer in layers] == [None] * 7


@pytest.mark.parametrize(
    "input_shape", [(1, 8, 8), (3, 7, 5), (1, 1, 1), (2, 9, 4)], ids=lambda shape: "x".join(map(str, shape))
)
def test_any_image_size_fits(input_shape) -> None:
    assert build(Features("image", input_shape)).eval()(torch.zeros(2, *input_shape)).shape == (2, 10)


def test_eps_and_momentum_reach_every_batchnorm() -> None:
    norms = [
        part
        for part in build(norms=Norms(eps=0.5, momentum=0.25)).modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
    ]

    assert [(norm.eps, norm.momentum) for norm in norms] == [(0.5, 0.25)] * 7


def test_in_the_other_order_the_first_and_the_last_layer_are_bare() -> None:
    network = build(norms=Norms(bn_order="pre"))
    leaves = [type(part).__name__ for part in network.modules() if not list(part.children())]

    assert leaves == ["Conv2d", *["BatchNorm2d", "ReLU", "Conv2d"] * 5, "BatchNorm2d", "ReLU", "Linear"]
    assert network.head.linear.bias is not None


def test_without_normalisation_every_layer_has_a_bias() -> None:
    network = build(norms=Norms(norm="none"))
    leaves = [type(part).__name__ for part in network.modules() if not list(part.children())]

    assert leaves == ["Conv2d", "ReLU"] * 6 + ["Linear"]
    assert all(part.bias is not None for part in network.modules() if isinstance(part, nn.Conv2d | nn.Linear))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        pytest.param(
            {"widths": (4, 4)}, "cnn6 has 6 convolutions; architecture.options.widths names 2: [4, 4]", id="widths"
        ),
        pytest.param(
            {"features": Features("row", (64,))},
            "cnn6 takes images; these inputs become a row of [64]",
            id="not an image",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, text) -> None:
    with pytest.raises(UserError) as caught:
        build(**changes)

    assert text in str(caught.value)
