"""One connection on a real socket, around an application of a few lines: what it bounds, refuses and keeps in order."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from service.connection import Connection, Limits
from service.settings import Settings

REQUEST = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 30\r\n\r\n" + b"b" * 30
OFFER = b"POST /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc"


class Impatient(Connection):
    limits = Limits(head_s=0.05, body_stall_s=0.05, answer_stall_s=0.05, farewell_s=0.05)


def test_limits_are_those_of_the_settings_unless_an_operator_chooses_others() -> None:
    """Two lists of defaults, and no difference between them."""
    assert Limits.of(Settings()) == Limits()
    assert Limits.of(Settings(head_timeout_s=3, max_header_count=9)) == Limits(head_s=3, header_count=9)


async def _answer_what_is_read(_: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@contextlib.asynccontextmanager
async def _served(app: Any, keep_alive_s: float = 75) -> AsyncIterator[tuple[Any, ServerState]]:
    """The address of a server, and what it knows."""
    config = uvicorn.Config(app, ws="none", log_config=None)
    config.timeout_keep_alive = keep_alive_s  # type: ignore[assignment]  # whole seconds are too long for a test
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(lambda: Impatient(config, state, {}), "127.0.0.1", 0)
    async with server, asyncio.timeout(30):
        yield server.sockets[0].getsockname(), state


async def _what_comes_back(sent: bytes, keep_alive_s: float) -> bytes:
    """Everything until the server closes, on a real socket."""
    async with _served(_answer_what_is_read, keep_alive_s) as (address, _):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(sent)
        received = await reader.read()
        writer.close()
    return received


@pytest.mark.parametrize(
    ("sent", "keep_alive_s", "statuses"),
    [
        pytest.param(b"", 0.2, [], id="nothing"),
        pytest.param(b"GET / HT", 75, [408], id="half-a-head"),
        pytest.param(REQUEST[:-20], 75, [408], id="half-a-body"),
        pytest.param(REQUEST + REQUEST[:-20], 75, [200, 408], id="half-a-body-behind-a-request"),
        pytest.param(REQUEST + b"GET", 75, [200, 408], id="half-a-head-behind-a-request"),
        pytest.param(REQUEST, 0.2, [200], id="no-second-request"),
    ],
)
def test_peer_that_stops_sending_is_told_and_hung_up_on(sent: bytes, keep_alive_s: float, statuses: list[int]) -> None:
    received = asyncio.run(_what_comes_back(sent, keep_alive_s))
    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", received)] == statuses
    assert (b"did not come within 0.05 s" in received) is (408 in statuses)


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        pytest.param(b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nnonsense", [400], id="chunk"),
        pytest.param(
            b"POST /x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\nnonsense",
            [400],
            id="chunk-that-was-to-wait",
        ),
        pytest.param(REQUEST + b"nonsense", [200, 400], id="behind-a-request"),
        pytest.param(b"POST /x HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 70_000, [431], id="long-head"),
        pytest.param(REQUEST.replace(b"/x", b"http://h"), [400], id="target-without-path"),
    ],
)
def test_refusal_reaches_a_peer_that_goes_on_sending(
    sent: bytes, statuses: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Were the connection closed with bytes unread, it would be reset, and the peer's kernel would drop the answers."""

    async def send_on() -> bytes:
        async with _served(_answer_what_is_read) as (address, state):
            reader, writer = await asyncio.open_connection(*address)
            for piece in (sent, *[b"more" * 20_000] * 5):
                writer.write(piece)
                await writer.drain()
            received = await reader.read()
            while state.connections:  # which ends although the peer does not close
                await asyncio.sleep(0.01)
            writer.close()
        return received

    received = asyncio.run(send_on())
    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", received)] == statuses
    assert not caplog.records


def test_many_offers_to_upgrade_in_one_packet_are_all_answered() -> None:
    """Each makes the parser stop; what is behind must be taken up in a loop, not in ever deeper calls."""
    many = 1200
    received = asyncio.run(_what_comes_back(OFFER * many, keep_alive_s=0.2))
    assert received.count(b"HTTP/1.1 200") == many


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's clock for this is Linux's")
def test_peer_that_never_reads_its_answer_is_hung_up_on() -> None:
    """Whether the answer is written at once or piece by piece, and whether the connection would be kept or closed."""
    too_much = 32 * 2**20  # for all the buffers of both kernels' ends

    async def answer_too_much(scope: Any, _: Any, send: Any) -> None:
        close = [(b"connection", b"close")] if "close" in scope["path"] else []
        length = (b"content-length", b"%d" % too_much)
        await send({"type": "http.response.start", "status": 200, "headers": [length, *close]})
        parts = 4 if "parts" in scope["path"] else 1
        for left in reversed(range(parts)):
            body = bytes(too_much // parts)
            await send({"type": "http.response.body", "body": body, "more_body": left > 0})

    async def ask_and_never_read() -> None:
        async with _served(answer_too_much) as (address, state):
            peers = [socket.create_connection(address) for _ in range(4)]
            for peer, path in zip(peers, (b"/", b"/close", b"/parts", b"/parts/close"), strict=True):
                peer.sendall(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path)
            while state.total_requests < 2:  # those whose answer is given to the transport whole
                await asyncio.sleep(0)
            while state.connections or state.tasks:
                await asyncio.sleep(0.01)
            for peer in peers:
                peer.close()

    asyncio.run(ask_and_never_read())


# --- the drain ----------------------------------------------------------------------------------------------------


HEAD = REQUEST[:-30]


def _answers(received: bytes) -> list[bool]:
    """For each, whether it says that it is the last."""
    answers = received.split(b"HTTP/1.1 200 OK\r\n")
    assert answers[0] == b""
    return [b"connection: close" in answer for answer in answers[1:]]


async def _while_draining(before: bytes, behind: bytes, *, ends: bool = True) -> bytes:
    """What comes back for `before`, sent before the drain begins, and `behind`, sent while it lasts. The application
    answers nothing until both have come. ends: the grace is over when `behind` is sent."""
    may_answer = asyncio.Event()

    async def answer_late(scope: Any, receive: Any, send: Any) -> None:
        await may_answer.wait()
        await _answer_what_is_read(scope, receive, send)

    async with _served(answer_late) as (address, state):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(before)
        await asyncio.sleep(0.02)  # the server, on this very loop, has read it
        (connection,) = state.connections
        if ends:
            connection.shutdown()
        else:
            connection.drain()  # type: ignore[union-attr]
        writer.write(behind)
        await asyncio.sleep(0.02)
        may_answer.set()
        received = await reader.read()
        writer.close()
    return received


@pytest.mark.parametrize("ends", [False, True], ids=["in-the-grace", "behind-the-grace"])
@pytest.mark.parametrize(
    ("before", "behind", "answers"),
    [
        pytest.param(REQUEST, b"", [True], id="a-request"),
        pytest.param(REQUEST * 3, b"", [False, False, True], id="pipelined"),
        pytest.param(REQUEST, REQUEST, [False, True], id="one-more-before-the-answer"),
        pytest.param(REQUEST + HEAD[:20], HEAD[20:] + b"b" * 30, [False, True], id="half-a-head-behind-a-request"),
        pytest.param(HEAD[:20], HEAD[20:] + b"b" * 30, [True], id="half-a-head"),
        pytest.param(HEAD, b"b" * 30, [True], id="a-head"),
        pytest.param(b"", REQUEST, [True], id="nothing-yet"),
    ],
)
def test_what_has_begun_to_come_is_answered_and_the_last_answer_says_so(
    before: bytes, behind: bytes, answers: list[bool], ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Impatient, "limits", Limits())
    assert _answers(asyncio.run(_while_draining(before, behind, ends=ends))) == answers


def test_idle_connection_ends_with_the_grace() -> None:
    async def drain() -> None:
        async with _served(_answer_what_is_read) as (address, state):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(REQUEST)
            await reader.readuntil(b"\r\n\r\n")
            (connection,) = state.connections
            connection.drain()  # type: ignore[union-attr]
            await asyncio.sleep(0.02)
            assert state.connections, "its next request may be on its way"
            connection.shutdown()
            assert await reader.read() == b""
            writer.close()

    asyncio.run(drain())


def test_what_is_sent_behind_the_last_answer_does_not_reset_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    """The peer's kernel would drop the answer that it has not read yet."""

    async def send_on() -> bytes:
        async with _served(_answer_what_is_read) as (address, state):
            reader, writer = await asyncio.open_connection(*address)
            await asyncio.sleep(0.02)
            (connection,) = state.connections
            connection.drain()  # type: ignore[union-attr]
            for _ in range(5):
                writer.write(REQUEST)
                await writer.drain()
                await asyncio.sleep(0.01)
            received = await reader.read()
            while state.connections:  # which ends although the peer does not close
                await asyncio.sleep(0.01)
            writer.close()
        return received

    assert _answers(asyncio.run(send_on())) == [True]
    assert not caplog.records


@pytest.mark.parametrize("requests", [1, 2])
def test_peer_that_closes_its_sending_half_is_taken_to_have_left(requests: int) -> None:
    """As one that calls close(), from which it cannot be told apart: the request that runs is given up, those behind it
    are not begun, and there is no answer."""
    seen: list[str] = []

    async def wait_for_the_peer(_: Any, receive: Any, send: Any) -> None:
        while seen[-1:] != ["http.disconnect"]:
            seen.append((await receive())["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask_and_half_close() -> bytes:
        async with _served(wait_for_the_peer) as (address, _):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(REQUEST * requests)
            writer.write_eof()
            received = await reader.read()
            writer.close()
        return received

    assert asyncio.run(ask_and_half_close()) == b""
    assert seen == ["http.request", "http.disconnect"]
