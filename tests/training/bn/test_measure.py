"""Figures are those of the data, and a network that was examined is as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from training.bn.diagnosis import examine
from training.bn.findings import CHECKS


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2))


def batches(count: int = 8, rows: int = 64) -> list[torch.Tensor]:
    return list(torch.randn(count * rows, 3, generator=torch.Generator().manual_seed(1)).split(rows))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_an_examined_network_is_as_it_was(training: bool) -> None:
    model = network().train(training)
    before = copy.deepcopy(model.state_dict())

    examine(model, batches())

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert {module.training for module in model.modules()} == {training}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_population_statistics_are_those_of_all_rows() -> None:
    model, data = network(), batches()

    (layer,) = examine(model, data).examined.layers

    inputs = (torch.cat(data) @ model[0].weight.detach().T).double().numpy()
    assert layer.seen
    np.testing.assert_allclose(layer.seen.population.mean, inputs.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(layer.seen.population.variance, inputs.var(axis=0, ddof=1), rtol=1e-5)


def test_a_row_is_worth_as_many_values_as_its_independent_positions() -> None:
    model = nn.Sequential(nn.BatchNorm1d(64))
    noise = torch.randn(64 * 64, 64, 4, generator=torch.Generator().manual_seed(0))

    def per_row(values: torch.Tensor) -> float:
        (layer,) = examine(model, list(values.split(64))).examined.layers
        assert layer.seen
        assert layer.seen.effective_per_row
        return layer.seen.effective_per_row

    assert per_row(noise) == pytest.approx(4, rel=0.1)
    assert per_row(noise[..., :1].expand(-1, -1, 4)) == pytest.approx(1, rel=0.1)


def test_rows_that_are_alike_are_told_by_how_many_stand_for_one() -> None:
    noise = torch.randn(64 * 64, 64, 4, generator=torch.Generator().manual_seed(0))

    def alikeness(values: torch.Tensor) -> float | None:
        (layer,) = examine(nn.Sequential(nn.BatchNorm1d(64)), list(values.split(64))).examined.layers
        assert layer.seen
        return layer.seen.alikeness

    assert alikeness(noise) == pytest.approx(1, rel=0.1)
    assert alikeness(noise[..., :1].expand(-1, -1, 4)) == pytest.approx(1, rel=0.1)  # positions are no rows
    assert alikeness(noise[:512].repeat_interleave(8, dim=0)) == pytest.approx(8, rel=0.1)


def test_whether_rows_are_alike_is_not_told_where_a_layer_is_given_others() -> None:
    model = nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Flatten(0, 1), nn.BatchNorm1d(1))  # each value as a row

    diagnosis = examine(model, batches())

    (layer,) = diagnosis.examined.layers
    assert layer.seen
    assert layer.seen.alikeness is None
    assert [each.layers for each in diagnosis.not_made if "alike" in each.reason] == [("2",)]


def test_too_few_batches_tell_nothing_of_their_scatter() -> None:
    (layer,) = examine(network(), batches(count=5)).examined.layers

    assert layer.seen
    assert layer.seen.effective_per_row is None


def test_a_mask_leaves_padding_out() -> None:
    data = torch.randn(256, 3, 10)
    mask = torch.arange(10).expand(256, 10) < 5
    data[..., 5:] = 100

    diagnosis = examine(nn.Sequential(nn.BatchNorm1d(3)), list(data.split(32)), masks=list(mask.split(32)))

    (layer,) = diagnosis.examined.layers
    assert diagnosis.examined.padded == 0.5
    assert layer.seen
    assert layer.seen.unpadded
    assert layer.seen.population.mean.min() > 40
    assert np.abs(layer.seen.unpadded.mean).max() < 0.2


def test_the_dictionary_names_each_check_by_its_title() -> None:
    told = examine(network().eval(), batches()).as_dict()

    assert told["counts"]["red"] == sum(finding["severity"] == "red" for finding in told["findings"])
    assert {each["title"] for each in told["not_made"]} <= set(CHECKS.values())
    assert told["figures"][0]["layer"] == "1"
