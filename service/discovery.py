"""Which models and versions there are to load, on disk: in the repository, or the one model that is to be served.

Reads directories and configurations, never a model. A name that comes from a caller is looked up among the names that
the repository lists; no path is ever made from it. Knows no states.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from service.errors import ModelRejected
from service.links import leads_out
from service.overrides import NO_OVERRIDES, Overrides
from service.repository import (
    CONFIG_FILE,
    ModelConfig,
    VersionDirectory,
    chosen_versions,
    has_config,
    model_names,
    read_config,
    strays,
    versions,
)
from service.settings import Settings
from service.single_model import locate, name_of_file, name_of_folder

log = logging.getLogger(__name__)

_STEP_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Found:
    """One version on disk, or why there is none to load."""

    name: str
    version: VersionDirectory | None
    config: ModelConfig | None
    reason: str = ""


def discover(settings: Settings) -> list[Found]:
    """Every version that is to be loaded, by name and number."""
    if _is_single(settings):
        return _discover_single(settings)
    try:
        names = model_names(settings.model_repository)
        for stray in strays(settings.model_repository, of="models"):
            log.warning("%r is ignored: a model's name has letters, digits, '_', '-' and '.' only", stray)
    except (ModelRejected, OSError) as error:
        # It was there when the command started.
        log.error("%s", error)
        return []
    found = [one for name in names for one in _discover_folder(settings.model_repository / name, settings)]
    if not found:
        _hint(settings.model_repository)
    return found


def _hint(repository: Path) -> None:
    """A folder with no model in it may be a model's own, one level too deep."""
    with contextlib.suppress(ModelRejected):
        locate(repository)
        log.warning("%s is no repository, but looks like a model: serve it with --model", repository)


def discover_model(
    settings: Settings, name: str, overrides: Overrides = NO_OVERRIDES, numbers: frozenset[int] | None = None
) -> list[Found]:
    """As `discover`, for one name; empty when there is no such model. `overrides` stand in for what its configuration
    says, `numbers` for its version policy.

    Raises ModelRejected.
    """
    if _is_single(settings):
        return [found for found in _discover_single(settings, overrides, numbers) if found.name == name]
    if name not in model_names(settings.model_repository):
        return []
    return _discover_folder(settings.model_repository / name, settings, overrides, numbers)


def names_on_disk(settings: Settings) -> tuple[str, ...]:
    """The models that could be loaded now, as far as names tell. Raises ModelRejected."""
    if _is_single(settings):
        return tuple({found.name for found in _discover_single(settings)})
    repository = settings.model_repository
    return tuple(name for name in model_names(repository) if _holds_a_model(repository / name))


class Listing:
    """The models that the repository holds, by name, whether loaded or not. Its folder is read anew only when it has
    changed, so that each request for a name that is not served can look here. Never raises: loading tells what is
    wrong."""

    def __init__(self, settings: Settings) -> None:
        self._repository = None if _is_single(settings) else settings.model_repository
        self._names: frozenset[str] = frozenset()
        self._read_ns = self._changed_ns = -1

    def __contains__(self, name: str) -> bool:
        if self._repository is None:
            return False
        with contextlib.suppress(ModelRejected, OSError):
            self._refresh(self._repository)
        return name in self._names and _holds_a_model(self._repository / name)

    def _refresh(self, repository: Path) -> None:
        changed_ns = repository.stat().st_mtime_ns
        # File systems count in steps: what was read so soon after a change may miss another one of the same step.
        if changed_ns != self._changed_ns or self._read_ns - changed_ns < _STEP_NS:
            self._read_ns = time.time_ns()
            self._names, self._changed_ns = frozenset(model_names(repository)), changed_ns


def _holds_a_model(folder: Path) -> bool:
    try:
        return has_config(folder) or bool(versions(folder))
    except OSError:
        return True  # loading it tells why it cannot be read


def _discover_folder(
    folder: Path, settings: Settings, overrides: Overrides = NO_OVERRIDES, numbers: frozenset[int] | None = None
) -> list[Found]:
    """A model of the repository."""
    try:
        if not settings.follow_links_out and (link := leads_out(folder.parent, folder)) is not None:
            raise ModelRejected(
                f"{link} leads out of the model repository; put what it leads to into the repository, or start the "
                f"server with --follow-links-out"
            )
        if not versions(folder) and not has_config(folder):
            log.warning("%s is ignored: it holds neither a version nor a %s", folder.name, CONFIG_FILE)
            return []
        config = overrides.apply(lambda: read_config(folder, providers=settings.providers))
    except ModelRejected as error:
        return [Found(folder.name, None, None, str(error).replace(f"{folder.parent}/", ""))]
    except OSError as error:
        return [_unreadable(folder.name, error)]
    except Exception as error:
        # As in loader.py: a defect of ours must not take the other models down, nor hide.
        log.exception("model %s cannot be read", folder.name)
        return [Found(folder.name, None, None, f"internal error: {type(error).__name__}: {error}")]
    return _versions_of(folder, config, numbers)


def _versions_of(folder: Path, config: ModelConfig, numbers: frozenset[int] | None) -> list[Found]:
    """Those that `numbers`, or else the version policy, ask for, and the reason for each that the policy names and that
    is not there."""
    try:
        on_disk = versions(folder)
        for stray in strays(folder, of="versions"):
            log.warning("%s/%s is ignored: a version is a positive integer without leading zeros", folder.name, stray)
    except OSError as error:
        return [_unreadable(config.name, error)]
    if numbers is not None:
        return [Found(config.name, version, config) for version in chosen_versions(on_disk, config, numbers)]
    if not on_disk:
        return [Found(config.name, None, None, "it has no version: a folder named by a positive number")]
    there = [str(found.version) for found in on_disk]
    missing = [str(number) for number in config.version_policy.specific if str(number) not in there]
    reasons = [
        f"version_policy asks for version {number}, which has no folder; there are {', '.join(there)}"
        for number in missing
    ]
    return [
        *(Found(config.name, version, config) for version in chosen_versions(on_disk, config)),
        *(Found(config.name, None, None, reason) for reason in reasons),
    ]


def _unreadable(name: str, error: OSError) -> Found:
    return Found(name, None, None, f"its folder cannot be read: {error.strerror}")


# --- one model, wherever it lies ----------------------------------------------------------------------------------


def _is_single(settings: Settings) -> bool:
    return settings.model is not None or settings.model_name is not None


def _discover_single(
    settings: Settings, overrides: Overrides = NO_OVERRIDES, numbers: frozenset[int] | None = None
) -> list[Found]:
    """What `--model` or `--model-name` asks for, under the name that was asked for."""
    path = settings.model or settings.model_repository
    try:
        place = locate(path)
        if place.is_dir():
            name = settings.model_name or name_of_folder(place)
            config = overrides.apply(
                lambda: read_config(place, name=name, stands_alone=True, providers=settings.providers)
            )
            if settings.model_name:
                config = config.model_copy(update={"name": settings.model_name})
            return _versions_of(place, config, numbers)
    except ModelRejected as error:
        # Reasons are told to clients, who have no business with the server's folders.
        reason = str(error).replace(f"{path.parent}/", "")
        return [Found(settings.model_name or name_of_folder(path), None, None, reason)]
    name = settings.model_name or name_of_file(place)
    config = overrides.apply(lambda: ModelConfig(name=name))
    return [Found(name, VersionDirectory(place.parent, 1, place.name), config)]
