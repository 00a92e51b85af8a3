"""What each worker process is doing, in memory that all of them share: readiness is read here, and asks nobody.

A seat is a place for one process; there are twice as many as workers, since in a rolling restart the old and the new
process live side by side. The supervisor empties a seat when its process has ended; a process writes its own seat only.
Single bytes, so that no reader sees half a change.
"""

from __future__ import annotations

import mmap
from enum import IntFlag

_STARTED, _STOPPING = 0, 1
_HEADER_BYTES = 16


class Seat(IntFlag):
    """TAKEN: a process sits here. LISTENING: it takes new connections. READY: its registry says so."""

    TAKEN = 1
    LISTENING = 2
    READY = 4


class Board:
    """`memory`: shared, zeroed at first, of `bytes_for(seats)` bytes."""

    def __init__(self, memory: mmap.mmap, seats: int) -> None:
        self._memory = memory
        self.seats = seats

    @staticmethod
    def bytes_for(seats: int) -> int:
        return _HEADER_BYTES + seats

    def read(self, seat: int) -> Seat:
        return Seat(self._memory[_HEADER_BYTES + seat])

    def write(self, seat: int, state: Seat) -> None:
        self._memory[_HEADER_BYTES + seat] = state

    def set(self, seat: int, flag: Seat, *, on: bool) -> None:
        state = self.read(seat)
        self.write(seat, state | flag if on else state & ~flag)

    def taken(self) -> list[int]:
        return [seat for seat in range(self.seats) if Seat.TAKEN in self.read(seat)]

    @property
    def has_started(self) -> bool:
        """Whether every worker of the beginning has loaded what there was to load."""
        return bool(self._memory[_STARTED])

    def started(self) -> None:
        self._memory[_STARTED] = 1

    @property
    def is_stopping(self) -> bool:
        return bool(self._memory[_STOPPING])

    def stopping(self) -> None:
        self._memory[_STOPPING] = 1

    def is_ready(self) -> bool:
        """Whether every process that takes connections is ready, and there is one."""
        listening = [state for seat in self.taken() if Seat.LISTENING in (state := self.read(seat))]
        return (
            self.has_started
            and not self.is_stopping
            and bool(listening)
            and all(Seat.READY in state for state in listening)
        )
