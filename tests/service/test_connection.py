"""One connection on a real socket, around an application of a few lines: what it bounds, refuses and keeps in order."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from service.connection import Connection, Limits

REQUEST = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 30\r\n\r\n" + b"b" * 30
OFFER = b"POST /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc"


class Impatient(Connection):
    limits = Limits(head_s=0.05, body_stall_s=0.05)


async def _answer_what_is_read(_: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def _what_comes_back(sent: bytes, keep_alive_s: int) -> bytes:
    """Everything until the server closes, on a real socket."""
    config = uvicorn.Config(_answer_what_is_read, timeout_keep_alive=keep_alive_s, ws="none", log_config=None)
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(lambda: Impatient(config, state, {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(sent)
        async with asyncio.timeout(30):
            received = await reader.read()
        writer.close()
    return received


@pytest.mark.parametrize(
    ("sent", "keep_alive_s", "statuses"),
    [
        pytest.param(b"", 1, [], id="nothing"),
        pytest.param(b"GET / HT", 75, [408], id="half-a-head"),
        pytest.param(REQUEST[:-20], 75, [408], id="half-a-body"),
        pytest.param(REQUEST + REQUEST[:-20], 75, [200, 408], id="half-a-body-behind-a-request"),
        pytest.param(REQUEST + b"GET", 75, [200, 408], id="half-a-head-behind-a-request"),
        pytest.param(REQUEST, 1, [200], id="no-second-request"),
    ],
)
def test_peer_that_stops_sending_is_told_and_hung_up_on(sent: bytes, keep_alive_s: int, statuses: list[int]) -> None:
    received = asyncio.run(_what_comes_back(sent, keep_alive_s))
    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", received)] == statuses
    assert (b"did not come within 0.05 s" in received) is (408 in statuses)


def test_many_offers_to_upgrade_in_one_packet_are_all_answered() -> None:
    """Each makes the parser stop; what is behind must be taken up in a loop, not in ever deeper calls."""
    many = 1200
    received = asyncio.run(_what_comes_back(OFFER * many, keep_alive_s=1))
    assert received.count(b"HTTP/1.1 200") == many
