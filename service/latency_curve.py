"""How long a batch of so many rows takes: measured at 1, 2, 4, ... rows at load, kept true by every batch that runs.

Pure arithmetic over seconds; knows no queue, no model, no clock. What the scheduler asks it: is a larger batch worth
waiting for, how many rows are worth running together, and when will those who wait be served.

What is known is the logarithm of the time of each size, and how sure that is: a Kalman filter whose state are the sizes
(R. E. Kalman, "A New Approach to Linear Filtering and Prediction Problems", 1960; here with one scalar observation a
step). Times change for two reasons. The machine becomes slower or faster, and then every size does, also those that
nobody runs just then: in the filter, noise that all sizes share. Or one size was measured badly, or has changed by
itself (memory lies elsewhere, a cache is full): noise of its own, smaller by far. Which of the two an observation tells
is what the covariances decide. A filter that put all on the one would let sizes that are not run look fast for being
out of date; on the other, one lucky run would keep a size for long.
Between measured points time is taken to be linear in rows; beyond the last one nothing more is gained a row, for the
slope of the last stretch is mostly noise, and far out it would promise the most. Both are guesses that observations
correct: larger batches are tried one doubling at a time.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping

# Variances of logarithms, so 0.01 is an error of a tenth. Of what one batch takes against what such batches take:
_OBSERVED_VAR = 0.01
# Of the machine's speed from one batch to the next. Against the noise above it makes the last five batches or so count.
_SPEED_VAR = 0.0005
# Of the machine's speed when requests come, against that at load: other work, the network, answers being written.
_LOADED_VAR = 0.04
# Of one size against the others, as measured at load, in turns.
_MEASURED_VAR = 0.001
# The same, added with each batch of another size: one that was last run in a bad moment, or long ago, is believed again
# after a few tries. And where that ends.
_FORGOTTEN_VAR = 0.00002
_MOST_FORGOTTEN_VAR = 0.007
# Of a guess between measured sizes, and of one a doubling beyond the largest.
_BETWEEN_VAR = 0.01
_BEYOND_VAR = 0.16
# A single observation (a page fault, a process that took the core) counts as no further off than so many standard
# deviations of what is expected: of a sound one, with all that is not known, one in a million is.
_MOST_DEVIATIONS = 5.0
# More rows never take less. Rows that fall out of a cache may take longer each, but not by more than this.
_SLACK = 4.0
# A batch is worth its size when its rows per second are within this share of the best that the queue allows: below it
# is measurement noise, and a smaller batch answers its callers sooner.
_WORTH_SHARE = 0.985
# How often another size is tried than the one believed best: twice the rows costs their callers a little latency, half
# of them costs throughput, about a hundredth of it when it is wrong.
_LARGER_EVERY = 16
_SMALLER_EVERY = 64
# Every so many of the smaller tries is of a quarter: where half is no better than the whole, the better size may lie
# behind it.
_QUARTER_EVERY = 8
# What takes no longer than this may be tried with all rows that wait: one doubling after the other never gets past a
# size where more rows cost as much more, such as the one from which on ONNX Runtime divides a product among threads.
_FREE_TRY_S = 1e-3
# A batch size within this factor of a measured one counts as that one.
_NEAR = 1.4
_MOST_POINTS = 32


class LatencyCurve:
    """Seconds as a function of rows, for 1 row and more."""

    def __init__(self, measured_s: Mapping[int, float]) -> None:
        """`measured_s`: rows to seconds, at least one point, all positive. Raises ValueError otherwise."""
        if not measured_s or min(measured_s) < 1 or min(measured_s.values()) <= 0:
            raise ValueError(f"a latency curve needs rows and seconds above zero, not {dict(measured_s)}")
        self._rows = sorted(measured_s)
        self._seconds = [measured_s[rows] for rows in self._rows]
        self._variances = [
            [_LOADED_VAR + (_MEASURED_VAR if row == column else 0.0) for column in self._rows] for row in self._rows
        ]
        self._worth: dict[int, int] = {}
        self._chosen = 0
        self.is_trying = False
        """The last answer of `rows_to_run` was not the size believed best: what it takes is news."""

    @property
    def points(self) -> dict[int, float]:
        """Rows to seconds, as known now."""
        return dict(zip(self._rows, self._seconds, strict=True))

    def seconds(self, rows: float) -> float:
        """How long a batch of `rows` rows is expected to take."""
        known, seconds = self._rows, self._seconds
        if rows <= known[0]:
            # Fewer rows than were ever measured: a fixed-size model, whose runs all take the same.
            return seconds[0]
        if rows >= known[-1]:
            return seconds[-1] * rows / known[-1]
        right = bisect_left(known, rows)
        left = right - 1
        slope = (seconds[right] - seconds[left]) / (known[right] - known[left])
        # A stretch that falls is noise; a batch never takes less for having more rows.
        return seconds[left] + max(slope, 0.0) * (rows - known[left])

    def rows_worth_running(self, rows: int) -> int:
        """The smallest batch out of `rows` waiting rows that serves about as many rows a second as the best one."""
        if rows <= 1:
            return rows
        if (worth := self._worth.get(rows)) is None:
            sizes = [known for known in self._rows if known < rows] + [rows]
            best = max(size / self.seconds(size) for size in sizes)
            worth = next(size for size in sizes if size / self.seconds(size) >= _WORTH_SHARE * best)
            self._worth[rows] = worth
        return worth

    def rows_to_run(self, rows: int, *, larger: bool = False) -> int:
        """As `rows_worth_running`, but now and then another size near it, so that what was measured in a bad moment, or
        has changed since, is found out. `larger`: now it is the larger one's turn."""
        worth = self.rows_worth_running(rows)
        self._chosen += 1
        size = worth
        if worth > 1 and not larger and self._chosen % _SMALLER_EVERY == 0:
            is_quarter = self._chosen // _SMALLER_EVERY % _QUARTER_EVERY == 0
            size = max(1, worth // (4 if is_quarter else 2))
        elif worth < rows and (larger or self._chosen % _LARGER_EVERY == 0):
            is_all = self._chosen // _LARGER_EVERY % 2 == 1 and self.seconds(rows) <= _FREE_TRY_S
            size = rows if is_all else min(2 * worth, rows)
        self.is_trying = size != worth
        return size

    def observe(self, rows: int, seconds: float) -> None:
        """A batch of `rows` rows took `seconds`."""
        if not seconds > 0 or rows < 1:
            return
        self._worth.clear()
        surprise = math.log(seconds) - math.log(self.seconds(rows))
        index = self._index_of(rows)
        if index is None:
            index = self._add(rows)
        self._learn(index, surprise)
        self._bound_by(index)

    def _index_of(self, rows: int) -> int | None:
        """Of the measured point that `rows` rows count as."""
        index = min(range(len(self._rows)), key=lambda known: abs(math.log(self._rows[known] / rows)))
        is_near = 1 / _NEAR < rows / self._rows[index] < _NEAR
        return index if is_near or len(self._rows) >= _MOST_POINTS else None

    def _add(self, rows: int) -> int:
        """A size of which nothing is known but its neighbours; returns its index."""
        index, known = bisect_left(self._rows, rows), self._rows
        is_between = 0 < index < len(known)
        right = min(index, len(known) - 1)
        left = max(index - 1, 0)
        part = (rows - known[left]) / (known[right] - known[left]) if is_between else 0.0
        shared = [
            (1 - part) * one + part * other
            for one, other in zip(self._variances[left], self._variances[right], strict=True)
        ]
        guessed_var = _BETWEEN_VAR if is_between else _BEYOND_VAR * math.log2(rows / known[left]) ** 2
        own = (1 - part) * shared[left] + part * shared[right] + guessed_var
        self._seconds.insert(index, self.seconds(rows))
        self._rows.insert(index, rows)
        for row, variance in zip(self._variances, shared, strict=True):
            row.insert(index, variance)
        self._variances.insert(index, [*shared[:index], own, *shared[index:]])
        return index

    def _learn(self, index: int, surprise: float) -> None:
        """One step of the filter; `surprise`: the logarithm of what a batch took over what was expected."""
        own = self._variances[index][index]
        for other, row in enumerate(self._variances):
            apart = row[other] - 2 * row[index] + own
            row[:] = [variance + _SPEED_VAR for variance in row]
            if other != index and apart < _MOST_FORGOTTEN_VAR:
                row[other] += _FORGOTTEN_VAR
        shared = list(self._variances[index])
        total = shared[index] + _OBSERVED_VAR
        most = _MOST_DEVIATIONS * math.sqrt(total)
        surprise = min(max(surprise, -most), most)
        for other, row in enumerate(self._variances):
            gain = shared[other] / total
            self._seconds[other] *= math.exp(gain * surprise)
            row[:] = [variance - gain * known for variance, known in zip(row, shared, strict=True)]

    def _bound_by(self, index: int) -> None:
        """What one size tells about the others for certain: more rows never take less, nor many times more a row. This
        also keeps a size that is not run for long from drifting away."""
        rows, seconds = self._rows[index], self._seconds[index]
        for other, other_rows in enumerate(self._rows):
            share = other_rows / rows
            low, high = (seconds, seconds * share * _SLACK) if share > 1 else (seconds * share / _SLACK, seconds)
            self._seconds[other] = min(max(self._seconds[other], low), high)
