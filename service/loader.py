"""From a version on disk to a model that may answer, in threads; and from a model that answered back to free memory.

Knows no states and no requests: what becomes of a model is the registry's affair. Counters belong to a name and version
and are kept here, so that a version that is loaded again counts on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from service import cpu_plan, memory
from service.counter_pages import Pages
from service.discovery import Found
from service.errors import ModelRejected
from service.load_version import load_version
from service.model import Model
from service.settings import Settings
from service.statistics import ModelStatistics
from service.waiting import QueueSpace

log = logging.getLogger(__name__)

T = TypeVar("T")

# Of the memory that is there at the start. The models, bodies that are still coming, the batches that run and their
# answers need the rest.
_QUEUE_SHARE = 1 / 8


class Loader:
    """Loads what `Found` names, as `settings` say."""

    def __init__(self, settings: Settings, pages: Pages | None = None) -> None:
        """pages: where counters lie; without them, memory of its own."""
        self.under_way = 0
        """Calls that have begun and not ended, given up ones included: their threads cannot be interrupted."""
        self.cpu = cpu_plan.read_plan(settings.workers)
        self._settings = settings
        # Requests that wait hold their tensors: of all models and workers together, so much and no more.
        self.queue_space = QueueSpace(memory.available_bytes() * _QUEUE_SHARE / max(1, settings.workers))
        self.pages = pages or Pages()
        self._statistics: dict[tuple[str, int], ModelStatistics] = {}
        self._statistics_lock = threading.Lock()
        # Loading is mostly ONNX Runtime optimising graphs, outside the interpreter lock.
        self._threads = ThreadPoolExecutor(self.cpu.cores, thread_name_prefix="load")
        # Never behind models that load, which takes minutes.
        self._errands = ThreadPoolExecutor(2, thread_name_prefix="disk")

    def close(self) -> None:
        """Begins no more loads. Does not wait."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs something that may wait for the disk; raises what it raises."""
        return await self._run(self._errands, function, *arguments)

    async def load(self, found: Found, *, replaces: bool = False) -> Model | str:
        """The loaded model, or why it must not serve. Raises nothing.

        replaces: others of that name serve, and go on when this one cannot; for the log.
        """
        assert found.version is not None
        label = f"{found.name} version {found.version.version}"
        failed = "cannot be loaded, what was loaded before serves on" if replaces else "UNAVAILABLE"
        try:
            model = await self._run(self._threads, self._load_blocking, found)
        except ModelRejected as error:
            outcome: Model | str = without_folder(self._settings, str(error))
            log.error("model %s %s: %s", label, failed, outcome)
        except Exception as error:
            # A defect of ours must not take the other models down, nor hide: it is logged with its traceback.
            outcome = f"internal error: {type(error).__name__}: {error}"
            log.exception("model %s %s", label, failed)
        else:
            outcome = model
            _log_ready(label, model)
        return outcome

    async def end(self, model: Model) -> None:
        """Lets the model answer what it has taken, and gives its memory back."""
        await model.close()
        await self._run(self._errands, _release, model)

    async def _run(self, threads: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
        self.under_way += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)
        except asyncio.CancelledError:
            # The thread goes on without us.
            self.under_way += 1
            raise
        finally:
            self.under_way -= 1

    def _load_blocking(self, found: Found) -> Model:
        assert found.version is not None
        assert found.config is not None
        # Runs at the same time share the cores.
        cores = max(1, self.cpu.cores // found.config.scheduler.instances)
        try:
            refuse_pointer(found.version.model_path)
            loaded = load_version(
                found.version,
                found.config,
                providers=self._settings.providers,
                intra_op_threads=self._settings.intra_op_threads or cores,
                may_use_fewer=not self._settings.intra_op_threads,
            )
            statistics = self._statistics_of(found.name, found.version.version)
            return Model(loaded, statistics, self.queue_space, max_request_rows=self._settings.max_request_rows)
        except OSError as error:  # a folder that may not be entered, a name too long: anything but a missing file
            raise ModelRejected(f"{error.filename or 'a file'} cannot be read: {error.strerror}") from error
        finally:
            # The file as it was read, and weights that ONNX Runtime has laid out anew: of 22 convolutions with 198 MB
            # of weights, 400 of 600 MB were free again, and stayed.
            memory.give_back()

    def _statistics_of(self, name: str, version: int) -> ModelStatistics:
        with self._statistics_lock:
            statistics = self._statistics.get((name, version))
            if statistics is None:
                statistics = self._statistics[name, version] = ModelStatistics(self.pages, name, version)
        return statistics


# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md, "The Pointer".
_POINTER = b"version https://git-lfs.github.com/spec/v1\n"


def refuse_pointer(path: Path) -> None:
    """A clone without Git LFS has, in place of a large file, a few lines about it: nothing that any other message about
    hashes or formats would explain. Raises ModelRejected."""
    if path.is_file():  # a pipe would wait
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise ModelRejected(f"{path.name} is a Git LFS pointer, not the model itself; run `git lfs pull`")


def _release(model: Model) -> None:
    model.release()
    memory.give_back()


def without_folder(settings: Settings, reason: str) -> str:
    """Reasons are told to clients, who have no business with the server's folders."""
    folder = settings.model.parent if settings.model else settings.model_repository
    if folder in {Path(), Path("/")}:
        return reason  # nothing to hide, and dots and slashes are everywhere
    # From the beginning of a path only, and by itself only where it cannot be a word: a folder may be called "m".
    name = re.escape(str(folder))
    reason = re.sub(rf"(?<![\w./-]){name}/", "", reason)
    alone = rf"'{name}'|(?<![\w./-]){name}(?![\w./-])" if folder.is_absolute() else f"'{name}'"
    reason = re.sub(alone, "the repository", reason)
    # ONNX Runtime tells where external data would be that lies outside: not even where "outside" begins is told.
    for place in (folder.absolute(), Path(os.path.realpath(folder))):
        for above in (place, *place.parents[:-1]):
            reason = re.sub(rf"(?<![\w./-]){re.escape(str(above))}/", "", reason)
    return reason


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
