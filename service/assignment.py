"""Which versions a process is to serve, as another one serves them: what a replaced worker begins with.

Values and their JSON, nothing else. Versions are named by number: should a file have been replaced on disk without a
load, the new process has the new file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from service.version_states import ModelState

LoadParameters = Mapping[str, Any]
"""What a client has sent with a load in place of what lies on disk, as JSON has it; overrides.py says what that is."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """One version's place, in words that cross from process to process.

    version None: the model has none that could be loaded. counts: whether the server's readiness depends on it.
    """

    name: str
    version: int | None
    state: ModelState
    reason: str = ""
    counts: bool = True

    @property
    def place(self) -> tuple[str, int | None]:
        return self.name, self.version


def ready(rows: Sequence[Assigned]) -> list[Assigned]:
    return [row for row in rows if row.state is ModelState.READY]


@dataclass(frozen=True, slots=True)
class Assignment:
    """`parameters`: by name, what a client has sent with its load. `regions`: of shared memory, as clients have
    registered them: key, offset and size in bytes, by name."""

    rows: tuple[Assigned, ...]
    parameters: Mapping[str, LoadParameters] = field(default_factory=dict)
    regions: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)

    def with_model(self, name: str, rows: Sequence[Assigned], parameters: LoadParameters | None = None) -> Assignment:
        """As this one, but `name` is what `rows` say."""
        others = tuple(row for row in self.rows if row.name != name)
        kept = {one: sent for one, sent in self.parameters.items() if one != name}
        return replace(self, rows=(*others, *rows), parameters={**kept, name: parameters} if parameters else kept)

    def ready(self) -> list[Assigned]:
        return ready(self.rows)

    def names_changed(self, later: Assignment) -> list[str]:
        """The models of which other versions are READY in `later`, or the same with other parameters."""
        names = dict.fromkeys(row.name for row in (*self.rows, *later.rows))
        return [name for name in names if self._served(name) != later._served(name)]

    def _served(self, name: str) -> tuple[frozenset[int | None], LoadParameters | None]:
        return frozenset(row.version for row in self.ready() if row.name == name), self.parameters.get(name)

    def to_json(self) -> dict[str, Any]:
        return {"rows": rows_to_json(self.rows), "parameters": dict(self.parameters), "regions": dict(self.regions)}

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> Assignment:
        regions = {name: (key, offset, size_bytes) for name, (key, offset, size_bytes) in members["regions"].items()}
        return cls(rows_from_json(members["rows"]), members["parameters"], regions)


def rows_to_json(rows: Sequence[Assigned]) -> list[dict[str, Any]]:
    return [{**asdict(row), "state": row.state.value} for row in rows]


def rows_from_json(rows: Sequence[Mapping[str, Any]]) -> tuple[Assigned, ...]:
    return tuple(Assigned(**{**row, "state": ModelState(row["state"])}) for row in rows)
