"""What this process measures of itself, in its page of counters, where readings of all processes find it.

`refresh` brings it up to date: behind every request for the metrics, and once a second where other processes read the
page as well. Knows no metric's name in any text.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from service.counter_pages import Kind, Labels
from service.registry import Registry

QUEUE_REQUESTS, QUEUE_ROWS, QUEUE_BYTES = "queue_requests", "queue_rows", "queue_bytes"
RESIDENT_BYTES, STARTED_S, CONNECTIONS = "resident_bytes", "started_s", "connections"
"""Families of series. The first two have the labels model and version."""

_EVERY_S = 1.0


class ProcessGauges:
    """Those of the process that `registry` serves in."""

    def __init__(self, registry: Registry, connections: Callable[[], int] | None = None) -> None:
        """connections: how many are open; a server that does not know has none to tell."""
        self.connections = connections
        self._registry = registry
        self._started_s = _started_s()
        self._places: dict[tuple[str, Labels], int] = {}

    def refresh(self) -> None:
        registry = self._registry
        waiting: dict[Labels, tuple[int, int]] = {
            (("model", model.name), ("version", str(model.version))): model.waiting for model in registry.serving()
        }
        for labels in {labels for family, labels in self._places if family == QUEUE_REQUESTS} - waiting.keys():
            waiting[labels] = (0, 0)  # it serves no more
        for labels, (requests, rows) in waiting.items():
            self._set(QUEUE_REQUESTS, requests, labels)
            self._set(QUEUE_ROWS, rows, labels)
        self._set(QUEUE_BYTES, registry.queue_space.used_bytes)
        if (resident := resident_bytes()) is not None:
            self._set(RESIDENT_BYTES, resident)
            self._set(STARTED_S, self._started_s, kind=Kind.LARGEST_GAUGE)
        if self.connections is not None:
            self._set(CONNECTIONS, self.connections())

    async def keep_fresh(self) -> None:
        """Until cancelled."""
        while True:
            self.refresh()
            await asyncio.sleep(_EVERY_S)

    def _set(self, family: str, value: float, labels: Labels = (), kind: Kind = Kind.GAUGE) -> None:
        page = self._registry.pages.own
        place = self._places.get((family, labels))
        if place is None:
            place = self._places[family, labels] = page.series(kind, family, labels)
        page.cells[place] = value


def resident_bytes(root: Path = Path("/")) -> int | None:
    """Main memory that this process holds; None where the system does not tell (it is no Linux)."""
    try:
        pages = int((root / "proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _started_s() -> float:
    """When this process began, as far as Linux knows; otherwise now."""
    try:
        # Behind the name, which may hold spaces and brackets, `starttime` is the 20th field (proc_pid_stat(5)).
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return time.time()
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
