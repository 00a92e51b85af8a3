"""Is it worth waiting for company? How many rows usually come soon after a batch has been answered.

Callers that send the next request when they have the answer to the last (most benchmarks, many services) come back
together, a moment after their batch. An instance that takes the first of them at once leaves the others to the next
batch, and runs two small ones where one would do; on hardware where 16 rows take hardly longer than 8 that halves the
throughput. So rows that arrive within short windows behind a batch are counted, and a batch waits while the latency
curve says that the rows still expected raise the rows served per second. On a curve that is linear in rows, as of most
networks on a CPU, nothing is ever worth waiting for.

Knows no queue and no timer; the clock's readings are passed in, in seconds.
"""

from __future__ import annotations

import math

from service.latency_curve import LatencyCurve

# Windows, as parts of what one row takes. A wait longer than a whole run never paid in the cases that were thought
# through: by then the instance could have run what it had.
_WINDOWS = (0.125, 0.25, 0.5, 1.0)
# And however long a run takes: callers notice.
_LONGEST_S = 0.1
# About the last ten batches count.
_NEWEST_WEIGHT = 0.2
# Rows per second must promise to rise by more than noise.
_LEAST_GAIN = 1.05


class Arrivals:
    """Rows that arrived behind the last finished batch, and how many usually do."""

    def __init__(self, curve: LatencyCurve) -> None:
        self._curve = curve
        self._finished_s = -math.inf
        self._windows_s = tuple(0.0 for _ in _WINDOWS)
        self._counts = [0 for _ in _WINDOWS]
        self._usual = [0.0 for _ in _WINDOWS]

    def arrived(self, rows: int, now: float) -> None:
        """A request of `rows` rows has come."""
        since_s = now - self._finished_s
        if since_s > self._windows_s[-1]:
            return
        for index, window_s in enumerate(self._windows_s):
            if since_s <= window_s:
                self._counts[index] += rows

    def finished(self, now: float) -> None:
        """A batch has been answered: the windows begin again."""
        since_s = now - self._finished_s
        for index, window_s in enumerate(self._windows_s):
            if 0 < window_s <= since_s < math.inf:
                self._usual[index] += _NEWEST_WEIGHT * (self._counts[index] - self._usual[index])
        self._finished_s = now
        row_s = self._curve.seconds(1)
        self._windows_s = tuple(min(part * row_s, _LONGEST_S) for part in _WINDOWS)
        self._counts = [0 for _ in _WINDOWS]

    def worth_waiting_until(self, rows: int, max_rows: int, now: float) -> float:
        """When to stop waiting with the `rows` rows that are there; `now` or earlier: not worth waiting at all."""
        if now - self._finished_s > self._windows_s[-1]:
            return -math.inf
        best_rate = _LEAST_GAIN * rows / self._curve.seconds(rows)
        best_s = -math.inf
        for window_s, usual, count in zip(self._windows_s, self._usual, self._counts, strict=True):
            left_s = self._finished_s + window_s - now
            # Half a row is nobody.
            if left_s <= 0 or usual - count < 0.5:
                continue
            together = min(rows + usual - count, max_rows)
            rate = together / (left_s + self._curve.seconds(together))
            if rate > best_rate:
                best_rate, best_s = rate, self._finished_s + window_s
        return best_s
