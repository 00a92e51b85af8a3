"""An event loop's clock, callbacks and timers, whose time passes only when a test says so. Sleeps never."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Loop:
    """A `Timers` whose time stands still until `advance`."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._soon: list[Callable[[], object]] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self.now_s

    def call_soon(self, callback: Callable[[], object]) -> None:
        self._soon.append(callback)

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def turn(self) -> None:
        """Everything that can happen now, in the order of the loop."""
        while self._soon:
            soon, self._soon = self._soon, []
            for callback in soon:
                callback()

    def advance(self, seconds: float) -> None:
        until = self.now_s + seconds
        self.turn()
        while self._timers and self._timers[0][0] <= until:
            self.now_s, _, timer = heapq.heappop(self._timers)
            timer.fire()
            self.turn()
        self.now_s = until


class Timer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.cancel: Callable[[], None] = self._cancel
        self._callback: Callable[[], object] | None = callback

    def _cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        if self._callback is not None:
            self._callback()
