"""One normalisation for another: what it computes when it serves stays, and so do weights, modes and sharing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.training.bn.cases import NormAct, numbers
from training.bn.replacing import FORMS, replace
from training.bn.variants import GhostBatchNorm
from training.errors import UserError

KEEPING = ["bn", "ghost:4", "renorm", "sync", "masked", "frozen"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6, eps=1e-3, momentum=0.3),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6, affine=False)),
        nn.BatchNorm2d(6, bias=False),
    )
    for seed in range(3):
        model(numbers(4, 3, 8, 8, seed=seed))
    return model


@pytest.mark.parametrize("norm", KEEPING)
def test_what_the_network_computes_when_it_serves_is_the_same_bit_for_bit(norm: str):
    model, values = network().eval(), numbers(2, 3, 8, 8)
    expected = model(values)

    replaced = replace(model, norm)

    assert replaced is model
    assert torch.equal(model(values), expected)
    assert model[1].momentum == 0.3


@pytest.mark.parametrize("norm", KEEPING)
def test_weights_go_there_and_back(norm: str):
    model = network()
    before = copy.deepcopy(model.state_dict())

    back = replace(replace(model, norm), "bn").state_dict()

    assert [*back] == [*before]
    assert all(torch.equal(back[name], before[name]) for name in before)


def test_there_and_back_trains_as_before():
    model, expected = replace(replace(network(), "ghost:2"), "bn"), network()
    for seed in range(2):
        torch.testing.assert_close(model(numbers(4, 3, 8, 8, seed=seed)), expected(numbers(4, 3, 8, 8, seed=seed)))
    torch.testing.assert_close(dict(model.named_buffers()), dict(expected.named_buffers()))


@pytest.mark.parametrize(
    ("norm", "kind"), [("gn:2", nn.GroupNorm), ("gn:6", nn.GroupNorm), ("ln", nn.GroupNorm), ("none", nn.Identity)]
)
def test_kinds_without_statistics_take_the_place(norm: str, kind: type[nn.Module]):
    model = replace(network(), norm)

    assert isinstance(model[1], kind)
    assert [*dict(model.named_buffers())] == []
    assert model(numbers(2, 3, 8, 8)).isfinite().all()


def test_gamma_and_beta_stay_where_there_is_a_place_for_them():
    model = network()
    with torch.no_grad():
        model[1].weight.copy_(torch.arange(6.0))
    model[1].bias.requires_grad = False

    replace(model, "gn:3")

    assert model[1].weight.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert (model[1].weight.requires_grad, model[1].bias.requires_grad) == (True, False)


def test_modes_dtypes_and_sharing_are_kept():
    shared = nn.BatchNorm1d(3).double().eval()
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.BatchNorm1d(3)})

    replace(model, "ghost:8")

    assert model["a"] is model["b"]
    assert (model["a"].training, model["c"].training) == (False, True)
    assert (model["a"].running_mean.dtype, model["c"].running_mean.dtype) == (torch.float64, torch.float32)


def test_a_layer_alone_is_replaced_by_another():
    layer = nn.BatchNorm1d(3)
    assert isinstance(replace(layer, "ghost:8"), GhostBatchNorm)


def test_sync_of_torch_becomes_one_that_trains_anywhere():
    model = nn.Sequential(nn.SyncBatchNorm(3))
    model[0].running_mean.fill_(2.0)
    for norm in ("sync", "bn"):
        replace(model, norm)
        assert model(numbers(4, 3, 2)).shape == (4, 3, 2)
    assert model[0].num_batches_tracked.item() == 2


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        ("batch", f"unknown normalisation 'batch'; expected one of {', '.join(FORMS)}"),
        ("ghost", "'ghost' is not understood; expected ghost:ROWS"),
        ("ghost:x", "'ghost:x' is not understood; expected ghost:ROWS"),
        ("ghost:1", "a ghost batch of 1 row has no variance"),
        ("bn:2", "'bn:2' is not understood; expected bn"),
        ("gn:4", "gn:4 does not divide a layer of 6 channels"),
        ("gn:0", "gn:0 does not divide a layer of 6 channels"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(norm: str, reason: str):
    model = network()
    layers = [*model.modules()]
    with pytest.raises(UserError) as caught:
        replace(model, norm)

    assert reason in str(caught.value)
    assert [*model.modules()] == layers


def test_a_layer_that_does_more_is_not_replaced_by_one_that_does_not():
    model = nn.Sequential(nn.BatchNorm2d(3), NormAct(3))
    with pytest.raises(UserError, match="layer '1' is a NormAct, which may do more than normalise"):
        replace(model, "ghost:4")
    assert isinstance(model[0], nn.BatchNorm2d)
