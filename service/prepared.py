"""A load in two steps: versions that are loaded, and answer when all who serve with them have got so far.

What becomes of the versions that answered before, and of those that never will, is their owner's affair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from service.assignment import Assigned
from service.model import Model
from service.model_states import Entry
from service.traffic import why_not_shared
from service.version_states import ModelState


class Owner(Protocol):
    """The registry."""

    def replace(self, name: str, before: list[Entry], after: list[Entry]) -> None:
        """From here on `after` answers in place of `before`."""

    async def end(self, models: Iterable[Model]) -> None:
        """Gives the memory of models back that never answered."""


class Prepared:
    """Versions of one name that are loaded and answer nobody yet: whoever serves with several processes lets them
    answer when all of these have got so far. Until then the name is locked. One of `commit` and `abort`, once."""

    def __init__(
        self,
        owner: Owner,
        name: str,
        before: list[Entry],
        outcomes: tuple[tuple[Entry, Model | str], ...],
        lock: asyncio.Lock,
    ) -> None:
        self.outcomes = outcomes
        self._owner = owner
        self._name = name
        self._before = before
        self._lock = lock

    def assigned(self) -> tuple[Assigned, ...]:
        """What another process would have to serve, once this is committed."""
        return tuple(
            Assigned(self._name, entry.number, ModelState.READY, counts=entry.counts) for entry, _ in self.outcomes
        )

    def why_not_shared(self) -> str:
        """Why requests cannot be shared among these as their configuration asks for; empty where they can."""
        config = self.outcomes[0][0].found.config
        assert config is not None
        return why_not_shared([outcome for _, outcome in self.outcomes if isinstance(outcome, Model)], config)

    def commit(self) -> None:
        """From here on they answer; what answered before ends behind what it has taken."""
        for entry, outcome in self.outcomes:
            entry.settle(outcome)
        self._owner.replace(self._name, self._before, [entry for entry, _ in self.outcomes])
        self._lock.release()

    async def abort(self, reason: str) -> None:
        """They go; what answered before goes on. `reason`: why those that loaded well do not answer."""
        try:
            await self.drop(reason)
        finally:
            self._lock.release()

    async def drop(self, reason: str) -> None:
        """As `abort`, of one who holds the lock on."""
        await self._owner.end(outcome for _, outcome in self.outcomes if isinstance(outcome, Model))
        for entry, outcome in self.outcomes:
            entry.settle(outcome if isinstance(outcome, str) else reason)
