"""Padding decides nothing: neither answers nor statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.training.architectures.presets import BATCHES, ROWS, batch, tiny
from training import architectures
from training.architectures.norms import Norms
from training.bn.population import estimate
from training.bn.variants import MaskedBatchNorm
from training.errors import UserError
from training.features import Features

PRESETS = ["textcnn", "vdcnn9", "tcn-lm"]
ORDERS = [("textcnn", "post"), ("vdcnn9", "post"), ("tcn-lm", "post"), ("tcn-lm", "pre")]
LENGTH = Features("tokens", (10,), 7)


def masked(network: nn.Module) -> list[MaskedBatchNorm]:
    return [part for part in network.modules() if isinstance(part, MaskedBatchNorm)]


def longer(tokens: torch.Tensor) -> torch.Tensor:
    """The same texts, more padding."""
    return functional.pad(tokens, (0, 6))


@pytest.mark.parametrize(("preset", "order"), ORDERS)
def test_answers_do_not_depend_on_how_much_padding_there_is(preset, order) -> None:
    network, features = tiny(preset, Norms(bn_order=order))
    tokens = batch(features, ROWS, 0)
    for norm in masked(network):
        nn.init.normal_(norm.bias)  # so that what layers make of padding is not zero

    network.eval()

    torch.testing.assert_close(network(longer(tokens)), network(tokens))


@pytest.mark.parametrize(("preset", "order"), ORDERS)
def test_statistics_of_training_do_not_depend_on_how_much_padding_there_is(preset, order) -> None:
    (first, features), (second, _) = (tiny(preset, Norms(bn_order=order)) for _ in range(2))
    tokens = batch(features, ROWS, 0)

    answers = first.train()(tokens), second.train()(longer(tokens))

    torch.testing.assert_close(*answers)
    assert masked(first)
    for one, other in zip(masked(first), masked(second), strict=True):
        assert float(one.num_batches_tracked) == 1
        torch.testing.assert_close(one.running_mean, other.running_mean)
        torch.testing.assert_close(one.running_var, other.running_var)


@pytest.mark.parametrize("mode", ["sequential", "minibatch"])
@pytest.mark.parametrize("preset", PRESETS)
def test_nor_do_those_that_are_measured_anew(preset, mode) -> None:
    (first, features), (second, _) = (tiny(preset) for _ in range(2))
    texts = [batch(features, ROWS, seed) for seed in range(BATCHES)]

    measured = [estimate(first, texts, mode=mode), estimate(second, [longer(tokens) for tokens in texts], mode=mode)]

    counts = [[layer.values for layer in found.layers] for found in measured]
    assert counts[0] == counts[1]
    for one, other in zip(masked(first), masked(second), strict=True):
        torch.testing.assert_close(one.running_mean, other.running_mean)
        torch.testing.assert_close(one.running_var, other.running_var)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_mask_stays_behind(preset) -> None:
    network, features = tiny(preset)

    network(batch(features, ROWS, 0))

    assert [norm.mask for norm in masked(network)] == [None] * len(masked(network))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_text_without_a_word_has_an_answer(preset) -> None:
    network, _ = tiny(preset)

    assert torch.isfinite(network.eval()(torch.zeros(2, 10, dtype=torch.int64))).all()


def test_a_window_begins_at_each_word_however_near_the_end() -> None:
    network = architectures.build("textcnn", Features("tokens", (2,), 7), 3, width=2, channels=2)

    assert network.eval()(torch.tensor([[1, 2], [3, 0]])).shape == (2, 3)


def test_a_position_knows_nothing_of_those_behind_it() -> None:
    network = architectures.build("tcn", LENGTH, 3, width=4, depth=2, answers="each").eval()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm1d | MaskedBatchNorm):
            nn.init.ones_(part.weight)
    tokens = torch.randint(1, 7, (2, 10), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 6] = 7 - changed[:, 6]

    answers, others = network(tokens), network(changed)

    assert answers.shape == (2, 3, 10)
    assert torch.equal(answers[:, :, :6], others[:, :, :6])
    assert not torch.equal(answers[:, :, 6:], others[:, :, 6:])


@pytest.mark.parametrize(
    ("family", "options", "text"),
    [
        ("textcnn", {"windows": ()}, "textcnn has at least one window"),
        ("textcnn", {"norms": Norms(bn_order="pre")}, "textcnn knows bn_order=post only"),
        ("vdcnn", {"widths": ()}, "vdcnn has at least one stage"),
        ("vdcnn", {"norms": Norms(bn_order="pre")}, "vdcnn knows bn_order=post only"),
    ],
)
def test_options_that_do_not_fit_are_refused(family, options, text) -> None:
    with pytest.raises(UserError, match=text):
        architectures.build(family, LENGTH, 3, **options)
