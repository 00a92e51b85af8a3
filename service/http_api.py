"""The Open Inference Protocol's routes as a table; handlers move bytes, headers and status codes, and nothing else.

`InferRoute` is the reference door to `begin_infer` (infer.py), a raw ASGI callable: the body passes no framework and
no validation of its elements, and needs no Content-Type. All other routes are ordinary FastAPI routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Path, Response
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service import __version__
from service.answers import Answer, answer_error
from service.control import Control
from service.errors import MalformedRequest, ModelNotReady, PayloadTooLarge, status_of
from service.infer import Headers, InferHead, begin_infer, read_head
from service.json_tensors import kind_of, parse_json
from service.off_loop import Cancel
from service.openapi import TAG
from service.protocol import (
    SERVER_EXTENSIONS,
    ErrorResponse,
    ModelConfiguration,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    Statistics,
)
from service.refusal_lines import RefusalLines
from service.registry import Registry
from service.request_id_api import tags_of
from service.shared_memory import SharedMemory
from service.stages import Stages
from service.version_states import DRAINING, STARTING, ModelState
from service.watched_api import is_watched, note_asked
from service.watching import Asked

INFER_PATHS = ("/v2/models/{model_name}/infer", "/v2/models/{model_name}/versions/{version}/infer")

_DISCARD_S = 2.0
"""How long a body that was refused for its length is still read and thrown away, see `send_and_discard`."""

_REASONS_SHOWN = 10

Begin = Callable[..., Cancel | None]
"""Begins to answer a request whose body is whole: with a registry, an InferHead, the body and who is to be told, as
`begin_infer`; and with `make_stages` where somebody watches."""


# --- inference ----------------------------------------------------------------------------------------------------


class InferRoute:
    """The ASGI door to `begin_infer`, or to another function of its kind."""

    def __init__(
        self,
        registry: Registry,
        max_body_bytes: int,
        begin: Begin = begin_infer,
        refusals: RefusalLines | None = None,
        make_stages: Callable[[float], Stages] = Stages,
    ) -> None:
        self._registry = registry
        self._make_stages = make_stages
        self._refusals = refusals or RefusalLines(registry.count_refusal)
        self._max_body_bytes = max_body_bytes
        self._begin = begin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Now, not behind the body: HTTP servers may append the trailers of a chunked body to this list, and a field
        # that arrives there must not change what the request means (RFC 9110, 6.5.1).
        headers, tags = tuple(scope["headers"]), tags_of(scope)
        path = scope["path_params"]
        answer: Answer | None
        try:
            body = await read_body(headers, receive, self._max_body_bytes)
        except PayloadTooLarge as error:
            answer = answer_error(error)
            self._refusals(path["model_name"], path.get("version"), answer, tags)
            note_asked(scope, Asked(path["model_name"], path.get("version"), answer.reason))
            await send_and_discard(answer, receive, send)
            return
        except ClientDisconnect:
            # There is nobody left to answer.
            return
        head = read_head(path["model_name"], path.get("version"), headers)
        stages: list[Stages] = []
        begin = functools.partial(self._begin, make_stages=self._noted_in(stages)) if is_watched(scope) else self._begin
        answer = await self._answer(head, body, receive, begin)
        note_asked(
            scope, Asked(head.model_name, head.version, answer.reason if answer else "", stages[0] if stages else None)
        )
        if answer is not None:
            if answer.reason:
                self._refusals(head.model_name, head.version, answer, tags)
            await send_answer(answer, send)

    def _noted_in(self, noted: list[Stages]) -> Callable[[float], Stages]:
        def make_stages(arrived_s: float) -> Stages:
            noted.append(self._make_stages(arrived_s))
            return noted[0]

        return make_stages

    async def _answer(self, head: InferHead, body: bytes | bytearray, receive: Receive, begin: Begin) -> Answer | None:
        """None when the caller has gone: then its request is taken out of the queue."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        cancel = begin(self._registry, head, body, answered.set_result)
        if cancel is None:
            return answered.result()
        # Behind the body ASGI's receive returns when the peer disconnects, and not before the answer otherwise.
        gone = asyncio.create_task(_wait_for_disconnect(receive))
        try:
            await asyncio.wait((answered, gone), return_when=asyncio.FIRST_COMPLETED)
            return answered.result() if answered.done() else None
        finally:
            gone.cancel()
            if not answered.done():
                cancel()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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


async def read_object(
    request: Request, max_body_bytes: int, *, too_large: str, expected: str, may_be_empty: bool = False
) -> dict[str, Any]:
    """The body of a control route as a JSON object, where allowed {} for no body; no Content-Type is needed.

    too_large, expected: what a caller whose body is longer, or no object, is told. Raises MalformedRequest and
    PayloadTooLarge.
    """
    try:
        body = await read_body(request.scope["headers"], request.receive, max_body_bytes)
    except PayloadTooLarge as error:
        raise PayloadTooLarge(too_large) from error
    except ClientDisconnect as error:
        raise MalformedRequest("the client has gone before the end of its body") from error
    if may_be_empty and not body.strip():
        return {}
    members = parse_json(memoryview(body))
    if type(members) is not dict:
        raise MalformedRequest(f"the request is {kind_of(members)}, expected {expected}")
    return members


def _too_large(found: str, max_body_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body has {found}, this server takes at most {max_body_bytes}; send fewer rows at a time, "
        f"or start it with a larger --max-body-bytes"
    )


async def _send_head(answer: Answer, send: Send) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)})


async def send_answer(answer: Answer, send: Send) -> None:
    await _send_head(answer, send)
    await send({"type": "http.response.body", "body": answer.body})


async def send_and_discard(answer: Answer, receive: Receive, send: Send) -> None:
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

    def __init__(self, registry: Registry, regions: SharedMemory, control: Control) -> None:
        self._registry = registry
        self._regions = regions
        self._control = control

    async def server_metadata(self) -> ServerMetadata:
        optional = ("system_shared_memory",) if self._regions.is_enabled else ()
        return ServerMetadata("foldserve", __version__, (*SERVER_EXTENSIONS, *optional))

    async def server_live(self) -> ServerLive:
        return ServerLive(live=True)

    async def server_ready(self, response: Response) -> ServerReady:
        if self._control.is_ready():
            return ServerReady(ready=True)
        response.status_code = status_of(ModelNotReady("")).http
        if self._registry.is_ready():
            return ServerReady(ready=False, error=f"the server is not ready: {self._control.why_not_ready()}")
        return ServerReady(ready=False, error=_why_not_ready(self._registry))

    async def model_metadata(self, model_name: ModelName) -> ModelMetadata:
        return self._registry.metadata(model_name)

    async def version_metadata(self, model_name: ModelName, version: Version) -> ModelMetadata:
        return self._registry.metadata(model_name, version)

    async def model_ready(self, model_name: ModelName, response: Response) -> ModelReady:
        return self._model_ready(model_name, None, response)

    async def version_ready(self, model_name: ModelName, version: Version, response: Response) -> ModelReady:
        return self._model_ready(model_name, version, response)

    async def model_config(self, model_name: ModelName) -> ModelConfiguration:
        return self._registry.configuration(model_name)

    async def version_config(self, model_name: ModelName, version: Version) -> ModelConfiguration:
        return self._registry.configuration(model_name, version)

    async def all_statistics(self) -> Statistics:
        return Statistics(self._registry.statistics())

    async def model_statistics(self, model_name: ModelName) -> Statistics:
        return Statistics(self._registry.statistics(model_name))

    async def version_statistics(self, model_name: ModelName, version: Version) -> Statistics:
        return Statistics(self._registry.statistics(model_name, version))

    def _model_ready(self, model_name: str, version: str | None, response: Response) -> ModelReady:
        try:
            self._registry.require_ready(model_name, version)
        except ModelNotReady as error:
            response.status_code = status_of(error).http
            return ModelReady(model_name, ready=False, error=str(error))
        return ModelReady(model_name, ready=True)


def _why_not_ready(registry: Registry) -> str:
    if registry.is_draining:
        return f"the server is not ready: {DRAINING}"
    reasons = [
        f"{status.name}{f' version {status.version}' if status.version is not None else ''} is {status.state.value}"
        + (f": {status.reason}" if status.reason else "")
        for status in registry.states()
        if status.state is not ModelState.READY
    ]
    reasons += registry.why_unanswered()
    if not registry.is_scanned():
        return f"the server is not ready: it is LOADING, {STARTING}"
    if not reasons:
        return "the server is not ready: no model has been found"
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


_MODEL = "/v2/models/{model_name}"
_VERSION = _MODEL + "/versions/{version}"

# In the order in which paths are compared: a model called "stats" has no metadata here, as in Triton. Everything else
# of it can be reached, and so can a model that is called "config", "ready", "infer" or "versions".
READS = (
    Read("/v2", "server_metadata", ServerMetadata, "The server's name, version and extensions"),
    Read("/v2/health/live", "server_live", ServerLive, "Is the server running?"),
    Read("/v2/health/ready", "server_ready", ServerReady, "Can requests be sent?"),
    Read("/v2/models/stats", "all_statistics", Statistics, "Counters of all versions that are ready"),
    Read(_MODEL, "model_metadata", ModelMetadata, "A model's inputs and outputs", (404, 503)),
    Read(_MODEL + "/ready", "model_ready", ModelReady, "Can this model answer?", (404,)),
    Read(_MODEL + "/config", "model_config", ModelConfiguration, "How a model is served", (404, 503)),
    Read(_MODEL + "/stats", "model_statistics", Statistics, "Counters of a model's versions", (404, 503)),
    Read(_VERSION, "version_metadata", ModelMetadata, "The inputs and outputs of one version", (404, 503)),
    Read(_VERSION + "/ready", "version_ready", ModelReady, "Can this version answer?", (404,)),
    Read(_VERSION + "/config", "version_config", ModelConfiguration, "How one version is served", (404, 503)),
    Read(_VERSION + "/stats", "version_statistics", Statistics, "Counters of one version", (404, 503)),
)


def add_routes(
    app: FastAPI,
    registry: Registry,
    max_body_bytes: int,
    regions: SharedMemory,
    control: Control,
    make_stages: Callable[[float], Stages] = Stages,
    refusals: RefusalLines | None = None,
) -> None:
    """All routes of the protocol, the infer route in both spellings included. make_stages: see `begin_infer`.
    refusals: told of each, where somebody else wants to be."""
    reads = Reads(registry, regions, control)
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
    begin = functools.partial(begin_infer, max_body_bytes=max_body_bytes, regions=regions, make_stages=make_stages)
    infer_route = InferRoute(registry, max_body_bytes, begin, refusals, make_stages)
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
