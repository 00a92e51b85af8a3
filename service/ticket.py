"""The scheduler's vocabulary: a request's ticket, what becomes of a batch, and what the statistics are told of it.

Values, and the one rule that a caller is told once. Knows no queue, no clock, no model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

log = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


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


class BatchRecord(NamedTuple):
    """One batch that ran, for the statistics. Sums over its requests, in seconds; `failed` requests are in none.

    poisoned: of the failed ones, those that had made a larger batch fail. submitted_s: when each request came;
    began_s: when the batch did; run_s: from then to its end."""

    requests: int
    rows: int
    failed: int
    queue_s: float
    total_s: float
    input_s: float
    infer_s: float
    output_s: float
    poisoned: int = 0
    submitted_s: Sequence[float] = ()
    began_s: float = 0.0
    run_s: float = 0.0


class Ticket(Generic[ItemT, ResultT]):
    """One request's place: waiting, then running, then done or given up. Compared by identity."""

    __slots__ = ("deadline_s", "done", "group", "is_waiting", "item", "priority", "rows", "size_bytes", "submitted_s")

    def __init__(
        self,
        item: ItemT,
        rows: int,
        size_bytes: int,
        group: Hashable,
        done: Callable[[ResultT | Exception], object],
        priority: int,
        submitted_s: float,
        deadline_s: float,
    ) -> None:
        self.item: ItemT | None = item
        """None when it is over: heaps may hold the ticket for longer."""
        self.rows = rows
        self.size_bytes = size_bytes
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


@dataclass(slots=True, eq=False)
class Run(Generic[ItemT, ResultT]):
    """One busy instance: the batch that runs, and the pieces of a failed one that are still to be tried.

    is_try: it has another size than the one believed best. is_split: the batch has failed, and was divided."""

    pieces: list[list[Ticket[ItemT, ResultT]]]
    is_try: bool = False
    is_split: bool = False
    started_s: float = 0.0
    expected_s: float = 0.0
    is_starting: bool = False
    tickets: list[Ticket[ItemT, ResultT]] = field(default_factory=list)
