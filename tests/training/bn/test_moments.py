"""Moments of batches, merged, are those of all values together, whatever their size, order, weight or mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.bn.moments import Moments

CPU = torch.device("cpu")


def pooled(*batches: torch.Tensor) -> Moments:
    moments = Moments.none(batches[0].shape[1], CPU)
    for batch in batches:
        moments.merge(Moments.of(batch))
    return moments


def test_the_column_of_the_textbooks():
    moments = Moments.of(torch.tensor([[1.0], [3.0], [5.0], [7.0], [9.0]]))

    assert (moments.weight.item(), moments.mean.item(), moments.variance.item()) == (5.0, 5.0, 10.0)


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    mean=st.sampled_from([0.0, 1.0, -1e3, 1e6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_cutting_into_batches_changes_nothing(sizes: list[int], mean: float, seed: int):
    values = mean + np.random.default_rng(seed).standard_normal((sum(sizes) + 1, 2))
    batches = torch.from_numpy(values).split([*sizes, 1])

    found = pooled(*batches)

    np.testing.assert_allclose(found.mean, values.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.variance, values.var(axis=0, ddof=1), rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 2), (2, 3, 5, 2, 2)])
def test_all_but_the_channels_is_pooled(shape: tuple[int, ...]):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    columns = values.double().transpose(0, 1).flatten(1)

    found = Moments.of(values)

    assert found.weight.item() == columns.shape[1]
    torch.testing.assert_close(found.mean, columns.mean(dim=1))
    torch.testing.assert_close(found.variance, columns.var(dim=1))


def test_a_mask_leaves_values_out_even_those_that_are_no_numbers():
    values = torch.tensor([[[1.0, 3.0, float("nan")]], [[5.0, float("inf"), float("nan")]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])

    found = Moments.of(values, mask)

    assert (found.weight.item(), found.mean.item(), found.variance.item()) == (3.0, 3.0, 4.0)


def test_whole_weights_count_as_so_many_values_in_the_mean():
    values = torch.tensor([[1.0], [4.0]])

    found = Moments.of(values, torch.tensor([2.0, 1.0]))

    assert found.mean.item() == 2.0
    assert found.distance_squared.item() == 6.0


def test_weights_of_one_size_change_nothing():
    values = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(Moments.of(values, torch.full((10,), 0.25)).variance, Moments.of(values).variance)


def test_no_values_are_no_values():
    nothing = Moments.of(torch.empty(0, 2))
    masked = Moments.of(torch.ones(3, 2), torch.zeros(3))
    some = Moments.of(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
    for empty in (nothing, masked, Moments.none(2, CPU)):
        together = Moments.none(2, CPU)
        together.merge(empty)
        together.merge(some)
        together.merge(empty)
        torch.testing.assert_close(together.packed(), some.packed())


def test_what_is_packed_is_unpacked():
    some = Moments.of(torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), torch.rand(10))

    torch.testing.assert_close(Moments.unpacked(some.packed()).packed(), some.packed(), rtol=0, atol=0)
