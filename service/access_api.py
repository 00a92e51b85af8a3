"""The ASGI side of access.py: asks it about each request before anything else looks at it, and writes its refusals.

A plain ASGI callable around the application: no task, no copy of the body, and nothing at all where all is open.
"""

from __future__ import annotations

from dataclasses import replace

from starlette.types import ASGIApp, Receive, Scope, Send

from service.access import Guard
from service.answers import Answer, answer_error
from service.http_api import send_and_discard, send_answer
from service.refusal_lines import RefusalLines
from service.request_id_api import tags_of

# What is still to come of a refused request is read up to here, and the connection kept.
_SHORT_BODY_BYTES = 64 * 1024


class GuardedApp:
    """Lets through what `guard` does not refuse; `refusals` are told of the rest."""

    def __init__(self, app: ASGIApp, guard: Guard, refusals: RefusalLines | None = None) -> None:
        self._app = app
        self._guard = guard
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # As routes compare it (ASGI: `path` has the root path in it).
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        error = self._guard.refusal(scope["method"], path, scope["headers"])
        if error is None:
            await self._app(scope, receive, send)
            return
        answer = answer_error(error)
        if self._refusals is not None:
            self._refusals.tell(None, None, answer, tags_of(scope), path)
        if _has_short_body(scope):
            await send_answer(answer, send)
        else:
            await send_and_discard(_closing(answer), receive, send)


def _has_short_body(scope: Scope) -> bool:
    known = dict(scope["headers"])
    length: bytes = known.get(b"content-length", b"0")
    return (
        b"transfer-encoding" not in known
        and length.isdigit()
        and len(length) <= 18
        and int(length) <= _SHORT_BODY_BYTES
    )


def _closing(answer: Answer) -> Answer:
    return replace(answer, headers=(*answer.headers, (b"connection", b"close")))
