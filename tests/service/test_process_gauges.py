"""What a process tells of itself, in a registry with a real model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from service.counter_pages import CounterPage, Kind, Pages
from service.process_gauges import (
    CONNECTIONS,
    QUEUE_REQUESTS,
    RESIDENT_BYTES,
    STARTED_S,
    ProcessGauges,
    resident_bytes,
)
from service.registry import Registry
from service.settings import Settings
from tests.service.handmade import publish

LINEAR = (("model", "linear"), ("version", "1"))


def with_registry(repository: Path, work: Callable[[Registry], Awaitable[None]]) -> None:
    async def run() -> None:
        registry = Registry(Settings(model_repository=repository, intra_op_threads=1))
        await registry.load_all()
        await work(registry)
        await registry.close()

    publish(repository)
    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_process_tells_its_memory_its_age_and_its_connections(tmp_path: Path) -> None:
    async def work(registry: Registry) -> None:
        ProcessGauges(registry, lambda: 3).refresh()
        assert registry.pages.value(CONNECTIONS) == [3]
        assert registry.pages.value(QUEUE_REQUESTS, LINEAR) == [0]
        ((resident,), (started_s,)) = registry.pages.value(RESIDENT_BYTES), registry.pages.value(STARTED_S)
        assert 1e7 < resident < 1e11
        assert time.time() - 86_400 < started_s < time.time()

    with_registry(tmp_path, work)


def test_a_version_that_has_gone_has_nobody_waiting(tmp_path: Path) -> None:
    async def work(registry: Registry) -> None:
        gauges = ProcessGauges(registry)
        gauges.refresh()
        registry.pages.own.cells[registry.pages.own.series(Kind.GAUGE, QUEUE_REQUESTS, LINEAR)] = 7
        await registry.unload("linear")
        gauges.refresh()
        assert registry.pages.value(QUEUE_REQUESTS, LINEAR) == [0]

    with_registry(tmp_path, work)


def test_where_others_read_it_is_kept_fresh(tmp_path: Path) -> None:
    async def work(registry: Registry) -> None:
        fresh = asyncio.ensure_future(ProcessGauges(registry, lambda: 5).keep_fresh())
        await asyncio.sleep(0)
        others_reading = Pages(CounterPage(), [registry.pages.own.buffer])
        assert others_reading.value(CONNECTIONS) == [5]
        fresh.cancel()

    with_registry(tmp_path, work)


def test_a_system_that_does_not_tell_its_memory_is_no_error(tmp_path: Path) -> None:
    assert resident_bytes(tmp_path) is None
