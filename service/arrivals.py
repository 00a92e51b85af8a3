"""Is it worth waiting for company? How many rows usually come soon after a batch has been answered.

Callers that send the next request when they have the answer to the last (most benchmarks, many services) come back
together, a moment after their batch. An instance that takes the first of them at once leaves the others to the next
batch, and runs two small ones where one would do; on hardware where 16 rows take hardly longer than 8 that halves the
throughput. So rows that arrive within short windows behind a batch are counted, as a share of the rows that it
answered, and a batch waits while the latency curve says that the rows still expected raise the rows served per second.
On a curve that is linear in rows, as of most networks on a CPU, nothing is ever worth waiting for.

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
# Rows that never run together are never timed together: where the curve is wrong about them, two halves of the callers
# would take turns for ever. So now and then a wait is tried that pays if the others cost nothing. Less than a run's
# part of so many runs is what that may cost.
_TRIED_EVERY = 32


class Arrivals:
    """Rows that arrived behind the last finished batch, and how many usually do."""

    def __init__(self, curve: LatencyCurve) -> None:
        self._curve = curve
        self.has_tried = False
        """Since the last batch ended, a wait has been advised against the curve: what has come should run together."""
        self._batches = 0
        self._finished_s = -math.inf
        self._windows_s = tuple(0.0 for _ in _WINDOWS)
        self._counts = [0 for _ in _WINDOWS]
        self._answered = 0
        # Means over batches, by window: rows that came within it, and rows that had been answered before it.
        self._usual_came = [0.0 for _ in _WINDOWS]
        self._usual_answered = [0.0 for _ in _WINDOWS]

    def arrived(self, rows: int, now: float) -> None:
        """A request of `rows` rows has come."""
        since_s = now - self._finished_s
        if since_s > self._windows_s[-1]:
            return
        for index, window_s in enumerate(self._windows_s):
            if since_s <= window_s:
                self._counts[index] += rows

    def finished(self, rows: int, now: float) -> None:
        """A batch of `rows` rows has been answered: the windows begin again."""
        since_s = now - self._finished_s
        for index, window_s in enumerate(self._windows_s):
            if 0 < window_s <= since_s < math.inf:
                self._usual_came[index] += _NEWEST_WEIGHT * (self._counts[index] - self._usual_came[index])
                self._usual_answered[index] += _NEWEST_WEIGHT * (self._answered - self._usual_answered[index])
        self._finished_s = now
        self._answered = rows
        self._batches += 1
        self.has_tried = False
        row_s = self._curve.seconds(1)
        self._windows_s = tuple(min(part * row_s, _LONGEST_S) for part in _WINDOWS)
        self._counts = [0 for _ in _WINDOWS]

    def worth_waiting_until(self, rows: int, max_rows: int, now: float) -> float:
        """When to stop waiting with the `rows` rows that are there; `now` or earlier: not worth waiting at all."""
        if now - self._finished_s > self._windows_s[-1]:
            return -math.inf
        alone_s = self._curve.seconds(rows)
        tries = self._batches % _TRIED_EVERY == 0
        best_rate = _LEAST_GAIN * rows / alone_s
        best_s = -math.inf
        for index, window_s in enumerate(self._windows_s):
            left_s = self._finished_s + window_s - now
            still_to_come = self._expected(index) - self._counts[index]
            # Half a row is nobody.
            if left_s <= 0 or still_to_come < 0.5:
                continue
            together = min(rows + still_to_come, max_rows)
            rate = together / (left_s + (alone_s if tries else self._curve.seconds(together)))
            if rate > best_rate:
                best_rate, best_s = rate, self._finished_s + window_s
                self.has_tried = tries
        return best_s

    def _expected(self, index: int) -> float:
        """Rows within a window behind the last batch. Of a large one more come back than of a small one."""
        answered = self._usual_answered[index]
        return self._answered * self._usual_came[index] / answered if answered else 0.0
