"""Where batches run: one thread for each instance, or the event loop's own for what is over before a hop would be.

A hop to a thread and back costs some 50 us on an idle machine, and on a busy one it can cost milliseconds more: the
thread has to get the interpreter lock back from an event loop that is decoding requests. So a batch that the latency
curve expects to be shorter than `INLINE_S` runs right where it is. Everything longer never holds up the loop.

Knows neither queue nor model: what a batch is and how it is computed are passed in.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from service.latency_curve import LatencyCurve
from service.ticket import BatchOutcome

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

INLINE_S = 200e-6
# Batches that seem no longer than this are tried in place now and then.
_PERHAPS_SHORT_S = 2e-3
_TRIED_EVERY = 32

_Finished = Callable[[BatchOutcome[ResultT]], None]
_Job = tuple[asyncio.AbstractEventLoop, Sequence[ItemT], _Finished[ResultT]]


class Instances(Generic[ItemT, ResultT]):
    """A `Runner` of the scheduler (see there). Threads start with the first batch that needs one."""

    def __init__(
        self, compute: Callable[[Sequence[ItemT]], BatchOutcome[ResultT]], curve: LatencyCurve, *, count: int, name: str
    ) -> None:
        """compute: runs one batch, blocking; called from several threads at once. Must not raise."""
        self._compute = compute
        self._curve = curve
        self._count = count
        self._name = name
        self._jobs: queue.SimpleQueue[_Job[ItemT, ResultT] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._hops = 0

    def __call__(self, items: Sequence[ItemT], rows: int, finished: _Finished[ResultT]) -> None:
        if self._runs_here(self._curve.seconds(rows)):
            finished(self._compute(items))
            return
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, name=f"{self._name} instance {number}", daemon=True)
                for number in range(self._count)
            ]
            for thread in self._threads:
                thread.start()
        self._jobs.put((asyncio.get_running_loop(), items, finished))

    def _runs_here(self, expected_s: float) -> bool:
        if expected_s < INLINE_S:
            return True
        # What runs in a thread is measured with its way there and back, and so might never look short again.
        self._hops += 1
        return expected_s < _PERHAPS_SHORT_S and self._hops % _TRIED_EVERY == 0

    def close(self) -> None:
        """Ends the threads behind what they run. Does not wait."""
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, items, finished = job
            outcome = self._compute(items)
            try:
                loop.call_soon_threadsafe(finished, outcome)
            except RuntimeError:
                # The loop has ended: there is nobody left to answer.
                return
            # Not kept alive until the next batch comes.
            del job, items, finished, outcome
