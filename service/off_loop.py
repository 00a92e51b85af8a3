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
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import TypeVar

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


@functools.cache
def _thread_of(work: Work) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=work.value)


_unfinished: set[Callable[[Exception], None]] = set()


def in_thread(
    work: Work,
    compute: Callable[[], ResultT],
    then: Callable[[ResultT], Cancel | None],
    refuse: Callable[[Exception], object],
) -> Cancel:
    """Calls `then` with what `compute` returns, or `refuse` with what it raises, on the event loop, later.

    What is returned gives the request up: neither is called any more, but what `then` has returned.
    """
    given_up = False
    cancel: Cancel | None = None

    def go_on(computing: asyncio.Future[ResultT]) -> None:
        nonlocal cancel
        _unfinished.discard(end)
        # Asked for in any case, or asyncio logs that nobody did.
        error = None if computing.cancelled() else computing.exception()
        if given_up:
            return
        if error is not None:
            assert isinstance(error, Exception)
            refuse(error)
        else:
            cancel = then(computing.result())

    def give_up() -> None:
        nonlocal given_up
        given_up = True
        _unfinished.discard(end)
        computing.cancel()  # what has not begun never does
        if cancel is not None:
            cancel()

    def end(error: Exception) -> None:
        give_up()
        refuse(error)

    computing = _thread_of(work).submit(compute)
    _unfinished.add(end)
    asyncio.wrap_future(computing).add_done_callback(go_on)
    return give_up


def refuse_unfinished(error: Exception) -> int:
    """Refuses every request that is in a thread's hands; returns how many there were."""
    ends = list(_unfinished)
    for end in ends:
        end(error)
    return len(ends)


# To sleep at all is what counts: it hands the interpreter over at once, where others would ask for it for 5 ms
# (sys.getswitchinterval). Linux makes 60 us of it.
_NAP_S = 1e-6


def pause() -> None:
    """In such a thread: lets the event loop run, if it wants to."""
    time.sleep(_NAP_S)
