"""Which versions are loaded, in which state (model_states.py); picks the one that answers; loads and unloads.

`load` finds a model anew. What served before serves on meanwhile, and is replaced when every version that was found is
READY: then the next request meets the new one, and the old one answers what it has taken, and ends. `load` and
`unload` of one name happen one after the other. What somebody asked for this way is told to them; the server's
readiness is about what it was started with.

Loads in threads, so that the event loop answers meanwhile; one version that fails takes none down with it. The only
holder of this state, and only on the event loop's thread. Knows neither HTTP nor how a model computes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast
from weakref import WeakValueDictionary

from service.assignment import Assigned, Assignment, LoadParameters
from service.counter_pages import Pages
from service.cpu_plan import CpuPlan
from service.discovery import Found, Listing, discover, discover_model, names_on_disk
from service.errors import LoadFailed, ModelNotReady, ModelRejected, NotFound, quoted
from service.loader import Loader, without_folder
from service.model import Model
from service.model_config import describe_configuration
from service.model_states import Entry, ModelStatus
from service.overrides import NO_OVERRIDES, Overrides, read_overrides
from service.protocol import ModelConfiguration, ModelMetadata, RepositoryIndexRow, VersionStatistics
from service.repository import VersionDirectory
from service.settings import Settings
from service.statistics import Refusals
from service.traffic import Traffic, share, why_no_trial, why_not_shared
from service.version_states import DRAINING, STARTING, UNLOADED, ModelState
from service.waiting import QueueSpace

log = logging.getLogger(__name__)

T = TypeVar("T")

# Names listed in a NotFound; a repository of thousands must not answer a typo with a page.
_NAMES_SHOWN = 10
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


class Registry:
    """The models of one repository, or of one file."""

    def __init__(self, settings: Settings, pages: Pages | None = None) -> None:
        """Touches nothing yet: `load_all` reads the disk. pages: where counters lie; without them, its own memory."""
        self._settings = settings
        folder = settings.model.parent if settings.model else settings.model_repository
        self.repository_name = folder.absolute().name
        self._loader = Loader(settings, pages)
        self.pages = self._loader.pages
        self._refusals = Refusals(self.pages)
        self._listing = Listing(settings)
        self._entries: dict[str, list[Entry]] = {}
        self._leaving: list[Entry] = []
        # Who answers for a name and a version as requests spell it, None for no version: `get` in two look-ups.
        self._answering: dict[str, dict[str | None, Model]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._background: set[asyncio.Task[None]] = set()
        self._scanned = False
        self._has_scanned = asyncio.Event()
        self._closing = False
        self.is_draining = False
        self.gave_up = False

    # --- what requests ask ---

    def get(self, name: str, version: str | None = None) -> Model:
        """The model that answers: the given version, otherwise the highest that is READY.

        Raises NotFound, naming what there is, and ModelNotReady, telling state and reason.
        """
        try:
            return self._answering[name][version]
        except KeyError:
            entries = self._entries_of(name, version)
            told = "; ".join(entry.told() for entry in entries)
            if not self._closing and all(entry.state is ModelState.UNAVAILABLE for entry in entries):
                mended = "" if all(entry.reason == UNLOADED for entry in entries) else "when that is mended, "
                told += f"; {mended}{_how_to_load(name)}"
            raise ModelNotReady(f"model {quoted(name)} is not ready: {told}") from None

    def require_ready(self, name: str, version: str | None = None) -> None:
        """Whether requests should be sent. Raises as `get` does, and ModelNotReady while the server drains, though it
        answers then."""
        self.get(name, version)
        if self.is_draining:
            raise ModelNotReady(f"model {quoted(name)} is not ready: {DRAINING}")

    def metadata(self, name: str, version: str | None = None) -> ModelMetadata:
        """What clients are told about a model, with every version that is READY. Raises as `get` does."""
        model = self.get(name, version)
        return dataclasses.replace(
            model.metadata,
            versions=tuple(str(entry.number) for entry in self._ready(name)),
            traffic=model.read() if isinstance(model, Traffic) else None,
        )

    def configuration(self, name: str, version: str | None = None) -> ModelConfiguration:
        """How a model is served, in Triton's words. Raises as `get` does."""
        model = self.get(name, version)
        found = next(entry.found for entry in self._ready(name) if entry.number == model.version)
        assert found.config is not None
        assert found.version is not None
        return describe_configuration(
            model.metadata,
            found.config,
            max_batch_size=model.max_batch_size,
            providers=model.report.providers,
            model_file=found.version.model_file,
            cpu_plan=self._cpu_plan(found.config.scheduler.instances, model.report.intra_op_threads),
        )

    def _cpu_plan(self, instances: int, threads: int) -> str:
        workers, cpu = max(1, self._settings.workers), self._loader.cpu
        return (
            f"{workers} worker{'s' if workers > 1 else ''} x {instances} instance{'s' if instances > 1 else ''} x "
            f"{threads} intra-op thread{'s' if threads > 1 else ''}; cores of a worker: {cpu.cores} ({cpu.reason})"
        )

    def statistics(self, name: str | None = None, version: str | None = None) -> tuple[VersionStatistics, ...]:
        """The counters of every READY version: of all models, of one, or the given one. Raises as `get` does."""
        names = list(self._entries) if name is None else [name]
        if name is not None:
            self.get(name, version)
        return tuple(
            entry.model.statistics.read(entry.found.name, entry.model.version)
            for one in names
            for entry in self._ready(one)
            if entry.model is not None and version in (None, str(entry.number))
        )

    def count_refusal(self, name: str, version: str | None, reason: str) -> None:
        """An infer request for that model was refused. Of names and versions only those count that are known here:
        clients invent others."""
        try:
            model = self._answering[name][version]
        except KeyError:
            self._refusals.record(reason, name if name in self._entries else "")
        else:
            self._refusals.record(reason, model.name, str(model.version))

    def serving(self) -> tuple[Model, ...]:
        """Every model that is READY."""
        return tuple(entry.model for name in self._entries for entry in self._ready(name) if entry.model is not None)

    @property
    def cpu(self) -> CpuPlan:
        return self._loader.cpu

    @property
    def queue_space(self) -> QueueSpace:
        """What waiting requests hold, and may hold."""
        return self._loader.queue_space

    def states(self) -> tuple[ModelStatus, ...]:
        """Every version that was found, by name and number, and those that still end behind one that replaced them."""
        known = [entry.status() for group in self._entries.values() for entry in group]
        places = {(status.name, status.version) for status in known}
        leaving = [entry.status() for entry in self._leaving]
        return (*known, *(status for status in leaving if (status.name, status.version) not in places))

    async def index(self) -> list[RepositoryIndexRow]:
        """Every version in its state, and every model on disk that nobody has loaded. Raises LoadFailed."""
        try:
            names = await self._loader.call(names_on_disk, self._settings)
        except ModelRejected as error:
            raise LoadFailed(without_folder(self._settings, str(error))) from error
        rows = [
            RepositoryIndexRow(
                status.name, None if status.version is None else str(status.version), status.state.value, status.reason
            )
            for status in self.states()
        ]
        fresh = [name for name in names if name not in self._entries]
        state, reason = (ModelState.UNAVAILABLE, "not loaded") if self._scanned else (ModelState.LOADING, STARTING)
        rows += [RepositoryIndexRow(name, None, state.value, reason) for name in fresh]
        return sorted(rows, key=lambda row: (row.name, int(row.version or 0)))

    # --- what the server asks ---

    def is_ready(self) -> bool:
        """Strict: every version is READY. Otherwise: one is READY and none LOADING. In both: of those that count, which
        are not those that somebody unloaded, nor those that somebody asked for later and that did not become READY.

        An empty repository is not ready in either case: no request could be answered, so none should be sent here.
        """
        states = {entry.state for group in self._entries.values() for entry in group if entry.counts}
        if self.is_draining or not self._scanned or not any(self._answering.values()):
            return False
        return states <= {ModelState.READY} if self._settings.strict_readiness else ModelState.LOADING not in states

    def is_scanned(self) -> bool:
        """Whether it is known what there is to load."""
        return self._scanned

    async def until_scanned(self) -> None:
        """Returns when it is known what there is to load."""
        await self._has_scanned.wait()

    def is_settled(self) -> bool:
        """Whether everything that was found has been loaded or given up, and nothing is being loaded."""
        loading = any(status.state is ModelState.LOADING for status in self.states())
        return self._scanned and not loading and not self._loader.under_way

    def why_hopeless(self) -> str:
        """Why no request will ever be answered: the one model that was to be served is UNAVAILABLE. Otherwise empty.

        A repository is never hopeless: its other models serve, and a bad one can be told from outside by its state.
        """
        if self._settings.model is None and self._settings.model_name is None:
            return ""
        entries = [entry for group in self._entries.values() for entry in group if entry.counts]
        hopeless = all(entry.state is ModelState.UNAVAILABLE for entry in entries)
        return "; ".join(entry.reason for entry in entries) if hopeless else ""

    # --- loading and unloading ---

    async def load_all(self, assignment: Assignment | None = None) -> None:
        """Finds and loads every version; returns when each is READY or UNAVAILABLE. Meant to run in the background.

        assignment: what to load in place of what there is on disk, as another process has it.
        """
        log.info("computing on %d cores: %s", self._loader.cpu.cores, self._loader.cpu.reason)
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
                overrides = self._read_overrides(name, assignment.parameters.get(name))
                found = await self._find(name, overrides, ready) if ready else ()
            except (NotFound, LoadFailed) as error:
                found = ()
                log.error("%s", error)
            here = {one.version.version: one for one in found if one.version}
            self._entries[name] = [_entry_for(row, here.get(row.version or 0)) for row in rows]

    def assigned(self, name: str | None = None) -> tuple[Assigned, ...]:
        """What another process would have to serve to be like this one: of all names or of one."""
        names = list(self._entries) if name is None else [name]
        return tuple(
            Assigned(entry.found.name, entry.number, entry.state, entry.reason, entry.counts)
            for one in names
            for entry in self._entries.get(one, [])
        )

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
            overrides = self._read_overrides(name, parameters)
            found = await self._found_or_noted(name, overrides, numbers)
            self._require_running()
            there = [str(one.version.version) for one in found if one.version]
            log.info("model %s: asked to load version %s", name, ", ".join(there))
            return await self._prepare(name, found, lock, overrides)
        except BaseException:
            lock.release()
            raise

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
        if not failures and overrides.asks_for_a_trial and (told := _why_not_shared(prepared)):
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

    def _all_entries(self) -> list[Entry]:
        return [entry for group in (*self._entries.values(), self._leaving) for entry in group]

    def _lock(self, name: str) -> asyncio.Lock:
        """One at a time for a name. Locks that nobody holds are forgotten: names are the caller's to invent."""
        return self._locks.setdefault(name, asyncio.Lock())

    def _require_running(self) -> None:
        if self._closing:
            raise ModelNotReady("the server is stopping; nothing is loaded or unloaded any more")
        if not self._scanned:
            raise ModelNotReady(f"{STARTING}; try again in a moment")

    def _read_overrides(self, name: str, parameters: LoadParameters | None) -> Overrides:
        """Raises MalformedRequest and LoadFailed."""
        try:
            return read_overrides(parameters, name, self._settings.providers)
        except ModelRejected as error:
            raise LoadFailed(f"model {quoted(name)} cannot be loaded: {error}") from error

    async def _find(self, name: str, overrides: Overrides, numbers: frozenset[int] | None) -> Sequence[Found]:
        """The versions of `name` that are to be loaded, at least one. Raises NotFound and LoadFailed."""
        try:
            found = await self._loader.call(discover_model, self._settings, name, overrides, numbers)
        except (ModelRejected, OSError) as error:
            raise LoadFailed(
                f"model {quoted(name)} cannot be loaded: {without_folder(self._settings, str(error))}"
            ) from error
        if not found:
            raise NotFound(f"there is no model {quoted(name)} in the repository")
        reasons = [one.reason for one in found if one.reason]
        if not reasons and numbers is None and overrides.asks_for_a_trial:
            reasons = _why_no_trial(found)
        if reasons:
            raise LoadFailed(
                f"model {quoted(name)} cannot be loaded: {without_folder(self._settings, '; '.join(reasons))}"
            )
        return found

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

    def _ready(self, name: str) -> list[Entry]:
        """Lowest version first."""
        entries = [entry for entry in self._entries.get(name, []) if entry.state is ModelState.READY]
        return sorted(entries, key=lambda entry: entry.number or 0)

    def _refresh(self, name: str) -> None:
        """Brings `_answering` up to date with the states."""
        ready = self._ready(name)
        models = [entry.model for entry in ready if entry.model is not None]
        before = self._answering.pop(name, {}).get(None)
        if not models or self._closing:
            return
        config = ready[-1].found.config
        assert config is not None
        answering: dict[str | None, Model] = {str(model.version): model for model in models}
        if (whole := share(models, config, self.pages, before if isinstance(before, Traffic) else None)) is not None:
            answering[None] = cast("Model", whole)  # Traffic stands in for one
        self._answering[name] = answering

    def _entries_of(self, name: str, version: str | None) -> list[Entry]:
        """The entries a request speaks of, at least one."""
        entries = self._entries.get(name, [])
        if not entries:
            if not self._scanned:
                raise ModelNotReady(f"model {quoted(name)} is not ready: {STARTING}")
            if name in self._listing:
                raise NotFound(f"model {quoted(name)} is in the repository, but not loaded; {_how_to_load(name)}")
            raise NotFound(f"model {quoted(name)} is not in the repository; it holds {_listed(self._entries)}")
        if version is None:
            return entries
        chosen = [entry for entry in entries if _VERSION.fullmatch(version) and entry.number == int(version)]
        if not chosen:
            there = _listed(str(entry.number) for entry in entries if entry.number)
            raise NotFound(f"model {quoted(name)} has no version {quoted(version)} here; its versions are {there}")
        return chosen


# --- a load in two steps ------------------------------------------------------------------------------------------


class Prepared:
    """Versions of one name that are loaded and answer nobody yet: whoever serves with several processes lets them
    answer when all of these have got so far. Until then the name is locked. One of `commit` and `abort`, once."""

    def __init__(
        self,
        registry: Registry,
        name: str,
        before: list[Entry],
        outcomes: tuple[tuple[Entry, Model | str], ...],
        lock: asyncio.Lock,
    ) -> None:
        self.outcomes = outcomes
        self._registry = registry
        self._name = name
        self._before = before
        self._lock = lock

    def assigned(self) -> tuple[Assigned, ...]:
        """What another process would have to serve, once this is committed."""
        return tuple(
            Assigned(self._name, entry.number, ModelState.READY, counts=entry.counts) for entry, _ in self.outcomes
        )

    def commit(self) -> None:
        """From here on they answer; what answered before ends behind what it has taken."""
        for entry, outcome in self.outcomes:
            entry.settle(outcome)
        self._registry.replace(self._name, self._before, [entry for entry, _ in self.outcomes])
        self._lock.release()

    async def abort(self, reason: str) -> None:
        """They go; what answered before goes on. `reason`: why those that loaded well do not answer."""
        try:
            await self.drop(reason)
        finally:
            self._lock.release()

    async def drop(self, reason: str) -> None:
        """As `abort`, of one who holds the lock on."""
        await self._registry.end(outcome for _, outcome in self.outcomes if isinstance(outcome, Model))
        for entry, outcome in self.outcomes:
            entry.settle(outcome if isinstance(outcome, str) else reason)


def _entry_for(row: Assigned, found: Found | None) -> Entry:
    """The place of a version as another process has it; `found`: on disk, where it is READY there."""
    if row.state is ModelState.READY and found is not None:
        return Entry(found, ModelState.LOADING, counts=row.counts)
    version = VersionDirectory(Path(row.name), row.version) if row.version else None
    reason = row.reason or "it is not on disk any more"
    return Entry(Found(row.name, version, None, reason), ModelState.UNAVAILABLE, reason, counts=row.counts)


# --- trials that a client asks for --------------------------------------------------------------------------------


def _why_no_trial(found: Sequence[Found]) -> list[str]:
    """At most one reason, before anything is loaded."""
    config = found[0].config
    assert config is not None
    reason = why_no_trial([one.version.version for one in found if one.version], config)
    return [reason] if reason else []


def _why_not_shared(prepared: Prepared) -> str:
    """Empty when requests can be shared as the configuration says."""
    config = prepared.outcomes[0][0].found.config
    assert config is not None
    models = [outcome for _, outcome in prepared.outcomes if isinstance(outcome, Model)]
    return why_not_shared(models, config)


# --- words --------------------------------------------------------------------------------------------------------


def _how_to_load(name: str) -> str:
    return f"POST /v2/repository/models/{name}/load loads it"


def _kept(reason: str, serves: bool) -> str:
    return f"{reason}; what was loaded before serves on" if serves else reason


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:_NAMES_SHOWN]) or "nothing"
    return f"{shown} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else shown
