"""The dynamic batcher: when waiting requests run, and which of them together.

An idle instance never waits: a request that meets one runs at once, otherwise it queues, and the next instance that
becomes idle takes the oldest request plus those behind it that may share a batch, up to `max_batch_rows` rows.
Requests share a batch when their group keys are equal (what that means is the caller's affair). Order is first come,
first served within a group, and the group whose head is oldest goes first, so none starves.

Lives on one event loop. Knows neither session nor model nor HTTP: what to run and the clock are passed in.
To come here: queue delay, deadlines, priorities.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from service.errors import ModelNotReady, QueueFull

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# Weight of the newest batch in the running mean of batch times: about the last ten batches count.
_NEWEST_WEIGHT = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket(Generic[ItemT, ResultT]):
    """One waiting request. Compared by identity: two equal requests are two requests."""

    item: ItemT
    rows: int
    group: Hashable
    future: asyncio.Future[ResultT]


@dataclass(slots=True)
class _Group(Generic[ItemT, ResultT]):
    """Waiting tickets that may share a batch, oldest first. Ordered and O(1) to leave from the middle."""

    tickets: OrderedDict[_Ticket[ItemT, ResultT], None] = field(default_factory=OrderedDict)
    rows: int = 0


class Scheduler(Generic[ItemT, ResultT]):
    """A bounded queue in front of `instances` places where batches run."""

    def __init__(
        self,
        run_batch: Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT]]],
        *,
        name: str,
        max_batch_rows: int,
        max_queue_size: int,
        instances: int,
        clock: Callable[[], float],
        expected_batch_s: float = 1.0,
    ) -> None:
        """
        run_batch: runs items, returns one result each in the same order; at most `instances` calls at once.
        name: of what is served, for messages.
        clock: seconds, monotonic.
        expected_batch_s: how long a batch takes, until the first one has been measured.
        """
        self._run_batch = run_batch
        self._name = name
        self._max_batch_rows = max_batch_rows
        self._max_queue_size = max_queue_size
        self._instances = instances
        self._clock = clock
        self._batch_s = expected_batch_s
        self._waiting: OrderedDict[_Ticket[ItemT, ResultT], None] = OrderedDict()
        self._groups: dict[Hashable, _Group[ItemT, ResultT]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def queue_size(self) -> int:
        """Requests that wait, without those that run."""
        return len(self._waiting)

    async def submit(self, item: ItemT, *, rows: int, group: Hashable) -> ResultT:
        """The result for `item`, which counts `rows` rows (at most `max_batch_rows`).

        Cancelling the call takes a waiting item out of the queue; one that already runs is finished for nobody.
        Raises QueueFull, ModelNotReady once closed, and whatever `run_batch` raised for this item.
        """
        ticket = self._admit(item, rows, group)
        try:
            return await ticket.future
        finally:
            self._forget(ticket)

    async def close(self, *, drain: bool = True) -> None:
        """Admits nothing more and returns when nothing runs. Waiting requests run first, or are refused."""
        self._closed = True
        if not drain:
            for ticket in list(self._waiting):
                self._forget(ticket)
                _fail(ticket, self._closed_error())
        # A batch that ends may start the next one, so look again until none is left.
        while self._running:
            await asyncio.wait(self._running)

    def _admit(self, item: ItemT, rows: int, group: Hashable) -> _Ticket[ItemT, ResultT]:
        if self._closed:
            raise self._closed_error()
        if rows > self._max_batch_rows:
            raise ValueError(f"{rows} rows can never run: a batch holds {self._max_batch_rows}")
        if len(self._running) >= self._instances and len(self._waiting) >= self._max_queue_size:
            raise self._queue_full()
        ticket = _Ticket(item, rows, group, asyncio.get_running_loop().create_future())
        self._waiting[ticket] = None
        members = self._groups.setdefault(group, _Group())
        members.tickets[ticket] = None
        members.rows += rows
        self._dispatch()
        return ticket

    def _forget(self, ticket: _Ticket[ItemT, ResultT]) -> None:
        """Takes a ticket out of the queue; nothing happens when it has left already."""
        if ticket not in self._waiting:
            return
        del self._waiting[ticket]
        members = self._groups[ticket.group]
        del members.tickets[ticket]
        members.rows -= ticket.rows
        if not members.tickets:
            del self._groups[ticket.group]

    def _dispatch(self) -> None:
        while self._waiting and len(self._running) < self._instances:
            batch = self._next_batch()
            # Answered from elsewhere (the caller gave up in this very turn of the loop): nothing to compute.
            if batch := [ticket for ticket in batch if not ticket.future.done()]:
                # The set keeps the task alive (the loop itself only holds a weak reference) and counts busy instances.
                self._running.add(asyncio.create_task(self._occupy(batch), name=f"batch of {self._name}"))

    def _next_batch(self) -> list[_Ticket[ItemT, ResultT]]:
        """Takes the oldest ticket and those of its group that fit behind it, in order."""
        oldest = next(iter(self._waiting))
        batch: list[_Ticket[ItemT, ResultT]] = []
        free_rows = self._max_batch_rows
        for ticket in self._groups[oldest.group].tickets:
            # A batch also ends at max_batch_rows requests: requests of zero rows must not make it endless.
            if ticket.rows > free_rows or len(batch) == self._max_batch_rows:
                break
            batch.append(ticket)
            free_rows -= ticket.rows
        for ticket in batch:
            self._forget(ticket)
        return batch

    async def _occupy(self, batch: list[_Ticket[ItemT, ResultT]]) -> None:
        """One instance, from taking a batch to being idle again."""
        try:
            await self._run(batch)
        finally:
            # Open futures are left only when this task itself was cancelled, that is, when the loop ends.
            for ticket in batch:
                ticket.future.cancel()
            self._running.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            self._dispatch()

    async def _run(self, batch: list[_Ticket[ItemT, ResultT]]) -> None:
        started = self._clock()
        try:
            results = await self._run_batch([ticket.item for ticket in batch])
            for ticket, result in zip(batch, results, strict=True):
                if not ticket.future.done():
                    ticket.future.set_result(result)
        except Exception as error:
            await self._isolate(batch, error)
        else:
            self._batch_s += _NEWEST_WEIGHT * (self._clock() - started - self._batch_s)

    async def _isolate(self, batch: list[_Ticket[ItemT, ResultT]], error: Exception) -> None:
        """A failed batch is retried one by one, so that only the guilty request fails, with its own message."""
        if len(batch) == 1:
            _fail(batch[0], error)
            return
        for ticket in batch:
            if not ticket.future.done():
                await self._run([ticket])

    def _queue_full(self) -> QueueFull:
        # Every group needs at least one batch of its own; the queue is worked off by all instances together.
        waiting_rows = sum(group.rows for group in self._groups.values())
        batches = max(math.ceil(waiting_rows / self._max_batch_rows), len(self._groups))
        retry_after_s = batches * self._batch_s / self._instances
        return QueueFull(
            f"the queue of {self._name} is full: {len(self._waiting)} requests wait, max_queue_size is "
            f"{self._max_queue_size}; try again in about {retry_after_s:.1g} s",
            retry_after_s=retry_after_s,
        )

    def _closed_error(self) -> ModelNotReady:
        return ModelNotReady(f"{self._name} is UNLOADING and takes no more requests")


def _fail(ticket: _Ticket[ItemT, ResultT], error: Exception) -> None:
    if not ticket.future.done():
        ticket.future.set_exception(error)
        # Marks it as seen: a caller that gave up at this very moment would otherwise leave a complaint in the log.
        ticket.future.exception()
