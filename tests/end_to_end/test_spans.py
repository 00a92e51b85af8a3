"""Spans of a real server, at both doors, as a real collector receives them; and no server where they cannot be sent."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.end_to_end.running import COMMANDS, clean_environment, foldserve
from tests.end_to_end.test_logs import DOORS, GOOD, HEADERS, TRACE, ask
from tests.service.handmade import DOUBLE, save_version


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Span]]]:
    """Its address, and the spans that it has been sent."""
    received: list[Span] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    received.extend(scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", received
    server.shutdown()
    server.server_close()
    thread.join()


def test_each_request_is_sent_with_its_stages_in_the_callers_trace(
    tmp_path: Path, collector: tuple[str, list[Span]]
) -> None:
    url, received = collector
    save_version(tmp_path, "m", DOUBLE)
    with foldserve("--model-repository", tmp_path, "--workers", "1", "--otlp-endpoint", url) as service:
        for door in DOORS:
            sent = HEADERS | {"X-Request-Id": door}
            assert ask(service, door, "/v2/models/m/infer", json.dumps(GOOD).encode(), sent)[0] == 200
            assert ask(service, door, "/v2/models/m/infer", b"{", {})[0] == 400
    # The end of the server sends what is left.
    for door in DOORS:
        (server,) = [span for span in received if "request.id" in text_of(span) and door == text_of(span)["request.id"]]
        assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, "b7ad6b7169203331")
        assert text_of(server)["model.version"] == "1"
        below = [span for span in received if span.parent_span_id == server.span_id]
        assert [span.name for span in below] == ["decode", "queue", "compute", "encode"]
        times = [time for span in below for time in (span.start_time_unix_nano, span.end_time_unix_nano)]
        assert times == sorted(times)
        assert server.start_time_unix_nano <= times[0]
    assert sum(text_of(span).get("error.type") == "invalid_request" for span in received) == 2


def text_of(span: Span) -> dict[str, str]:
    return {attribute.key: attribute.value.string_value for attribute in span.attributes}


def test_without_the_extra_the_flag_ends_the_start_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry.py").write_text("raise ImportError('there is no opentelemetry here')\n")
    (tmp_path / "models").mkdir()
    found = subprocess.run(
        [COMMANDS / "foldserve", "--model-repository", "models", "--otlp-endpoint", "http://localhost:4318"],
        cwd=tmp_path,
        env=clean_environment({"PYTHONPATH": str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", "")}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert "foldserve: error: --otlp-endpoint: spans need the extra `otel`" in found.stderr
