"""Which versions are loaded, in which state; picks the version that answers.

    (found on disk) -> LOADING -> READY -> UNLOADING
                          |
                          +--> UNAVAILABLE (with a reason)

Loads in threads, so that the event loop answers meanwhile; one version that fails takes none down with it. The only
holder of this state, and only on the event loop's thread. Knows neither HTTP nor how a model computes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from service import cpu_plan
from service.errors import ModelNotReady, ModelRejected, NotFound, quoted
from service.model import Model
from service.protocol import ModelMetadata
from service.repository import (
    CONFIG_FILE,
    MODEL_FILE,
    ModelConfig,
    VersionDirectory,
    model_names,
    read_config,
    strays,
    versions,
)
from service.settings import Settings

log = logging.getLogger(__name__)

# Names listed in a NotFound; a repository of thousands must not answer a typo with a page.
_NAMES_SHOWN = 10
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


class ModelState(Enum):
    """Triton's words, as in its repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One version's state. `version` None: the model has no version that could be loaded. `reason` empty when READY."""

    name: str
    version: int | None
    state: ModelState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Found:
    """One version on disk, or why there is none to load."""

    name: str
    version: VersionDirectory | None
    config: ModelConfig | None
    reason: str = ""


@dataclass(slots=True)
class _Entry:
    found: _Found
    state: ModelState
    reason: str = ""
    model: Model | None = None

    @property
    def number(self) -> int | None:
        return self.found.version.version if self.found.version else None

    def status(self) -> ModelStatus:
        return ModelStatus(self.found.name, self.number, self.state, self.reason)


class Registry:
    """The models of one repository, or of one file."""

    def __init__(self, settings: Settings) -> None:
        """Touches nothing yet: `load_all` reads the disk."""
        self._settings = settings
        self._cpu = cpu_plan.read_plan()
        self._entries: dict[str, list[_Entry]] = {}
        self._scanned = False
        # Loading is mostly ONNX Runtime optimising graphs, outside the interpreter lock.
        self._loaders = ThreadPoolExecutor(self._cpu.cores, thread_name_prefix="load")

    async def load_all(self) -> None:
        """Finds and loads every version; returns when each is READY or UNAVAILABLE. Meant to run in the background."""
        loop = asyncio.get_running_loop()
        log.info("computing on %d cores: %s", self._cpu.cores, self._cpu.reason)
        found = await loop.run_in_executor(self._loaders, _discover, self._settings)
        for one in found:
            state = ModelState.LOADING if one.config else ModelState.UNAVAILABLE
            self._entries.setdefault(one.name, []).append(_Entry(one, state, one.reason))
            if one.reason:
                log.error("model %s UNAVAILABLE: %s", one.name, one.reason)
        self._scanned = True
        if not found:
            log.warning("no model in %s: nothing can be answered", self._settings.model_repository)
        entries = [entry for group in self._entries.values() for entry in group]
        await asyncio.gather(*(self._load(entry) for entry in entries if entry.state is ModelState.LOADING))

    def get(self, name: str, version: str | None = None) -> Model:
        """The model that answers: the given version, otherwise the highest that is READY.

        Raises NotFound, naming what there is, and ModelNotReady, telling state and reason.
        """
        entries = self._entries_of(name, version)
        ready = [entry for entry in entries if entry.model is not None and entry.state is ModelState.READY]
        if not ready:
            told = "; ".join(_told(entry) for entry in entries)
            raise ModelNotReady(f"model {quoted(name)} is not ready: {told}")
        model = max(ready, key=lambda entry: entry.number or 0).model
        assert model is not None
        return model

    def metadata(self, name: str, version: str | None = None) -> ModelMetadata:
        """What clients are told about a model, with every version that is READY. Raises as `get` does."""
        model = self.get(name, version)
        ready = sorted(
            entry.number or 0 for entry in self._entries[name] if entry.state is ModelState.READY and entry.number
        )
        return dataclasses.replace(model.metadata, versions=tuple(map(str, ready)))

    def states(self) -> tuple[ModelStatus, ...]:
        """Every version that was found, by name and number."""
        return tuple(entry.status() for group in self._entries.values() for entry in group)

    def is_ready(self) -> bool:
        """Strict: every version is READY. Otherwise: one is READY and none LOADING.

        An empty repository is not ready in either case: no request could be answered, so none should be sent here.
        """
        states = {status.state for status in self.states()}
        if not self._scanned or ModelState.READY not in states:
            return False
        return states == {ModelState.READY} if self._settings.strict_readiness else ModelState.LOADING not in states

    def is_settled(self) -> bool:
        """Whether everything that was found has been loaded or given up."""
        return self._scanned and all(status.state is not ModelState.LOADING for status in self.states())

    def why_hopeless(self) -> str:
        """Why no request will ever be answered: the single file that was to be served is UNAVAILABLE. Otherwise empty.

        A repository is never hopeless: its other models serve, and a bad one can be told from outside by its state.
        """
        if self._settings.model is None:
            return ""
        return "; ".join(status.reason for status in self.states() if status.state is ModelState.UNAVAILABLE)

    async def close(self, *, drain: bool = True) -> None:
        """Ends every model; requests that wait are answered first, or refused when not draining."""
        self._loaders.shutdown(wait=False, cancel_futures=True)
        ready = [entry for group in self._entries.values() for entry in group if entry.model is not None]
        for entry in ready:
            entry.state, entry.reason = ModelState.UNLOADING, "the server is stopping"
        await asyncio.gather(*(entry.model.close(drain=drain) for entry in ready if entry.model is not None))

    async def _load(self, entry: _Entry) -> None:
        loop = asyncio.get_running_loop()
        label = f"{entry.found.name} version {entry.number}"
        try:
            model = await loop.run_in_executor(self._loaders, self._load_blocking, entry.found)
        except ModelRejected as error:
            entry.state, entry.reason = ModelState.UNAVAILABLE, self._without_folder(str(error))
            log.error("model %s UNAVAILABLE: %s", label, entry.reason)
        except Exception as error:
            # A defect of ours must not take the other models down, nor hide: it is logged with its traceback.
            entry.state, entry.reason = ModelState.UNAVAILABLE, f"internal error: {type(error).__name__}: {error}"
            log.exception("model %s UNAVAILABLE", label)
        else:
            entry.model, entry.state = model, ModelState.READY
            _log_ready(label, model)

    def _load_blocking(self, found: _Found) -> Model:
        assert found.version is not None
        assert found.config is not None
        try:
            return Model.load(
                found.version,
                found.config,
                providers=self._settings.providers,
                intra_op_threads=self._settings.intra_op_threads or self._cpu.cores,
            )
        except OSError as error:  # a folder that may not be entered, a name too long: anything but a missing file
            raise ModelRejected(f"{error.filename or 'a file'} cannot be read: {error.strerror}") from error

    def _entries_of(self, name: str, version: str | None) -> list[_Entry]:
        """The entries a request speaks of, at least one."""
        entries = self._entries.get(name, [])
        if not entries:
            if not self._scanned:
                raise ModelNotReady(f"model {quoted(name)} is not ready: the model repository is still being read")
            raise NotFound(f"model {quoted(name)} is not in the repository; it holds {_listed(self._entries)}")
        if version is None:
            return entries
        chosen = [entry for entry in entries if _VERSION.fullmatch(version) and entry.number == int(version)]
        if not chosen:
            there = _listed(str(entry.number) for entry in entries if entry.number)
            raise NotFound(f"model {quoted(name)} has no version {quoted(version)} here; its versions are {there}")
        return chosen

    def _without_folder(self, reason: str) -> str:
        """Reasons are told to clients, who have no business with the server's folders."""
        folder = self._settings.model.parent if self._settings.model else self._settings.model_repository
        return reason.replace(f"{folder}/", "")


# --- what is on disk ----------------------------------------------------------------------------------------------


def _discover(settings: Settings) -> list[_Found]:
    if settings.model is not None:
        return [_single_file(settings.model)]
    try:
        names = model_names(settings.model_repository)
        for stray in strays(settings.model_repository, of="models"):
            log.warning("%r is ignored: a model's name has letters, digits, '_', '-' and '.' only", stray)
    except (ModelRejected, OSError) as error:
        # It was there when the command started.
        log.error("%s", error)
        return []
    return [found for name in names for found in _discover_model(settings.model_repository / name)]


def _discover_model(folder: Path) -> list[_Found]:
    try:
        on_disk = versions(folder)
        for stray in strays(folder, of="versions"):
            log.warning("%s/%s is ignored: a version is a positive integer without leading zeros", folder.name, stray)
        if not on_disk and not (folder / CONFIG_FILE).exists():
            log.warning("%s is ignored: it holds neither a version nor a %s", folder.name, CONFIG_FILE)
            return []
        config = read_config(folder)
    except ModelRejected as error:
        return [_Found(folder.name, None, None, str(error).replace(f"{folder.parent}/", ""))]
    except OSError as error:
        return [_Found(folder.name, None, None, f"its folder cannot be read: {error.strerror}")]
    if not on_disk:
        return [_Found(folder.name, None, None, "it has no version: a folder named by a positive number")]
    return [_Found(folder.name, version, config) for version in on_disk[-config.version_policy.latest :]]


def _single_file(path: Path) -> _Found:
    name = name_of_file(path)
    return _Found(name, VersionDirectory(path.parent, 1, path.name), ModelConfig(name=name))


def name_of_file(path: Path) -> str:
    """A model name for a file that stands outside a repository: its stem, made legal.

    `model.onnx` says nothing, so then its folder's name counts; and if that is a version number, the folder above.
    """
    candidates = [path.stem]
    if path.name == MODEL_FILE:
        folders = path.absolute().parents
        candidates = [folder.name for folder in folders[:2] if not folder.name.isdecimal()]
    for candidate in candidates:
        if legal := re.sub(r"[^A-Za-z0-9_.-]+", "-", candidate).strip("-.").lstrip("_"):
            return legal
    return "model"


# --- words --------------------------------------------------------------------------------------------------------


def _told(entry: _Entry) -> str:
    version = f"version {entry.number} is {entry.state.value}" if entry.number else f"it is {entry.state.value}"
    return f"{version}: {entry.reason}" if entry.reason else version


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:_NAMES_SHOWN]) or "nothing"
    return f"{shown} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else shown


def _log_ready(label: str, model: Model) -> None:
    report = model.report
    log.info(
        "model %s READY in %.2f s: %s; intra-op threads %d; max_batch_size %d (%s); warm-up %s; golden %s",
        label,
        report.load_s,
        ", ".join(report.providers),
        report.intra_op_threads,
        model.max_batch_size,
        report.batching,
        report.warm_up,
        report.golden,
    )
