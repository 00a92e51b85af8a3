"""Signals that a terminal sends to every process of a group, kept from the children of this process.

They cannot keep them from themselves: an interpreter that starts takes some milliseconds until it runs its first line,
and Ctrl-C within them ends it with a traceback. A blocked signal is inherited (pthread_sigmask(3), execve(2)), by
children that asyncio or subprocess start; uvloop's begin with none blocked. A child never sees these signals, so
somebody has to tell it when to end.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def kept_from_children(*numbers: signal.Signals) -> Iterator[None]:
    """For whoever is started within; what comes to us meanwhile is handled behind it at the latest."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        # Not what it was before: several children may be started at a time, and end here in any order.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
