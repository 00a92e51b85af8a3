"""The load generator `load.c` from Python: build it, run it, read what it found. Standard library only.

A `Load` is one measurement. What is sent is one request, head and body, as bytes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("load.c")
SLACK_S = 30.0  # a generator that runs longer than it may is a defect, and is ended


class NoCompiler(Exception):
    """There is nothing to build the generator with. `str(error)` says what to install."""


class LoadFailed(Exception):
    """The generator did not run, or what it measured cannot stand in a table. `str(error)` is one line."""


@dataclass(frozen=True)
class Times:
    """Milliseconds; None where no answer of the kind came."""

    p50: float | None
    p90: float | None
    p99: float | None
    p99_9: float | None
    maximum: float | None


@dataclass(frozen=True)
class Load:
    """What one run found. `ok`: answers 200; `refused`: 503 and 429. `good` are those 200 that met the deadline."""

    seconds: float
    by_status: Mapping[int, int]
    good: int
    errors: int
    timeouts: int
    wrong: int
    reconnects: int
    latest_send_ms: float
    cpu_s: float
    ok: Times
    refused: Times

    @property
    def ok_per_s(self) -> float:
        return self.by_status.get(200, 0) / self.seconds

    @property
    def good_per_s(self) -> float:
        return self.good / self.seconds

    @property
    def requests(self) -> int:
        """Whatever became of them."""
        return sum(self.by_status.values()) + self.errors + self.timeouts

    def refuse_unless_clean(self) -> Load:
        """A rate is a rate of right answers: raises LoadFailed when any request got none."""
        others = {status: count for status, count in self.by_status.items() if status != 200}
        if others or self.errors or self.timeouts or self.wrong or not self.by_status:
            raise LoadFailed(
                f"{self.by_status.get(200, 0)} answers 200, others {others}, {self.errors} errors, "
                f"{self.timeouts} timeouts, {self.wrong} of the wrong length or content"
            )
        return self


def build(folder: Path) -> Path:
    """The generator, compiled into `folder` unless it is there and newer than its source. Raises NoCompiler."""
    program = folder / "load"
    if program.exists() and program.stat().st_mtime > SOURCE.stat().st_mtime:
        return program
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompiler("the load generator is C: install a compiler (on Debian: apt-get install gcc libc6-dev)")
    folder.mkdir(parents=True, exist_ok=True)
    command = [compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-o", str(program), str(SOURCE), "-lm"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise NoCompiler(f"{compiler} cannot build {SOURCE.name}: {made.stderr.strip()[:500]}")
    return program


def post(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """One request as the generator sends it."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "User-Agent: load", "Accept: */*"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("ascii") + body


def run(program: Path, port: int, request: bytes, *, seconds: float, **options: float | bool | None) -> Load:
    """`options` are the generator's own: connections, warm_up, rate, poisson, seed, deadline_ms, timeout_ms,
    expect_bytes. Raises LoadFailed."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(request)
        file.flush()
        command = [str(program), "--port", str(port), "--request", file.name, "--seconds", str(seconds)]
        for name, value in options.items():
            if value is not None and value is not False:
                command.append("--" + name.replace("_", "-"))
                command += [] if value is True else [str(value)]
        limit_s = seconds + float(options.get("warm_up") or 0) + float(options.get("timeout_ms") or 10_000) / 1e3
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s + SLACK_S)
        except subprocess.TimeoutExpired as error:
            raise LoadFailed(f"the load generator has not ended after {error.timeout:.0f} s") from error
    if done.returncode != 0:
        raise LoadFailed(f"the load generator ended with {done.returncode}: {done.stderr.strip()[:300]}")
    return read(done.stdout)


def read(line: str) -> Load:
    """From the line that the generator prints."""
    found: dict[str, Any] = json.loads(line)
    return Load(
        seconds=found["seconds"],
        by_status={int(status): count for status, count in found["by_status"].items()},
        ok=_times(found["ok_ms"]),
        refused=_times(found["refused_ms"]),
        **{
            name: found[name]
            for name in ("good", "errors", "timeouts", "wrong", "reconnects", "latest_send_ms", "cpu_s")
        },
    )


def _times(found: Mapping[str, float | None]) -> Times:
    return Times(found["p50"], found["p90"], found["p99"], found["p99.9"], found["max"])
