"""Paired times: what both of a pair suffer cancels, and the bounds say how sure the ratio is."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.pairing import MINIMUM_ROUNDS, OPENINGS, Times, in_turns, ratio


def times(rng: np.random.Generator, rounds: int, jitter: float, luck: float) -> Times:
    """One second a round, but for noise of each round, and the luck of each opening."""
    return [np.exp(luck * rng.normal() + jitter * rng.normal(size=rounds)) for _ in range(OPENINGS)]


def test_what_slows_a_whole_round_down_cancels():
    rng = np.random.default_rng(0)
    machine = [rng.choice([1.0, 3.0], 40) for _ in range(OPENINGS)]

    found = ratio([1.3 * seconds for seconds in machine], machine, rng)

    assert found.median == pytest.approx(1.3)
    assert (found.low, found.high) == pytest.approx((1.3, 1.3))


def test_more_rounds_narrow_the_bounds():
    rng = np.random.default_rng(1)
    few, many = (ratio(times(rng, rounds, 0.1, 0), times(rng, rounds, 0.1, 0), rng) for rounds in (8, 200))
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize("true", [0.9, 1.0, 1.5])
def test_the_bounds_hold_the_true_ratio_though_every_opening_has_its_luck(true: float):
    """One-sided 95 % each: of 100 trials, few may miss on either side. Five openings are few, hence the allowance."""
    rng = np.random.default_rng(2)
    found = [
        ratio([true * seconds for seconds in times(rng, 50, 0.02, 0.03)], times(rng, 50, 0.02, 0.03), rng)
        for _ in range(100)
    ]
    assert sum(each.low > true for each in found) <= 15
    assert sum(each.high < true for each in found) <= 15
    assert all(each.low <= each.median <= each.high for each in found)


def test_everything_is_opened_and_runs_equally_often():
    opened, ran = {"a": 0, "b": 0}, {"a": 0, "b": 0}

    def run(name: str) -> None:
        ran[name] += 1

    def open_one(name: str):
        opened[name] += 1
        return lambda: run(name)

    found = in_turns({name: lambda name=name: open_one(name) for name in ran}, 0.0, np.random.default_rng(0))

    assert set(opened.values()) == {OPENINGS}
    assert set(ran.values()) == {OPENINGS * (MINIMUM_ROUNDS + 2)}
    assert [len(seconds) for seconds in found["a"]] == [MINIMUM_ROUNDS] * OPENINGS
