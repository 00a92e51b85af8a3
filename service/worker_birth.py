"""What a worker process is given on its command line by the supervisor that starts it. Values and their JSON."""

from __future__ import annotations

import dataclasses
import json
import mmap

from service.counter_pages import PAGE_BYTES, CounterPage, Pages


@dataclasses.dataclass(frozen=True, slots=True)
class Birth:
    """`number`: as people count, for the log. `control`, `board`, `pages`, `listeners`: open files, by number; `pages`
    has a page of counters for each seat, `listeners` for each slot the sockets of all addresses."""

    number: int
    workers: int
    seat: int
    seats: int
    control: int
    board: int
    pages: int
    listeners: tuple[tuple[int, ...], ...]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Birth:
        members = json.loads(text)
        return cls(**{**members, "listeners": tuple(map(tuple, members["listeners"]))})

    def open_pages(self) -> Pages:
        """The page of this seat to write, and those of all others to read."""
        own, *others = (page_of(self.pages, seat) for seat in (self.seat, *_all_but(self.seat, self.seats)))
        return Pages(CounterPage(own), others)

    def files(self) -> tuple[int, ...]:
        return (self.control, self.board, self.pages, *(file for slot in self.listeners for file in slot))


def page_of(pages: int, seat: int) -> mmap.mmap:
    """The memory of one seat's page of counters, in the open file of all."""
    return mmap.mmap(pages, PAGE_BYTES, offset=seat * PAGE_BYTES)


def _all_but(seat: int, seats: int) -> list[int]:
    return [other for other in range(seats) if other != seat]
