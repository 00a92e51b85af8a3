"""The Open Inference Protocol's routes as a table; handlers move bytes, headers and status codes, and nothing else.

Inference goes through `infer`, which knows no framework: what it is given and what it returns are bytes and headers, so
that every door to it answers alike. `InferRoute` is the reference door, a raw ASGI callable: the body passes through no
framework, no validation of its elements, and needs no Content-Type. All other routes are ordinary FastAPI routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Path, Response
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service import __version__
from service.decode import HEADER_LENGTH, decode_request, parse_header_bytes
from service.encode import EncodedResponse, encode_error, encode_response
from service.errors import (
    ModelNotReady,
    PayloadTooLarge,
    QueueFull,
    ServiceError,
    UnsupportedEncoding,
    quoted,
    status_of,
)
from service.openapi import TAG
from service.protocol import (
    SERVER_EXTENSIONS,
    ErrorResponse,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from service.registry import ModelState, Registry

log = logging.getLogger(__name__)

Headers = Iterable[tuple[bytes, bytes]]
"""As in ASGI: names in lower case."""

INFER_PATHS = ("/v2/models/{model_name}/infer", "/v2/models/{model_name}/versions/{version}/infer")

_DISCARD_S = 2.0
"""How long a body that was refused for its length is still read and thrown away, see `_send_and_discard`."""

_REASONS_SHOWN = 10


# --- one answer ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer that any door can write."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def make_answer(status: int, encoded: EncodedResponse, *more_headers: tuple[bytes, bytes]) -> Answer:
    headers = [
        (b"content-type", encoded.content_type.encode("ascii")),
        (b"content-length", b"%d" % len(encoded.body)),
    ]
    if encoded.header_bytes is not None:
        headers.append((HEADER_LENGTH.lower().encode("ascii"), b"%d" % encoded.header_bytes))
    return Answer(status, (*headers, *more_headers), encoded.body)


def answer_error(error: Exception) -> Answer:
    """What a caller is told about `error`; the text of an unexpected one stays in the log."""
    if not isinstance(error, ServiceError):
        return make_answer(500, encode_error("internal error; the server's log has the details"))
    return make_answer(status_of(error).http, encode_error(str(error)), *_headers_of(error))


def _headers_of(error: ServiceError) -> Iterator[tuple[bytes, bytes]]:
    match error:
        case QueueFull():
            # Whole seconds (RFC 9110, 10.2.3), and never "at once".
            yield b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))
        case UnsupportedEncoding():
            # RFC 9110, 15.5.16: says that it was the coding, not the media type, and which would do.
            yield b"accept-encoding", b"identity"
        case PayloadTooLarge():
            # The rest of the body is not wanted, so the connection cannot carry another request.
            yield b"connection", b"close"


# --- inference ----------------------------------------------------------------------------------------------------


async def infer(
    registry: Registry, model_name: str, version: str | None, headers: Headers, body: bytes | bytearray
) -> Answer:
    """The answer to `POST .../infer`. Never raises, except for cancellation."""
    try:
        known = dict(headers)
        _refuse_content_encoding(known.get(b"content-encoding", b""))
        model = registry.get(model_name, version)
        request = decode_request(body, parse_header_bytes(known.get(HEADER_LENGTH.lower().encode("ascii"))))
        return make_answer(200, encode_response(await model.infer(request)))
    except ServiceError as error:
        return answer_error(error)
    except Exception as error:
        log.exception("inference on model %s failed unexpectedly", quoted(model_name))
        return answer_error(error)


def _refuse_content_encoding(value: bytes) -> None:
    coding = value.decode("latin-1").strip().lower()
    if coding not in ("", "identity"):
        raise UnsupportedEncoding(f"Content-Encoding {quoted(coding)} is not supported; send the body uncompressed")


class InferRoute:
    """The ASGI door to `infer`."""

    def __init__(self, registry: Registry, max_body_bytes: int) -> None:
        self._registry = registry
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Now, not behind the body: HTTP servers may append the trailers of a chunked body to this list, and a field
        # that arrives there must not change what the request means (RFC 9110, 6.5.1).
        headers = tuple(scope["headers"])
        try:
            body = await read_body(headers, receive, self._max_body_bytes)
        except PayloadTooLarge as error:
            await _send_and_discard(answer_error(error), receive, send)
            return
        except ClientDisconnect:
            # There is nobody left to answer.
            return
        path = scope["path_params"]
        answer = await infer(self._registry, path["model_name"], path.get("version"), headers, body)
        await _send_head(answer, send)
        await send({"type": "http.response.body", "body": answer.body})


async def read_body(headers: Headers, receive: Receive, max_body_bytes: int) -> bytes | bytearray:
    """The whole body. Raises PayloadTooLarge as soon as it is known to be longer, and ClientDisconnect."""
    declared = dict(headers).get(b"content-length", b"")
    # A length that is no number was refused by the HTTP server; one with thousands of digits is not worth converting.
    if declared.isdigit() and (len(declared) > 18 or int(declared) > max_body_bytes):
        raise _too_large(f"{declared[:18].decode('ascii')} bytes", max_body_bytes)
    # Grows with what has arrived, not with what was declared; and a flood of tiny chunks costs their bytes only.
    collected = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        if len(collected) + len(chunk) > max_body_bytes:
            raise _too_large(f"more than {max_body_bytes} bytes", max_body_bytes)
        is_last = not message.get("more_body", False)
        if is_last and not collected:
            return chunk
        collected += chunk
        if is_last:
            return collected


def _too_large(found: str, max_body_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body has {found}, this server takes at most {max_body_bytes}; send fewer rows at a time, "
        f"or start it with a larger --max-body-bytes"
    )


async def _send_head(answer: Answer, send: Send) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)})


async def _send_and_discard(answer: Answer, receive: Receive, send: Send) -> None:
    """Reads on for a while behind the answer: closing a connection while its peer still sends would reset it, and the
    peer might never read why (RFC 9112, 9.6)."""
    await _send_head(answer, send)
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b""})


# --- everything else ----------------------------------------------------------------------------------------------

ModelName = Annotated[str, Path(description="The model's name.")]
Version = Annotated[str, Path(description="A version: a positive integer. Without one, the highest that is ready.")]


class Reads:
    """Handlers of the GET routes. They raise ServiceErrors; the application turns those into answers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def server_metadata(self) -> ServerMetadata:
        return ServerMetadata("foldserve", __version__, SERVER_EXTENSIONS)

    async def server_live(self) -> ServerLive:
        return ServerLive(live=True)

    async def server_ready(self, response: Response) -> ServerReady:
        if self._registry.is_ready():
            return ServerReady(ready=True)
        response.status_code = status_of(ModelNotReady("")).http
        return ServerReady(ready=False, error=_why_not_ready(self._registry))

    async def model_metadata(self, model_name: ModelName) -> ModelMetadata:
        return self._registry.metadata(model_name)

    async def version_metadata(self, model_name: ModelName, version: Version) -> ModelMetadata:
        return self._registry.metadata(model_name, version)

    async def model_ready(self, model_name: ModelName, response: Response) -> ModelReady:
        return self._model_ready(model_name, None, response)

    async def version_ready(self, model_name: ModelName, version: Version, response: Response) -> ModelReady:
        return self._model_ready(model_name, version, response)

    def _model_ready(self, model_name: str, version: str | None, response: Response) -> ModelReady:
        try:
            self._registry.get(model_name, version)
        except ModelNotReady as error:
            response.status_code = status_of(error).http
            return ModelReady(model_name, ready=False, error=str(error))
        return ModelReady(model_name, ready=True)


def _why_not_ready(registry: Registry) -> str:
    reasons = [
        f"{status.name}{f' version {status.version}' if status.version is not None else ''} is {status.state.value}"
        + (f": {status.reason}" if status.reason else "")
        for status in registry.states()
        if status.state is not ModelState.READY
    ]
    if not reasons:
        return "the server is not ready: no model has been found (yet)"
    more = f"; and {len(reasons) - _REASONS_SHOWN} more" if len(reasons) > _REASONS_SHOWN else ""
    return f"the server is not ready: {'; '.join(reasons[:_REASONS_SHOWN])}{more}"


@dataclass(frozen=True, slots=True)
class Read:
    """One GET route: its path, the method of `Reads` that answers, what its answer is, and what else may come."""

    path: str
    handler: str
    answer: type
    summary: str
    errors: tuple[int, ...] = ()


READS = (
    Read("/v2", "server_metadata", ServerMetadata, "The server's name, version and extensions"),
    Read("/v2/health/live", "server_live", ServerLive, "Is the server running?"),
    Read("/v2/health/ready", "server_ready", ServerReady, "Can requests be sent?"),
    Read("/v2/models/{model_name}", "model_metadata", ModelMetadata, "A model's inputs and outputs", (404, 503)),
    Read("/v2/models/{model_name}/ready", "model_ready", ModelReady, "Can this model answer?", (404,)),
    Read(
        "/v2/models/{model_name}/versions/{version}",
        "version_metadata",
        ModelMetadata,
        "The inputs and outputs of one version",
        (404, 503),
    ),
    Read(
        "/v2/models/{model_name}/versions/{version}/ready",
        "version_ready",
        ModelReady,
        "Can this version answer?",
        (404,),
    ),
)


def add_routes(app: FastAPI, registry: Registry, max_body_bytes: int) -> None:
    """All routes of the protocol, the infer route in both spellings included."""
    reads = Reads(registry)
    for read in READS:
        app.add_api_route(
            read.path,
            getattr(reads, read.handler),
            methods=["GET"],
            response_model=read.answer,
            response_model_exclude_none=True,
            summary=read.summary,
            operation_id=read.handler,
            tags=[TAG],
            responses=_documented_errors(read),
        )
    infer_route = InferRoute(registry, max_body_bytes)
    for path in INFER_PATHS:
        app.router.routes.append(Route(path, infer_route, methods=["POST"]))


def _documented_errors(read: Read) -> dict[int | str, dict[str, Any]]:
    described: dict[int | str, dict[str, Any]] = {
        404: {"model": ErrorResponse, "description": "There is no such model or version."},
        503: {"model": ErrorResponse, "description": "It is not ready; the text says which and why."},
    }
    errors = {status: described[status] for status in read.errors}
    if read.answer in (ServerReady, ModelReady):
        errors[503] = {"model": read.answer, "description": "Not ready; `error` says which and why."}
    # Also keeps FastAPI from documenting a 422 that cannot happen.
    return errors | {"default": {"model": ErrorResponse, "description": "Any other error."}}
