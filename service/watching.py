"""What is known of a request when it is over, for those who watch: the access log, traces. Knows neither, and no door.

Only a server that is watched pays for it: the doors have watched forms of their own (watched_lane.py, watched_api.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.request_tags import RequestTags
from service.stages import Stages

CLIENT_LEFT = 499
"""nginx's status for a request whose client had gone before it was answered."""


class Asked(NamedTuple):
    """Of an infer request. reason: why it was refused; stages: None when it was before it began."""

    model: str
    version: str | None
    reason: str = ""
    stages: Stages | None = None


class Finished(NamedTuple):
    """One request. Times on time.monotonic(), from its head to the end of its answer; bytes of both bodies, as far as
    they came."""

    client: str
    method: str
    path: str
    status: int
    in_bytes: int
    out_bytes: int
    began_s: float
    ended_s: float
    tags: RequestTags
    asked: Asked | None = None


Watch = Callable[[Finished], object]


def tell(watches: Sequence[Watch], finished: Finished) -> None:
    """Each of them."""
    for watch in watches:
        watch(finished)


def client_name(address: tuple[str, int] | None) -> str:
    """`host:port`; `unix` for a client of a unix socket, which has no address."""
    if address is None:
        return "unix"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
