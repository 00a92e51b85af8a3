"""The running event loop's timers on the clock that everything else here reads.

uvloop's own `time()` stands still within one turn of the loop and counts whole milliseconds, which is longer than many
models run; so deadlines and measurements use time.monotonic(), and only the callbacks are the loop's. Its timers are
as coarse: what should happen in a fraction of a millisecond happens in one of the next turns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class RunningLoop:
    """The `Timers` of the scheduler (see there), of whichever event loop runs."""

    time = staticmethod(time.monotonic)

    def call_soon(self, callback: Callable[[], object]) -> asyncio.Handle:
        return asyncio.get_running_loop().call_soon(callback)

    def call_at(self, when: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()), callback)
