"""The states that a version passes through, and one version's place among them.

    (found on disk) -> LOADING -> READY -> UNLOADING -> UNAVAILABLE "unloaded", or gone when another took its place
                          |
                          +--> UNAVAILABLE (with a reason)

Who moves them is the registry.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from service.discovery import Found
from service.model import Model

STARTING = "the first scan of the model repository is not finished"
DRAINING = "the server is stopping; it still answers, but send nothing here any more"
UNLOADED = "unloaded"
"""The reason of what somebody took out of service; any other is a failure."""


class ModelState(Enum):
    """Triton's words, as in its repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


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
