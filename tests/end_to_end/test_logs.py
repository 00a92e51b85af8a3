"""What an operator reads: every line is one event, refusals have their reason and the caller's id, at both doors."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.running import Foldserve, foldserve
from tests.service.handmade import DOUBLE, save_version

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"X-Request-Id": "a-1", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
GOOD = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
DOORS = ("lane", "route")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foldserve]:
    root = tmp_path_factory.mktemp("models")
    save_version(root, "m", DOUBLE)
    with foldserve(
        "--model-repository", root, "--workers", "2", "--log-format", "json", "--access-log", "--max-body-bytes", "4096"
    ) as running:
        yield running


def ask(service: Foldserve, door: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
    """By a chunked body a request goes to the ASGI route, by a Content-Length to the lane."""
    connection = http.client.HTTPConnection(service.address, timeout=30)
    try:
        content: Any = iter([body]) if door == "route" else body
        connection.request("POST", path, content, headers, encode_chunked=door == "route")
        answer = connection.getresponse()
        answer.read()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def events(service: Foldserve, **wanted: object) -> list[dict[str, Any]]:
    """All lines of the log, each of which must be an object; those with these members."""
    told = [json.loads(line) for line in service.log().splitlines()]
    return [event for event in told if wanted.items() <= event.items()]


def event(service: Foldserve, **wanted: object) -> dict[str, Any]:
    """The one; it may be written a moment behind the answer."""
    service.wait_until(lambda: bool(events(service, **wanted)), f"heard to tell of {wanted}")
    (found,) = events(service, **wanted)
    return found


@pytest.mark.parametrize("door", DOORS)
def test_a_refusal_is_a_line_with_its_reason_and_the_callers_id(service: Foldserve, door: str) -> None:
    sent = HEADERS | {"X-Request-Id": f"refused-{door}"}
    status, headers = ask(service, door, "/v2/models/m/infer", b"{", sent)
    assert (status, headers["x-request-id"]) == (400, f"refused-{door}")
    line = event(service, logger="service.refusal_lines", request_id=f"refused-{door}")
    assert (line["level"], line["model"], line["reason"], line["status"]) == ("info", "m", "invalid_request", 400)
    assert line["trace_id"] == TRACE
    assert isinstance(line["worker"], int)
    assert "JSON" in line["message"]


def test_a_refused_order_to_the_repository_is_a_line_as_well(service: Foldserve) -> None:
    answer = service.request("POST", "/v2/repository/models/nobody/load", b"{}", {"X-Request-Id": "order"})
    assert answer.status == 404
    line = event(service, logger="service.refusal_lines", request_id="order")
    assert (line["path"], line["reason"]) == ("/v2/repository/models/nobody/load", "not_found")
    assert "nobody" in line["message"]


@pytest.mark.parametrize("door", DOORS)
def test_each_request_is_a_line_of_the_access_log(service: Foldserve, door: str) -> None:
    body = json.dumps(GOOD).encode()
    sent = HEADERS | {"X-Request-Id": f"good-{door}"}
    status, headers = ask(service, door, "/v2/models/m/versions/1/infer", body, sent)
    assert (status, headers["x-request-id"]) == (200, f"good-{door}")
    line = event(service, logger="service.access", request_id=f"good-{door}")
    assert line["client"].startswith("127.0.0.1:")
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v2/models/m/versions/1/infer", 200)
    assert (line["in_bytes"], line["out_bytes"]) == (len(body), int(headers["content-length"]))
    assert 0 < line["duration_ms"] < 60_000
    assert line["trace_id"] == TRACE


@pytest.mark.parametrize("door", DOORS)
def test_a_request_without_an_id_gets_one_that_both_its_lines_have(service: Foldserve, door: str) -> None:
    status, headers = ask(service, door, f"/v2/models/nobody-{door}/infer", b"{}", {})
    assert status == 404
    assert "x-request-id" not in headers
    refused = event(service, logger="service.refusal_lines", model=f"nobody-{door}")
    access = event(service, logger="service.access", path=f"/v2/models/nobody-{door}/infer")
    assert access["request_id"] == refused["request_id"]


def test_other_routes_have_access_lines_and_ids_too(service: Foldserve) -> None:
    answer = service.request("GET", "/v2/models/m?key=secret", headers={"X-Request-Id": "meta"})
    assert answer.headers["x-request-id"] == "meta"
    line = event(service, logger="service.access", request_id="meta")
    assert (line["method"], line["path"], line["status"]) == ("GET", "/v2/models/m", 200)


def test_what_is_no_request_has_its_line_too(service: Foldserve) -> None:
    with socket.create_connection(("127.0.0.1", int(service.address.split(":")[1]))) as peer:
        peer.sendall(b"NONSENSE\r\n\r\n")
        assert peer.recv(100).startswith(b"HTTP/1.1 400")
    assert event(service, logger="service.access", path="-")["status"] == 400


def test_a_client_that_leaves_has_its_line(service: Foldserve) -> None:
    with socket.create_connection(("127.0.0.1", int(service.address.split(":")[1]))) as peer:
        peer.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\n{")
    line = event(service, logger="service.access", status=499)
    assert (line["path"], line["in_bytes"]) == ("/v2/models/m/infer", 1)


FORGED = "x%0A2026-01-01T00:00:00.000Z%20WARNING%20all%20is%20lost%0D%1B%5B2J%E2%80%A8%C2%85"


def test_a_name_that_was_sent_to_forge_a_line_forges_none(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with foldserve("--model-repository", tmp_path, "--workers", "1") as service:
        assert service.post(f"/v2/models/{FORGED}/infer", GOOD).status == 404
        assert service.post("/v2/models/m/infer", {"inputs": [{"name": "a\nb\u2028c"}]}).status == 400
        service.wait_until(lambda: service.log().count("reason=") == 2, "heard to tell of both")
        lines = service.log().splitlines()
        assert all(line.startswith("20") and line.split(" ")[1] in ("INFO", "WARNING") for line in lines)
        assert sum("all is lost" in line for line in lines) == 1
        assert "\x1b" not in service.log()
        assert "/v2/models" not in service.log()  # without --access-log nothing is told of a good request


def test_of_a_flood_of_refusals_few_have_lines_and_the_rest_are_counted(service: Foldserve) -> None:
    connection = http.client.HTTPConnection(service.address, timeout=30)
    for _ in range(200):
        connection.request("POST", "/v2/models/flood/infer", b"{}")
        connection.getresponse().read()
    connection.close()

    def told() -> int:
        lines = events(service, logger="service.refusal_lines", reason="not_found")
        own = sum(line.get("model") == "flood" for line in lines)
        return own + sum(line.get("more", 0) for line in lines)

    service.wait_until(lambda: told() == 200, "heard to tell of all")
    assert len(events(service, model="flood")) < 100
