"""A forked child that works on memory that the test shares with it, and is killed without a word."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def forked(work: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """A child that does `work`, then nothing, and never returns to the test; behind the block it has been killed.

    Calling what is yielded waits until `work` is done, and fails when it failed.
    """
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            os.write(writes, b"!")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writes)

    def until_done() -> None:
        assert os.read(reads, 1) == b"!", "the forked child failed"

    try:
        yield until_done
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reads)
