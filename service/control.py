"""What a route asks of the server as a whole, however many processes serve: one (the registry itself) or several.

Loading, unloading and the index speak for all processes: a call returns when every one has done it, or none has.
"""

from __future__ import annotations

from typing import Protocol

from service.protocol import RepositoryIndexRow


class Control(Protocol):
    """A `Registry` is one, and so is `AllWorkers`."""

    async def index(self) -> list[RepositoryIndexRow]:
        """Every version in its state, and every model on disk that nobody has loaded. Raises LoadFailed."""

    async def load(self, name: str, config: str | None = None) -> None:
        """Raises NotFound, LoadFailed and ModelNotReady; then nothing has changed anywhere."""

    async def unload(self, name: str) -> None:
        """Returns when what had been taken is answered. Raises ModelNotReady while the server starts or stops."""

    def is_ready(self) -> bool:
        """Whether requests can be sent."""

    def why_not_ready(self) -> str:
        """Of the server as a whole, in a few words; empty when each process can tell for itself."""
