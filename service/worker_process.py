"""One worker process as its supervisor knows it. Values, and how to end it by force."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from service.assignment import Assignment
from service.channel import Channel


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """`talks`: it can be asked. `settled`: it serves what the others serve. `is_leaving`: it has been told to end, or
    has said that it does."""

    slot: int
    seat: int
    process: asyncio.subprocess.Process
    channel: Channel
    began_with: Assignment | None
    talks: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    is_leaving: bool = False

    @property
    def number(self) -> int:
        """As people count."""
        return self.slot + 1

    def __str__(self) -> str:
        return f"worker {self.number} (process {self.process.pid})"

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            self.process.kill()
