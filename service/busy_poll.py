"""Keeps the event loop awake behind an answer for some microseconds, where the next request usually comes that soon.

A process that sleeps in `epoll_wait` has to be woken, and where a hypervisor has put the core to sleep as well that
takes long: of 170 us that a small model's request took on a virtual machine, waking was 50. So an event loop with
nothing to do asks for news over and over, for at most `LIMIT_S` behind an answer, and only while more than half of
the requests of late came within it: traffic that comes slower costs nothing, and a mistake costs `LIMIT_S` once. (The
same trade as Linux's net.core.busy_poll and KVM's halt_poll_ns.) It is never worth it on a single core, which the
client may need to send with. Each turn lets other threads have the interpreter lock. Knows nothing of requests but
their times.
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
    """Of one event loop. `cores`: what the process may use."""

    def __init__(self, clock: Clock, *, cores: int) -> None:
        self._clock = clock
        self._limit_s = LIMIT_S if cores > 1 else 0.0
        self._soon_share = 0.0
        self._answered_at: float | None = None
        """When the last answer was written, unless a request has come since."""
        self._is_awake = False

    def received(self) -> None:
        """A request, or the beginning of one, has come."""
        if self._answered_at is not None:
            came_soon = self._clock.time() - self._answered_at < self._limit_s
            self._soon_share += (came_soon - self._soon_share) * _STEP
            self._answered_at = None

    def answered(self) -> None:
        """An answer has been written, and nothing is known to follow."""
        self._answered_at = self._clock.time()
        if self._soon_share > _OFTEN and not self._is_awake:
            self._is_awake = True
            self._clock.call_soon(self._look_again)

    def _look_again(self) -> None:
        # What is put off to the next turn makes the loop look at its sockets without sleeping.
        self._is_awake = self._answered_at is not None and self._clock.time() - self._answered_at < self._limit_s
        if self._is_awake:
            self._clock.call_soon(self._look_again)
