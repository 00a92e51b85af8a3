"""The server as a whole, seen from one of its worker processes: asks the supervisor, which asks all workers.

Readiness is read from the board that they share. When the supervisor has gone, nothing can be loaded any more.
"""

from __future__ import annotations

from typing import Any

from service.assignment import LoadParameters
from service.board import Board
from service.channel import Channel, ChannelClosed, RemoteDefect
from service.errors import InferenceFailed, ModelNotReady
from service.protocol import RepositoryIndexRow


class AllWorkers:
    """A `Control`."""

    def __init__(self, channel: Channel, board: Board) -> None:
        self._channel = channel
        self._board = board

    async def index(self) -> list[RepositoryIndexRow]:
        return [RepositoryIndexRow(**row) for row in await self._ask("index")]

    async def load(self, name: str, parameters: LoadParameters | None = None) -> None:
        await self._ask("load", name=name, parameters=parameters)

    async def unload(self, name: str) -> None:
        await self._ask("unload", name=name)

    async def register_region(self, name: str, key: str, offset: int, size_bytes: int) -> None:
        await self._ask("register_region", name=name, key=key, offset=offset, size_bytes=size_bytes)

    async def unregister_regions(self, name: str | None = None) -> None:
        await self._ask("unregister_regions", name=name)

    def is_ready(self) -> bool:
        return self._board.is_ready()

    def why_not_ready(self) -> str:
        if self._board.is_stopping:
            return "the server is stopping"
        if not self._board.has_started:
            return "not every worker process has loaded its models yet"
        return "a worker process is not ready"

    async def _ask(self, what: str, **members: Any) -> Any:
        try:
            return await self._channel.call(what, **members)
        except ChannelClosed as error:
            raise ModelNotReady("the server is stopping; nothing is loaded or unloaded any more") from error
        except RemoteDefect as error:
            raise InferenceFailed(f"internal error: {error}") from error
