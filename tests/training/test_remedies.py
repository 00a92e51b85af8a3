"""Small batches: which remedy is chosen, what it does to a network, and that nothing of it is left when it serves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional

from training.bn.variants import BatchRenorm, GhostBatchNorm, SyncBatchNorm
from training.errors import UserError
from training.export import export
from training.fold import fold
from training.remedies import EARLY, KINDS, Remedy, apply, choose_remedy, freeze, hold, parse_remedy

STEPS = 40


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16),
        nn.ReLU(), nn.Linear(16, 2),
    )  # fmt: skip


def rows(count: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Is a row inside a ball? What size says, two rows that are normalised by themselves cannot."""
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
    return inputs, (inputs.square().sum(1) > 3.4).long()


@pytest.mark.parametrize(
    ("batch_rows", "values_per_row", "processes", "chosen"),
    [
        pytest.param(32, 1.0, 1, "none", id="enough rows"),
        pytest.param(2, 20.0, 1, "none", id="two images of twenty free positions"),
        pytest.param(8, 1.0, 1, "precise", id="eight rows"),
        pytest.param(2, 1.0, 1, f"frozen:{EARLY:g}", id="two rows"),
        pytest.param(2, 1.0, 16, "sync", id="two rows in each of sixteen processes"),
        pytest.param(2, 1.0, 2, f"frozen:{EARLY:g}", id="two rows in each of two"),
    ],
)
def test_a_remedy_is_chosen_by_how_many_values_a_batch_is_worth(
    batch_rows: int, values_per_row: float, processes: int, chosen: str
) -> None:
    remedy = choose_remedy(batch_rows, values_per_row=values_per_row, processes=processes)

    assert str(remedy) == chosen
    assert remedy.reason.startswith(f"a batch of {batch_rows} rows is worth {batch_rows * values_per_row:g} values")


@pytest.mark.parametrize("text", ["none", "precise", "frozen:0.2", "renorm", "sync", "ghost:16"])
def test_a_remedy_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_remedy(text)) == text


def test_every_kind_is_tried_here() -> None:
    assert {parse_remedy(text).kind for text in ("none", "precise", "frozen:0.2", "renorm", "sync", "ghost:16")} == {
        *KINDS
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("forzen", "remedy 'forzen': expected one of auto, none, precise, frozen:SHARE"),
        ("frozen", "expected one of"),
        ("precise:3", "expected one of"),
        ("ghost:many", "expected one of"),
        ("ghost:nan", "two rows or more"),
        ("frozen:1", "above 0 and below 1"),
        ("ghost:1", "two rows or more"),
        ("ghost:2.5", "two rows or more"),
    ],
)
def test_what_is_no_remedy_is_told(text: str, told: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_remedy(text)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("share", "total", "first"), [(0.2, 100, 80), (0.9, 100, 10), (0.9, 5, 1), (0.2, 3, 2), (0.5, 1, 1)]
)
def test_the_last_share_of_the_steps_is_frozen_and_never_the_first_step(share: float, total: int, first: int) -> None:
    remedy = Remedy("frozen", share)

    assert remedy.freezes_at(total) == first
    assert [step for step in range(total) if remedy.is_frozen(step, total)] == list(range(first, total))
    assert not any(Remedy("renorm").is_frozen(step, total) for step in range(total))


def test_running_averages_of_small_batches_look_back_over_as_many_rows() -> None:
    module = apply(network(), Remedy("precise"), batch_rows=8, total_steps=STEPS)
    assert [module[1].momentum, module[4].momentum] == [0.1 * 8 / 32] * 2
    assert apply(network(), Remedy("none"), batch_rows=8, total_steps=STEPS)[1].momentum == 0.1
    assert apply(network(), Remedy("precise"), batch_rows=64, total_steps=STEPS)[1].momentum == 0.1


@pytest.mark.parametrize(
    ("text", "kind"), [("renorm", BatchRenorm), ("sync", SyncBatchNorm), ("ghost:16", GhostBatchNorm)]
)
def test_layers_become_what_the_remedy_wants(text: str, kind: type[nn.Module]) -> None:
    module = apply(network(), parse_remedy(text), batch_rows=2, total_steps=STEPS)

    assert [type(module[1]), type(module[4])] == [kind] * 2
    if isinstance(module[1], BatchRenorm):
        assert (module[1].opens_at, module[1].open_at) == (2, 10)


def test_frozen_statistics_stay_while_gamma_and_weights_learn() -> None:
    module, (inputs, classes) = network().train(), rows()
    freeze(module, [inputs])
    before = {name: value.clone() for name, value in module.state_dict().items()}

    hold(module.train())
    functional.cross_entropy(module(inputs[:2]), classes[:2]).backward()

    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())
    assert module[1].weight.grad.abs().max() > 0
    assert module[0].weight.grad.abs().max() > 0
    assert module.training


def gradient_of_two_rows(apart: float, *, frozen: bool) -> float:
    """Of what a layer of one channel is given; the answers are pulled by 1 and by 2."""
    layer = nn.BatchNorm1d(1).train()
    if frozen:
        hold(layer)
    values = torch.tensor([[0.0], [apart]], requires_grad=True)
    (layer(values) * torch.tensor([[1.0], [2.0]])).sum().backward()
    assert values.grad is not None
    return float(values.grad.abs().max())


def test_two_rows_teach_what_is_before_them_next_to_nothing_or_far_too_much() -> None:
    """Their normalised values are 1 and -1 either way; where they are nearly equal, epsilon decides."""
    assert gradient_of_two_rows(1.0, frozen=False) < 1e-3
    assert gradient_of_two_rows(1e-3, frozen=False) > 100
    assert gradient_of_two_rows(1.0, frozen=True) == pytest.approx(2, rel=1e-4)
    assert gradient_of_two_rows(1.0, frozen=True) == gradient_of_two_rows(1e-3, frozen=True)


@pytest.mark.parametrize("text", ["precise", "frozen:0.9", "renorm", "ghost:2", "sync"])
def test_nothing_of_a_remedy_is_left_in_the_folded_graph(text: str) -> None:
    remedy, (inputs, classes) = parse_remedy(text), rows()
    module = apply(network(), remedy, batch_rows=2, total_steps=4).train()
    optimiser = torch.optim.SGD(module.parameters(), 0.01)
    for step, batch in enumerate(torch.arange(8).split(2)):
        if step == remedy.freezes_at(4):
            freeze(module, [inputs])
        optimiser.zero_grad()
        functional.cross_entropy(module(inputs[batch]), classes[batch]).backward()
        optimiser.step()

    folded, _ = fold(export(module.eval(), {"x": inputs[:2]}, ["logits"]))

    assert [node.op_type for node in folded.graph if "Norm" in node.op_type] == []
