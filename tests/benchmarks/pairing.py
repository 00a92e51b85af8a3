"""Several things timed against each other on a machine that is never quiet: in turns, and compared turn by turn.

In each round everything runs once, in an order drawn anew; only times of the same round are compared. Where its memory
happens to lie makes one and the same network some percent faster or slower, for as long as it lies there: so everything
is opened anew a few times, and the bounds are those of a percentile bootstrap of both levels, first of the openings and
then of the rounds of each (B. Efron, Ann. Statist. 7(1), 1979).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OPENINGS = 5
MINIMUM_ROUNDS = 4  # of each opening
RESAMPLES = 2000
LEVEL = 0.95  # each bound holds with this probability by itself

Run = Callable[[], object]
Times = list[NDArray[np.float64]]
"""Seconds of one thing in each round; an array for each opening."""


@dataclass(frozen=True)
class Ratio:
    """How many times as long the first takes as the second: the median, and a bound on either side."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def in_turns(open_one: Mapping[str, Callable[[], Run]], budget_s: float, rng: np.random.Generator) -> dict[str, Times]:
    """Times by name, from about `budget_s` seconds of rounds, but at least `MINIMUM_ROUNDS` of each opening."""
    times: dict[str, Times] = {name: [] for name in open_one}
    for _ in range(OPENINGS):
        runs = {name: open_one[name]() for name in rng.permutation(list(open_one))}
        for name, seconds in _rounds(runs, budget_s / OPENINGS, rng).items():
            times[name].append(seconds)
    return times


def _rounds(runs: Mapping[str, Run], budget_s: float, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Two rounds that are not counted, then rounds until the time is spent."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(2):
        for run in runs.values():
            run()
    end = time.perf_counter() + budget_s
    while min(map(len, times.values())) < MINIMUM_ROUNDS or time.perf_counter() < end:
        for name in rng.permutation(list(runs)):
            begin = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - begin)
    return {name: np.array(seconds) for name, seconds in times.items()}


def ratio(slow: Times, fast: Times, rng: np.random.Generator) -> Ratio:
    """Of times taken in the same rounds, round by round: the mean over openings of the median of the logarithms."""
    logs = [np.log(a) - np.log(b) for a, b in zip(slow, fast, strict=True)]
    resampled = np.stack([_resampled_medians(each, rng) for each in logs])  # one row an opening
    chosen = rng.integers(len(logs), size=(len(logs), RESAMPLES))
    means = np.take_along_axis(resampled, chosen, axis=0).mean(axis=0)
    low, high = np.quantile(means, [1 - LEVEL, LEVEL])
    median = np.mean([np.median(each) for each in logs])
    return Ratio(float(np.exp(median)), float(np.exp(low)), float(np.exp(high)))


def _resampled_medians(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    draws = rng.integers(len(values), size=(RESAMPLES, len(values)))
    medians: NDArray[np.float64] = np.median(values[draws], axis=1)
    return medians


def geometric_mean(ratios: Sequence[Ratio]) -> float:
    return float(np.exp(np.mean([np.log(each.median) for each in ratios])))
