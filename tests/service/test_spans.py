"""What a collector is told of a request: the SDK's own exporter in memory takes it."""

from __future__ import annotations

import logging

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service import spans
from service.request_tags import RequestTags
from service.settings import Settings, SettingsError
from service.spans import Spans, are_wanted, otlp_exporter
from service.stages import Stages
from service.watching import Asked, Finished

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def stages() -> Stages:
    made = Stages(10.001)
    made.submitted_s, made.batch_s = 10.002, (10.004, 10.007)
    made.version, made.rows = 3, 2
    return made


def finished(asked: Asked | None, status: int = 200, flags: str | None = None) -> Finished:
    headers = [(b"x-request-id", b"a-1")]
    if flags is not None:
        headers.append((b"traceparent", f"00-{TRACE_ID}-{PARENT_ID}-{flags}".encode()))
    path = "/v2/models/m/infer"
    return Finished("127.0.0.1:9", "POST", path, status, 5, 7, 10.0, 10.008, RequestTags(headers), asked)


def exported(*requests: Finished) -> tuple[ReadableSpan, ...]:
    exporter = InMemorySpanExporter()
    told = Spans(exporter)
    for request in requests:
        told(request)
    told.close()
    return exporter.get_finished_spans()


def test_a_request_is_a_span_of_the_server_with_its_four_stages_below() -> None:
    *below, server = exported(finished(Asked("m", None, "", stages())))
    assert (server.name, server.kind, server.parent) == ("POST infer", SpanKind.SERVER, None)
    assert dict(server.attributes or {}) == {
        "http.request.method": "POST",
        "url.path": "/v2/models/m/infer",
        "http.response.status_code": 200,
        "client.address": "127.0.0.1:9",
        "request.id": "a-1",
        "model.name": "m",
        "model.version": "3",
        "batch.rows": 2,
    }
    assert [span.name for span in below] == ["decode", "queue", "compute", "encode"]
    assert all(span.parent == server.context for span in below)
    begins = [span.start_time for span in (server, *below)]
    assert all(began is not None for began in begins)
    ms = [round((began or 0) / 1e6) - round((begins[0] or 0) / 1e6) for began in begins]
    assert ms == pytest.approx([0, 1, 2, 4, 7], abs=1)
    took_ms = [((span.end_time or 0) - (span.start_time or 0)) / 1e6 for span in (server, *below)]
    assert took_ms == pytest.approx([8, 1, 2, 3, 1], abs=1e-3)


def test_a_refusal_has_its_reason_and_no_stages() -> None:
    (span,) = exported(finished(Asked("m", "7", "queue_full", Stages(10.0)), 503))
    assert (span.attributes or {})["error.type"] == "queue_full"
    assert (span.attributes or {})["model.version"] == "7"
    assert span.status.status_code is StatusCode.ERROR


def test_the_callers_fault_is_no_error_of_the_server() -> None:
    (span,) = exported(finished(Asked("m", None, "not_found"), 404))
    assert span.status.status_code is StatusCode.UNSET


def test_the_callers_trace_goes_on() -> None:
    *_, server = exported(finished(Asked("m", None), flags="01"))
    assert server.context.trace_id == int(TRACE_ID, 16)
    assert server.parent is not None
    assert server.parent.span_id == int(PARENT_ID, 16)


def test_what_the_caller_does_not_sample_is_not_sent() -> None:
    assert exported(finished(Asked("m", None, "", stages()), flags="00")) == ()


def test_other_routes_have_no_spans() -> None:
    assert exported(finished(None)) == ()


def test_more_requests_than_fit_are_left_out_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spans, "_MOST_WAITING", 3)
    with caplog.at_level(logging.WARNING):
        assert len(exported(*[finished(Asked("m", None))] * 10)) == 3
    assert caplog.messages == ["7 requests came faster than spans are made, and have none"]


URL = "http://collector:4318"


@pytest.mark.parametrize(
    ("flag", "environ", "wanted"),
    [
        (None, {}, False),
        (URL, {}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": URL}, True),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": URL}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_SDK_DISABLED": "true"}, False),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_spans_are_wanted_where_a_collector_is_named(flag: str | None, environ: dict[str, str], wanted: bool) -> None:
    assert are_wanted(Settings(otlp_endpoint=flag), environ) is wanted


def test_without_the_extra_the_flag_is_a_mistake_and_a_variable_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spans, "_NEEDED", ("opentelemetry.that_is_not_installed",))
    with pytest.raises(SettingsError, match=r"--otlp-endpoint: spans need the extra `otel`.*foldserve\[otel\]"):
        are_wanted(Settings(otlp_endpoint=URL), {})
    assert not are_wanted(Settings(), {"OTEL_EXPORTER_OTLP_ENDPOINT": URL})
    assert "OTEL_EXPORTER_OTLP_ENDPOINT names a collector, but spans need the extra" in caplog.text


@pytest.mark.parametrize("given", [URL, f"{URL}/", f"{URL}/v1/traces"])
def test_spans_go_where_the_flag_says(given: str) -> None:
    exporter = otlp_exporter(Settings(otlp_endpoint=given))
    assert vars(exporter)["_endpoint"] == f"{URL}/v1/traces"
    exporter.shutdown()
