"""One version's state, and its place among the others. What the states are: version_states.py."""

from __future__ import annotations

from dataclasses import dataclass

from service.discovery import Found
from service.model import Model
from service.version_states import ModelState


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One version's state. `version` None: the model has no version that could be loaded. `reason` of one that is
    READY: why what lies on disk now has not replaced it, otherwise empty."""

    name: str
    version: int | None
    state: ModelState
    reason: str = ""


@dataclass(slots=True, eq=False)
class Entry:
    """One version's place. `counts`: whether the server's readiness depends on it."""

    found: Found
    state: ModelState
    reason: str = ""
    model: Model | None = None
    counts: bool = True

    @property
    def number(self) -> int | None:
        return self.found.version.version if self.found.version else None

    def status(self) -> ModelStatus:
        return ModelStatus(self.found.name, self.number, self.state, self.reason)

    def settle(self, outcome: Model | str) -> None:
        """LOADING has ended with a model, or with why there is none."""
        if isinstance(outcome, str):
            self.state, self.reason = ModelState.UNAVAILABLE, outcome
        else:
            self.model, self.state, self.reason = outcome, ModelState.READY, ""

    def told(self) -> str:
        """State and reason, for a message."""
        version = f"version {self.number} is {self.state.value}" if self.number else f"it is {self.state.value}"
        return f"{version}: {self.reason}" if self.reason else version
