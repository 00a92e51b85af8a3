from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from service.batch_invariance import pad, padded_rows, probe_invariance
from service.errors import InferenceFailed
from service.protocol import BatchInvariance

ROWS = {"x": np.array([[1.0], [2.0], [3.0]], np.float32)}
SIZES = (1, 2, 4, 8)


def clock(*, step_s: float = 0.0) -> Callable[[], float]:
    now = 0.0

    def read() -> float:
        nonlocal now
        now += step_s
        return now

    return read


def model(off: Callable[[int, int], float]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Doubles its rows; `off(rows, position)` is added to the answer of the row at `position` among `rows`."""

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        x = inputs["x"]
        return {"y": 2 * x + np.array([[off(len(x), position)] for position in range(len(x))], np.float32)}

    return run


@pytest.mark.parametrize(
    ("off", "difference", "identical"),
    [
        pytest.param(lambda rows, position: 0.0, 0.0, (1, 2, 4, 8), id="never-depends"),
        pytest.param(lambda rows, position: 0.5 * (rows == 1), 0.5, (2, 4, 8), id="one-row-has-its-own-kernel"),
        pytest.param(lambda rows, position: 0.25 * (rows >= 4), 0.25, (4, 8), id="between-equals-the-larger"),
        pytest.param(lambda rows, position: 0.5 * (rows == 4), 0.5, (1, 2, 8), id="one-size-has-its-own-kernel"),
        pytest.param(
            lambda rows, position: 0.5 * (rows == 8 and position == 7), 0.5, (1, 2, 4), id="the-last-row-of-eight"
        ),
        pytest.param(lambda rows, position: float(rows), 7.0, (8,), id="every-size-differs"),
        pytest.param(lambda rows, position: float(position), 7.0, (1,), id="every-position-differs"),
    ],
)
def test_what_depends_on_company_is_found(
    off: Callable[[int, int], float], difference: float, identical: tuple[int, ...]
) -> None:
    assert probe_invariance(ROWS, model(off), SIZES, clock()) == BatchInvariance(difference, SIZES, identical)


def test_a_row_that_answers_by_its_neighbours_is_found() -> None:
    """Three different rows are around it, so that copies of itself cannot hide the dependence."""
    probed = probe_invariance(ROWS, lambda inputs: {"y": inputs["x"] + inputs["x"].sum() * 0.5}, SIZES, clock())
    assert probed.identical_rows == (1,)


def test_nan_in_the_same_place_is_no_difference() -> None:
    probed = probe_invariance(ROWS, lambda inputs: {"y": inputs["x"] * np.nan}, SIZES, clock())
    assert probed == BatchInvariance(0.0, SIZES, SIZES)


def test_sizes_that_time_does_not_allow_are_not_claimed() -> None:
    probed = probe_invariance(ROWS, model(lambda rows, position: 0.0), SIZES, clock(step_s=0.5))
    assert probed.probed_rows == probed.identical_rows == (1, 2)


def test_sizes_that_the_model_refuses_are_not_claimed() -> None:
    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        if len(inputs["x"]) > 2:
            raise InferenceFailed("too many")
        return dict(inputs)

    assert probe_invariance(ROWS, run, SIZES, clock()).probed_rows == (1, 2)


@pytest.mark.parametrize(("rows", "padded"), [(1, 2), (2, 2), (3, 8), (8, 8), (9, 9)])
def test_a_batch_is_padded_to_the_next_size(rows: int, padded: int) -> None:
    assert padded_rows(rows, (2, 8)) == padded


@given(rows=st.integers(1, 8), more=st.integers(0, 8))
def test_padding_repeats_the_last_row_behind_the_others(rows: int, more: int) -> None:
    x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    padded = pad({"x": x}, rows + more)["x"]
    assert padded.shape == (rows + more, 2)
    np.testing.assert_array_equal(padded[:rows], x)
    np.testing.assert_array_equal(padded[rows:], np.repeat(x[-1:], more, axis=0))
