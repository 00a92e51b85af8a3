"""Senders that break off, dawdle, flood or lie about lengths, over real sockets to the real command.

Each test ends with a good request on a fresh connection: whatever one sender does, the next is answered.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.end_to_end.running import Foldserve, foldserve
from tests.service.handmade import DOUBLE, save_model

MAX_BODY_BYTES = 200_000
GOOD = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'
PATH = "/v2/models/double/infer"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foldserve]:
    path = save_model(tmp_path_factory.mktemp("model") / "double.onnx", DOUBLE)
    with foldserve("--model", path, "--max-body-bytes", str(MAX_BODY_BYTES)) as running:
        yield running


@pytest.fixture(autouse=True)
def next_sender_is_answered(service: Foldserve) -> Iterator[None]:
    yield
    answer = service.request("POST", PATH, GOOD)
    assert (answer.status, answer.json()["outputs"][0]["data"]) == (200, [2, 4])
    assert "Traceback" not in service.log()


def connect(service: Foldserve) -> closing[socket.socket]:
    host, _, port = service.address.partition(":")
    return closing(socket.create_connection((host, int(port)), timeout=60))


def head(*lines: str) -> bytes:
    return "\r\n".join([f"POST {PATH} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def read_answer(connection: socket.socket, unread: bytearray) -> tuple[int, bytes]:
    """Status and body of the next answer on a connection; what came behind it stays in `unread`."""
    while b"\r\n\r\n" not in unread:
        unread += receive(connection)
    lines, _, rest = bytes(unread).partition(b"\r\n\r\n")
    first, *fields = lines.decode().split("\r\n")
    length = next((int(field.split(":")[1]) for field in fields if field.lower().startswith("content-length:")), 0)
    unread[:] = rest
    while len(unread) < length:
        unread += receive(connection)
    body = bytes(unread[:length])
    del unread[:length]
    return int(first.split()[1]), body


def receive(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    assert data, "the connection was closed before the answer was complete"
    return data


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_body_sent_byte_by_byte_in_chunks_is_understood(service: Foldserve) -> None:
    with connect(service) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(head("Transfer-Encoding: chunked"))
        for position in range(len(GOOD)):
            connection.sendall(b"1\r\n" + GOOD[position : position + 1] + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        status, body = read_answer(connection, bytearray())
    assert (status, json.loads(body)["outputs"][0]["data"]) == (200, [2, 4])


@pytest.mark.parametrize("sent_bytes", [0, 1, len(GOOD) - 1])
def test_sender_that_breaks_off_is_forgotten(sent_bytes: int, service: Foldserve) -> None:
    with connect(service) as connection:
        connection.sendall(head(f"Content-Length: {len(GOOD)}") + GOOD[:sent_bytes])


def test_requests_sent_before_the_answers_are_answered_in_order(service: Foldserve) -> None:
    bodies = [GOOD.replace(b"[1,2]}", b"[%d,0]}" % number) for number in range(1, 21)]
    with connect(service) as connection:
        connection.sendall(b"".join(head(f"Content-Length: {len(body)}") + body for body in bodies))
        unread = bytearray()
        answers = [read_answer(connection, unread) for _ in bodies]
    assert [json.loads(body)["outputs"][0]["data"][0] for _, body in answers] == list(range(2, 42, 2))


def test_declared_length_beyond_the_limit_is_refused_before_the_body_is_sent(service: Foldserve) -> None:
    """curl and others wait for "100 Continue" with large bodies; they must get the refusal instead."""
    with connect(service) as connection:
        connection.sendall(head(f"Content-Length: {MAX_BODY_BYTES + 1}", "Expect: 100-continue"))
        status, body = read_answer(connection, bytearray())
        assert (status, list(json.loads(body))) == (413, ["error"])


@pytest.mark.parametrize(
    "framing", [pytest.param(f"Content-Length: {4 * MAX_BODY_BYTES}", id="declared"), "Transfer-Encoding: chunked"]
)
def test_sender_of_too_long_a_body_reads_why_and_is_hung_up_on(framing: str, service: Foldserve) -> None:
    """Closing at once would reset the connection under a sender that is still writing."""
    body = b"." * (4 * MAX_BODY_BYTES)
    with connect(service) as connection:
        connection.sendall(head(framing))
        connection.sendall(body if "Length" in framing else b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        status, answer = read_answer(connection, bytearray())
        assert (status, str(MAX_BODY_BYTES) in json.loads(answer)["error"]) == (413, True)
        assert is_closed(connection)


def test_body_of_exactly_the_limit_is_read(service: Foldserve) -> None:
    answer = service.request("POST", PATH, GOOD.ljust(MAX_BODY_BYTES))
    assert answer.status == 200


def test_refusal_of_a_body_keeps_the_connection(service: Foldserve) -> None:
    """A malformed request was read to its end, so the next one on the connection is understood."""
    with connect(service) as connection:
        unread = bytearray()
        for body, expected in ((b"{", 400), (GOOD, 200), (b"", 400), (GOOD, 200)):
            connection.sendall(head(f"Content-Length: {len(body)}") + body)
            assert read_answer(connection, unread)[0] == expected


# --- heads --------------------------------------------------------------------------------------------------------

POST = head(f"Content-Length: {len(GOOD)}") + GOOD


def test_trailers_of_a_chunked_body_change_nothing(service: Foldserve) -> None:
    chunk = b"%x\r\n%b\r\n0\r\n" % (len(GOOD), GOOD)
    with connect(service) as connection:
        trailers = b"Content-Encoding: gzip\r\nInference-Header-Content-Length: 3\r\n\r\n"
        connection.sendall(head("Transfer-Encoding: chunked") + chunk + trailers)
        assert read_answer(connection, bytearray())[0] == 200


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_offer_to_upgrade_is_ignored_and_the_body_kept(protocol: str, service: Foldserve) -> None:
    """`curl --http2` sends it with every first request."""
    offer = head(
        "Connection: Upgrade, HTTP2-Settings",
        f"Upgrade: {protocol}",
        "HTTP2-Settings: AAM",
        f"Content-Length: {len(GOOD)}",
    )
    with connect(service) as connection:
        unread = bytearray()
        connection.sendall(offer + GOOD + POST)
        assert [read_answer(connection, unread)[0] for _ in range(2)] == [200, 200]
        connection.sendall(offer)
        connection.sendall(GOOD)
        assert read_answer(connection, unread)[0] == 200
    assert "upgrade" not in service.log().lower()


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        pytest.param(b"GET /", b"a" * 1000, id="endless-url"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n", b"a: " + b"b" * 1000 + b"\r\n", id="endless-headers"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\na: ", b"b" * 1000, id="endless-header"),
        pytest.param(head("Transfer-Encoding: chunked") + b"0\r\n", b"a: b\r\n" * 100, id="endless-trailers"),
    ],
)
def test_endless_head_is_refused(start: bytes, piece: bytes, service: Foldserve) -> None:
    with connect(service) as connection:
        try:
            connection.sendall(start)
            for _ in range(2000):
                connection.sendall(piece)
        except OSError:
            return  # refused and closed while this end was still sending
        status, body = read_answer(connection, bytearray())
        assert (status, list(json.loads(body))) == (431, ["error"])


@pytest.mark.parametrize("length", [pytest.param(60_000, id="long"), pytest.param(70_000, id="too-long")])
def test_one_long_header_is_measured_whole(length: int, service: Foldserve) -> None:
    with connect(service) as connection:
        connection.sendall(head("a: " + "b" * length, f"Content-Length: {len(GOOD)}") + GOOD)
        assert read_answer(connection, bytearray())[0] == (200 if length < 65536 else 431)


@pytest.mark.parametrize("garbage", [b"GARBAGE\r\n\r\n", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"])
def test_garbage_behind_good_requests_is_refused_behind_their_answers(garbage: bytes, service: Foldserve) -> None:
    with connect(service) as connection:
        connection.sendall(POST + POST + garbage)
        unread = bytearray()
        assert [read_answer(connection, unread)[0] for _ in range(3)] == [200, 200, 400]
        assert is_closed(connection)


def test_broken_body_behind_a_good_request_is_refused_behind_its_answer(service: Foldserve) -> None:
    with connect(service) as connection:
        connection.sendall(POST + head("Transfer-Encoding: chunked") + b"no size\r\n")
        unread = bytearray()
        assert [read_answer(connection, unread)[0] for _ in range(2)] == [200, 400]
        assert is_closed(connection)


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        pytest.param(b"GET /v2 HTTP/1.1\r\n\r\n", 400, id="none"),
        pytest.param(b"GET /v2 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, id="two"),
        pytest.param(b"GET /v2 HTTP/1.1\r\nHost:\r\n\r\n", 200, id="empty"),
        pytest.param(b"GET /v2 HTTP/1.0\r\n\r\n", 200, id="none-in-1.0"),
    ],
)
def test_host_is_required_once(request_head: bytes, status: int, service: Foldserve) -> None:
    with connect(service) as connection:
        connection.sendall(request_head)
        assert read_answer(connection, bytearray())[0] == status
