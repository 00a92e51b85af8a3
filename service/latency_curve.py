"""How long a batch of so many rows takes: measured at 1, 2, 4, ... rows at load, kept true by every batch that runs.

Pure arithmetic over seconds; knows no queue, no model, no clock. What the scheduler asks it: is a larger batch worth
waiting for, how many rows are worth running together, and when will those who wait be served.

A measured point is a *shape*, how sizes compare with each other, times one *speed* for all of them. When the machine
slows down every size does, also those that nobody runs just then: so an observation moves the speed soon, and the shape
of its own size slowly. Otherwise sizes that are not run would look fast for being out of date.
Between measured points time is taken to be linear in rows; beyond the last one nothing more is gained a row, for the
slope of the last stretch is mostly noise, and far out it would promise the most. Both are guesses that observations
correct: larger batches are tried one doubling at a time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

# Weights of one observation, on logarithms. Speed: about the last five batches count.
_SPEED_WEIGHT = 0.2
# Shape: about the last thirty of that size, so that a disturbance of a few batches does not change which size looks
# best; and the mean of all as long as there are fewer, where the measurement at load counts as so many.
_MOST_COUNTS = 30
_MEASURED_COUNTS = 3
# What is known of a size is forgotten while others run: after two hundred batches it counts for a third. So one
# that was last run in a bad moment is believed again after a few tries.
_KEPT_SHARE = 0.995
# A single observation (a page fault, a process that took the core) counts as no further off than this.
_MOST_FACTOR = 8.0
# More rows never take less. Rows that fall out of a cache may take longer each, but not by more than this.
_SLACK = 4.0
# A batch is worth its size when its rows per second are within this share of the best that the queue allows: below it
# is measurement noise, and a smaller batch answers its callers sooner.
_WORTH_SHARE = 0.985
# How often another size is tried than the one believed best: twice the rows costs their callers a little latency, half
# of them costs throughput, about a hundredth of it when it is wrong.
_LARGER_EVERY = 16
_SMALLER_EVERY = 64
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
        self._shape = [measured_s[rows] for rows in self._rows]
        self._seen = [float(_MEASURED_COUNTS) for _ in self._rows]
        self._speed = 1.0
        self._last_rows = 0
        self._worth: dict[int, int] = {}
        self._chosen = 0
        self.is_trying = False
        """The last answer of `rows_to_run` was not the size believed best: what it takes is news."""

    @property
    def points(self) -> dict[int, float]:
        """Rows to seconds, as known now."""
        return {rows: shape * self._speed for rows, shape in zip(self._rows, self._shape, strict=True)}

    def seconds(self, rows: float) -> float:
        """How long a batch of `rows` rows is expected to take."""
        known, shape = self._rows, self._shape
        if rows <= known[0]:
            # Fewer rows than were ever measured: a fixed-size model, whose runs all take the same.
            return self._speed * shape[0]
        if rows >= known[-1]:
            return self._speed * shape[-1] * rows / known[-1]
        right = bisect_left(known, rows)
        left = right - 1
        slope = (shape[right] - shape[left]) / (known[right] - known[left])
        # A stretch that falls is noise; a batch never takes less for having more rows.
        return self._speed * (shape[left] + max(slope, 0.0) * (rows - known[left]))

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
        """As `rows_worth_running`, but now and then a neighbouring size, so that what was measured in a bad moment, or
        has changed since, is found out. `larger`: now it is the larger one's turn."""
        worth = self.rows_worth_running(rows)
        self._chosen += 1
        size = worth
        if worth > 1 and not larger and self._chosen % _SMALLER_EVERY == 0:
            size = worth // 2
        elif worth < rows and (larger or self._chosen % _LARGER_EVERY == 0):
            is_all = self._chosen // _LARGER_EVERY % 2 == 1 and self.seconds(rows) <= _FREE_TRY_S
            size = rows if is_all else min(2 * worth, rows)
        self.is_trying = size != worth
        return size

    def observe(self, rows: int, seconds: float) -> None:
        """A batch of `rows` rows took `seconds`."""
        if seconds <= 0 or rows < 1:
            return
        self._worth.clear()
        ratio = min(max(seconds / self.seconds(rows), 1 / _MOST_FACTOR), _MOST_FACTOR)
        index = self._index_of(rows)
        if index is None:
            # Nothing like it was measured: the guess was worth little, and is the observation's now.
            index = bisect_left(self._rows, rows)
            self._shape.insert(index, self.seconds(rows) * ratio / self._speed)
            self._rows.insert(index, rows)
            self._seen.insert(index, _MEASURED_COUNTS)
        else:
            self._learn(index, ratio)
        self._bound_by(index)

    def _learn(self, index: int, ratio: float) -> None:
        """Of one size again and again nobody can tell a slow machine from a slow size: that is the machine's speed. A
        size that differs from the one before is seen against a speed just known: that is its shape, mostly."""
        for other, seen in enumerate(self._seen):
            if other != index:
                self._seen[other] = max(_KEPT_SHARE * seen, _MEASURED_COUNTS)
        if self._last_rows in (0, self._rows[index]):
            self._speed *= ratio**_SPEED_WEIGHT
        else:
            self._seen[index] = min(self._seen[index] + 1, _MOST_COUNTS)
            self._speed *= ratio ** (_SPEED_WEIGHT / 2)
            self._shape[index] *= ratio ** (1 / self._seen[index])
        self._last_rows = self._rows[index]

    def _index_of(self, rows: int) -> int | None:
        """Of the measured point that `rows` rows count as."""
        index = min(range(len(self._rows)), key=lambda known: abs(self._rows[known] - rows))
        is_near = 1 / _NEAR < rows / self._rows[index] < _NEAR
        return index if is_near or len(self._rows) >= _MOST_POINTS else None

    def _bound_by(self, index: int) -> None:
        """What one size tells about the others for certain: more rows never take less, nor many times more a row. This
        also keeps a size that is not run for long from drifting away."""
        rows, shape = self._rows[index], self._shape[index]
        for other, other_rows in enumerate(self._rows):
            share = other_rows / rows
            low, high = (shape, shape * share * _SLACK) if share > 1 else (shape * share / _SLACK, shape)
            self._shape[other] = min(max(self._shape[other], low), high)
        # Only their product means anything; kept where floats are at home.
        self._shape = [one * self._speed for one in self._shape]
        self._speed = 1.0
