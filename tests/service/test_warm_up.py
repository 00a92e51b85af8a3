"""Inputs made up for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from service.datatypes import DATATYPES
from service.errors import InferenceFailed
from service.golden import GoldenSamples
from service.protocol import TensorMetadata
from service.warm_up import Feed, find_feed, golden_feed, measure_curve, shapes_leave_no_guess

IMAGE = (TensorMetadata("x", "FP32", (-1, 3, -1, -1)),)


def found(inputs: Sequence[TensorMetadata], run: Any) -> tuple[Feed, str]:
    feed, refusal = find_feed(inputs, run)
    assert feed is not None
    return feed, refusal


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_made_up_inputs_have_the_declared_datatype_and_shape(datatype: str) -> None:
    tensors = (TensorMetadata("x", datatype, (-1, 4)), TensorMetadata("fixed", datatype, (1, 2)))
    feed, refusal = found(tensors, lambda inputs: {})
    assert refusal == ""
    made = feed(5)
    assert (made["x"].dtype, made["x"].shape) == (DATATYPES[datatype].dtype, (5, 4))
    assert made["fixed"].shape == (1, 2)


def test_rows_of_made_up_numbers_differ() -> None:
    for datatype in ("FP32", "INT64", "BOOL"):
        feed, _ = found((TensorMetadata("x", datatype, (-1, 4)),), lambda inputs: {})
        assert (feed(2)["x"][0] != feed(2)["x"][1]).any()


def test_free_sizes_are_tried_until_the_model_accepts_one() -> None:
    tried = []

    def only_224(inputs: Mapping[str, Any]) -> dict[str, Any]:
        tried.append(inputs["x"].shape[2])
        if inputs["x"].shape[2:] != (224, 224):
            raise InferenceFailed("wrong size")
        return {}

    feed, refusal = found(IMAGE, only_224)
    assert refusal == ""
    assert feed(2)["x"].shape == (2, 3, 224, 224)
    assert tried[-1] == 224


def test_indices_fall_back_to_zero() -> None:
    def only_zero(inputs: Mapping[str, Any]) -> dict[str, Any]:
        if inputs["i"].any():
            raise InferenceFailed("index out of range")
        return {}

    feed, refusal = found((TensorMetadata("i", "INT64", (2, 3)),), only_zero)
    assert refusal == ""
    assert not feed(1)["i"].any()


def test_when_nothing_is_accepted_the_last_refusal_is_told() -> None:
    def never(inputs: Mapping[str, Any]) -> dict[str, Any]:
        raise InferenceFailed("no")

    assert find_feed(IMAGE, never) == (None, "no")


def test_a_guess_never_takes_the_machine_s_memory() -> None:
    """Five free dimensions of 224 would be hundreds of gigabytes; and a fixed one may be as large as it likes."""
    tried = []

    def never(inputs: Mapping[str, Any]) -> dict[str, Any]:
        tried.append(inputs["x"].shape)
        raise InferenceFailed("no")

    assert find_feed((TensorMetadata("x", "UINT8", (-1,) * 6),), never)[0] is None
    assert max(max(shape) for shape in tried) == 32
    huge = (TensorMetadata("x", "FP32", (-1, 10**6, 10**6)),)
    assert find_feed(huge, never) == (None, "one row of it would be too large")
    assert not shapes_leave_no_guess(huge)


def test_golden_samples_are_repeated_as_often_as_needed() -> None:
    golden = GoldenSamples({"x": np.array([[1], [2], [3]])}, {}, {})
    assert golden_feed(golden, None)(5)["x"].ravel().tolist() == [1, 2, 3, 1, 2]
    assert golden_feed(golden, None)(1)["x"].ravel().tolist() == [1]
    assert golden_feed(golden, 2)(64)["x"].ravel().tolist() == [1, 2]


class Machine:
    """Runs take a time that depends on their rows, and the first of each size more: it allocates."""

    def __init__(self, row_s: float, first_s: float = 0.0) -> None:
        self.now = 0.0
        self.ran: list[int] = []
        self._row_s = row_s
        self._first_s = first_s

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        rows = len(inputs["x"])
        self.now += rows * self._row_s + (0.0 if rows in self.ran else self._first_s)
        self.ran.append(rows)
        return {}

    def curve(self, max_rows: int = 64) -> dict[int, float]:
        return measure_curve(self.run, lambda rows: {"x": np.zeros((rows, 1))}, max_rows, lambda: self.now)


def test_what_the_first_run_of_a_size_allocates_is_in_no_point_of_the_curve() -> None:
    machine = Machine(row_s=0.018, first_s=0.03)
    curve = machine.curve()
    assert curve == {rows: pytest.approx(0.018 * rows) for rows in (1, 2, 4, 8)}
    assert machine.now <= 1.0


def test_sizes_take_turns_so_that_a_disturbance_meets_all_of_them() -> None:
    machine = Machine(row_s=1e-5)
    assert list(machine.curve(max_rows=24)) == [1, 2, 4, 8, 16, 24]
    sizes = [1, 2, 4, 8, 16, 24]
    assert machine.ran == sizes + sizes + 2 * sizes[::-1]


@pytest.mark.parametrize("feed_s", [0.008, 0.016, 0.2])
def test_where_time_runs_out_sizes_are_left_out_rather_than_told_by_their_first_run(feed_s: float) -> None:
    """Inputs take long to make up, a row each; and first runs are three times as long."""
    machine = Machine(row_s=0.001, first_s=0.002)

    def feed(rows: int) -> dict[str, Any]:
        machine.now += feed_s * rows
        return {"x": np.zeros((rows, 1))}

    curve = measure_curve(machine.run, feed, 64, lambda: machine.now)
    assert curve == {rows: pytest.approx(0.001 * rows) for rows in curve}
    assert 1 in curve
    assert machine.now < 1.6


def test_a_row_that_takes_longer_than_the_measurement_may_runs_once() -> None:
    machine = Machine(row_s=2.0)
    assert machine.curve() == {1: pytest.approx(2.0)}
    assert machine.ran == [1]
