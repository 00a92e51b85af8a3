"""How many worker processes serve, when nobody has said: chosen before the first begins, from what the models take.

    a model whose row takes long     one process: its runs use all cores, and what Python adds is little beside them
    rows that are over soon          Python is most of the work, and one process can use one core for it: several

Measured in a process of its own, which ends and leaves nothing behind; `choose` is arithmetic. What was measured is
kept in a state directory, by the content of the model's file and the machine, so that the next start need not measure.
Knows no server.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service import __version__
from service.cpu_plan import CpuPlan
from service.settings import Settings

log = logging.getLogger(__name__)

SHORT_S = 1e-3
"""A row that takes longer is worth more than one core: as in load_version.py."""
LARGEST_BYTES = 8 * 1024 * 1024
"""Of a file that is measured: reading larger weights alone takes about a millisecond."""
PROBE_S = 20.0
# The kernel's work on the network, runs that are computed beside the loop, and whatever else the machine does want
# cores as well. Unsure: with two workers on 2 cores, a client on the same ones, 64 callers of a small model got up to
# 1.7 times as many answers as from one process, one caller 0.9 times, and on a busy machine both fewer.
_CORES_A_WORKER = 2
# Each loads every model; more have not been measured.
_MOST_WORKERS = 8
_BOOT = "import sys; sys.path[:] = {path!r}; from service.probe import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True, slots=True)
class Measured:
    """One version: seconds for one row on one thread, or None and why that is not known."""

    label: str
    row_s: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """`reason`: in words, for the log and the configuration endpoint."""

    workers: int
    reason: str


def choose(cpu: CpuPlan, models: Sequence[Measured]) -> WorkerPlan:
    """The number of workers for these models on these cores."""
    possible = min(cpu.cores // _CORES_A_WORKER, _MOST_WORKERS)
    if possible < 2:
        return WorkerPlan(1, f"{_cores(cpu.cores)}, {cpu.reason}")
    if not models:
        return WorkerPlan(1, "there is no model yet")
    for model in models:
        if model.row_s is None:
            return WorkerPlan(1, f"{model.label}: {model.reason}")
        if model.row_s >= SHORT_S:
            return WorkerPlan(1, f"{model.label} takes {1e3 * model.row_s:.3g} ms a row on one core, so runs use all")
    longest_us = 1e6 * max(model.row_s or 0.0 for model in models)
    return WorkerPlan(
        possible, f"a row takes {longest_us:.3g} us at most, so one for every {_CORES_A_WORKER} of {_cores(cpu.cores)}"
    )


def plan(cpu: CpuPlan, settings: Settings, argv: Sequence[str]) -> WorkerPlan:
    """As `choose`, having looked at the models that `settings` name. Raises nothing: without a measurement one process
    serves. argv: the command line that the settings were read from."""
    if settings.providers != ("CPUExecutionProvider",):
        return WorkerPlan(1, f"{settings.providers[0]} computes, and each process would hold every model there")
    if cpu.cores < 2 * _CORES_A_WORKER:
        return choose(cpu, ())
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter, our own program
            [sys.executable, "-c", _BOOT.format(path=sys.path), *argv],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=PROBE_S, check=True,
        )  # fmt: skip
        models = [Measured(**row) for row in json.loads(done.stdout)]
    except subprocess.TimeoutExpired:
        return WorkerPlan(1, f"the models were not measured within {PROBE_S:g} s")
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        return WorkerPlan(1, f"the models could not be measured: {error}")
    return choose(cpu, models)


def _cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count} cores"


# --- what is remembered -------------------------------------------------------------------------------------------


def state_directory(environ: Mapping[str, str]) -> Path:
    """systemd's, or the user's own (XDG Base Directory Specification)."""
    if given := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(given)
    home = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME", "/"), ".local", "state")
    return Path(home, "foldserve")


class Memory:
    """Rows' seconds by a model's content, of this machine and these versions. What cannot be read or written is
    measured again."""

    def __init__(self, folder: Path, *tools: str) -> None:
        self._path = folder / "measured.json"
        self._machine = "; ".join((f"foldserve {__version__}", *tools, _processor(), f"{os.cpu_count()} cores"))
        self._rows: dict[str, dict[str, Any]] = {}
        with suppress(OSError, ValueError):
            found = json.loads(self._path.read_text(encoding="utf-8"))
            self._rows = found if isinstance(found, dict) else {}

    def row_s(self, content: str) -> float | None:
        """content: what `content_of` says."""
        found = self._rows.get(self._machine)
        value = found.get(content) if isinstance(found, dict) else None
        return value if isinstance(value, float) else None

    def remember(self, content: str, row_s: float) -> None:
        """Written whole and moved into place: another server may read it, or write its own."""
        # Figures of other machines and versions go: a home directory may be shared, but this is only a start-up time.
        self._rows = {self._machine: {**self._rows.get(self._machine, {}), content: row_s}}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            fresh.write_text(json.dumps(self._rows, indent=1), encoding="utf-8")
            fresh.replace(self._path)
        except OSError as error:
            log.debug("what was measured is not remembered: %s", error)


def content_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
