"""The ASGI side of request_tags.py: the id that a client gave its request comes back in the answer, on every route.

A plain ASGI callable around the application; a request without an id costs a look through its headers.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.request_tags import REQUEST_ID, RequestTags

_KEY = "foldserve.tags"


def tags_of(scope: Scope) -> RequestTags:
    """The same object whoever asks, of one request."""
    if _KEY not in scope:
        # A copy: HTTP servers may append the trailers of a chunked body to this list.
        scope[_KEY] = RequestTags(tuple(scope["headers"]))
    tags: RequestTags = scope[_KEY]
    return tags


class EchoesRequestId:
    """Adds the client's X-Request-Id to the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (sent_id := tags_of(scope).sent_id):
            await self._app(scope, receive, send)
            return

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (REQUEST_ID, sent_id)]}
            await send(message)

        await self._app(scope, receive, send_with_id)
