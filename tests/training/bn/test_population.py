"""Population statistics: right to 1e-4 where others go wrong, and the network otherwise left as it was found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import spawn

from tests.training.bn.cases import (
    CASES,
    DISTRIBUTED,
    RELATIVE_ERROR,
    Renorm,
    Shared,
    error_of,
    numbers,
    population,
    rank_batches,
    two_ranks,
)
from training.bn.population import CannotEstimate, Mode, estimate

MODES: list[Mode] = ["minibatch", "sequential"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_statistics_are_those_of_all_values_in_float64(name: str, mode: Mode):
    scene = CASES[name]()

    error = error_of(scene, lambda model, batches: estimate(model, batches, mode=mode, **scene.options))

    assert error <= RELATIVE_ERROR


def one_of_two(rank: int, folder: str) -> None:
    """A process of the test below."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    scene = two_ranks()
    found = estimate(nn.SyncBatchNorm.convert_sync_batchnorm(scene.model), rank_batches(rank), mode="minibatch")
    Path(folder, f"batches-{rank}").write_text(str(found.batches))
    torch.save(dict(scene.model.named_buffers()), Path(folder, f"{rank}.pt"))
    Path(folder, f"error-{rank}").write_text(str(error_of(scene, lambda *_: None)))
    torch.distributed.destroy_process_group()


def test_two_processes_with_uneven_data_hold_the_same_and_the_right_statistics(tmp_path: Path):
    assert DISTRIBUTED in CASES
    spawn(one_of_two, (str(tmp_path),), nprocs=2)

    left, right = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert [float((tmp_path / f"error-{rank}").read_text()) <= RELATIVE_ERROR for rank in range(2)] == [True, True]
    assert [(tmp_path / f"batches-{rank}").read_text() for rank in range(2)] == ["3", "3"]


# --- what a layer is given is what it will be given ---------------------------------------------------------------


def deep(layers: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [[nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU()] for _ in range(layers)]
    return nn.Sequential(*(module for block in blocks for module in block))


def given(model: nn.Module, batches: list[torch.Tensor]) -> dict[str, Any]:
    """What each BatchNorm of the network in eval mode is given, all of it."""
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm1d)
    ]
    with torch.no_grad():
        for batch in batches:
            model.eval()(batch)
    for hook in hooks:
        hook.remove()
    return {name: population(*values) for name, values in seen.items()}


def test_sequential_statistics_are_those_that_the_layers_meet_when_the_network_serves():
    model, batches = deep(), [numbers(rows, 6, seed=rows) for rows in (5, 50, 500)]

    found = estimate(model, batches)

    for name, (mean, variance) in given(model, batches).items():
        layer = model.get_submodule(name)
        torch.testing.assert_close(layer.running_mean, torch.from_numpy(mean).float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_var, torch.from_numpy(variance).float(), rtol=1e-4, atol=1e-6)
    assert found.settled
    assert found.passes == 5  # one for each layer of the chain, and one that changes nothing


def test_minibatch_statistics_differ_from_those_where_batches_do():
    """Why there are two modes: with batches of 4 each layer normalises by another mean and variance."""
    batches = [numbers(4, 6, seed=seed) for seed in range(8)]
    by_batch, in_turn = deep(), deep()
    assert estimate(by_batch, batches, mode="minibatch").passes == 1
    estimate(in_turn, batches)

    torch.testing.assert_close(by_batch[1].running_var, in_turn[1].running_var)  # there is nothing before the first
    assert not torch.allclose(by_batch[10].running_var, in_turn[10].running_var, rtol=0.02)


def test_layers_beside_each_other_take_no_pass_of_their_own():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.BatchNorm1d(3) for _ in range(9))

        def forward(self, values: torch.Tensor) -> list[torch.Tensor]:
            return [norm(values) for norm in self.norms]

    assert estimate(Branches(), [numbers(8, 3)]).passes == 2


def test_statistics_that_were_nonsense_do_not_matter():
    model, batches = deep(), [numbers(64, 6)]
    fresh = deep()
    estimate(fresh, batches)
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.fill_(float("nan"))
            module.running_var.fill_(-1.0)

    found = estimate(model, batches)

    assert found.settled
    torch.testing.assert_close(model.state_dict(), fresh.state_dict(), rtol=1e-5, atol=1e-6)


def test_passes_that_do_not_settle_say_so():
    assert not estimate(deep(), [numbers(64, 6)], most_passes=2).settled


# --- how a network is run -----------------------------------------------------------------------------------------


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, left: torch.Tensor, right: torch.Tensor | float = 0.0) -> torch.Tensor:
        return self.norm(left + right)


@pytest.mark.parametrize(
    ("batch", "options"),
    [
        pytest.param(torch.ones(2, 3).cumsum(0), {}, id="tensor"),
        pytest.param((torch.ones(2, 3).cumsum(0), "labels"), {}, id="tuple"),
        pytest.param([torch.ones(2, 3).cumsum(0), "labels"], {}, id="list"),
        pytest.param({"left": torch.ones(2, 3), "right": torch.ones(2, 3).cumsum(0) - 1}, {}, id="mapping"),
        pytest.param(1.0, {"forward": lambda model, by: model(torch.ones(2, 3).cumsum(0), by - 1)}, id="own"),
    ],
)
def test_batches_of_the_usual_forms_are_understood(batch: Any, options: dict[str, Any]):
    model = Pair()
    estimate(model, [batch], **options)

    torch.testing.assert_close(model.norm.running_mean, torch.full((3,), 1.5))


def test_a_layer_that_is_called_with_a_keyword_is_heard():
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.norm(input=values)

    model = Keyword()
    estimate(model, [numbers(8, 3)])

    torch.testing.assert_close(model.norm.running_mean, numbers(8, 3).mean(0))


def test_noise_stays_on_where_that_is_asked():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    found = estimate(model, [numbers(2000, 3)], noise=True)

    assert found.noise
    assert model[1].running_var.mean() > 1.5 * numbers(2000, 3).var(0).mean()


def test_a_row_that_weighs_nothing_is_not_there():
    model, values = nn.Sequential(nn.BatchNorm2d(3)), numbers(4, 3, 5, 5)
    rows = torch.tensor([1.0, 0.0, 1.0, 1.0])
    estimate(model, [values], weights=lambda *_: rows)

    torch.testing.assert_close(model[0].running_mean, values[rows > 0].mean((0, 2, 3)))


def test_weights_that_do_not_fit_are_refused_by_the_layer_s_name_and_shapes():
    model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(CannotEstimate, match=r"layer '0' is given \[4, 3, 5, 5\], the weights are \[5, 5\]; expected"):
        estimate(model, [numbers(4, 3, 5, 5)], weights=lambda *_: torch.ones(5, 5))


# --- what is left behind ------------------------------------------------------------------------------------------


def state(model: nn.Module) -> dict[str, Any]:
    """All that must not change: modes, hooks, counters, rates, addresses of buffers."""
    return {
        name: (
            module.training,
            len(module._forward_pre_hooks),
            len(module._forward_hooks),
            "forward" in vars(module),
            getattr(module, "momentum", None),
            [(key, buffer.data_ptr()) for key, buffer in module.named_buffers(recurse=False)],
            getattr(module, "num_batches_tracked", torch.tensor(0)).item(),
        )
        for name, module in model.named_modules()
    }


class Breaks(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("in the middle")


def mixed() -> nn.Sequential:
    model = nn.Sequential(
        nn.Linear(3, 3),
        nn.BatchNorm1d(3, momentum=None),
        nn.Dropout(0.1),
        nn.SyncBatchNorm(3),
        nn.BatchNorm1d(3),
        Renorm(3),
    ).train()
    model[4].eval()
    return model


@pytest.mark.parametrize("mode", MODES)
def test_all_but_the_statistics_is_as_it_was(mode: Mode):
    model = mixed()
    before, weights = state(model), {name: value.clone() for name, value in model.named_parameters()}

    estimate(model, [numbers(8, 3)], mode=mode)

    assert state(model) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_after_an_error_everything_is_as_it_was(mode: Mode):
    model = mixed().append(Breaks())
    before, values = state(model), {name: value.clone() for name, value in model.state_dict().items()}

    with pytest.raises(ArithmeticError, match="in the middle"):
        estimate(model, [numbers(8, 3)], mode=mode)

    assert state(model) == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("mode", MODES)
def test_what_was_done_can_be_undone(mode: Mode):
    model = mixed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = estimate(model, [numbers(8, 3)], mode=mode)
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])

    found.undo()

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_values_that_are_not_finite_change_nothing():
    model = deep(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for mode in MODES:
        with pytest.raises(
            CannotEstimate, match="layer '1' is given values that are not finite; all running statistics"
        ):
            estimate(model, [torch.full((4, 6), float("inf"))], mode=mode)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- what is told -------------------------------------------------------------------------------------------------


def test_each_layer_is_told_with_its_verdict_and_drift():
    model = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1), nn.BatchNorm1d(1, track_running_stats=False)).train()
    model[1].eval()
    column = torch.tensor([[1.0], [3.0], [5.0], [7.0], [9.0]])

    found = estimate(model, [column])

    first, second = found.layers
    assert (first.name, first.kind, first.verdict, first.values, first.sites) == (
        "0",
        "BatchNorm1d",
        "estimated",
        5.0,
        1,
    )
    assert first.mean_shift == pytest.approx(5 / 10**0.5)
    assert first.log_variance_ratio == pytest.approx(2.302585, abs=1e-6)
    assert (second.verdict, second.mean_shift) == ("frozen", None)
    assert found.without_statistics == ("2",)


def test_a_layer_that_is_used_twice_is_told_so():
    (layer,) = estimate(Shared(), [numbers(4, 3, 6, 6)]).layers
    assert (layer.sites, layer.values) == (2, 4 * 36 + 4 * 9)


def test_a_single_value_is_too_few_and_changes_nothing():
    model = nn.Sequential(nn.BatchNorm1d(3))
    for mode in MODES:
        (layer,) = estimate(model, [numbers(1, 3)], mode=mode).layers
        assert layer.verdict == "too few"
        assert torch.equal(model[0].running_var, torch.ones(3))


def test_a_channel_that_never_changes_has_not_drifted():
    model = nn.Sequential(nn.BatchNorm1d(2))
    values = torch.tensor([[1.0, 2.0], [1.0, 4.0]])
    estimate(model, [values])

    (layer,) = estimate(model, [values]).layers

    assert (layer.mean_shift, layer.log_variance_ratio) == (0.0, 0.0)


def test_the_report_is_json():
    told = estimate(mixed(), [numbers(8, 3)]).as_dict()

    assert json.loads(json.dumps(told))["layers"][0]["kind"] == "BatchNorm1d"
    assert "_before" not in told


def nothing() -> Iterator[torch.Tensor]:
    yield from ()


@pytest.mark.parametrize(
    ("model", "batches", "reason"),
    [
        (nn.Linear(3, 3), [numbers(2, 3)], "the network has no batch norm layer that keeps running statistics"),
        (
            nn.BatchNorm1d(3, track_running_stats=False),
            [numbers(2, 3)],
            "1 batch norm layers keep no running statistics",
        ),
        (nn.InstanceNorm1d(3, track_running_stats=True), [numbers(2, 3)], "the network has no batch norm layer"),
        (nn.Sequential(nn.BatchNorm1d(3).eval()).requires_grad_(False), nothing(), "not a single batch"),
        (nn.BatchNorm1d(3), [], "not a single batch"),
    ],
    ids=["no-layer", "no-statistics", "instance-norm", "iterator", "list"],
)
def test_nothing_to_do_is_said(model: nn.Module, batches: Any, reason: str):
    model.eval()
    with pytest.raises(CannotEstimate, match=reason):
        estimate(model, batches)


def test_a_network_whose_layers_are_all_frozen_is_refused_and_may_be_forced():
    model = nn.Sequential(nn.BatchNorm1d(3)).train()
    model[0].eval()
    with pytest.raises(CannotEstimate, match="all 1 batch norm layers are frozen"):
        estimate(model, [numbers(4, 3)])

    assert estimate(model, [numbers(4, 3)], keep_frozen=False).layers[0].verdict == "estimated"
