"""Which versions there are, in which state (model_states.py), and which one answers: what requests and the server ask.

The only holder of this state, and only on the event loop's thread; registry.py changes it. Knows neither HTTP nor how a
model computes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Iterable
from typing import cast

from service.assignment import Assigned
from service.counter_pages import Pages
from service.cpu_plan import CpuPlan
from service.discovery import Listing, names_on_disk
from service.errors import LoadFailed, ModelNotReady, ModelRejected, NotFound, quoted
from service.loader import Loader, without_folder
from service.model import Model
from service.model_config import describe_configuration
from service.model_states import Entry, ModelStatus
from service.protocol import ModelConfiguration, ModelMetadata, RepositoryIndexRow, VersionStatistics
from service.settings import Settings
from service.statistics import Refusals
from service.traffic import Traffic, share
from service.version_states import DRAINING, STARTING, UNLOADED, ModelState
from service.waiting import QueueSpace

# Names listed in a NotFound; a repository of thousands must not answer a typo with a page.
_NAMES_SHOWN = 10
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


class Served:
    """The models of one repository, or of one file."""

    def __init__(self, settings: Settings, pages: Pages | None = None) -> None:
        """Touches nothing yet. pages: where counters lie; without them, its own memory."""
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
            if version is None and (alone := self._on_trial_alone(name)):
                told += f"; {alone}"
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
        if self.is_draining or not self._scanned or not any(None in one for one in self._answering.values()):
            return False
        if self._settings.strict_readiness:
            return states <= {ModelState.READY} and not self.why_unanswered()
        return ModelState.LOADING not in states

    def why_unanswered(self) -> tuple[str, ...]:
        """Of each model that counts, READY as it may be, why requests that name no version are not answered."""
        counting = [name for name, group in self._entries.items() if any(entry.counts for entry in group)]
        return tuple(f"{name}: {told}" for name in counting if (told := self._on_trial_alone(name)))

    def _on_trial_alone(self, name: str) -> str:
        """Empty where requests that name no version are answered, or nothing is READY."""
        answering = self._answering.get(name, {})
        if not answering or None in answering:
            return ""
        return (
            f"version {', '.join(map(str, answering))} is on trial and never answers alone; load another version "
            f"beside it, or take traffic out of the model's configuration"
        )

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

    def assigned(self, name: str | None = None) -> tuple[Assigned, ...]:
        """What another process would have to serve to be like this one: of all names or of one."""
        names = list(self._entries) if name is None else [name]
        return tuple(
            Assigned(entry.found.name, entry.number, entry.state, entry.reason, entry.counts)
            for one in names
            for entry in self._entries.get(one, [])
        )

    def _all_entries(self) -> list[Entry]:
        return [entry for group in (*self._entries.values(), self._leaving) for entry in group]

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


# --- words --------------------------------------------------------------------------------------------------------


def _how_to_load(name: str) -> str:
    return f"POST /v2/repository/models/{name}/load loads it"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:_NAMES_SHOWN]) or "nothing"
    return f"{shown} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else shown
