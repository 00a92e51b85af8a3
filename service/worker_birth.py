"""What a worker process is given on its command line by the supervisor that starts it. Values and their JSON."""

from __future__ import annotations

import dataclasses
import json


@dataclasses.dataclass(frozen=True, slots=True)
class Birth:
    """`number`: as people count, for the log. `control`, `board`, `listeners`: open files, by number; `listeners` has
    for each slot the sockets of all addresses."""

    number: int
    workers: int
    seat: int
    seats: int
    control: int
    board: int
    listeners: tuple[tuple[int, ...], ...]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Birth:
        members = json.loads(text)
        return cls(**{**members, "listeners": tuple(map(tuple, members["listeners"]))})

    def files(self) -> tuple[int, ...]:
        return (self.control, self.board, *(file for slot in self.listeners for file in slot))
