"""Keeps the event loop awake behind an answer for some microseconds, where the next request usually comes that soon.

A process that sleeps in `epoll_wait` has to be woken, and where a hypervisor has put the core to sleep as well that
takes long: of 170 us that a small model's request took on a virtual machine, waking was 50. So an event loop with
nothing to do asks for news over and over, for at most `LIMIT_S` behind an answer, and only while more than half of
the requests of late came within it: traffic that comes slower costs nothing, and a mistake costs `LIMIT_S` once. (The
same trade as Linux's net.core.busy_poll and KVM's halt_poll_ns.) It is never worth it on a single core, which the
client may need to send with. Where other processes serve on the same cores, it is worth it only for a lone caller, who
sends the next request behind the last answer on the same connection: any other one may be answered by another process,
on the very core that this one would keep busy. Each turn lets other threads have the interpreter lock. Knows nothing of
requests but their times, and which connection they came by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

LIMIT_S = 50e-6
# Of the last eight requests or so.
_STEP = 1 / 8
_OFTEN = 1 / 2


class Clock(Protocol):
    def time(self) -> float: ...

    def call_soon(self, callback: Callable[[], object]) -> object: ...


class BusyPoll:
    """Of one event loop. `cores`: of all processes that serve together; `processes`: how many these are."""

    def __init__(self, clock: Clock, *, cores: int, processes: int = 1) -> None:
        self._clock = clock
        self._limit_s = LIMIT_S if cores > 1 else 0.0
        self._is_shared = processes > 1
        self._soon_share = 0.0
        self._answered_at: float | None = None
        """When the last answer was written, unless a request has come since."""
        self._answered: object = None
        """By which connection."""
        self._is_awake = False

    def received(self, connection: object) -> None:
        """A request, or the beginning of one, has come."""
        if self._answered_at is not None:
            came_soon = self._clock.time() - self._answered_at < self._limit_s
            if self._is_shared and connection is not self._answered:
                came_soon = False
            self._soon_share += (came_soon - self._soon_share) * _STEP
            self._answered_at = self._answered = None

    def answered(self, connection: object) -> None:
        """An answer has been written, and nothing is known to follow."""
        self._answered_at, self._answered = self._clock.time(), connection
        if self._soon_share > _OFTEN and not self._is_awake:
            self._is_awake = True
            self._clock.call_soon(self._look_again)

    def _look_again(self) -> None:
        # What is put off to the next turn makes the loop look at its sockets without sleeping.
        self._is_awake = self._answered_at is not None and self._clock.time() - self._answered_at < self._limit_s
        if self._is_awake:
            self._clock.call_soon(self._look_again)
