"""What `/metrics` tells of two processes that serve the same repository; here two registries with pages of their own.

One process, under real traffic: tests/end_to_end/test_metrics.py.
"""

from __future__ import annotations

import asyncio
import mmap
from pathlib import Path

import numpy as np

from service.counter_pages import PAGE_BYTES, CounterPage, Pages, mark_dead
from service.metrics import read_metrics
from service.process_gauges import ProcessGauges
from service.prometheus_text import write_lines
from service.protocol import InferenceRequest, InputTensor
from service.registry import Registry
from service.settings import Settings
from tests.service.handmade import publish

ONE_ROW = InferenceRequest((InputTensor("x", "FP32", np.zeros((1, 2), np.float32)),))


def lines(registry: Registry, *names: str) -> list[str]:
    """The samples of those names, as they are printed."""
    return [line for line in write_lines(read_metrics(registry)) if line is not None and line.startswith(names)]


def test_two_processes_are_told_as_one_by_either_and_what_died_still_counts(tmp_path: Path) -> None:
    publish(tmp_path)
    buffers = [mmap.mmap(-1, PAGE_BYTES) for _ in range(2)]

    async def run() -> None:
        workers = [
            Registry(
                Settings(model_repository=tmp_path, intra_op_threads=1),
                Pages(CounterPage(own), [other for other in buffers if other is not own]),
            )
            for own in buffers
        ]
        for worker, requests in zip(workers, (3, 4), strict=True):
            await worker.load_all()
            ProcessGauges(worker, lambda: 2).refresh()
            for _ in range(requests):
                await worker.get("linear").infer(ONE_ROW)
            worker.count_refusal("linear", None, "queue_full")
            worker.count_refusal("made up", "9", "not_found")
        first, second = workers
        names = ("nv_inference_count", "foldserve_refusals_total", "foldserve_open_connections", "foldserve_workers")
        version = 'model="linear",version="1"'
        counted = [
            f"nv_inference_count{{{version}}} 7",
            f'foldserve_refusals_total{{{version},reason="queue_full"}} 2',
            'foldserve_refusals_total{model="",version="",reason="not_found"} 2',
        ]
        assert lines(first, *names) == lines(second, *names)
        assert lines(first, *names) == [*counted, "foldserve_open_connections 4", "foldserve_workers 2"]
        (statistics,) = first.statistics("linear")
        assert statistics.inference_count == 7

        mark_dead(buffers[1])
        assert lines(first, *names) == [*counted, "foldserve_open_connections 2", "foldserve_workers 1"]
        for worker in workers:
            await worker.close()

    asyncio.run(asyncio.wait_for(run(), 60))
