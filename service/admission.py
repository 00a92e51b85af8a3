"""Who may wait: bounds on requests and bytes, deadlines that can be kept, and how long it will take.

A refusal is cheap and honest: it says what is full, in figures, and when another try is likely to be taken. Looks at
the queue and at what runs, and changes neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic

from service.errors import DeadlineExceeded, ExpiredInQueue, MemoryFull, ModelNotReady, QueueFull
from service.latency_curve import LatencyCurve
from service.ticket import ItemT, ResultT, Run, Ticket
from service.waiting import QueueSpace, Waiting

# A deadline has to leave so many times the expected time, on arrival and when its batch begins: expectations are means,
# and behind a long queue everybody's time is nearly up. Whoever runs all the same when the machine slows down is late,
# and makes the next one late: without a margin most of the capacity then goes into answers that nobody waits for.
MARGIN = 1.25


class Admission(Generic[ItemT, ResultT]):
    """The rules of one queue. Times in seconds, on the clock of `now`."""

    def __init__(
        self,
        waiting: Waiting[ItemT, ResultT],
        runs: Sequence[Run[ItemT, ResultT]],
        curve: LatencyCurve,
        space: QueueSpace,
        *,
        name: str,
        max_batch_rows: int,
        max_queue_size: int,
        instances: int,
    ) -> None:
        """`waiting` and `runs` are the scheduler's own, as they are at any time."""
        self.is_closed = False
        self._waiting = waiting
        self._runs = runs
        self._curve = curve
        self._space = space
        self._name = name
        self._max_batch_rows = max_batch_rows
        self._max_queue_size = max_queue_size
        self._instances = instances

    def require(self, rows: int, size_bytes: int, now: float, deadline_s: float, priority: int = 0) -> None:
        """Raises QueueFull, DeadlineExceeded, ModelNotReady; nothing when such a request may wait."""
        if self.is_closed:
            raise self.closed()
        if rows > self._max_batch_rows:
            raise ValueError(f"{rows} rows can never run: a batch holds {self._max_batch_rows}")
        # Those who would run behind it take no place from it.
        requests, _ = self._waiting.ahead_of(priority)
        # Those that idle instances are about to take do not count as waiting.
        idle = self._instances - len(self._runs)
        if requests >= self._max_queue_size + idle * self._max_batch_rows:
            told = f"{requests} requests wait, max_queue_size is {self._max_queue_size}"
            raise self._full(told, self.expected_s(rows, now, priority))
        # At least one of every queue, however many bytes others hold: each request fits sometime.
        if requests and self._space.used_bytes + size_bytes > self._space.limit_bytes:
            told = (
                f"waiting requests hold {self._space.used_bytes} bytes, this one needs at least {size_bytes} more, and "
                f"the server has room for {self._space.limit_bytes:.0f}"
            )
            raise self._full(told, self.expected_s(rows, now, priority), MemoryFull)
        # An idle instance has nothing to lose, and expectations that are wrong are only corrected by what runs.
        if deadline_s < math.inf and (requests or idle <= 0 or deadline_s <= now):
            self._require_time(rows, now, deadline_s, priority)

    def _require_time(self, rows: int, now: float, deadline_s: float, priority: int) -> None:
        expected_s = self.expected_s(rows, now, priority)
        if deadline_s <= now:
            raise DeadlineExceeded(
                f"{self._name}: the request's timeout passed before it was complete, by {_span(now - deadline_s)} "
                f"({_UNIT_OF_TIMEOUT}); it was not run",
                retry_after_s=expected_s,
            )
        needed_s, left_s = expected_s * MARGIN, deadline_s - now
        if now + needed_s > deadline_s:
            digits = _digits_to_tell_apart(needed_s, left_s)
            raise DeadlineExceeded(
                f"{self._name} would answer within about {_span(needed_s, digits)}, the request allows "
                f"{_span(left_s, digits)}{_unit_if_small(left_s)}; {_span(expected_s, digits)} are expected, with a "
                f"margin of a quarter; it was not run",
                retry_after_s=needed_s - left_s,
            )

    def expected_s(self, rows: int, now: float, priority: int = 0) -> float:
        """How long a request of `rows` rows that came now would take to be answered, behind all that wait already."""
        own_s = self._curve.seconds(rows)
        requests_ahead, rows_ahead = self._waiting.ahead_of(priority)
        if len(self._runs) < self._instances and not requests_ahead:
            return own_s
        batch_rows = self._curve.rows_worth_running(min(max(rows_ahead + rows, 1), self._max_batch_rows))
        # Each group needs at least one batch of its own; all instances work off the queue together.
        batches = max(rows_ahead // batch_rows, min(self._waiting.groups, requests_ahead) - 1)
        wait_s = batches * self._curve.seconds(batch_rows) / self._instances
        if len(self._runs) >= self._instances:
            wait_s += min(max(run.started_s + run.expected_s - now, 0.0) for run in self._runs)
        return wait_s + own_s

    def too_late(self, ticket: Ticket[ItemT, ResultT], now: float) -> ExpiredInQueue:
        """Told when a deadline passes, or cannot be kept any more, while its request waits."""
        timeout_s = ticket.deadline_s - ticket.submitted_s
        return ExpiredInQueue(
            f"{self._name}: of the request's timeout of {_span(timeout_s)}{_unit_if_small(timeout_s)}, "
            f"{_span(now - ticket.submitted_s)} went by behind others; it was not run",
            retry_after_s=self.expected_s(ticket.rows, now, ticket.priority),
        )

    def closed(self) -> ModelNotReady:
        return ModelNotReady(f"{self._name} is UNLOADING and takes no more requests")

    def _full(self, told: str, retry_after_s: float, kind: type[QueueFull] = QueueFull) -> QueueFull:
        return kind(
            f"the queue of {self._name} is full: {told}; try again in about {_span(retry_after_s, 1)}",
            retry_after_s=retry_after_s,
        )


# --- words --------------------------------------------------------------------------------------------------------

# A timeout that leaves no more is likely to be meant in another unit than it has.
_SMALL_S = 1e-3
_UNIT_OF_TIMEOUT = "timeout is a number of microseconds"
_MOST_DIGITS = 9
# Two digits tell what differs by so much: their last one is worth no more.
_TOLD_APART = 0.1


def _span(seconds: float, digits: int = 2) -> str:
    rounded = float(f"{seconds:.{digits}g}")
    size, unit = (1.0, "s") if rounded >= 1 else (1e-3, "ms") if rounded >= 1e-3 else (1e-6, "us")
    return f"{rounded / size:.12g} {unit}"


def _unit_if_small(timeout_s: float) -> str:
    return "" if timeout_s >= _SMALL_S else f" ({_UNIT_OF_TIMEOUT})"


def _digits_to_tell_apart(one_s: float, other_s: float) -> int:
    """Figures that are compared in a message must not look the same."""
    if abs(one_s - other_s) > _TOLD_APART * one_s:
        return 2
    for digits in range(2, _MOST_DIGITS):
        if float(f"{one_s:.{digits}g}") != float(f"{other_s:.{digits}g}"):
            return digits
    return _MOST_DIGITS
