"""`GET /metrics`, for Prometheus. What it tells is in metrics.py."""

from __future__ import annotations

import asyncio
import time

from fastapi import FastAPI, Response

from service.metrics import read_metrics
from service.process_gauges import ProcessGauges
from service.prometheus_text import CONTENT_TYPE, to_text, write_lines
from service.registry import Registry

# A hundred models take 60 ms to tell of; for no longer than this nobody else is served meanwhile.
_SLICE_S = 0.001


async def metrics_text(registry: Registry) -> bytes:
    """All that there is to tell, written in slices. Raises PageDamaged."""
    lines: list[str] = []
    slice_ends_s = time.perf_counter() + _SLICE_S
    for line in write_lines(read_metrics(registry)):
        if line is not None:
            lines.append(line)
        if time.perf_counter() > slice_ends_s:
            await asyncio.sleep(0)
            slice_ends_s = time.perf_counter() + _SLICE_S
    return to_text(lines)


def add_metrics_route(app: FastAPI, registry: Registry, gauges: ProcessGauges) -> None:
    async def metrics() -> Response:
        gauges.refresh()
        return Response(await metrics_text(registry), headers={"content-type": CONTENT_TYPE})

    app.add_api_route(
        "/metrics",
        metrics,
        methods=["GET"],
        response_class=Response,
        summary="Counters, histograms and gauges in Prometheus's text format",
        operation_id="metrics",
        tags=["Watching"],
        responses={200: {"content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}},
    )
