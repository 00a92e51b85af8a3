"""Which versions a process is to serve, as another one serves them: what a replaced worker begins with.

Values and their JSON, nothing else. Versions are named by number: should a file have been replaced on disk without a
load, the new process has the new file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from service.version_states import ModelState


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


@dataclass(frozen=True, slots=True)
class Assignment:
    """`configs`: by name, Triton's model configuration that a client has sent with its load, as JSON."""

    rows: tuple[Assigned, ...]
    configs: Mapping[str, str]

    def with_model(self, name: str, rows: Sequence[Assigned], config: str | None = None) -> Assignment:
        """As this one, but `name` is what `rows` say."""
        others = tuple(row for row in self.rows if row.name != name)
        configs = {one: text for one, text in self.configs.items() if one != name}
        return Assignment((*others, *rows), configs if config is None else {**configs, name: config})

    def to_json(self) -> dict[str, Any]:
        return {"rows": rows_to_json(self.rows), "configs": dict(self.configs)}

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> Assignment:
        return cls(rows_from_json(members["rows"]), members["configs"])


def rows_to_json(rows: Sequence[Assigned]) -> list[dict[str, Any]]:
    return [{**asdict(row), "state": row.state.value} for row in rows]


def rows_from_json(rows: Sequence[Mapping[str, Any]]) -> tuple[Assigned, ...]:
    return tuple(Assigned(**{**row, "state": ModelState(row["state"])}) for row in rows)
