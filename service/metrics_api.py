"""`GET /metrics`, for Prometheus. What it tells is in metrics.py."""

from __future__ import annotations

from fastapi import FastAPI, Response

from service.metrics import read_metrics
from service.process_gauges import ProcessGauges
from service.prometheus_text import CONTENT_TYPE, to_text
from service.registry import Registry


def add_metrics_route(app: FastAPI, registry: Registry, gauges: ProcessGauges) -> None:
    async def metrics() -> Response:
        gauges.refresh()
        return Response(to_text(read_metrics(registry)), headers={"content-type": CONTENT_TYPE})

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
