"""What distinguishes the families for images, for clips and for rows of numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.architectures.presets import TINY, batch, tiny
from training import architectures
from training.architectures.norms import Norms
from training.architectures.resnet import Residual
from training.errors import UserError
from training.features import Features


def kinds(network: nn.Module) -> list[str]:
    return [type(part).__name__ for part in network.modules() if not list(part.children())]


def image(*shape: int) -> Features:
    return Features("image", shape)


def test_a_residual_block_answers_its_input_until_it_has_learned() -> None:
    block = Residual(Norms(), 4, 4, 1)
    values = torch.rand(2, 4, 6, 6)

    assert torch.equal(block(values), values)


def test_a_large_image_is_made_smaller_by_the_stem() -> None:
    options = {"widths": (4,), "depths": (1,)}
    small, large = (architectures.build("resnet", image(3, side, side), 2, **options) for side in (95, 96))

    assert [kinds(network).count("MaxPool2d") for network in (small, large)] == [0, 1]
    assert large.eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 2)


def test_preact_has_batchnorm_before_its_convolutions_and_none_on_the_skip() -> None:
    network, _ = tiny("preact-mini")

    assert kinds(network)[:7] == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "Conv2d"]
    assert isinstance(network[2].skip, nn.Conv2d)


def test_the_columns_own_batchnorm_comes_first_and_has_no_activation() -> None:
    network, _ = tiny("mlp-in")

    assert kinds(network)[:3] == ["BatchNorm1d", "Linear", "BatchNorm1d"]
    assert network.inputs.num_features == 5


def test_columns_of_all_sizes_become_alike() -> None:
    network, features = tiny("mlp-in")
    rows = batch(features, 64, 0) * torch.tensor([0.1, 1.0, 10.0, 1e3, 1e4])

    scaled = network.inputs.train()(rows)

    assert torch.allclose(scaled.std(0, unbiased=False), torch.ones(5), atol=1e-3)


def test_depthwise_layers_gates_and_hard_swish_are_in_mobilenet() -> None:
    network, _ = tiny("mobilenet-mini")

    assert any(part.groups == part.in_channels > 1 for part in network.modules() if isinstance(part, nn.Conv2d))
    assert {"Hardsigmoid", "Hardswish"} <= {*kinds(network)}


def test_inception_has_its_own_eps_unless_another_is_asked_for() -> None:
    def eps(norms: Norms) -> set[float]:
        network, _ = tiny("inception-mini", norms)
        return {part.eps for part in network.modules() if isinstance(part, nn.BatchNorm2d)}

    assert eps(Norms()) == {1e-3}
    assert eps(Norms(eps=0.5)) == {0.5}


def test_the_shuffle_takes_channels_from_both_halves_in_turn() -> None:
    from training.architectures.shufflenet import shuffled

    channels = torch.arange(6.0).reshape(1, 6, 1, 1)

    assert shuffled(channels).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_one_head_scores_both_levels() -> None:
    network, features = tiny("centernet-mini")
    sizes = []
    network.head[0].bn.register_forward_pre_hook(lambda _, arguments: sizes.append(arguments[0].shape[2:]))

    network(batch(features, 2, 0))

    assert sizes == [(4, 4), (2, 2)]


@pytest.mark.parametrize(("family", "by"), [("unet", 4), ("centernet", 4)])
def test_a_size_that_cannot_be_halved_often_enough_is_refused_with_the_next_that_can(family, by) -> None:
    with pytest.raises(UserError) as caught:
        architectures.build(family, image(1, 30, 16), 2)

    assert str(caught.value) == (
        f"{family} takes sizes that {by} divides; these inputs are 30x16, the next that fit are 32x16: give the data "
        f"another size"
    )


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 12)])
def test_a_unet_scores_each_pixel_of_any_size_that_fits(height, width) -> None:
    network = architectures.build("unet", image(1, height, width), 2, widths=(2, 3, 4))

    assert network.eval()(torch.zeros(3, 1, height, width)).shape == (3, 2, height, width)


@pytest.mark.parametrize("family", ["mobilenet", "repvgg", "shufflenet", "inception", "unet", "centernet"])
def test_a_family_that_knows_one_order_only_says_so(family) -> None:
    with pytest.raises(UserError, match=f"{family} knows bn_order=post only; cnn6, mlp"):
        architectures.build(family, image(1, 8, 8), 2, norms=Norms(bn_order="pre"))


@pytest.mark.parametrize(
    ("preset", "options", "text"),
    [
        ("mlp", {"widths": ()}, "mlp has at least one hidden layer"),
        ("resnet8", {"depths": (1,)}, "resnet has a width and a depth for each stage; found [16, 32, 64] and [1]"),
        ("repvgg-mini", {"depths": (1,)}, "repvgg has a width and a depth for each stage"),
        ("shufflenet-mini", {"widths": (9, 8, 8)}, "shufflenet has an even width and a depth for each stage"),
        ("densenet-mini", {"depths": ()}, "densenet has at least one stage"),
        ("densenet-mini", {"depths": (1,) * 5}, "densenet halves images 4 times; [2, 8, 8] has too few pixels"),
        ("unet", {"widths": ()}, "unet has at least one level"),
        ("centernet-mini", {"widths": (4,)}, "centernet has a stem and 2 levels; widths names 1 instead of 3"),
        ("video3d-mini", {"widths": ()}, "video3d has at least one convolution"),
    ],
)
def test_options_that_do_not_fit_are_refused(preset, options, text) -> None:
    from training.presets import PRESETS

    with pytest.raises(UserError) as caught:
        architectures.build(PRESETS[preset].family, TINY[preset][0], 3, **options)

    assert text in str(caught.value)
