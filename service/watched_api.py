"""The ASGI side of watching.py: a plain callable around the application that tells of each request when it is over."""

from __future__ import annotations

import time
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.request_id_api import tags_of
from service.watching import CLIENT_LEFT, Asked, Finished, Watch, client_name, tell

_KEY = "foldserve.asked"


class WatchedApp:
    """Tells `watches`."""

    def __init__(self, app: ASGIApp, watches: Sequence[Watch]) -> None:
        self._app = app
        self._watches = watches

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.monotonic()
        status = CLIENT_LEFT
        in_bytes = out_bytes = 0
        asked: list[Asked] = []
        scope[_KEY] = asked
        tags = tags_of(scope)

        async def receive_counting() -> Message:
            nonlocal in_bytes
            message = await receive()
            in_bytes += len(message.get("body", b""))
            return message

        async def send_counting(message: Message) -> None:
            nonlocal status, out_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
            out_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive_counting, send_counting)
        finally:
            path = scope.get("raw_path") or scope["path"].encode()
            finished = Finished(
                client_name(scope.get("client")),
                scope["method"],
                path.decode("latin-1"),
                status,
                in_bytes,
                out_bytes,
                began_s,
                time.monotonic(),
                tags,
                asked[0] if asked else None,
            )
            tell(self._watches, finished)


def is_watched(scope: Scope) -> bool:
    return _KEY in scope


def note_asked(scope: Scope, asked: Asked) -> None:
    """What an infer request was, for who watches."""
    if is_watched(scope):
        scope[_KEY][:] = [asked]
