"""Watches the model repository, and has models loaded and unloaded as their files come, change and go.

    look -> look again: the same? -> does it concern a version that is served? -> load, or unload where none is left

What a file holds is not read: name, size, time of change and inode tell. A model that changed is left alone until two
looks find the same, so that nothing is loaded while it is being copied. What has been acted upon, with or without
success, is not looked at again until it changes; so what a client has unloaded stays so, and a damaged version is told
of once. A client that has a model loaded or unloaded has acted upon what lies there (`acted_upon`): to load it once
more would undo what came with the call. A disk that fails takes no model away. Who loads is passed in (`Loading`), and
so is the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.control import Loading
from service.errors import LoadFailed, ModelNotReady, ModelRejected, NotFound
from service.repository import model_names, read_config, versions
from service.settings import Settings
from service.single_model import locate, name_of_file, name_of_folder

log = logging.getLogger(__name__)

Files = frozenset[tuple[str, int, int, int]]
"""Path, size, time of change in nanoseconds, inode."""

# A model of several files may be a folder in its version's; deeper than that nothing is looked for.
_DEPTH = 2


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The files of one model: those for all versions, and each version's. `folder` None: a single file."""

    folder: Path | None = None
    shared: Files = frozenset()
    versions: Mapping[int, Files] = field(default_factory=dict)


Look = Mapping[str, Fingerprint | str]
"""By model; or why its folder cannot be read."""


# --- what lies on disk --------------------------------------------------------------------------------------------


def look(settings: Settings) -> Look:
    """Raises ModelRejected when the repository cannot be read at all. Waits for the disk."""
    if settings.model is None and settings.model_name is None:
        folders = {name: settings.model_repository / name for name in model_names(settings.model_repository)}
        return {name: _of_folder(folder) for name, folder in folders.items()}
    place = locate(settings.model or settings.model_repository)
    if place.is_dir():
        return {settings.model_name or name_of_folder(place): _of_folder(place)}
    return {settings.model_name or name_of_file(place): _of_file(place)}


def _of_folder(folder: Path) -> Fingerprint | str:
    try:
        found = {version.version: frozenset(_files(version.path, _DEPTH)) for version in versions(folder)}
        return Fingerprint(folder, frozenset(_files(folder, 0)), found)
    except FileNotFoundError:
        return Fingerprint(folder)  # it is just being removed
    except OSError as error:
        return f"{folder}: {error.strerror}"


def _of_file(place: Path) -> Fingerprint | str:
    """The file, and what lies beside it under its name and more: that is how exporters call external data."""
    try:
        beside = frozenset(found for found in _files(place.parent, 0) if found[0].startswith(place.name))
    except FileNotFoundError:
        beside = frozenset()
    except OSError as error:
        return f"{place.parent}: {error.strerror}"
    return Fingerprint(None, frozenset(), {1: beside} if any(found[0] == place.name for found in beside) else {})


def _files(folder: Path, depth: int) -> Iterator[tuple[str, int, int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                found = entry.stat()
                is_folder = entry.is_dir()
            except FileNotFoundError:
                continue  # gone since the listing, or a link that leads nowhere
            if not is_folder:
                yield entry.name, found.st_size, found.st_mtime_ns, found.st_ino
            elif depth:
                for name, size, changed_ns, inode in _files(Path(entry.path), depth - 1):
                    yield f"{entry.name}/{name}", size, changed_ns, inode


def _is_another(before: Fingerprint, after: Fingerprint, settings: Settings) -> bool:
    """Whether what is to be served has changed: files of a version that the version policy leaves out do not count."""
    if before.folder != after.folder or before.shared != after.shared or after.folder is None:
        return before != after
    try:
        policy = read_config(
            after.folder, name=settings.model_name, stands_alone=True, providers=settings.providers
        ).version_policy
    except ModelRejected:
        return True  # loading it tells what is wrong
    old, new = (
        {number: one.versions[number] for number in policy.choose(tuple(one.versions))} for one in (before, after)
    )
    return old != new


# --- what follows from it -----------------------------------------------------------------------------------------


class Poller:
    """Of one repository. `begin` before anything is loaded from it, then `run`, on the event loop."""

    def __init__(
        self,
        settings: Settings,
        control: Loading,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        call: Callable[..., Awaitable[Any]] = asyncio.to_thread,
    ) -> None:
        """control: asked again when it raises ModelNotReady. call: runs a function that waits for the disk, with its
        arguments, and returns what it returns."""
        self._settings = settings
        self._control = control
        self._sleep = sleep
        self._call = call
        self._seen: dict[str, Fingerprint] = {}
        self._acted: dict[str, Fingerprint] = {}
        self._at_work: dict[str, asyncio.Task[None]] = {}
        self._errors: dict[str, str] = {}

    async def begin(self) -> None:
        """What is there now is going to be loaded by somebody else."""
        self._seen = dict(await self._look())
        self._acted = dict(self._seen)

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                await self._sleep(self._settings.repository_poll_s)
                await self.step()
        finally:
            for task in self._at_work.values():
                task.cancel()

    async def step(self) -> None:
        """One look, and the beginning of what follows; `settle` waits for its end."""
        found = await self._look()
        gone = Fingerprint()
        for name in {*found, *self._seen, *self._acted} - self._at_work.keys() - self._errors.keys():
            now = found.get(name, gone)
            is_still = self._seen.get(name, gone) == now
            if is_still and now != self._acted.get(name, gone):
                task = asyncio.get_running_loop().create_task(self._act(name, now))
                self._at_work[name] = task
                task.add_done_callback(lambda _, name=name: self._at_work.pop(name))  # type: ignore[misc]
        self._seen = {name: seen for name, seen in self._seen.items() if name in self._errors} | found

    async def settle(self) -> None:
        await asyncio.gather(*self._at_work.values())

    @contextlib.asynccontextmanager
    async def acted_upon(self, name: str) -> AsyncIterator[None]:
        """Around a load or unload of `name` that a client asks for: what lies there when it begins is no change any
        more, unless the block raises."""
        while (at_work := self._at_work.get(name)) is not None:
            await asyncio.wait([at_work])
        before, seen = self._acted.get(name), await self._look()
        if name in seen:
            # As if seen before, too: a look that has begun earlier and ends later may find what was there until then.
            self._seen[name] = self._acted[name] = seen[name]
        try:
            yield
        except BaseException:
            if name in seen and self._acted.get(name) is seen[name]:
                self._acted[name] = before or Fingerprint()
            raise

    async def _look(self) -> dict[str, Fingerprint]:
        """What can be read. What cannot is in `_errors`, and told when it begins."""
        try:
            found: Look = await self._call(look, self._settings)
        except (ModelRejected, OSError) as error:
            found = dict.fromkeys({"", *self._seen, *self._acted}, str(error))
        errors = {name: one for name, one in found.items() if isinstance(one, str)}
        for reason in sorted(set(errors.values()) - set(self._errors.values())):
            log.error("the model repository cannot be looked at: %s; what is loaded serves on", reason)
        if self._errors and not errors:
            log.info("the model repository can be looked at again")
        self._errors = errors
        return {name: one for name, one in found.items() if isinstance(one, Fingerprint)}

    async def _act(self, name: str, now: Fingerprint) -> None:
        before = self._acted.get(name, Fingerprint())
        try:
            if not now.versions:
                if before.versions:
                    log.info("model %s: its versions are gone from the disk", name)
                    await self._control.unload(name)
            elif await self._call(_is_another, before, now, self._settings):
                log.info("model %s: its files have changed", name)
                await self._control.load(name)
        except ModelNotReady:
            return  # the server starts or stops: not yet, or never
        except (LoadFailed, NotFound) as error:
            log.warning("%s; it is tried again when its files change", error)
        except Exception:
            log.exception("model %s could not be brought up to date with its files", name)
        self._acted[name] = now
