"""What a route asks of the server as a whole, however many processes serve.

Loading, unloading, the index and regions of shared memory speak for all processes: a call returns when every one has
done it, or none has. Imports nothing heavy: the supervisor of several processes polls by it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from service.assignment import LoadParameters

if TYPE_CHECKING:
    from service.protocol import RepositoryIndexRow
    from service.registry import Registry
    from service.shared_memory import SharedMemory


class Loading(Protocol):
    """Models come and go by name: the part of `Control` that polling needs. The registry itself, or who speaks for
    several processes."""

    async def load(self, name: str) -> None:
        """Raises NotFound, LoadFailed and ModelNotReady; then nothing has changed anywhere."""

    async def unload(self, name: str) -> None:
        """Returns when what had been taken is answered. Raises ModelNotReady while the server starts or stops."""


class Control(Loading, Protocol):
    """Of one process (`OneProcess`), or of several (`AllWorkers`)."""

    async def index(self) -> list[RepositoryIndexRow]:
        """Every version in its state, and every model on disk that nobody has loaded. Raises LoadFailed."""

    async def load(self, name: str, parameters: LoadParameters | None = None) -> None:
        """As `Registry.load`; raises MalformedRequest too, where `parameters` mean nothing."""

    async def register_region(self, name: str, key: str, offset: int, size_bytes: int) -> None:
        """As `SharedMemory.register`."""

    async def unregister_regions(self, name: str | None = None) -> None:
        """As `SharedMemory.unregister`."""

    def is_ready(self) -> bool:
        """Whether requests can be sent."""

    def why_not_ready(self) -> str:
        """In a few words, what the states of this process's own models do not tell; may be empty."""


ActedUpon = Callable[[str], contextlib.AbstractAsyncContextManager[None]]
"""As `Poller.acted_upon`: of a model's name, what is to be around its load or unload."""


def nobody_polls(_: str) -> contextlib.AbstractAsyncContextManager[None]:
    return contextlib.nullcontext()


class OneProcess:
    """Nobody else has to be asked."""

    def __init__(self, registry: Registry, regions: SharedMemory, acted_upon: ActedUpon = nobody_polls) -> None:
        self._registry = registry
        self._regions = regions
        self._acted_upon = acted_upon

    async def index(self) -> list[RepositoryIndexRow]:
        return await self._registry.index()

    async def load(self, name: str, parameters: LoadParameters | None = None) -> None:
        async with self._acted_upon(name):
            await self._registry.load(name, parameters)

    async def unload(self, name: str) -> None:
        async with self._acted_upon(name):
            await self._registry.unload(name)

    async def register_region(self, name: str, key: str, offset: int, size_bytes: int) -> None:
        self._regions.register(name, key, offset, size_bytes)

    async def unregister_regions(self, name: str | None = None) -> None:
        self._regions.unregister(name)

    def is_ready(self) -> bool:
        return self._registry.is_ready()

    def why_not_ready(self) -> str:
        return ""
