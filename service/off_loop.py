"""Work that would hold the event loop up, done in threads: expanding, reading, writing and packing what is large.

One thread for each kind of work: much of it at once makes those who brought it wait, and takes no cores from the rest.
What is very large has a thread of its own, so that nobody waits behind it whose own work is small beside it. What is
to follow runs on the event loop again, unless the request has been given up. Knows neither the work nor the request.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from enum import Enum
from typing import Any, Generic, TypeVar

ResultT = TypeVar("ResultT")

Cancel = Callable[[], object]


class Work(Enum):
    """Its thread's name."""

    EXPAND = "expand"
    READ = "read"
    READ_VERY_LARGE = "read-very-large"
    WRITE = "write"
    WRITE_VERY_LARGE = "write-very-large"
    PACK = "pack"
    COMPARE = "compare"


@functools.cache
def _thread_of(work: Work) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=work.value)


def in_thread(
    work: Work,
    compute: Callable[[], ResultT],
    then: Callable[[ResultT], Cancel | None],
    refuse: Callable[[Exception], object],
) -> Cancel:
    """Calls `then` with what `compute` returns, or `refuse` with what it raises, on the event loop, later.

    What is returned gives the request up: neither is called any more, but what `then` has returned.
    """
    job = _Job(then, refuse)
    try:
        job.queued = _thread_of(work).submit(job.run, compute, asyncio.get_running_loop())
    except Exception:
        job.give_up()  # no thread could be started; should one find it in the queue later, nobody is told again
        raise
    _unfinished.add(job)
    return job.give_up


class _Job(Generic[ResultT]):
    """One piece of work, from the queue to what follows.

    A request's body and its numbers hang on it, and on the traceback of what it raises. So nothing here may lead back
    to itself (asyncio.wrap_future and the futures of both modules do): only the cycle collector would free it, which
    comes by when there are many objects, however large they are.
    """

    __slots__ = ("_cancel", "_refuse", "_then", "queued")

    def __init__(self, then: Callable[[ResultT], Cancel | None], refuse: Callable[[Exception], object]) -> None:
        self._then: Callable[[ResultT], Cancel | None] | None = then
        self._refuse: Callable[[Exception], object] | None = refuse
        self._cancel: Cancel | None = None
        self.queued: Future[None] | None = None

    # --- in the thread ---

    def run(self, compute: Callable[[], ResultT], loop: asyncio.AbstractEventLoop) -> None:
        try:
            tell: Callable[[], None] = functools.partial(self._computed, compute())
        except Exception as error:
            tell = functools.partial(self.refuse, error)
        except BaseException as error:  # meant for a main thread, and lost on this one
            tell = functools.partial(self.refuse, RuntimeError(f"{type(error).__name__} in a thread"))
        with suppress(RuntimeError):  # the loop has ended: there is nobody left to answer
            loop.call_soon_threadsafe(tell)
        del tell  # or the error leads to this frame, and this frame to the error

    # --- on the event loop ---

    def _computed(self, result: ResultT) -> None:
        then = self._then
        self._end()
        if then is not None:
            self._cancel = then(result)

    def give_up(self) -> None:
        if self.queued is not None:
            self.queued.cancel()  # what has not begun never does
        self._end()
        if self._cancel is not None:
            self._cancel()

    def refuse(self, error: Exception) -> None:
        refuse = self._refuse
        self.give_up()
        if refuse is not None:
            refuse(error)

    def _end(self) -> None:
        self._then = self._refuse = self.queued = None
        _unfinished.discard(self)


_unfinished: set[_Job[Any]] = set()


def refuse_unfinished(error: Exception) -> int:
    """Refuses every request that is in a thread's hands; returns how many there were."""
    jobs = list(_unfinished)
    for job in jobs:
        job.refuse(error)
    return len(jobs)


# To sleep at all is what counts: it hands the interpreter over at once, where others would ask for it for 5 ms
# (sys.getswitchinterval). Linux makes 60 us of it.
_NAP_S = 1e-6


def pause() -> None:
    """In such a thread: lets the event loop run, if it wants to."""
    time.sleep(_NAP_S)
