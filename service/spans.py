"""OpenTelemetry spans of infer requests, behind the extra `otel`: one of the server's, and below it decode, queue,
compute and encode, as stages.py has them.

A request costs the event loop one entry in a bounded queue. A thread of its own makes spans of it, with pauses in which
others run, and the SDK sends them in batches; what comes faster than that is left out, and counted. The SDK's own
variables (OTEL_*) hold: sampling, headers, timeouts, the service's name. A caller's trace is continued, and its verdict
on sampling kept. Knows no door.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from service import __version__
from service.off_loop import pause
from service.settings import Settings, SettingsError
from service.watching import Finished

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PATH = "/v1/traces"
_NEEDED = ("opentelemetry.sdk.trace.export", "opentelemetry.exporter.otlp.proto.http.trace_exporter")

# About as many as the thread makes spans of in a second.
_MOST_WAITING = 4096
_ROUND_S = 0.2
# For what is left when the server ends; a collector that is gone must not hold it up.
_FAREWELL_S = 2.0


def are_wanted(settings: Settings, environ: Mapping[str, str]) -> bool:
    """Where the flag or one of the SDK's variables names a collector.

    Raises SettingsError where the flag does and the extra is not installed. A variable may be meant for others, who
    share this environment: then there is a warning, and no spans.
    """
    if settings.otlp_endpoint is None:
        off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
        if off or not any(map(environ.get, _VARIABLES)):
            return False
    try:
        for name in _NEEDED:
            importlib.import_module(name)
    except ImportError as error:
        text = f"spans need the extra `otel` ({error}): pip install 'foldserve[otel]'"
        if settings.otlp_endpoint is not None:
            raise SettingsError(f"--otlp-endpoint: {text}") from error
        log.warning("%s names a collector, but %s", next(filter(environ.get, _VARIABLES)), text)
        return False
    return True


def otlp_exporter(settings: Settings) -> SpanExporter:
    """OTLP over HTTP, to where the flag says, otherwise the SDK's variables."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    if settings.otlp_endpoint is None:
        return OTLPSpanExporter()
    return OTLPSpanExporter(endpoint=settings.otlp_endpoint.rstrip("/").removesuffix(_PATH) + _PATH)


class Spans:
    """To be called with each request that is over. The thread begins with the first."""

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        ours = Resource({"service.name": "foldserve", "service.version": __version__})
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("foldserve", __version__)
        self._waiting: deque[Finished] = deque()
        self._left_out = self._left_out_told = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, finished: Finished) -> None:
        if finished.asked is None:
            return  # health, metadata, metrics
        if len(self._waiting) >= _MOST_WAITING:
            self._left_out += 1
            return
        self._waiting.append(finished)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Sends what is left, if that can be done soon."""
        self._ended.set()
        ending = threading.Thread(target=self._finish, name="spans-end", daemon=True)
        ending.start()
        ending.join(_FAREWELL_S)

    def _finish(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._provider.shutdown()

    def _run(self) -> None:
        while not self._ended.wait(_ROUND_S):
            self._make_all()
        self._make_all()

    def _make_all(self) -> None:
        epoch_ns = time.time_ns() - time.monotonic_ns()
        while self._waiting:
            try:
                self._make(self._waiting.popleft(), epoch_ns)
            except Exception:
                log.exception("a request's spans could not be made")
            pause()
        if new := self._left_out - self._left_out_told:
            self._left_out_told += new
            log.warning("%d requests came faster than spans are made, and have none", new)

    def _make(self, finished: Finished, epoch_ns: int) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context

        def at(seconds: float) -> int:
            return epoch_ns + round(seconds * 1e9)

        parent = _parent(finished)
        span = self._tracer.start_span(
            f"{finished.method} infer", parent, SpanKind.SERVER, start_time=at(finished.began_s)
        )
        if span.is_recording():
            _describe(span, finished)
            below = set_span_in_context(span)
            for name, began_s, ended_s in _stages(finished):
                self._tracer.start_span(name, below, start_time=at(began_s)).end(at(ended_s))
        span.end(at(finished.ended_s))


def _parent(finished: Finished) -> Context | None:
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    if (trace := finished.tags.trace) is None:
        return None
    flags = TraceFlags(TraceFlags.SAMPLED if trace.is_sampled else TraceFlags.DEFAULT)
    caller = SpanContext(int(trace.trace_id, 16), int(trace.parent_id, 16), is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(caller))


def _describe(span: Span, finished: Finished) -> None:
    """Names as in OpenTelemetry's conventions where it has them."""
    from opentelemetry.trace import StatusCode

    asked = finished.asked
    assert asked is not None
    version = getattr(asked.stages, "version", asked.version)
    rows = getattr(asked.stages, "rows", None)
    attributes = {
        "http.request.method": finished.method,
        "url.path": finished.path,
        "http.response.status_code": finished.status,
        "client.address": finished.client,
        "request.id": finished.tags.request_id,
        "model.name": asked.model,
        "model.version": None if version is None else str(version),
        "batch.rows": rows,
        "error.type": asked.reason or None,
    }
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})
    if finished.status >= 500:
        span.set_status(StatusCode.ERROR, asked.reason)


def _stages(finished: Finished) -> tuple[tuple[str, float, float], ...]:
    """None of a request that no model ran for."""
    assert finished.asked is not None
    stages = finished.asked.stages
    if stages is None or not hasattr(stages, "batch_s"):
        return ()
    began_s, ended_s = stages.batch_s
    return (
        ("decode", stages.arrived_s, stages.submitted_s),
        ("queue", stages.submitted_s, began_s),
        ("compute", began_s, ended_s),
        ("encode", ended_s, finished.ended_s),
    )
