"""How many connections there are, and whether one more may come: a count with a limit. Knows no socket.

Who comes beyond the limit is told so and hung up on, rather than left in the kernel's backlog: there a client believes
itself connected and waits without a word, and so does a load balancer that could have gone elsewhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import Enum

log = logging.getLogger(__name__)

# Each takes a descriptor until it has read why, or `Limits.farewell_s` has passed.
_TOLD_AT_ONCE = 256
_SECONDS_BETWEEN_LINES = 60.0
# What fewer leave behind, some megabytes, is not worth looking for.
_MANY = 1000


class Place(Enum):
    """What becomes of a connection."""

    ADMITTED = "it may send requests"
    TURNED_AWAY = "it is told that there is no room"
    SHUT_OUT = "it is closed without a word: enough others are being told"


class Crowd:
    """All connections of one process."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self._clock = clock
        self._counts = dict.fromkeys(Place, 0)
        self._refused = 0
        self._peak = 0
        self._next_line_s = -float("inf")

    @property
    def admitted(self) -> int:
        return self._counts[Place.ADMITTED]

    def enter(self) -> Place:
        """For each `enter`, `leave` is called once with what it returned."""
        if self._counts[Place.ADMITTED] < self.most:
            place = Place.ADMITTED
            self._peak = max(self._peak, self.admitted + 1)
        else:
            self._note()
            place = Place.TURNED_AWAY if self._counts[Place.TURNED_AWAY] < _TOLD_AT_ONCE else Place.SHUT_OUT
        self._counts[place] += 1
        return place

    def leave(self, place: Place) -> None:
        self._counts[place] -= 1

    def has_thinned(self) -> bool:
        """Whether most of many have gone since this was last true, or since the beginning."""
        if self._peak < _MANY or self.admitted > self._peak // 4:
            return False
        self._peak = self.admitted
        return True

    def _note(self) -> None:
        """One line a minute, however many come."""
        self._refused += 1
        if (now := self._clock()) >= self._next_line_s:
            self._next_line_s = now + _SECONDS_BETWEEN_LINES
            log.warning("connections refused: %d, for %d are open (--max-connections)", self._refused, self.most)
            self._refused = 0
