"""The process that measures models before any worker starts: prints what one row of each takes, as JSON, and ends.

It loads each model as a worker with one thread would, one after the other, and stops at the first that decides.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence

from service.discovery import Found, discover
from service.errors import ModelRejected
from service.load_version import load_version
from service.loader import refuse_pointer
from service.logs import configure_logging
from service.measurements import LARGEST_BYTES, Measured, Memory, content_of, fingerprint
from service.settings import Settings
from service.worker_plan import SHORT_S


def main(argv: Sequence[str], *, alive: int) -> int:
    """Returns the exit code. alive: a pipe that is closed when whoever waits for us has ended."""
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    settings = Settings.from_command_line(argv, os.environ)
    configure_logging("error", settings.log_format)  # what is wrong with a model is told by those who are to serve it
    memory = Memory.of_this_machine()
    seen = fingerprint(settings)  # before the models are read: what changes meanwhile is measured at the next start
    found = [one for one in discover(settings) if one.version and one.config]
    models = list(_until_decided(settings, found, memory))
    sys.stdout.write(json.dumps([dataclasses.asdict(model) for model in models]))
    memory.remember_models(seen, models)
    return 0


def _end_with(alive: int) -> None:
    os.read(alive, 1)
    os._exit(1)


def _until_decided(settings: Settings, found: Sequence[Found], memory: Memory) -> Iterator[Measured]:
    for one in found:
        measured = measure(settings, one, memory)
        yield measured
        if measured.row_s is None or measured.row_s >= SHORT_S:
            return


def measure(settings: Settings, found: Found, memory: Memory) -> Measured:
    """Raises nothing: a model that cannot be loaded takes no time."""
    assert found.version is not None
    assert found.config is not None
    label = f"model {found.name} version {found.version.version}"
    path = found.version.model_path
    if not path.is_file():
        return Measured(label, None, "what it takes could not be measured: it is no ordinary file")
    try:
        refuse_pointer(path)
        files = [path] if found.version.stands_alone else [file for file in path.parent.iterdir() if file.is_file()]
        size_bytes = sum(file.stat().st_size for file in files)
        if size_bytes > LARGEST_BYTES:
            return Measured(
                label, None, f"its {size_bytes / 2**20:.0f} MiB are not read at once, so runs use all cores"
            )
        content = content_of(path)
        instances = found.config.scheduler.instances
        if (known_s := memory.row_s(content)) is not None:
            return Measured(label, known_s, instances=instances)
        loaded = load_version(found.version, found.config, providers=settings.providers, intra_op_threads=1)
    except (ModelRejected, OSError):
        return Measured(label, 0.0)
    if not loaded.report.latency_s:
        return Measured(label, None, "what it takes could not be measured")
    row_s = loaded.report.latency_s[min(loaded.report.latency_s)]  # where batches have a fixed size, a row takes one
    memory.remember(content, row_s)
    return Measured(label, row_s, instances=instances)
