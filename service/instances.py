"""Where batches run: one thread for each instance, or the event loop's own for what is over before a hop would be.

A hop to a thread and back costs some 50 us on an idle machine, and on a busy one it can cost milliseconds more: the
thread has to get the interpreter lock back from an event loop that is decoding requests. So a batch that the latency
curve expects to be over soon runs right where it is, if it is like what was measured. Soon: within `INLINE_S`, and
`INLINE_REQUEST_S` more for each of its requests, for reading and answering them takes the loop several times that, and
beside it the run hardly shows. Should one hold up the loop all the same, those after it go to the threads, the longer
the more often that happens.

What runs in a thread is timed with its way there and back, which may be twenty times the run. Were that all one looked
at, a model that came to the threads in a bad moment of the machine would stay there for good, at half its speed. So
now and then a batch is tried in place, and what that took decides where those of its size run from then on.

Knows neither queue nor model: what a batch is, how it is computed and what it is like are passed in.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from service.latency_curve import LatencyCurve
from service.ticket import BatchOutcome

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

INLINE_S = 200e-6
# Measured with 64 callers on 2 cores, the client on the same ones: fully connected networks whose batches of 64 take
# 0.02 to 1.4 ms alone gave 1.3 to 1.6 times as many answers with all batches in place as with all in threads, where
# batches are smaller besides. No larger, for the sake of other models' callers.
INLINE_REQUEST_S = 10e-6
# Batches that seem no longer than this, or did when the model was loaded, are tried in place now and then.
_PERHAPS_SHORT_S = 2e-3
# No power of 2, as the scheduler's tries of other sizes are: the two must not miss each other for ever.
_TRIED_EVERY = 31
# A try that is not even nearly short doubles the time to the next one, up to this; a short one takes that back.
_MOST_SELDOM = 64 * _TRIED_EVERY
# A batch that took so long on the loop was not what the curve took it for; a busy machine rarely takes a core away for
# as long. The next so many run in threads, and four times as many each time that it happens again; a quarter of that
# after every so many that were short.
_HELD_UP_S = 20e-3
_FIRST_BANISHED = 64
_FORGIVEN_AFTER = 1024

_Finished = Callable[[BatchOutcome[ResultT]], None]
_Job = tuple[asyncio.AbstractEventLoop, Sequence[ItemT], _Finished[ResultT]]


class Instances(Generic[ItemT, ResultT]):
    """A `Runner` of the scheduler (see there). Threads start with the first batch that needs one."""

    def __init__(
        self,
        compute: Callable[[Sequence[ItemT]], BatchOutcome[ResultT]],
        curve: LatencyCurve,
        *,
        count: int,
        name: str,
        is_as_measured: Callable[[Sequence[ItemT], int], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """compute: runs one batch, blocking; called from several threads at once. Must not raise.

        is_as_measured: whether the curve speaks for these items, of so many rows; without it, for all.
        """
        self._compute = compute
        self._is_as_measured = is_as_measured
        self._clock = clock
        self._banished = 0
        self._next_banished = _FIRST_BANISHED
        self._curve = curve
        self._at_load = LatencyCurve(curve.points)
        self._short_rows = 0  # up to so many were over soon when they last ran in place
        self._count = count
        self._name = name
        self._jobs: queue.SimpleQueue[_Job[ItemT, ResultT] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._tried_every = self._until_try = _TRIED_EVERY
        self._short_runs = 0

    def __call__(self, items: Sequence[ItemT], rows: int, finished: _Finished[ResultT]) -> None:
        soon_s = INLINE_S + len(items) * INLINE_REQUEST_S
        if self._runs_here(items, rows, soon_s):
            began = self._clock()
            outcome = self._compute(items)
            self._took(rows, self._clock() - began, soon_s, failed=outcome.error is not None)
            finished(outcome)
            return
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, name=f"{self._name} instance {number}", daemon=True)
                for number in range(self._count)
            ]
            for thread in self._threads:
                thread.start()
        self._jobs.put((asyncio.get_running_loop(), items, finished))

    def _runs_here(self, items: Sequence[ItemT], rows: int, soon_s: float) -> bool:
        expected_s = self._curve.seconds(rows)
        if expected_s >= _PERHAPS_SHORT_S and self._at_load.seconds(rows) >= _PERHAPS_SHORT_S:
            return False
        if self._banished:
            self._banished -= 1
            return False
        if self._is_as_measured is not None and not self._is_as_measured(items, rows):
            return False
        if expected_s < soon_s or rows <= self._short_rows:
            return True
        self._until_try -= 1
        if self._until_try > 0:
            return False
        self._until_try = self._tried_every
        return True

    def _took(self, rows: int, seconds: float, soon_s: float, *, failed: bool) -> None:
        """A batch of `rows` rows ran in place for so long, and was over soon within `soon_s`."""
        if seconds < soon_s:
            if not failed:  # what was refused at once tells nothing of what the others take
                self._was_short(rows)
            return
        self._short_rows = min(self._short_rows, rows // 2)  # those just below are no shorter
        if seconds >= _PERHAPS_SHORT_S:
            self._until_try = self._tried_every = min(2 * self._tried_every, _MOST_SELDOM)
        if seconds > _HELD_UP_S:
            self._banished, self._next_banished = self._next_banished, 4 * self._next_banished

    def _was_short(self, rows: int) -> None:
        self._short_rows = max(self._short_rows, rows)
        self._tried_every = _TRIED_EVERY
        self._short_runs += 1
        if self._short_runs % _FORGIVEN_AFTER == 0:
            self._next_banished = max(_FIRST_BANISHED, self._next_banished // 4)

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
