"""The lane against the reference door, on real sockets: byte for byte the same answers, whatever the peer does."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from service.app import build_app
from service.busy_poll import BusyPoll
from service.connection import Connection, Limits
from service.errors import InferenceFailed, QueueFull
from service.http_lane import Lane
from service.infer import begin_infer, refuse_early
from service.lane_heads import HeadMemory
from service.refusal_lines import RefusalLines
from service.registry import Registry
from service.timers import RunningLoop
from tests.service.fakes import EchoModel, fake_registry

MAX_BODY_BYTES = 600_000
GOOD = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[0.5]}]}'
BINARY = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}]}'
TENSOR = b"\x00\x00\x00\x3f"
LARGE_HEAD = (
    b'{"inputs":[{"name":"x","shape":[100000],"datatype":"FP32","parameters":{"binary_data_size":400000}}],'
    b'"parameters":{"binary_data_output":true}}'
)
LARGE_HEAD_BYTES = len(LARGE_HEAD)
LARGE = LARGE_HEAD + bytes(range(256)) * 1562 + bytes(128)


def post(body: bytes, *headers: bytes, path: bytes = b"/v2/models/echo/infer", version: bytes = b"1.1") -> bytes:
    lines = [b"POST %b HTTP/%b" % (path, version), b"Host: h", *headers]
    if not any(header.lower().startswith((b"content-length", b"transfer-encoding")) for header in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body])


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])


def registry() -> Registry:
    return fake_registry(
        echo=EchoModel(),
        broken=EchoModel(InferenceFailed("ONNX Runtime: it broke")),
        busy=EchoModel(QueueFull("the queue is full", retry_after_s=2.5)),
        defect=EchoModel(ZeroDivisionError("secret")),
        damaged="weights are damaged",
    )


@functools.cache
def application() -> Any:
    return build_app(registry(), MAX_BODY_BYTES)


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "limits", Limits(head_s=0.5, body_stall_s=0.5))


class Door:
    """A server of one protocol class, and what comes back for what is sent."""

    def __init__(self, protocol: Callable[..., Any]) -> None:
        self._protocol = protocol

    async def exchange(self, *pieces: bytes, is_draining: bool = False) -> bytes:
        """Sends the pieces one read apart; everything that comes back until the server closes or is asked to."""
        config = uvicorn.Config(application(), ws="none", log_config=None)
        config.timeout_keep_alive = 0.5  # type: ignore[assignment]  # whole seconds are too long for a test
        state = ServerState()
        state.is_draining = is_draining  # type: ignore[attr-defined]  # as server.py has it
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: self._protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        async with server, asyncio.timeout(30):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            # The server may hang up before it has been sent everything: what it said until then counts.
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    # The server lives on this very loop: let it read each piece by itself.
                    for _ in range(4):
                        await asyncio.sleep(0)
            received = b""
            with contextlib.suppress(ConnectionError):
                while chunk := await reader.read(2**16):
                    received += chunk
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        return received


def lane() -> Door:
    heads = HeadMemory(MAX_BODY_BYTES, Lane.limits.head_bytes)
    models = registry()
    begin, early = functools.partial(begin_infer, models), functools.partial(refuse_early, models)
    return Door(
        functools.partial(
            Lane, begin, early, RefusalLines(models.count_refusal), heads, BusyPoll(RunningLoop(), cores=2)
        )
    )


REFERENCE = Door(Connection)
LAST = b"Connection: close"

CASES: dict[str, tuple[bytes, ...]] = {
    "json": (post(GOOD),),
    "version": (post(GOOD, path=b"/v2/models/echo/versions/1/infer"),),
    "version-that-is-not": (post(GOOD, path=b"/v2/models/echo/versions/7/infer"),),
    "no-content-type": (post(GOOD),),
    "json-binary-answer": (post(GOOD[:-1] + b',"parameters":{"binary_data_output":true}}'),),
    "binary": (post(BINARY + TENSOR, b"Inference-Header-Content-Length: %d" % len(BINARY)),),
    "binary-bad-header-length": (post(BINARY + TENSOR, b"Inference-Header-Content-Length: x"),),
    "binary-header-length-beyond": (post(BINARY + TENSOR, b"Inference-Header-Content-Length: 9999"),),
    "header-length-twice": (
        post(BINARY + TENSOR, b"Inference-Header-Content-Length: 3", b"inference-header-content-length: 91"),
    ),
    "bad-json": (post(b"{"),),
    "request-id": (post(GOOD, b"X-Request-Id:  a-1 "),),
    "request-id-of-a-refusal": (post(b"{", b"X-REQUEST-ID: a-1", b"traceparent: broken"),),
    "request-id-and-close": (post(GOOD, b"x-request-id: a-1", LAST),),
    "request-id-twice": (post(GOOD, b"X-Request-Id: a", b"X-Request-Id: b"),),
    "request-id-with-a-space": (post(GOOD, b"X-Request-Id: a b"),),
    "request-id-not-ascii": (post(GOOD, b"X-Request-Id: \xc3\xa9"),),
    "request-id-too-long": (post(GOOD, b"X-Request-Id: " + b"a" * 129),),
    "request-id-folded": (post(GOOD, b"X-Request-Id: a\r\n b"),),
    "request-id-empty": (post(GOOD, b"X-Request-Id:"),),
    "request-id-on-another-route": (b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\nX-Request-Id: a\r\n\r\n",),
    "request-id-hides-no-header": (post(GOOD, b"X-Request-Id: a", b"Expect: 100-continue", b"traceparent: a"),),
    "too-many-headers-with-ids": (post(GOOD, *[b"X-Correlation-Id: a"] * 60, *[b"baggage: b"] * 60),),
    "empty": (post(b""),),
    "empty-and-close": (post(b"", LAST),),
    "stalls-in-its-body-behind-another-route": (b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n", post(GOOD)[:-10]),
    "unknown-model": (post(GOOD, path=b"/v2/models/other/infer"),),
    "percent-encoded-name": (post(GOOD, path=b"/v2/models/%65cho/infer"),),
    "query": (post(GOOD, path=b"/v2/models/echo/infer?a=1"),),
    "other-route": (post(GOOD, path=b"/v2/models/echo"),),
    "absolute-form": (post(GOOD, path=b"http://h/v2/models/echo/infer"),),
    "path-no-model": (post(GOOD, path=b"/v2/models//infer"),),
    "path-in-parent": (post(GOOD, path=b"/v2/models/../infer"),),
    "path-fragment": (post(GOOD, path=b"/v2/models/echo/infer#b"),),
    "path-fragment-in-name": (post(GOOD, path=b"/v2/models/echo#b/infer"),),
    "path-fragment-in-version": (post(GOOD, path=b"/v2/models/echo/versions/1#b/infer"),),
    "path-empty-query": (post(GOOD, path=b"/v2/models/echo/infer?"),),
    "path-query-in-name": (post(GOOD, path=b"/v2/models/echo?b/infer"),),
    "path-two-slashes": (post(GOOD, path=b"//v2/models/echo/infer"),),
    "path-slash-behind": (post(GOOD, path=b"/v2/models/echo/infer/"),),
    "path-encoded-slash": (post(GOOD, path=b"/v2/models/a%2Fecho/infer"),),
    "path-encoded-beyond-ascii": (post(GOOD, path=b"/v2/models/%C3%A9%FF/infer"),),
    "path-half-an-escape": (post(GOOD, path=b"/v2/models/echo%/infer"),),
    "path-beyond-ascii": (post(GOOD, path=b"/v2/models/\xc3\xa9/infer"),),
    "path-control-byte": (post(GOOD, path=b"/v2/models/ec\x01ho/infer"),),
    "path-space": (post(GOOD, path=b"/v2/models/echo b/infer"),),
    "path-tab": (post(GOOD, path=b"/v2/models/echo\tb/infer"),),
    **{
        f"path-{mark}": (post(GOOD, path=b"/v2/models/a%bb/versions/1%b/infer" % (mark.encode(), mark.encode())),)
        for mark in "!$&'()*+,;=:@-._~\\\"<>[]^`{|}"
    },
    "path-without-slash": (post(GOOD, path=b"v2/models/echo/infer"),),
    "path-asterisk": (post(GOOD, path=b"*"),),
    "path-authority": (post(GOOD, path=b"h:80/v2/models/echo/infer"),),
    "path-absolute-without-path": (post(GOOD, path=b"http://h"),),
    "damaged-model": (post(GOOD, path=b"/v2/models/damaged/infer"),),
    "inference-fails": (post(GOOD, path=b"/v2/models/broken/infer"),),
    "queue-full": (post(GOOD, path=b"/v2/models/busy/infer"),),
    "defect": (post(GOOD, path=b"/v2/models/defect/infer"),),
    "unknown-coding": (post(GOOD, b"Content-Encoding: br"),),
    "close": (post(GOOD, LAST),),
    "http-1.0": (post(GOOD, version=b"1.0"),),
    "http-1.0-keep-alive": (post(GOOD, b"Connection: keep-alive", version=b"1.0"),),
    "expect": (post(GOOD, b"Expect: 100-continue"),),
    "chunked": (post(chunked(GOOD, 10), b"Transfer-Encoding: chunked"),),
    "chunked-byte-by-byte": (post(chunked(GOOD, 1), b"Transfer-Encoding: chunked"),),
    "chunked-and-length": (post(chunked(GOOD, 10), b"Transfer-Encoding: chunked", b"Content-Length: 4"),),
    "two-lengths": (post(GOOD, b"Content-Length: 68", b"Content-Length: 68"),),
    "two-lengths-that-differ": (post(GOOD, b"Content-Length: 68", b"Content-Length: 67"),),
    "length-that-is-no-number": (post(GOOD, b"Content-Length: -68"),),
    "no-host": (post(GOOD).replace(b"Host: h\r\n", b""),),
    "two-hosts": (post(GOOD, b"Host: i"),),
    "upgrade": (post(GOOD, b"Connection: Upgrade", b"Upgrade: h2c"),),
    "folded-header": (post(GOOD, b"X: a\r\n b"),),
    "space-before-colon": (post(GOOD, b"X : a"),),
    "bare-line-feeds": (post(GOOD).replace(b"\r\n", b"\n"),),
    "nul-in-header": (post(GOOD, b"X: a\x00b"),),
    "head-too-large": (post(GOOD, b"X: " + b"a" * 70_000),),
    "body-too-large": (post(b"." * (MAX_BODY_BYTES + 1)),),
    "length-too-large": (post(b"", b"Content-Length: 99999999999999999999"),),
    "pipelined": (post(GOOD) + post(b"{") + post(GOOD, path=b"/v2/models/busy/infer"),),
    "pipelined-with-other-routes": (post(GOOD) + b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n" + post(GOOD),),
    "pipelined-behind-chunked": (post(chunked(GOOD, 10), b"Transfer-Encoding: chunked") + post(GOOD),),
    "pipelined-then-nonsense": (post(GOOD) + b"\x00\x01\x02\x03",),
    "body-longer-than-said": (post(GOOD) + b"   ",),
    "pipelined-behind-close": (post(GOOD, LAST) + post(GOOD),),
    "head-then-body": (post(GOOD)[: -len(GOOD)], GOOD),
    "body-in-pieces": (post(GOOD)[:-40], GOOD[-40:-20], GOOD[-20:]),
    "body-with-the-next-head": (post(GOOD)[:-40], GOOD[-40:] + post(GOOD)[:-10], GOOD[-10:]),
    "head-in-pieces": (post(GOOD)[:20], post(GOOD)[20:60], post(GOOD)[60:]),
    "byte-by-byte": tuple(post(GOOD)[index : index + 1] for index in range(len(post(GOOD)))),
    "twice-the-same-head": (post(GOOD), post(GOOD)),
    "same-head-other-path": (post(GOOD), post(GOOD, path=b"/v2/models/echa/infer")),
    "blank-line-before": (b"\r\n" + post(GOOD),),
    "get": (b"GET /v2/models/echo/infer HTTP/1.1\r\nHost: h\r\n\r\n",),
    "large-body": (post(LARGE, b"Inference-Header-Content-Length: %d" % LARGE_HEAD_BYTES),),
    "large-body-in-pieces": tuple(
        post(LARGE, b"Inference-Header-Content-Length: %d" % LARGE_HEAD_BYTES)[start : start + 50_000]
        for start in range(0, len(LARGE) + 200, 50_000)
    ),
    "large-body-and-the-next-request": (
        post(LARGE, b"Inference-Header-Content-Length: %d" % LARGE_HEAD_BYTES)[:1000],
        post(LARGE, b"Inference-Header-Content-Length: %d" % LARGE_HEAD_BYTES)[1000:] + post(b"{") + post(GOOD),
    ),
    "large-body-for-a-full-queue": tuple(
        post(LARGE, b"Inference-Header-Content-Length: %d" % LARGE_HEAD_BYTES, path=b"/v2/models/busy/infer")[
            at : at + 90_000
        ]
        for at in range(0, len(LARGE) + 200, 90_000)
    ),
    "large-body-for-nobody": (
        post(LARGE, path=b"/v2/models/other/infer")[:100_000],
        post(LARGE, path=b"/v2/models/other/infer")[100_000:] + post(GOOD),
    ),
    "truncated-body": (post(GOOD)[:-10],),
    "nothing": (),
}


# Behind these nothing more is sent: it would be taken for the rest of the body.
FINAL = frozenset({"nothing", "truncated-body", "stalls-in-its-body-behind-another-route"})


@pytest.mark.parametrize("name", CASES)
def test_both_doors_answer_byte_for_byte_alike(name: str) -> None:
    """Most cases are followed by a request that closes the connection, which tells what state the door is in."""
    sent = CASES[name] if name in FINAL else (*CASES[name], post(GOOD, LAST))
    assert asyncio.run(lane().exchange(*sent)) == asyncio.run(REFERENCE.exchange(*sent))


@pytest.mark.parametrize("name", CASES)
def test_both_doors_answer_alike_on_a_connection_that_has_brought_a_large_body(name: str) -> None:
    """From there on the lane's bytes come to it another way."""
    large = post(LARGE, b"Inference-Header-Content-Length: %d" % LARGE_HEAD_BYTES)
    sent = (large[:100_000], large[100_000:], *CASES[name], *(() if name in FINAL else (post(GOOD, LAST),)))
    assert asyncio.run(lane().exchange(*sent)) == asyncio.run(REFERENCE.exchange(*sent))


@pytest.mark.parametrize("name", [name for name in CASES if len(CASES[name]) == 1])
def test_both_doors_drain_alike(name: str) -> None:
    """All that has come is answered, as far as it would be at other times, and the last answer says that it is."""
    received, reference = (asyncio.run(door.exchange(*CASES[name], is_draining=True)) for door in (lane(), REFERENCE))
    assert received == reference
    closing = [b"\r\nconnection: close\r\n" in answer for answer in re.split(rb"HTTP/1.1 \d+ ", received)[1:]]
    assert closing[-1]
    assert not any(closing[:-1])


@pytest.mark.parametrize("cut", range(0, 180, 7))
def test_a_request_cut_anywhere_is_answered_alike(cut: int) -> None:
    request = post(BINARY + TENSOR, b"Inference-Header-Content-Length: %d" % len(BINARY))
    sent = (request[:cut], request[cut:], post(GOOD, LAST))
    assert asyncio.run(lane().exchange(*sent)) == asyncio.run(REFERENCE.exchange(*sent))


def test_thousands_of_pipelined_refusals_are_answered_in_order() -> None:
    sent = post(b"{") * 3000 + post(GOOD, LAST)
    received = asyncio.run(lane().exchange(sent))
    assert received.count(b"HTTP/1.1 400") == 3000
    assert received.rindex(b"HTTP/1.1 200") > received.rindex(b"HTTP/1.1 400")
