"""The dynamic batcher: when waiting requests run, and which of them together.

Work-conserving. An instance that is idle takes what waits, at once, with one exception: when the rows that usually
follow a finished batch have not all come back yet and the latency curve says that running them together serves more
rows a second, it waits for them, for a part of a run, and never past a deadline (`arrivals.py`). So there is nothing
to tune; `max_queue_delay_s` only caps that wait.

What is taken: the ticket of the best priority, the oldest among equals, and behind it those that may share its batch
(equal group keys), in order, up to `max_batch_rows`, or fewer where the curve says that more rows do not pay.
A batch that fails is halved and run again until the guilty request is alone with its error. Nobody computes for a
caller that has given up or whose deadline has passed.

Lives on one event loop and waits nowhere: `submit` returns a ticket, its `done` is called once. Knows neither session
nor model nor HTTP: what runs a batch and the loop's clock and timers are passed in.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

from service.arrivals import Arrivals
from service.errors import DeadlineExceeded, ModelNotReady, QueueFull
from service.latency_curve import LatencyCurve

log = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_FOREVER = math.inf
# Heaps and deadlines keep what has left the queue until it comes up; they are swept when this much of it has gathered.
_DEAD_ENTRIES = 256
_SAMPLED_EVERY = 16
# A deadline has to leave so many times the expected time, or the request is refused on arrival: what is admitted should
# be answered, and expectations are means.
_MARGIN = 1.25


class Timers(Protocol):
    """The part of an asyncio event loop that is used here. Seconds, monotonic."""

    def time(self) -> float: ...

    def call_soon(self, callback: Callable[[], object]) -> Any: ...

    def call_at(self, when: float, callback: Callable[[], object]) -> Any: ...


class BatchOutcome(NamedTuple, Generic[ResultT]):
    """What became of a batch: one result an item, in order, or the error. Times in seconds: making one array of the
    items, the model's run, and taking the answer apart."""

    results: Sequence[ResultT] | None
    error: Exception | None = None
    input_s: float = 0.0
    infer_s: float = 0.0
    output_s: float = 0.0


Runner = Callable[[Sequence[ItemT], int, Callable[[BatchOutcome[ResultT]], None]], None]
"""Runs items, of so many rows together; calls its last argument on the loop's thread: later, or before it returns."""


class Ticket(Generic[ItemT, ResultT]):
    """One request's place: waiting, then running, then done or given up. Compared by identity."""

    __slots__ = ("deadline_s", "done", "group", "is_waiting", "item", "priority", "rows", "submitted_s")

    def __init__(
        self,
        item: ItemT,
        rows: int,
        group: Hashable,
        done: Callable[[ResultT | Exception], object],
        priority: int,
        submitted_s: float,
        deadline_s: float,
    ) -> None:
        self.item: ItemT | None = item
        """None when it is over: heaps may hold the ticket for longer."""
        self.rows = rows
        self.group = group
        self.done: Callable[[ResultT | Exception], object] | None = done
        """None once it has been called, or the caller has given up."""
        self.priority = priority
        self.submitted_s = submitted_s
        self.deadline_s = deadline_s
        self.is_waiting = True

    def settle(self, outcome: ResultT | Exception) -> None:
        done, self.done = self.done, None
        self.item = None
        if done is not None:
            try:
                done(outcome)
            except Exception:
                # A defect of the caller's side must not leave the others of the batch without an answer.
                log.exception("a request's answer could not be delivered")


class BatchRecord(NamedTuple):
    """One batch that ran, for the statistics. Sums over its requests, in seconds; `failed` requests are in none."""

    requests: int
    rows: int
    failed: int
    queue_s: float
    total_s: float
    input_s: float
    infer_s: float
    output_s: float


@dataclass(slots=True, eq=False)
class _Run(Generic[ItemT, ResultT]):
    """One busy instance: the batch that runs, and the pieces of a failed one that are still to be tried."""

    pieces: list[list[Ticket[ItemT, ResultT]]]
    started_s: float = 0.0
    expected_s: float = 0.0
    is_starting: bool = False
    tickets: list[Ticket[ItemT, ResultT]] = field(default_factory=list)


_Entry = tuple[int, int, Ticket[ItemT, ResultT]]
"""Priority, then order of arrival: what heaps sort by."""


class Scheduler(Generic[ItemT, ResultT]):
    """A bounded queue in front of `instances` places where batches run."""

    def __init__(
        self,
        run_batch: Runner[ItemT, ResultT],
        curve: LatencyCurve,
        timers: Timers,
        *,
        name: str,
        max_batch_rows: int,
        max_queue_size: int,
        instances: int = 1,
        max_queue_delay_s: float = _FOREVER,
        on_batch: Callable[[BatchRecord], object] | None = None,
    ) -> None:
        """
        run_batch: see `Runner`; at most `instances` batches are under way at once.
        name: of what is served, for messages.
        max_queue_delay_s: longest time that a request waits for company while an instance is idle; 0 never waits.
        on_batch: told of each batch that has run.
        """
        self.max_batch_rows = max_batch_rows
        self.curve = curve
        self._run_batch = run_batch
        self._timers = timers
        self._name = name
        self._max_queue_size = max_queue_size
        self._instances = instances
        self._max_queue_delay_s = max_queue_delay_s
        self._on_batch = on_batch
        self._arrivals = Arrivals(curve)
        self._sequence = 0
        self._batches = 0
        self._waiting_requests = 0
        self._waiting_rows = 0
        self._queue: list[_Entry[ItemT, ResultT]] = []
        self._groups: dict[Hashable, list[_Entry[ItemT, ResultT]]] = {}
        self._waiting_in: dict[Hashable, int] = {}
        self._deadlines: list[tuple[float, int, Ticket[ItemT, ResultT]]] = []
        self._deadline_timer: Any = None
        self._company_timer: Any = None
        self._runs: list[_Run[ItemT, ResultT]] = []
        self._dispatch_is_due = False
        self._closed = False
        self._on_idle: list[Callable[[], object]] = []

    # --- what callers see ---

    @property
    def queue_size(self) -> int:
        """Requests that wait, without those that run."""
        return self._waiting_requests

    @property
    def is_idle(self) -> bool:
        return not self._runs and not self._waiting_requests

    def submit(
        self,
        item: ItemT,
        done: Callable[[ResultT | Exception], object],
        *,
        rows: int,
        group: Hashable = None,
        priority: int = 0,
        deadline_s: float = _FOREVER,
    ) -> Ticket[ItemT, ResultT]:
        """Queues `item`, which counts `rows` rows (at most `max_batch_rows`); `done` gets its result, or what failed.

        priority: lower runs first. deadline_s: on the timers' clock; what cannot be answered by then is not run.
        `done` is called once, on the loop, never before this returns, and not after `cancel`.
        Raises QueueFull, DeadlineExceeded, ModelNotReady once closed.
        """
        now = self._timers.time()
        self._admit(rows, now, deadline_s)
        ticket: Ticket[ItemT, ResultT] = Ticket(item, rows, group, done, priority, now, deadline_s)
        self._sequence += 1
        entry = (priority, self._sequence, ticket)
        heapq.heappush(self._queue, entry)
        heapq.heappush(self._groups.setdefault(group, []), entry)
        self._waiting_in[group] = self._waiting_in.get(group, 0) + 1
        self._waiting_requests += 1
        self._waiting_rows += rows
        self._arrivals.arrived(rows, now)
        if deadline_s < _FOREVER:
            heapq.heappush(self._deadlines, (deadline_s, self._sequence, ticket))
            self._watch_deadlines()
        self._dispatch_soon()
        return ticket

    def cancel(self, ticket: Ticket[ItemT, ResultT]) -> None:
        """The caller has given up: a waiting ticket never runs, one that runs is finished for nobody."""
        ticket.done = None
        if ticket.is_waiting:
            self._drop(ticket)
            self._sweep()

    def close(self, on_idle: Callable[[], object], *, drain: bool = True) -> None:
        """Admits nothing more; `on_idle` is called when nothing runs. Waiting requests run first, or are refused."""
        self._closed = True
        self._on_idle.append(on_idle)
        if not drain:
            for _, _, ticket in list(self._queue):
                if ticket.is_waiting:
                    self._drop(ticket)
                    ticket.settle(self._closed_error())
        self._dispatch_soon()

    # --- admission ---

    def check_admission(self, rows: int, deadline_s: float) -> None:
        """Raises what `submit` would raise now, of a request of `rows` rows that has not come whole yet."""
        if rows <= self.max_batch_rows:
            self._admit(rows, self._timers.time(), deadline_s)

    def _admit(self, rows: int, now: float, deadline_s: float) -> None:
        if self._closed:
            raise self._closed_error()
        if rows > self.max_batch_rows:
            raise ValueError(f"{rows} rows can never run: a batch holds {self.max_batch_rows}")
        # Those that idle instances are about to take do not count as waiting.
        taken = (self._instances - len(self._runs)) * self.max_batch_rows
        if self._waiting_requests >= self._max_queue_size + taken:
            retry_after_s = self.expected_s(rows, now)
            raise QueueFull(
                f"the queue of {self._name} is full: {self._waiting_requests} requests wait, max_queue_size is "
                f"{self._max_queue_size}; try again in about {retry_after_s:.1g} s",
                retry_after_s=retry_after_s,
            )
        if deadline_s <= now:
            raise DeadlineExceeded(
                f"{self._name}: the request's timeout passed before it was complete; it was not run",
                retry_after_s=self.expected_s(rows, now),
            )
        # An idle instance has nothing to lose, and expectations that are wrong are only corrected by what runs.
        if deadline_s == _FOREVER or (not self._waiting_requests and len(self._runs) < self._instances):
            return
        expected_s = _MARGIN * self.expected_s(rows, now)
        if now + expected_s > deadline_s:
            allowed_s = max(deadline_s - now, 0.0)
            raise DeadlineExceeded(
                f"{self._name} would answer within about {expected_s:.2g} s, the request allows {allowed_s:.2g} s; "
                f"it was not run",
                retry_after_s=expected_s - allowed_s,
            )

    def expected_s(self, rows: int, now: float) -> float:
        """How long a request of `rows` rows that came now would take to be answered, behind all that wait already."""
        own_s = self.curve.seconds(rows)
        if len(self._runs) < self._instances and not self._waiting_requests:
            return own_s
        batch_rows = self.curve.rows_worth_running(min(max(self._waiting_rows + rows, 1), self.max_batch_rows))
        # Each group needs at least one batch of its own; all instances work off the queue together.
        batches = max(self._waiting_rows // batch_rows, len(self._groups) - 1)
        wait_s = batches * self.curve.seconds(batch_rows) / self._instances
        if len(self._runs) >= self._instances:
            wait_s += min(max(run.started_s + run.expected_s - now, 0.0) for run in self._runs)
        return wait_s + own_s

    # --- leaving the queue ---

    def _leave_queue(self, ticket: Ticket[ItemT, ResultT]) -> None:
        """Its entries in the heaps stay until they come up; a group goes with the last that waits in it."""
        ticket.is_waiting = False
        self._waiting_requests -= 1
        self._waiting_rows -= ticket.rows
        left = self._waiting_in[ticket.group] - 1
        if left:
            self._waiting_in[ticket.group] = left
        else:
            del self._waiting_in[ticket.group]
            del self._groups[ticket.group]

    def _drop(self, ticket: Ticket[ItemT, ResultT]) -> None:
        """Leaves the queue without running; what is left of it in the heaps must not hold on to a request's body."""
        self._leave_queue(ticket)
        ticket.item = None

    def _sweep(self) -> None:
        if len(self._queue) > 2 * self._waiting_requests + _DEAD_ENTRIES:
            self._queue = [entry for entry in self._queue if entry[2].is_waiting]
            heapq.heapify(self._queue)
            self._groups = {}
            for entry in self._queue:
                heapq.heappush(self._groups.setdefault(entry[2].group, []), entry)
        if len(self._deadlines) > 2 * self._waiting_requests + _DEAD_ENTRIES:
            self._deadlines = [entry for entry in self._deadlines if entry[2].is_waiting]
            heapq.heapify(self._deadlines)

    def _watch_deadlines(self) -> None:
        """One timer, for the earliest deadline of those that wait."""
        while self._deadlines and not self._deadlines[0][2].is_waiting:
            heapq.heappop(self._deadlines)
        if not self._deadlines:
            return
        earliest = self._deadlines[0][0]
        if self._deadline_timer is None:
            self._deadline_timer = (earliest, self._timers.call_at(earliest, self._expire))
        elif self._deadline_timer[0] > earliest:
            self._deadline_timer[1].cancel()
            self._deadline_timer = (earliest, self._timers.call_at(earliest, self._expire))

    def _expire(self) -> None:
        self._deadline_timer = None
        now = self._timers.time()
        while self._deadlines and (self._deadlines[0][0] <= now or not self._deadlines[0][2].is_waiting):
            _, _, ticket = heapq.heappop(self._deadlines)
            if ticket.is_waiting:
                self._drop(ticket)
                ticket.settle(self._too_late(ticket, now))
        self._watch_deadlines()
        self._sweep()

    def _too_late(self, ticket: Ticket[ItemT, ResultT], now: float) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self._name}: the request's timeout of {ticket.deadline_s - ticket.submitted_s:.2g} s passed while it "
            f"waited behind others; it was not run",
            retry_after_s=self.expected_s(ticket.rows, now),
        )

    # --- dispatch ---

    def _dispatch_soon(self) -> None:
        """Behind everything that this turn of the event loop has read: requests that came together run together."""
        if not self._dispatch_is_due:
            self._dispatch_is_due = True
            self._timers.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatch_is_due = False
        if self._company_timer is not None:
            self._company_timer.cancel()
            self._company_timer = None
        for _ in range(self._instances - len(self._runs)):
            if not self._waiting_requests or self._waits_for_company():
                break
            run = _Run([self._next_batch()])
            self._runs.append(run)
            self._advance(run)
        # Batches that ran on this very thread leave instances idle again: the loop first reads what has come meanwhile.
        if self._waiting_requests and len(self._runs) < self._instances and self._company_timer is None:
            self._dispatch_soon()
        if self._closed and self.is_idle:
            on_idle, self._on_idle = self._on_idle, []
            for callback in on_idle:
                callback()

    def _waits_for_company(self) -> bool:
        if self._closed or self._max_queue_delay_s <= 0 or self._waiting_rows >= self.max_batch_rows:
            return False
        now = self._timers.time()
        until_s = self._arrivals.worth_waiting_until(self._waiting_rows, self.max_batch_rows, now)
        if until_s <= now:
            return False
        oldest = self._oldest()
        until_s = min(until_s, oldest.submitted_s + self._max_queue_delay_s)
        if self._deadlines:
            # Twice: once for the batch with company, once more for whatever was not foreseen.
            until_s = min(until_s, self._deadlines[0][0] - 2 * self.curve.seconds(self.max_batch_rows))
        if until_s <= now:
            return False
        self._company_timer = self._timers.call_at(until_s, self._dispatch_soon)
        return True

    def _oldest(self) -> Ticket[ItemT, ResultT]:
        while not self._queue[0][2].is_waiting:
            heapq.heappop(self._queue)
        return self._queue[0][2]

    def _next_batch(self) -> list[Ticket[ItemT, ResultT]]:
        """Takes the best ticket and those of its group that fit behind it, in order. At least one must wait."""
        group = self._oldest().group
        members = self._groups[group]
        # Other groups' rows are not this batch's, but usually there is one group, and then this is exact.
        most_rows = self.curve.rows_to_run(min(self._waiting_rows, self.max_batch_rows))
        now = self._timers.time()
        batch: list[Ticket[ItemT, ResultT]] = []
        rows, deadline_s = 0, _FOREVER
        while members:
            ticket = members[0][2]
            if ticket.is_waiting:
                # Also ends at so many requests: requests of zero rows must not make a batch endless.
                if batch and (rows + ticket.rows > most_rows or len(batch) >= self.max_batch_rows):
                    break
                deadline_s = min(deadline_s, ticket.deadline_s)
                # Company must not make anybody late who would not be so alone.
                if batch and deadline_s < _FOREVER and now + self.curve.seconds(rows + ticket.rows) > deadline_s:
                    break
                batch.append(ticket)
                rows += ticket.rows
                self._leave_queue(ticket)
            heapq.heappop(members)
        return batch

    # --- running ---

    def _advance(self, run: _Run[ItemT, ResultT]) -> None:
        """Runs the pieces one after the other; goes on in `_finished` when one does not end at once."""
        while run.pieces:
            run.tickets = self._still_wanted(run.pieces.pop())
            if not run.tickets:
                continue
            rows = sum(ticket.rows for ticket in run.tickets)
            run.started_s = self._timers.time()
            run.expected_s = self.curve.seconds(rows)
            run.is_starting = True
            self._run_batch(
                [cast("ItemT", ticket.item) for ticket in run.tickets],
                rows,
                lambda outcome: self._finished(run, outcome),
            )
            if run.is_starting:
                run.is_starting = False
                return
        self._runs.remove(run)

    def _still_wanted(self, tickets: list[Ticket[ItemT, ResultT]]) -> list[Ticket[ItemT, ResultT]]:
        now = self._timers.time()
        wanted = []
        for ticket in tickets:
            if ticket.done is None:
                continue
            # As at admission: a request that nobody else waits behind is tried while its time has not passed.
            needs_s = self.curve.seconds(ticket.rows) if len(tickets) > 1 or self._waiting_requests else 0.0
            if ticket.deadline_s < _FOREVER and now + needs_s >= ticket.deadline_s:
                ticket.settle(self._too_late(ticket, now))
            else:
                wanted.append(ticket)
        return wanted

    def _finished(self, run: _Run[ItemT, ResultT], outcome: BatchOutcome[ResultT]) -> None:
        now = self._timers.time()
        tickets, started_s, was_inline = run.tickets, run.started_s, run.is_starting
        is_told = outcome.error is None or len(tickets) == 1
        if not is_told:
            # One of them is guilty: halves, the front one next.
            half = len(tickets) // 2
            run.pieces += [tickets[half:], tickets[:half]]
        if was_inline:
            # Finished before the runner returned, so it is `_advance` that called it, and that goes on.
            run.is_starting = False
        else:
            # The instance first: it computes the next batch while the answers to this one are written.
            self._arrivals.finished(now)
            self._advance(run)
            self._dispatch()
        if is_told:
            _tell(tickets, outcome)
            # Callers before counting: they do not wait for it.
            self._record(tickets, outcome, started_s, now, was_inline=was_inline)

    def _record(
        self,
        tickets: Sequence[Ticket[ItemT, ResultT]],
        outcome: BatchOutcome[ResultT],
        started_s: float,
        now: float,
        *,
        was_inline: bool,
    ) -> None:
        rows = sum([ticket.rows for ticket in tickets])
        failed = outcome.error is not None
        if not failed:
            self._batches += 1
            # Small batches run on this thread, many thousands a second: a sample of them keeps the curve true.
            if not was_inline or self._batches % _SAMPLED_EVERY == 0:
                self.curve.observe(rows, now - started_s)
        if self._on_batch is None:
            return
        submitted_s = sum([ticket.submitted_s for ticket in tickets])
        requests = len(tickets)
        self._on_batch(
            BatchRecord(
                requests=0 if failed else requests,
                rows=0 if failed else rows,
                failed=requests if failed else 0,
                queue_s=requests * started_s - submitted_s,
                total_s=requests * now - submitted_s,
                input_s=outcome.input_s,
                infer_s=outcome.infer_s,
                output_s=outcome.output_s,
            )
        )

    def _closed_error(self) -> ModelNotReady:
        return ModelNotReady(f"{self._name} is UNLOADING and takes no more requests")


def _tell(tickets: Sequence[Ticket[ItemT, ResultT]], outcome: BatchOutcome[ResultT]) -> None:
    if outcome.error is not None:
        tickets[0].settle(outcome.error)
        return
    assert outcome.results is not None
    for ticket, result in zip(tickets, outcome.results, strict=True):
        ticket.settle(result)
