"""What running the models took, and where that is remembered: by their content, the machine and the versions of tools.

A small file in a state directory; what is damaged, or cannot be written, is measured again. Reads models' files, never
runs one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from service import __version__
from service.settings import Settings

log = logging.getLogger(__name__)

LARGEST_BYTES = 8 * 1024 * 1024
"""Of a file that is measured: reading larger weights alone takes about a millisecond."""
# Of all that is served together, to be recognised: reading and hashing this much takes 0.1 s.
_MOST_BYTES = 64 * 1024 * 1024
_MOST_FILES = 500
_MOST_REMEMBERED = 500


@dataclass(frozen=True, slots=True)
class Measured:
    """One version: seconds for one row on one thread, or None and why that is not known. instances: of its runs, how
    many may be under way at once."""

    label: str
    row_s: float | None
    reason: str = ""
    instances: int = 1


def state_directory(environ: Mapping[str, str]) -> Path:
    """systemd's, or the user's own (XDG Base Directory Specification)."""
    if given := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(given)
    home = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME", "/"), ".local", "state")
    return Path(home, "foldserve")


class Memory:
    """What was measured on this machine with these versions."""

    def __init__(self, folder: Path, *tools: str) -> None:
        self._path = folder / "measured.json"
        self._machine = "; ".join((f"foldserve {__version__}", *tools, _processor(), f"{os.cpu_count()} cores"))
        found: Any = None
        with suppress(OSError, ValueError, RecursionError):
            found = json.loads(self._path.read_text(encoding="utf-8"))
        # Figures of other machines and versions go: a home directory may be shared, but this is only a start-up time.
        ours = found.get(self._machine) if isinstance(found, dict) else None
        self._known: dict[str, Any] = ours if isinstance(ours, dict) else {}

    @classmethod
    def of_this_machine(cls) -> Memory:
        """The one that servers share."""
        return cls(state_directory(os.environ), f"onnxruntime {version('onnxruntime')}")

    def row_s(self, content: str) -> float | None:
        """Seconds for a row of one model. content: what `content_of` says."""
        value = self._known.get(content)
        return value if isinstance(value, float) else None

    def models(self, seen: str | None) -> list[Measured] | None:
        """What was measured when all that is served looked as it does now. seen: what `fingerprint` says."""
        rows = self._known.get(seen or "")
        if not isinstance(rows, list):
            return None
        try:
            return [_measured(**row) for row in rows]
        except (TypeError, ValueError):
            return None

    def remember(self, content: str, row_s: float) -> None:
        self._keep(content, row_s)

    def remember_models(self, seen: str | None, models: Sequence[Measured]) -> None:
        if seen is not None:
            self._keep(seen, [dataclasses.asdict(model) for model in models])

    def _keep(self, key: str, value: object) -> None:
        """Written whole and moved into place: another server may read it, or write its own."""
        self._known.pop(key, None)
        self._known = dict([*self._known.items(), (key, value)][-_MOST_REMEMBERED:])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            fresh.write_text(json.dumps({self._machine: self._known}, indent=1), encoding="utf-8")
            fresh.replace(self._path)
        except OSError as error:
            log.debug("what was measured is not remembered: %s", error)


def _measured(label: str, row_s: float | None, reason: str, instances: int) -> Measured:
    """Raises TypeError or ValueError where a figure is none."""
    if int(instances) < 1:
        raise ValueError(f"{instances} instances")
    return Measured(str(label), None if row_s is None else float(row_s), str(reason), int(instances))


def content_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint(settings: Settings) -> str | None:
    """Of the names and contents of all files that are served; None where there is too much to read it at each start, or
    something that cannot be read."""
    root = settings.model or settings.model_repository
    seen = hashlib.sha256()
    size_bytes = 0
    try:
        for number, path in enumerate([root] if root.is_file() else _files(root), start=1):
            found = path.stat()
            size_bytes += found.st_size
            # Reading a pipe may never end.
            if number > _MOST_FILES or size_bytes > _MOST_BYTES or not stat.S_ISREG(found.st_mode):
                return None
            seen.update(f"{path}\0{content_of(path)}\0".encode(errors="surrogateescape"))
    except OSError:
        return None
    return seen.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    """In order, behind links too: so that a circle of them ends, the caller stops."""
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names))


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
