"""Those who wait: by group, best priority and oldest first, with the earliest deadline and the bytes they hold known.

A group is a heap, and what leaves it from the middle stays as a dead entry until it comes to the top. Two rules keep
that cheap: the top of a group is never dead, so a group without anybody is gone; and heaps are swept when there are
more dead entries than living ones. Knows no clock, no curve and nobody who runs anything.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable
from typing import Generic

from service.ticket import ItemT, ResultT, Ticket

# Fewer dead entries than this are never worth a sweep.
_DEAD_ENTRIES = 256


class QueueSpace:
    """Bytes that all queues of a server hold together, and how many they may."""

    __slots__ = ("limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: float = math.inf) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0


_Entry = tuple[int, int, Ticket[ItemT, ResultT]]
"""Priority, then order of arrival: what a group is sorted by."""


class Waiting(Generic[ItemT, ResultT]):
    """The tickets of one queue. `requests` and `rows` are of those that wait."""

    __slots__ = ("_by_priority", "_dead", "_deadlines", "_groups", "_sequence", "_space", "requests", "rows")

    def __init__(self, space: QueueSpace) -> None:
        self.requests = 0
        self.rows = 0
        self._space = space
        self._sequence = 0
        self._dead = 0
        self._by_priority: dict[int, list[int]] = {}  # requests and rows
        self._groups: dict[Hashable, list[_Entry[ItemT, ResultT]]] = {}
        self._deadlines: list[tuple[float, int, Ticket[ItemT, ResultT]]] = []

    @property
    def groups(self) -> int:
        return len(self._groups)

    @property
    def oldest(self) -> Ticket[ItemT, ResultT]:
        """Of the best priority. At least one must wait."""
        return min(self._groups.values())[0][2]

    @property
    def everybody(self) -> list[Ticket[ItemT, ResultT]]:
        return [entry[2] for members in self._groups.values() for entry in members if entry[2].is_waiting]

    def ahead_of(self, priority: int) -> tuple[int, int]:
        """Requests and rows that would run before a new one of this priority."""
        if len(self._by_priority) < 2 and priority in self._by_priority:
            return self.requests, self.rows
        ahead = [counts for one, counts in self._by_priority.items() if one <= priority]
        return sum([counts[0] for counts in ahead]), sum([counts[1] for counts in ahead])

    def add(self, ticket: Ticket[ItemT, ResultT]) -> None:
        self._sequence += 1
        self.requests += 1
        self.rows += ticket.rows
        counts = self._by_priority.get(ticket.priority)
        if counts is None:
            counts = self._by_priority[ticket.priority] = [0, 0]
        counts[0] += 1
        counts[1] += ticket.rows
        self._space.used_bytes += ticket.size_bytes
        members = self._groups.get(ticket.group)
        if members is None:
            members = self._groups[ticket.group] = []
        heapq.heappush(members, (ticket.priority, self._sequence, ticket))
        if ticket.deadline_s < math.inf:
            heapq.heappush(self._deadlines, (ticket.deadline_s, self._sequence, ticket))
            self._sweep()

    def take(
        self, most_rows: int, most_requests: int, is_in_time: Callable[[int, float], bool]
    ) -> list[Ticket[ItemT, ResultT]]:
        """Takes the oldest and those of its group that fit behind it, in order. At least one must wait.

        is_in_time: whether so many rows together would be answered by a deadline.
        """
        # A list of tuples compares by its first one, and no two have the same sequence number.
        members = min(self._groups.values())
        group = members[0][2].group
        batch: list[Ticket[ItemT, ResultT]] = []
        rows, deadline_s = 0, math.inf
        while members:
            ticket = members[0][2]
            # Also ends at so many requests: requests of zero rows must not make a batch endless.
            if batch and (rows + ticket.rows > most_rows or len(batch) >= most_requests):
                return batch
            deadline_s = min(deadline_s, ticket.deadline_s)
            # Company must not make anybody late who would not be so alone.
            if batch and deadline_s < math.inf and not is_in_time(rows + ticket.rows, deadline_s):
                return batch
            batch.append(ticket)
            rows += ticket.rows
            heapq.heappop(members)
            self._leave(ticket)
            if self._dead:
                self._bury(members)
        del self._groups[group]
        return batch

    def remove(self, ticket: Ticket[ItemT, ResultT]) -> None:
        """Leaves without running; what is left of it in the heaps must not hold on to a request's body."""
        self._leave(ticket)
        ticket.item = None
        self._dead += 1
        members = self._groups[ticket.group]
        self._bury(members)
        if not members:
            del self._groups[ticket.group]
        self._sweep()

    @property
    def earliest_deadline_s(self) -> float:
        """Infinite when nobody has one."""
        while self._deadlines and not self._deadlines[0][2].is_waiting:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def remove_expired(self, now: float) -> list[Ticket[ItemT, ResultT]]:
        expired = []
        while self.earliest_deadline_s <= now:
            ticket = heapq.heappop(self._deadlines)[2]
            self.remove(ticket)
            expired.append(ticket)
        return expired

    def _leave(self, ticket: Ticket[ItemT, ResultT]) -> None:
        ticket.is_waiting = False
        self.requests -= 1
        self.rows -= ticket.rows
        counts = self._by_priority[ticket.priority]
        counts[0] -= 1
        counts[1] -= ticket.rows
        if not counts[0]:
            del self._by_priority[ticket.priority]
        self._space.used_bytes -= ticket.size_bytes

    def _bury(self, members: list[_Entry[ItemT, ResultT]]) -> None:
        while members and not members[0][2].is_waiting:
            heapq.heappop(members)
            self._dead -= 1

    def _sweep(self) -> None:
        if self._dead > self.requests + _DEAD_ENTRIES:
            self._dead = 0
            for members in self._groups.values():
                members[:] = [entry for entry in members if entry[2].is_waiting]
                heapq.heapify(members)
        # Here those that have been taken stay, too, behind an earlier deadline.
        if len(self._deadlines) > 2 * self.requests + _DEAD_ENTRIES:
            self._deadlines = [entry for entry in self._deadlines if entry[2].is_waiting]
            heapq.heapify(self._deadlines)
