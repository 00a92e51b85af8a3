"""How long a batch of so many rows takes: measured at 1, 2, 4, ... rows at load, kept true by every batch that runs.

Pure arithmetic over seconds; knows no queue, no model, no clock. What the scheduler asks it: is a larger batch worth
waiting for, how many rows are worth running together, and when will those who wait be served.

Between measured points time is taken to be linear in rows, beyond the last one to go on with the slope of the last
stretch. Both are guesses that live observations correct.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

# Weight of one observation: about the last ten batches count.
_NEWEST_WEIGHT = 0.2
_SHORTER_WEIGHT = 0.6
# Rows that fall out of a cache may take longer each than fewer did, but not by more than this.
_SLACK = 4.0
# A single observation (a page fault, a process that took the core) must not move the curve further than this.
_MOST_FACTOR = 8.0
# A batch is worth its size when its rows per second are within this share of the best that the queue allows: below it
# is measurement noise, and a smaller batch answers its callers sooner.
_WORTH_SHARE = 0.97
# How often another size is tried than the one believed best: twice the rows costs their callers a little latency, half
# of them costs throughput, about a hundredth of it when it is wrong.
_LARGER_EVERY = 16
_SMALLER_EVERY = 64
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
        self._worth: dict[int, int] = {}
        self._chosen = 0

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
        if len(known) == 1:
            return seconds[0] * rows / known[0]
        right = min(bisect_left(known, rows), len(known) - 1)
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

    def rows_to_run(self, rows: int) -> int:
        """As `rows_worth_running`, but now and then a neighbouring size, so that what was measured in a bad moment, or
        has changed since, is found out."""
        worth = self.rows_worth_running(rows)
        self._chosen += 1
        if worth < rows and self._chosen % _LARGER_EVERY == 0:
            return min(2 * worth, rows)
        if worth > 1 and self._chosen % _SMALLER_EVERY == 0:
            return worth // 2
        return worth

    def observe(self, rows: int, seconds: float) -> None:
        """A batch of `rows` rows took `seconds`."""
        if seconds <= 0 or rows < 1:
            return
        index = min(range(len(self._rows)), key=lambda known: abs(self._rows[known] - rows))
        ratio = min(max(seconds / self.seconds(rows), 1 / _MOST_FACTOR), _MOST_FACTOR)
        if not 1 / _NEAR < rows / self._rows[index] < _NEAR and len(self._rows) < _MOST_POINTS:
            # Nothing like it was measured: the guess was worth little, and is the observation's now.
            index = bisect_left(self._rows, rows)
            self._rows.insert(index, rows)
            self._seconds.insert(index, seconds)
            self._worth.clear()
            return
        # A run can be longer than it must be, for many reasons, but not shorter: what is shorter is believed sooner.
        weight = _NEWEST_WEIGHT if ratio > 1 else _SHORTER_WEIGHT
        self._seconds[index] *= 1 + weight * (ratio - 1)
        self._agree_with(index)
        self._worth.clear()

    def _agree_with(self, index: int) -> None:
        """What one size tells about the others, as bounds: more rows never take less, and never take many times more a
        row. Bounds, and no factor: sizes that are not seen for long would drift with it, without end."""
        rows, seconds = self._rows[index], self._seconds[index]
        for other, other_rows in enumerate(self._rows):
            share = other_rows / rows
            low, high = (seconds, seconds * share * _SLACK) if share > 1 else (seconds * share / _SLACK, seconds)
            self._seconds[other] = min(max(self._seconds[other], low), high)
