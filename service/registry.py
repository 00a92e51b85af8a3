"""Loads and unloads: changes what is served (served.py).

`load` finds a model anew. What served before serves on meanwhile, and is replaced when every version that was found is
READY: then the next request meets the new one, and the old one answers what it has taken, and ends. `load` and
`unload` of one name happen one after the other. What somebody asked for this way is told to them; the server's
readiness is about what it was started with.

Loads in threads, so that the event loop answers meanwhile; one version that fails takes none down with it. Only on the
event loop's thread. Which versions a load is about: load_targets.py; how several processes load as one: prepared.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from service.assignment import Assigned, Assignment, LoadParameters
from service.counter_pages import Pages
from service.cpu_plan import in_words
from service.discovery import Found, discover
from service.errors import LoadFailed, ModelNotReady, NotFound, quoted
from service.load_targets import find_versions, overrides_of
from service.model import Model
from service.model_states import Entry
from service.overrides import NO_OVERRIDES, Overrides
from service.prepared import Prepared
from service.repository import VersionDirectory
from service.served import Served
from service.settings import Settings
from service.version_states import STARTING, UNLOADED, ModelState

log = logging.getLogger(__name__)

T = TypeVar("T")


class Registry(Served):
    """The models of one repository, or of one file."""

    def __init__(self, settings: Settings, pages: Pages | None = None) -> None:
        """Touches nothing yet: `load_all` reads the disk. pages: where counters lie; without them, its own memory."""
        super().__init__(settings, pages)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._background: set[asyncio.Task[None]] = set()

    async def load_all(self, assignment: Assignment | None = None) -> None:
        """Finds and loads every version; returns when each is READY or UNAVAILABLE. Meant to run in the background.

        assignment: what to load in place of what there is on disk, as another process has it.
        """
        log.info("computing on %s: %s", in_words(self._loader.cpu.cores), self._loader.cpu.reason)
        if assignment is None:
            await self._scan()
        else:
            await self._take_over(assignment)
        self._scanned = True
        self._has_scanned.set()
        await asyncio.gather(*(self._load_first(name) for name in self._entries))

    async def _scan(self) -> None:
        found = await self._loader.call(discover, self._settings)
        for one in found:
            state = ModelState.LOADING if one.config else ModelState.UNAVAILABLE
            self._entries.setdefault(one.name, []).append(Entry(one, state, one.reason))
            if one.reason:
                log.error("model %s UNAVAILABLE: %s", one.name, one.reason)
        if not found:
            log.warning("no model in %s: nothing can be answered", self._settings.model_repository)

    async def _take_over(self, assignment: Assignment) -> None:
        """What is READY elsewhere is loaded here; what is not, is not tried, or the processes would differ."""
        for name in dict.fromkeys(row.name for row in assignment.rows):
            rows = [row for row in assignment.rows if row.name == name]
            ready = frozenset(row.version for row in rows if row.state is ModelState.READY and row.version)
            try:
                overrides = overrides_of(self._settings, name, assignment.parameters.get(name))
                found = await self._find(name, overrides, ready) if ready else ()
            except (NotFound, LoadFailed) as error:
                found = ()
                log.error("%s", error)
            here = {one.version.version: one for one in found if one.version}
            self._entries[name] = [_entry_for(row, here.get(row.version or 0)) for row in rows]

    async def load(self, name: str, parameters: LoadParameters | None = None) -> None:
        """Loads `name` as it is on disk now, and lets it answer in place of what answered before. Raises as `prepare`
        does; then what answered before goes on."""
        (await self.prepare(name, parameters)).commit()

    async def prepare(
        self, name: str, parameters: LoadParameters | None = None, numbers: frozenset[int] | None = None
    ) -> Prepared:
        """Loads `name` as it is on disk now. It answers nobody before the caller commits it, or else aborts.

        parameters: in place of what the configuration on disk says, until the next load (overrides.py). numbers: which
        versions, in place of the version policy.
        Raises NotFound, LoadFailed with the reason, MalformedRequest, and ModelNotReady while the server starts or
        stops.
        """
        self._require_running()
        lock = self._lock(name)
        await lock.acquire()
        try:
            overrides = overrides_of(self._settings, name, parameters)
            found = await self._found_or_noted(name, overrides, numbers)
            self._require_running()
            there = [str(one.version.version) for one in found if one.version]
            log.info("model %s: asked to load version %s", name, ", ".join(there))
            return await self._prepare(name, found, lock, overrides)
        except BaseException:
            lock.release()
            raise

    async def _find(self, name: str, overrides: Overrides, numbers: frozenset[int] | None) -> Sequence[Found]:
        """As `find_versions`."""
        return await self._loader.call(find_versions, self._settings, name, overrides, numbers)

    async def _found_or_noted(self, name: str, overrides: Overrides, numbers: frozenset[int] | None) -> Sequence[Found]:
        """As `_find`; the index tells what is wrong with what lies on disk."""
        try:
            return await self._find(name, overrides, numbers)
        except LoadFailed as error:
            if overrides == NO_OVERRIDES:
                self._note_failure(name, [], str(error))
            raise

    async def _prepare(self, name: str, found: Sequence[Found], lock: asyncio.Lock, overrides: Overrides) -> Prepared:
        before = self._entries.get(name, [])
        counts = any(entry.counts for entry in before)
        after = [Entry(one, ModelState.LOADING, counts=counts) for one in found]
        serves = any(entry.model is not None for entry in before)
        if not serves:
            self._entries[name] = after
        outcomes = await asyncio.gather(*(self._loader.load(one, replaces=serves) for one in found))
        prepared = Prepared(self, name, before, tuple(zip(after, outcomes, strict=True)), lock)
        failures = [
            f"version {entry.number}: {outcome}" for entry, outcome in prepared.outcomes if isinstance(outcome, str)
        ]
        reason = "another version could not be loaded"
        if not failures and overrides.asks_for_a_trial and (told := prepared.why_not_shared()):
            failures, reason = [told], told
        if failures or self._closing:
            # All or nothing, as in Triton: half of what was asked for would be a surprise.
            await prepared.drop(reason)
            self._require_running()
            if overrides == NO_OVERRIDES:
                self._note_failure(name, after)
            raise LoadFailed(f"model {quoted(name)} cannot be loaded: {_kept('; '.join(failures), serves)}")
        return prepared

    def _note_failure(self, name: str, failed: Sequence[Entry], reason: str = "") -> None:
        """Beside the versions that serve on, the index shows those that do not, and of one that was to be replaced by
        another form of itself, why it was not."""
        entries = {entry.number: entry for entry in self._entries.get(name, [])}
        serving = [entry for entry in entries.values() if entry.model is not None]
        for entry in serving:
            entry.reason = f"serves on; {reason}" if reason else ""
        for entry in failed:
            before = entries.get(entry.number)
            if before in serving:
                before.reason = f"serves on; as it is on disk now: {entry.reason}"
            else:
                entry.counts = before is not None and before.counts
                entries[entry.number] = entry
        if serving:
            self._entries[name] = list(entries.values())

    async def unload(self, name: str) -> None:
        """Takes `name` out of service, and returns when what it had taken is answered and its memory given back.

        Nothing happens when it is not loaded, as in Triton. Raises ModelNotReady while the server starts or stops.
        """
        self._require_running()
        async with self._lock(name):
            entries = self._entries.get(name, [])
            for entry in entries:
                entry.counts = False
                if entry.model is not None:
                    entry.state, entry.reason = ModelState.UNLOADING, "unloading"
            self._refresh(name)
            await asyncio.gather(*(self._retire(entry) for entry in entries))
            if entries:
                log.info("model %s unloaded", name)

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs something that may wait for the disk, which the end of the server does not wait for."""
        return await self._loader.call(function, *arguments)

    def begin_drain(self) -> None:
        """Not ready from now on; requests are answered until `close`."""
        self.is_draining = True

    def give_up(self) -> int:
        """Refuses every request that waits or runs; `close` waits for nothing then. Returns how many there were."""
        self._closing = self.gave_up = True
        return sum(entry.model.give_up() for entry in self._all_entries() if entry.model is not None)

    async def close(self, *, drain: bool = True) -> None:
        """Ends every model; requests that wait are answered first, or refused when not draining."""
        self._closing = True
        self._loader.close()
        self._answering = {}
        entries = self._all_entries()
        for entry in entries:
            if entry.model is not None:
                entry.state, entry.reason = ModelState.UNLOADING, "the server is stopping"
        if self.gave_up:
            return
        await asyncio.gather(*(entry.model.close(drain=drain) for entry in entries if entry.model is not None))
        await asyncio.gather(*self._background)

    def _lock(self, name: str) -> asyncio.Lock:
        """One at a time for a name. Locks that nobody holds are forgotten: names are the caller's to invent."""
        return self._locks.setdefault(name, asyncio.Lock())

    def _require_running(self) -> None:
        if self._closing:
            raise ModelNotReady("the server is stopping; nothing is loaded or unloaded any more")
        if not self._scanned:
            raise ModelNotReady(f"{STARTING}; try again in a moment")

    async def end(self, models: Iterable[Model]) -> None:
        """Gives the memory of models back that never answered."""
        await asyncio.gather(*(self._loader.end(model) for model in models))

    async def _load_first(self, name: str) -> None:
        """What was found at the start; each version for itself."""
        async with self._lock(name):
            await asyncio.gather(*(self._load_one(entry) for entry in self._entries[name]))

    async def _load_one(self, entry: Entry) -> None:
        if entry.state is ModelState.LOADING:
            entry.settle(await self._loader.load(entry.found))
            self._refresh(entry.found.name)

    def replace(self, name: str, before: list[Entry], after: list[Entry]) -> None:
        """From here on `after` answers; what `before` has taken is answered by it, and then it goes."""
        self._entries[name] = after
        self._refresh(name)
        for entry in before:
            if entry.model is not None:
                entry.state, entry.reason = ModelState.UNLOADING, "replaced"
                self._leaving.append(entry)
                task = asyncio.get_running_loop().create_task(self._retire(entry))
                self._background.add(task)
                task.add_done_callback(self._background.discard)

    async def _retire(self, entry: Entry) -> None:
        """Lets what the entry's model has taken be answered, and gives its memory back."""
        if entry.model is not None:
            await self._loader.end(entry.model)
            entry.model = None
        entry.state, entry.reason = ModelState.UNAVAILABLE, UNLOADED
        if entry in self._leaving:
            self._leaving.remove(entry)


def _entry_for(row: Assigned, found: Found | None) -> Entry:
    """The place of a version as another process has it; `found`: on disk, where it is READY there."""
    if row.state is ModelState.READY and found is not None:
        return Entry(found, ModelState.LOADING, counts=row.counts)
    version = VersionDirectory(Path(row.name), row.version) if row.version else None
    reason = row.reason or "it is not on disk any more"
    return Entry(Found(row.name, version, None, reason), ModelState.UNAVAILABLE, reason, counts=row.counts)


def _kept(reason: str, serves: bool) -> str:
    return f"{reason}; what was loaded before serves on" if serves else reason
