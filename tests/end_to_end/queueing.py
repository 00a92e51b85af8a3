"""Models that take their time, so that requests queue behind what runs, and callers of them that can hang up.

Knows nothing of what is measured or counted.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.end_to_end.running import PATIENCE_S, Answer, Foldserve
from tests.service.handmade import save_version

# Each run walks a loop first: long enough that requests sent meanwhile queue behind it, on any machine. Fails when an
# index in `i` is out of range.
_PICKY_AND_SLOW = """
g (float[N,2] x, int64[N,1] i) => (float[N,1] y)
<CONSTANTS bool go = {1}, float zero = {0.0}> {
  TURNS
  idle = Loop (turns, go, zero) <body = walk (int64 n, bool c, float a) => (bool c2, float a2) {
    c2 = Identity(c)
    a1 = Sin(a)
    a2 = Cos(a1)
  }>
  none = Mul(idle, zero)
  late = Add(x, none)
  y = GatherElements<axis=1>(late, i)
}
"""


def slow_always(turns: int) -> str:
    """Whatever the rows: a flat latency curve, so that requests that wait run together."""
    return _PICKY_AND_SLOW.replace("CONSTANTS", f"int64 turns = {{{turns}}},").replace("TURNS", "")


def slow_when_told() -> str:
    """As many turns as the largest number of the batch says."""
    turns = "largest = ReduceMax<keepdims=0>(x)\n  turns = Cast<to=7>(largest)"
    return _PICKY_AND_SLOW.replace("CONSTANTS", "").replace("TURNS", turns)


def save_queueing_models(repository: Path, picky: str, slow: str) -> None:
    """`picky` and `slow` of these texts, and `small`: as `slow`, one row at a time, for which two may wait."""
    save_version(repository, "picky", picky, config={"max_batch_size": 16})
    save_version(repository, "slow", slow, config={"max_batch_size": 16})
    save_version(repository, "small", slow, config={"max_batch_size": 1, "scheduler": {"max_queue_size": 2}})


def body(x: Sequence[float], index: int, **parameters: int) -> bytes:
    request: dict[str, Any] = {
        "inputs": [
            {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": list(x)},
            {"name": "i", "shape": [1, 1], "datatype": "INT64", "data": [index]},
        ]
    }
    return json.dumps(request | ({"parameters": parameters} if parameters else {})).encode()


def infer(service: Foldserve, x: Sequence[float], index: int = 0, model: str = "slow", **parameters: int) -> Answer:
    return service.request("POST", f"/v2/models/{model}/infer", body(x, index, **parameters))


class Sender:
    """One connection that has sent a request and can hang up."""

    def __init__(self, service: Foldserve, content: bytes, *, chunked: bool) -> None:
        host, _, port = service.address.partition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(content)}"
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content) if chunked else content
        self.socket.sendall(f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n".encode() + framed)

    def status(self) -> int:
        return int(self.answer()[0].split()[1])

    def answer(self) -> tuple[bytes, bytes]:
        """Head and body."""
        with self.socket:
            head, _, content = self.socket.recv(65536).partition(b"\r\n\r\n")
            return head, content

    def hang_up(self) -> None:
        self.socket.close()
