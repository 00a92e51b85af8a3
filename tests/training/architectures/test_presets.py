"""Every preset, and every flag on one preset or another, from a fresh network to a folded graph that is proved.

All flags on all presets: `make test-zoo`.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.training.architectures.presets import NORMS, TINY, USUAL, batch, full, serve, tiny
from training import architectures
from training.errors import UserError
from training.fold import Verdict
from training.presets import PRESETS

# Each preset with BatchNorm once, on half of them with a flag that leaves it BatchNorm.
WITH_BATCHNORM = {
    "mlp": "bn_bias=False",
    "mlp-in": "affine=False",
    "tabresnet": "conv_bias=True",
    "cnn6": "bn",
    "resnet8": "bn",
    "resnet20": "bn_order=pre",
    "resnet18": "eps=0.01",
    "preact-mini": "bn",
    "mobilenet-mini": "bn",
    "repvgg-mini": "bn",
    "densenet-mini": "bn",
    "shufflenet-mini": "bn",
    "inception-mini": "bn",
    "unet": "bn",
    "centernet-mini": "bn",
    "textcnn": "bn",
    "vdcnn9": "bn",
    "tcn-lm": "bn",
    "video3d-mini": "momentum=None",
}
OTHER_BATCHNORMS = {"ghost:4": "mlp", "renorm": "mlp-in", "sync": "unet", "frozen": "tabresnet"}
NO_BATCHNORM = {"gn:2": "tabresnet", "ln": "mlp-in", "none": "tcn-lm"}


def test_every_preset_and_every_flag_is_among_the_cases() -> None:
    assert set(WITH_BATCHNORM) == set(TINY) == set(PRESETS)
    assert {*WITH_BATCHNORM.values(), *OTHER_BATCHNORMS, *NO_BATCHNORM} == set(NORMS)


@pytest.mark.parametrize(
    ("preset", "flag"),
    [
        *(pytest.param(preset, flag, id=f"{preset} {flag}") for preset, flag in WITH_BATCHNORM.items()),
        *(pytest.param(preset, flag, id=f"{preset} {flag}") for flag, preset in OTHER_BATCHNORMS.items()),
    ],
)
def test_what_normalises_by_the_batch_is_folded_away(preset, flag) -> None:
    served = serve(*tiny(preset, NORMS[flag]))

    assert served.exported >= served.found > 0
    assert len(served.report.batchnorms) == served.exported
    if preset == "densenet-mini":  # each layer sees channels of others through a BatchNorm of its own
        kept = [outcome for outcome in served.report.batchnorms if outcome.verdict is not Verdict.FOLDED]
        assert [(outcome.verdict, outcome.reason) for outcome in kept] == [(Verdict.KEPT, "slower on ort-cpu")] * 3
        assert served.left == 3
    else:
        assert served.left == 0
    assert served.difference < 1e-5
    if flag != "frozen":
        assert served.estimated is not None
        assert {layer.verdict for layer in served.estimated.layers} == {"estimated"}


@pytest.mark.parametrize(
    ("preset", "flag"), [pytest.param(preset, flag, id=f"{preset} {flag}") for flag, preset in NO_BATCHNORM.items()]
)
def test_what_normalises_by_the_row_or_not_at_all_has_nothing_to_fold(preset, flag) -> None:
    served = serve(*tiny(preset, NORMS[flag]))

    assert (served.found, served.exported, served.left, served.estimated) == (0, 0, 0, None)
    assert served.difference < 1e-5


@pytest.mark.parametrize("preset", PRESETS)
def test_as_users_get_it_a_preset_takes_inputs_of_a_usual_size(preset) -> None:
    network, features = full(preset)

    with torch.no_grad():
        scores = network.eval()(batch(features, 2, seed=0))

    per_pixel = features.shape[1:] if PRESETS[preset].task == "segment" else ()
    assert scores.shape == (2, 3, *per_pixel)
    assert PRESETS[preset].reason


@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_seed_gives_the_same_weights(preset) -> None:
    first, second = (tiny(preset)[0].state_dict() for _ in range(2))

    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("family", architectures.FAMILIES)
def test_a_family_says_which_inputs_it_takes(family) -> None:
    takes = {preset.takes for preset in PRESETS.values() if preset.family == family}
    other = next(features for kind, features in USUAL.items() if kind not in takes)

    with pytest.raises(UserError, match=f"{family} takes .*; these inputs become a {other.kind} of"):
        architectures.build(family, other, 3)


def test_presets_are_values_that_nobody_changes() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["mlp"].epochs = 1
