"""Running statistics in every framework's words: what each update does, and what a layer is in another's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from training.bn.conventions import (
    CONVENTIONS,
    RunningStatistics,
    convention_of,
    convert,
    deviation_share,
    share_of_start,
    step,
)
from training.errors import UserError

COLUMN = np.array([[1.0], [3.0], [5.0], [7.0], [9.0]])

# After one batch of the column from mean 0 and spread 0, at a rate of which all is new: what the batch itself measures.
MEASURED = {
    "pytorch": 10.0,
    "keras": 8.0,
    "keras-fused": 10.0,
    "flax": 8.0,
    "paddle": 8.0,
    "onnx": 8.0,
    "detectron2": 8.0,
    "sb3-contrib": 10.0,
    "crossq": 8.0,
    "textbook-std": 8.0**0.5,
}


def born(momentum: float, spread: float = 1.0) -> RunningStatistics:
    return RunningStatistics(np.zeros(1), np.full(1, spread), momentum, 1e-5)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_worked_column_in_each_convention(name: str):
    convention = CONVENTIONS[name]
    all_new = born(0.0 if convention.weighs == "old" else 1.0)

    found = step(convention, all_new, COLUMN)

    assert (found.mean.item(), found.spread.item()) == (5.0, pytest.approx(MEASURED[name]))


@pytest.mark.parametrize("name", CONVENTIONS)
def test_momentum_weighs_the_side_that_the_convention_says(name: str):
    convention = CONVENTIONS[name]
    found = step(convention, born(0.9), COLUMN)

    assert found.mean.item() == pytest.approx(0.5 if convention.weighs == "old" else 4.5)


def test_pytorchs_row_is_what_pytorch_does():
    layer, batches = nn.BatchNorm1d(3, momentum=0.3).double(), np.random.default_rng(0).standard_normal((4, 6, 3))
    running = RunningStatistics(np.zeros(3), np.ones(3), 0.3, layer.eps)
    for batch in batches:
        layer(torch.from_numpy(batch))
        running = step(CONVENTIONS["pytorch"], running, batch)

    np.testing.assert_allclose(running.mean, layer.running_mean.numpy(), rtol=1e-12)
    np.testing.assert_allclose(running.spread, layer.running_var.numpy(), rtol=1e-12)


VARIANCES = [name for name, convention in CONVENTIONS.items() if "variance" in convention.averages]


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(VARIANCES, 2)))
def test_a_converted_layer_goes_on_as_one_that_was_always_there(source: str, target: str):
    """Exact between variances, batch after batch of one size."""
    batches = np.random.default_rng(0).standard_normal((5, 8, 1))
    old, new = CONVENTIONS[source], CONVENTIONS[target]
    here = born(0.2)
    there = convert(here, old, new, batch_rows=8)
    for batch in batches:
        here, there = step(old, here, batch), step(new, there, batch)

    again = convert(here, old, new, batch_rows=8)
    np.testing.assert_allclose(there.mean, again.mean, rtol=1e-12)
    np.testing.assert_allclose(there.spread, again.spread, rtol=1e-12)
    assert there.momentum == pytest.approx(0.2 if old.weighs == new.weighs else 0.8)


@given(source=st.sampled_from([*CONVENTIONS]), target=st.sampled_from([*CONVENTIONS]), rows=st.integers(2, 10_000))
def test_there_and_back_is_the_same(source: str, target: str, rows: int):
    running = RunningStatistics(np.array([1.0, -2.0]), np.array([0.5, 3.0]), 0.25, 1e-3)
    one, other = CONVENTIONS[source], CONVENTIONS[target]

    back = convert(convert(running, one, other, rows), other, one, rows)

    np.testing.assert_allclose(back.spread, running.spread, rtol=1e-9)
    assert (back.momentum, back.eps) == (pytest.approx(0.25), 1e-3)


@pytest.mark.parametrize(("rows", "share"), [(2, 0.564), (5, 0.841), (16, 0.952), (128, 0.994), (100_000, 1.0)])
def test_the_deviation_of_a_small_batch_is_too_small_by_a_known_factor(rows: int, share: float):
    assert deviation_share(rows) == pytest.approx(share, abs=6e-4)


@pytest.mark.parametrize("rows", [2, 5, 16])
def test_that_factor_is_what_normal_samples_show(rows: int):
    drawn = np.random.default_rng(rows).standard_normal((200_000, rows))
    assert drawn.std(axis=1).mean() == pytest.approx(deviation_share(rows), rel=0.005)


@pytest.mark.parametrize(
    ("momentum", "steps", "left"), [(0.1, 44, 0.01), (0.01, 459, 0.01), (0.001, 4603, 0.01), (0.01, 20, 0.82)]
)
def test_what_is_left_of_the_start(momentum: float, steps: int, left: float):
    assert share_of_start(CONVENTIONS["pytorch"], momentum, steps) == pytest.approx(left, rel=0.05)
    assert share_of_start(CONVENTIONS["keras"], 1 - momentum, steps) == pytest.approx(left, rel=0.05)


def test_what_cannot_be_is_refused_with_what_can():
    with pytest.raises(UserError, match="there is no convention 'torch'; expected one of pytorch, keras"):
        convention_of("torch")
    assert convention_of("keras").weighs == "old"
    with pytest.raises(UserError, match="a batch of 1 row has no variance"):
        step(CONVENTIONS["pytorch"], born(0.1), COLUMN[:1])
    with pytest.raises(UserError, match="batches of 1 value have no variance"):
        convert(born(0.1), CONVENTIONS["pytorch"], CONVENTIONS["keras"], 1)
