"""How many files and sockets this process may have open, and how many connections that leaves room for."""

from __future__ import annotations

import contextlib
import logging
import sys

log = logging.getLogger(__name__)

# What is not a client's connection: model files while they load, libraries, listeners, event loops, those who are being
# told that there is no room (crowd.py).
_OTHERS = 512


def raise_limit() -> int | None:
    """Raises the soft limit on open files to the hard one. Returns what it is then; None where there is none to see.

    Most systems set the soft limit to 1024, for the sake of programs that use select(), which this one does not.
    """
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Refused by systems whose hard limit says "unlimited" and means less (macOS).
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return None if soft == resource.RLIM_INFINITY else soft


def connections_within(limit: int | None, wanted: int) -> int:
    """As many of the `wanted` connections as a limit on open files leaves room for; fewer are told in the log."""
    if limit is None or limit >= wanted + _OTHERS:
        return wanted
    room = max(limit - _OTHERS, limit // 2)
    log.warning(
        "--max-connections %d cannot be reached: this process may open %d files (ulimit -Hn), which leaves room for %d",
        wanted,
        limit,
        room,
    )
    return room
