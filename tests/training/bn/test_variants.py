"""Kinds of BatchNorm: each is itself in training, and all are the same map when they serve."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import spawn

from tests.training.bn.cases import numbers
from training.bn.variants import (
    BatchRenorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    MaskedBatchNorm,
    SyncBatchNorm,
    valid_positions,
)
from training.errors import UserError

KINDS: dict[str, Callable[..., nn.modules.batchnorm._BatchNorm]] = {
    "ghost": lambda channels, **options: GhostBatchNorm(channels, 4, **options),
    "renorm": BatchRenorm,
    "sync": SyncBatchNorm,
    "masked": MaskedBatchNorm,
    "frozen": FrozenBatchNorm,
}
# In training, on a single batch of this process, nothing to tell from torch's.
LIKE_TORCHS = ["renorm", "sync", "masked"]


def trained(layer: nn.modules.batchnorm._BatchNorm) -> nn.modules.batchnorm._BatchNorm:
    """With weights and statistics that are not those of birth."""
    with torch.no_grad():
        for number, tensor in enumerate([*layer.parameters(), layer.running_mean, layer.running_var]):
            assert tensor is not None
            tensor.copy_(torch.linspace(0.5, 2.0, len(tensor)) + number)
    return layer


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5), (8, 3, 5, 4), (8, 3, 2, 3, 2)])
@pytest.mark.parametrize("name", KINDS)
def test_in_eval_mode_each_is_torchs_bit_for_bit(name: str, shape: tuple[int, ...]):
    layer = trained(KINDS[name](3)).eval()
    torchs = nn.BatchNorm1d(3)
    torchs.load_state_dict(layer.state_dict())
    values = numbers(*shape)

    expected = nn.functional.batch_norm(
        values, torchs.running_mean, torchs.running_var, torchs.weight, torchs.bias, False, 0.0, torchs.eps
    )

    assert torch.equal(layer(values), expected)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("name", LIKE_TORCHS)
def test_alone_and_without_a_reason_to_differ_each_trains_as_torchs_does(name: str, momentum: float | None):
    layer, torchs = KINDS[name](3, momentum=momentum).double(), nn.BatchNorm2d(3, momentum=momentum).double()
    for seed in range(3):
        values, gradient = (numbers(4, 3, 5, 5, seed=seed + extra).double() for extra in (0, 9))
        ours, theirs = (values.clone().requires_grad_() for _ in range(2))
        layer(ours).backward(gradient)
        torchs(theirs).backward(gradient)
        torch.testing.assert_close(ours.grad, theirs.grad)

    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, torchs.weight.grad)
    torch.testing.assert_close(dict(layer.named_buffers()), dict(torchs.named_buffers()))


@pytest.mark.parametrize("name", [*KINDS][:4])
def test_a_single_value_a_channel_is_refused(name: str):
    with pytest.raises((UserError, ValueError), match=r"one value a channel|Expected more than 1 value"):
        KINDS[name](3)(torch.ones(1, 3))


@pytest.mark.parametrize("name", KINDS)
def test_an_input_without_channels_is_refused_by_name_and_shape(name: str):
    layer = KINDS[name](3)
    with pytest.raises(
        UserError, match=rf"{type(layer).__name__} takes \[rows, channels, \.\.\.\]; it was given \[3\]"
    ):
        layer(torch.ones(3))


@pytest.mark.parametrize("name", KINDS)
def test_without_gamma_and_beta_there_are_none(name: str):
    assert [*KINDS[name](3, affine=False).parameters()] == []


# --- ghost --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "pieces"), [(8, [4, 4]), (11, [6, 5]), (3, [3]), (4, [4])])
def test_a_ghost_batch_normalises_pieces_by_themselves_and_learns_from_all(rows: int, pieces: list[int]):
    layer, values = GhostBatchNorm(3, 4, momentum=1.0), numbers(rows, 3)

    answer = layer(values)

    for piece, found in zip(values.split(pieces), answer.split(pieces), strict=True):
        torch.testing.assert_close(found, nn.BatchNorm1d(3)(piece))
    torch.testing.assert_close(layer.running_mean, values.mean(0))
    torch.testing.assert_close(layer.running_var, values.var(0))


def test_a_ghost_of_one_row_is_refused():
    with pytest.raises(UserError, match="a ghost batch of 1 row has no variance; expected at least 2"):
        GhostBatchNorm(3, 1)


# --- renorm -------------------------------------------------------------------------------------------------------


def test_renorm_whose_bounds_are_open_normalises_by_the_running_statistics():
    layer = BatchRenorm(3, r_max=1e6, d_max=1e6, opens_at=-2, open_at=-1)
    layer.running_mean.copy_(torch.tensor([0.1, 0.2, 0.3]))
    layer.running_var.copy_(torch.tensor([1.0, 2.0, 3.0]))
    values = numbers(16, 3)
    expected = copy.deepcopy(layer).eval()(values)

    torch.testing.assert_close(layer.train()(values), expected, rtol=1e-4, atol=1e-4)


def test_no_gradient_passes_the_correction():
    """It is a constant, so the gradient is that of plain BatchNorm, r times."""
    layer = BatchRenorm(1, r_max=2.0, d_max=0.0, opens_at=-2, open_at=-1, eps=1e-12).double()
    layer.running_var.fill_(1e-6)  # r is at its bound, 2
    values, gradient = numbers(8, 1).double(), numbers(8, 1, seed=1).double()
    ours, theirs = (values.clone().requires_grad_() for _ in range(2))
    layer(ours).backward(gradient)
    nn.BatchNorm1d(1, eps=1e-12).double()(theirs).backward(gradient)

    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, 2 * theirs.grad)


@pytest.mark.parametrize(
    ("steps", "bounds"),
    [(0, (1.0, 0.0)), (5_000, (1.0, 0.0)), (15_000, (2.0, 2.5)), (25_000, (3.0, 5.0)), (10**6, (3.0, 5.0))],
)
def test_the_bounds_open_with_the_steps(steps: int, bounds: tuple[float, float]):
    layer = BatchRenorm(3)
    layer.num_batches_tracked.fill_(steps)
    assert layer.bounds() == bounds


def test_what_needs_running_statistics_says_so():
    with pytest.raises(UserError, match="it cannot have track_running_stats=False"):
        BatchRenorm(3, track_running_stats=False)
    with pytest.raises(UserError, match="there are no running statistics to freeze"):
        FrozenBatchNorm(3, track_running_stats=False)


# --- masked -------------------------------------------------------------------------------------------------------


def test_padding_does_not_count_and_is_normalised_by_what_does():
    lengths = torch.tensor([2, 9, 5, 7])
    mask = torch.arange(9) < lengths[:, None]
    values = torch.where(mask[:, None], numbers(4, 3, 9), torch.tensor(1000.0))
    model = nn.Sequential(MaskedBatchNorm(3, momentum=1.0))

    with valid_positions(model, mask):
        answer = model(values)

    counted = values.movedim(1, -1)[mask]
    torch.testing.assert_close(answer.movedim(1, -1)[mask], nn.BatchNorm1d(3)(counted))
    torch.testing.assert_close(model[0].running_var, counted.var(0))
    assert model[0].mask is None


def test_a_mask_of_another_shape_is_refused():
    model = nn.Sequential(MaskedBatchNorm(3))
    with (
        valid_positions(model, torch.ones(4, 8)),
        pytest.raises(UserError, match=r"a mask of shape \[4, 8\] for an input of \[4, 3, 9\]; expected \[4, 9\]"),
    ):
        model(numbers(4, 3, 9))
    assert model[0].mask is None


# --- frozen -------------------------------------------------------------------------------------------------------


def test_a_frozen_layer_stays_so_whatever_the_network_is_told():
    model = nn.Sequential(nn.Linear(3, 3), FrozenBatchNorm(3)).train()
    before = copy.deepcopy(model[1].state_dict())

    model(numbers(8, 3))

    assert (model[0].training, model[1].training) == (True, False)
    torch.testing.assert_close(model[1].state_dict(), before, rtol=0, atol=0)
    assert not copy.deepcopy(model).train()[1].training


# --- sync ---------------------------------------------------------------------------------------------------------

ROWS = (5, 11)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4), SyncBatchNorm(4), nn.Tanh(), nn.Linear(4, 4), SyncBatchNorm(4, momentum=None)
    ).double()


def two_steps(model: nn.Module, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What must be equal: answers, gradients of inputs, running statistics. The loss is a sum over all rows."""
    found = {}
    for number, batch in enumerate(batches):
        inputs = batch.clone().requires_grad_()
        answer = model(inputs)
        answer.pow(3).sum().backward()
        assert inputs.grad is not None
        found |= {f"answer {number}": answer.detach(), f"gradient {number}": inputs.grad}
    return found


def one_of_two(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = network()
    own = [numbers(sum(ROWS), 3, seed=seed).double().split(ROWS)[rank] for seed in range(2)]
    found = two_steps(model, own)
    torch.save(
        [found, dict(model.named_buffers()), [each.grad for each in model.parameters()]], Path(folder, f"{rank}.pt")
    )
    torch.distributed.destroy_process_group()


def test_values_of_half_the_bits_are_summed_in_all_of_them():
    """bfloat16 knows no number between 256 and 258."""
    values = (numbers(257, 3) + 5).bfloat16()
    layer, torchs = SyncBatchNorm(3), nn.BatchNorm1d(3)

    answer = layer(values)

    assert answer.dtype == torch.bfloat16
    torch.testing.assert_close(answer, torchs(values))
    torch.testing.assert_close(dict(layer.named_buffers()), dict(torchs.named_buffers()))


def test_two_processes_of_uneven_batches_are_one_of_both(tmp_path: Path):
    spawn(one_of_two, (str(tmp_path),), nprocs=2)
    model = network()
    expected = two_steps(model, [numbers(sum(ROWS), 3, seed=seed).double() for seed in range(2)])

    (left, left_buffers, left_grads), (right, right_buffers, right_grads) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)
    )

    for name, value in expected.items():
        torch.testing.assert_close(torch.cat([left[name], right[name]]), value, rtol=1e-9, atol=1e-10)
    for buffers in (left_buffers, right_buffers):
        torch.testing.assert_close(buffers, dict(model.named_buffers()), rtol=1e-9, atol=1e-12)
    for mine, other, parameter in zip(left_grads, right_grads, model.parameters(), strict=True):
        torch.testing.assert_close(mine + other, parameter.grad, rtol=1e-9, atol=1e-9)
