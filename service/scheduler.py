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

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, Protocol, cast

from service.admission import MARGIN, Admission
from service.arrivals import Arrivals
from service.latency_curve import LatencyCurve
from service.ticket import BatchOutcome, BatchRecord, ItemT, ResultT, Run, Runner, Ticket
from service.waiting import QueueSpace, Waiting

_FOREVER = math.inf
_SAMPLED_EVERY = 16


class Timers(Protocol):
    """The part of an asyncio event loop that is used here. Seconds, monotonic."""

    def time(self) -> float: ...

    def call_soon(self, callback: Callable[[], object]) -> Any: ...

    def call_at(self, when: float, callback: Callable[[], object]) -> Any: ...


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
        space: QueueSpace | None = None,
        instances: int = 1,
        max_queue_delay_s: float = _FOREVER,
        on_run: Callable[[int, int], object] | None = None,
        on_batch: Callable[[BatchRecord], object] | None = None,
        on_split: Callable[[], object] | None = None,
    ) -> None:
        """
        run_batch: see `Runner`; at most `instances` batches are under way at once.
        name: of what is served, for messages.
        space: shared by all queues of a server; without it bytes are not bounded.
        max_queue_delay_s: longest time that a request waits for company while an instance is idle; 0 never waits.
        on_run: told of the requests and rows of each batch that has run, before its callers are. on_batch: told of each
        batch that has run, behind them. on_split: of each that failed and is halved.
        """
        self.max_batch_rows = max_batch_rows
        self.curve = curve
        self._run_batch = run_batch
        self._timers = timers
        self._instances = instances
        self._max_queue_delay_s = max_queue_delay_s
        self._on_run = on_run
        self._on_batch = on_batch
        self._on_split = on_split
        self.told_s = (0.0, 0.0)
        """While a ticket is told its result: when its batch began, and when it ended."""
        self._arrivals = Arrivals(curve)
        self._batches = 0
        space = space or QueueSpace()
        self._waiting: Waiting[ItemT, ResultT] = Waiting(space)
        self._deadline_timer: Any = None
        self._company_timer: Any = None
        self._runs: list[Run[ItemT, ResultT]] = []
        self._admission = Admission(
            self._waiting,
            self._runs,
            curve,
            space,
            name=name,
            max_batch_rows=max_batch_rows,
            max_queue_size=max_queue_size,
            instances=instances,
        )
        self._dispatch_is_due = False
        self._on_idle: list[Callable[[], object]] = []

    # --- what callers see ---

    @property
    def queue_size(self) -> int:
        """Requests that wait, without those that run."""
        return self._waiting.requests

    @property
    def queue_rows(self) -> int:
        """Their rows."""
        return self._waiting.rows

    @property
    def is_idle(self) -> bool:
        return not self._runs and not self._waiting.requests

    def submit(
        self,
        item: ItemT,
        done: Callable[[ResultT | Exception], object],
        *,
        rows: int,
        size_bytes: int = 0,
        group: Hashable = None,
        priority: int = 0,
        deadline_s: float = _FOREVER,
    ) -> Ticket[ItemT, ResultT]:
        """Queues `item`, which counts `rows` rows (at most `max_batch_rows`); `done` gets its result, or what failed.

        size_bytes: what `item` holds in memory while it waits.
        priority: lower runs first. deadline_s: on the timers' clock; what cannot be answered by then is not run.
        `done` is called once, on the loop, never before this returns, and not after `cancel`.
        Raises QueueFull, DeadlineExceeded, ModelNotReady once closed.
        """
        now = self._timers.time()
        self._admission.require(rows, size_bytes, now, deadline_s, priority)
        ticket: Ticket[ItemT, ResultT] = Ticket(item, rows, size_bytes, group, done, priority, now, deadline_s)
        self._waiting.add(ticket)
        self._arrivals.arrived(rows, now)
        if deadline_s < _FOREVER:
            self._watch_deadlines()
        self._dispatch_soon()
        return ticket

    def cancel(self, ticket: Ticket[ItemT, ResultT]) -> None:
        """The caller has given up: a waiting ticket never runs, one that runs is finished for nobody."""
        ticket.done = None
        if ticket.is_waiting:
            self._waiting.remove(ticket)

    def close(self, on_idle: Callable[[], object], *, drain: bool = True) -> None:
        """Admits nothing more; `on_idle` is called when nothing runs. Waiting requests run first, or are refused."""
        self._admission.is_closed = True
        self._on_idle.append(on_idle)
        if not drain:
            self._refuse(self._waiting.everybody)
        self._dispatch_soon()

    def give_up(self) -> int:
        """Refuses all that waits or runs, now; what runs goes on for nobody. Returns how many were told."""
        self._admission.is_closed = True
        pieces = [piece for run in self._runs for piece in (run.tickets, *run.pieces)]
        return self._refuse([*self._waiting.everybody, *itertools.chain(*pieces)])

    def _refuse(self, tickets: Sequence[Ticket[ItemT, ResultT]]) -> int:
        """Returns how many had not been told or given up yet."""
        unanswered = [ticket for ticket in tickets if ticket.done is not None]
        for ticket in unanswered:
            if ticket.is_waiting:
                self._waiting.remove(ticket)
            ticket.settle(self._admission.closed())
        return len(unanswered)

    def check_admission(self, rows: int, deadline_s: float, priority: int = 0) -> None:
        """Raises what `submit` would raise now, of a request of `rows` rows that has not come whole yet."""
        if rows <= self.max_batch_rows:
            # How many bytes it will hold is not known yet; one at least.
            self._admission.require(rows, 1, self._timers.time(), deadline_s, priority)

    # --- deadlines ---

    def _watch_deadlines(self) -> None:
        """One timer, for the earliest deadline of those that wait."""
        earliest_s = self._waiting.earliest_deadline_s
        if self._deadline_timer is not None:
            if self._deadline_timer[0] <= earliest_s:
                return
            self._deadline_timer[1].cancel()
            self._deadline_timer = None
        if earliest_s < _FOREVER:
            self._deadline_timer = (earliest_s, self._timers.call_at(earliest_s, self._expire))

    def _expire(self) -> None:
        self._deadline_timer = None
        now = self._timers.time()
        for ticket in self._waiting.remove_expired(now):
            ticket.settle(self._admission.too_late(ticket, now))
        self._watch_deadlines()

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
            if not self._waiting.requests or self._waits_for_company():
                break
            batch = self._next_batch()
            run = Run([batch], is_try=self.curve.is_trying)
            self._runs.append(run)
            self._advance(run)
        # Batches that ran on this very thread leave instances idle again: the loop first reads what has come meanwhile.
        if self._waiting.requests and len(self._runs) < self._instances and self._company_timer is None:
            self._dispatch_soon()
        if self._admission.is_closed and self.is_idle:
            on_idle, self._on_idle = self._on_idle, []
            for callback in on_idle:
                callback()

    def _waits_for_company(self) -> bool:
        if self._admission.is_closed or self._max_queue_delay_s <= 0 or self._waiting.rows >= self.max_batch_rows:
            return False
        now = self._timers.time()
        until_s = self._arrivals.worth_waiting_until(self._waiting.rows, self.max_batch_rows, now)
        if until_s <= now:
            return False
        until_s = min(until_s, self._waiting.oldest.submitted_s + self._max_queue_delay_s)
        # Twice: once for the batch with company, once more for whatever was not foreseen.
        until_s = min(until_s, self._waiting.earliest_deadline_s - 2 * self.curve.seconds(self.max_batch_rows))
        if until_s <= now:
            return False
        self._company_timer = self._timers.call_at(until_s, self._dispatch_soon)
        return True

    def _next_batch(self) -> list[Ticket[ItemT, ResultT]]:
        # Other groups' rows are not this batch's, but usually there is one group, and then this is exact.
        rows = min(self._waiting.rows, self.max_batch_rows)
        most_rows = self.curve.rows_to_run(rows, larger=self._arrivals.has_tried)
        now = self._timers.time()
        return self._waiting.take(
            most_rows,
            self.max_batch_rows,
            lambda rows, deadline_s: now + MARGIN * self.curve.seconds(rows) <= deadline_s,
        )

    # --- running ---

    def _advance(self, run: Run[ItemT, ResultT]) -> None:
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
            needs_s = MARGIN * self.curve.seconds(ticket.rows) if len(tickets) > 1 or self._waiting.requests else 0.0
            if ticket.deadline_s < _FOREVER and now + needs_s >= ticket.deadline_s:
                ticket.settle(self._admission.too_late(ticket, now))
            else:
                wanted.append(ticket)
        return wanted

    def _finished(self, run: Run[ItemT, ResultT], outcome: BatchOutcome[ResultT]) -> None:
        now = self._timers.time()
        tickets, started_s, was_inline = run.tickets, run.started_s, run.is_starting
        is_told = outcome.error is None or len(tickets) == 1
        if not is_told:
            # One of them is guilty: halves, the front one next.
            half = len(tickets) // 2
            run.pieces += [tickets[half:], tickets[:half]]
            run.is_split = True
            if self._on_split is not None:
                self._on_split()
        if was_inline:
            # Finished before the runner returned, so it is `_advance` that called it, and that goes on.
            run.is_starting = False
        else:
            # The instance first: it computes the next batch while the answers to this one are written.
            self._arrivals.finished(sum([ticket.rows for ticket in tickets]) if is_told else 0, now)
            self._advance(run)
            self._dispatch()
        if is_told:
            self.told_s = (started_s, now)
            rows = sum([ticket.rows for ticket in tickets])
            if self._on_run is not None and outcome.error is None:
                self._on_run(len(tickets), rows)
            _tell(tickets, outcome)
            # Small batches run on this thread, many thousands a second: a sample of them keeps the curve true, and what
            # tells that it is far too high, because batches went through threads before, is not missed.
            took_s = now - started_s
            is_news = not was_inline or run.is_try or self._batches % _SAMPLED_EVERY == 0 or took_s < run.expected_s / 2
            # Callers before the rest of counting: they do not wait for it.
            self._record(tickets, rows, outcome, started_s, now, is_news=is_news, is_piece=run.is_split)

    def _record(
        self,
        tickets: Sequence[Ticket[ItemT, ResultT]],
        rows: int,
        outcome: BatchOutcome[ResultT],
        started_s: float,
        now: float,
        *,
        is_news: bool,
        is_piece: bool,
    ) -> None:
        """`is_news`: the curve is to learn from it. `is_piece`: of a batch that had failed."""
        failed = outcome.error is not None
        if not failed:
            self._batches += 1
            if is_news:
                self.curve.observe(rows, now - started_s)
        if self._on_batch is None:
            return
        submitted_s = [ticket.submitted_s for ticket in tickets]
        came_s = sum(submitted_s)
        requests = len(tickets)
        self._on_batch(
            BatchRecord(
                requests=0 if failed else requests,
                rows=0 if failed else rows,
                failed=requests if failed else 0,
                queue_s=requests * started_s - came_s,
                total_s=requests * now - came_s,
                input_s=outcome.input_s,
                infer_s=outcome.infer_s,
                output_s=outcome.output_s,
                poisoned=requests if failed and is_piece else 0,
                submitted_s=submitted_s,
                began_s=started_s,
                run_s=now - started_s,
            )
        )


def _tell(tickets: Sequence[Ticket[ItemT, ResultT]], outcome: BatchOutcome[ResultT]) -> None:
    if outcome.error is not None:
        tickets[0].settle(outcome.error)
        return
    assert outcome.results is not None
    for ticket, result in zip(tickets, outcome.results, strict=True):
        ticket.settle(result)
