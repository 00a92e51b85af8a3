"""Composition root: registry, routes, documentation, and one form for every error.

Makes the parts and ties them together; what a request means is decided elsewhere. The lifespan begins loading the
models in the background and yields at once, so that liveness answers while they load.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import __version__, spans
from service.access import Guard
from service.access_api import GuardedApp
from service.access_log import write_access
from service.answers import Answer, answer_error, make_answer
from service.assignment import Assignment
from service.control import Control, OneProcess, nobody_polls
from service.decode import HEADER_LENGTH
from service.encode import encode_error
from service.errors import ServiceError
from service.http_api import INFER_PATHS, add_routes
from service.metrics_api import add_metrics_route
from service.openapi import describe_infer
from service.polling import Poller
from service.process_gauges import ProcessGauges
from service.refusal_lines import RefusalLines
from service.registry import Registry
from service.repository_api import add_repository_routes
from service.request_id_api import EchoesRequestId, tags_of
from service.settings import Settings
from service.shared_memory import SharedMemory
from service.shared_memory_api import add_shared_memory_routes
from service.stages import Stages, ToldStages
from service.v1_api import add_v1_routes, describe_predict
from service.version_states import ModelState
from service.watched_api import WatchedApp
from service.watching import Watch

log = logging.getLogger(__name__)

# Beyond those that every page may read (Fetch, "CORS-safelisted response-header name").
_EXPOSED_HEADERS = (HEADER_LENGTH, "Retry-After", "Server-Timing", "WWW-Authenticate", "X-Request-Id")

_DESCRIPTION = "Serves folded ONNX models over the Open Inference Protocol v2, in JSON and with binary tensors."


def create_app(settings: Settings) -> FastAPI:
    """The application that serves what `settings` name. Starts nothing, and touches nothing on disk but the file of
    keys, before its lifespan does. Raises SettingsError when there is something wrong with that file."""
    registry = Registry(settings)
    return build_app(
        registry,
        settings.max_body_bytes,
        regions=SharedMemory(is_enabled=settings.system_shared_memory, max_request_bytes=settings.max_body_bytes),
        root_path=settings.root_path,
        guard=Guard.of(settings),
        cors_origins=settings.cors_origins,
        poller=make_poller(settings, registry),
        server_timing=settings.server_timing,
        watches=make_watches(settings),
    )


def make_watches(settings: Settings) -> tuple[Watch, ...]:
    """Who is told of each request. Raises SettingsError, see `spans.are_wanted`."""
    watches: tuple[Watch, ...] = (write_access,) if settings.access_log else ()
    if spans.are_wanted(settings, os.environ):
        watches += (spans.Spans(spans.otlp_exporter(settings)),)
    return watches


def make_poller(settings: Settings, registry: Registry) -> Poller | None:
    """None where nobody wants one."""
    return Poller(settings, registry, call=registry.call) if settings.repository_poll_s else None


def build_app(
    registry: Registry,
    max_body_bytes: int,
    *,
    regions: SharedMemory | None = None,
    root_path: str = "",
    guard: Guard | None = None,
    cors_origins: tuple[str, ...] = (),
    poller: Poller | None = None,
    server_timing: bool = False,
    gauges: ProcessGauges | None = None,
    refusals: RefusalLines | None = None,
    watches: tuple[Watch, ...] = (),
    control: Control | None = None,
    assignment: Assignment | None = None,
) -> FastAPI:
    """As `create_app`, around a registry, regions of shared memory, a guard, a poller, gauges and refusals that
    somebody else made. Without a guard everything is everybody's.

    watches: told of each request when it is over. control: of all processes, where this is one of several.
    assignment: what to load in place of what is on disk.
    """
    gauges = gauges or ProcessGauges(registry)
    refusals = refusals or RefusalLines(registry.count_refusal)
    make_stages = ToldStages if server_timing else Stages
    app: FastAPI = FastAPIOffline(
        title="Foldserve",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=_lifespan(registry, poller, gauges, assignment, watches),
        redoc_url=None,
        # A redirect from /v2/ to /v2 would be an answer that no client of the protocol expects.
        redirect_slashes=False,
        # Swagger's page would otherwise show a badge from validator.swagger.io.
        swagger_ui_parameters={"validatorUrl": None},
    )
    regions = regions or SharedMemory(is_enabled=False, max_request_bytes=max_body_bytes)
    control = control or OneProcess(registry, regions, poller.acted_upon if poller else nobody_polls)
    add_routes(app, registry, max_body_bytes, regions, control, make_stages, refusals)
    add_repository_routes(app, control, registry.repository_name)
    add_shared_memory_routes(app, regions, control)
    add_v1_routes(app, registry, max_body_bytes, make_stages, refusals)
    add_metrics_route(app, registry, gauges)
    _document_infer(app, registry)
    _tell_every_error_alike(app, refusals)
    app.add_middleware(HeadAsGet)
    if guard is not None:
        app.add_middleware(GuardedApp, guard=guard, refusals=refusals)
    if cors_origins:
        # Around the guard: browsers ask whether they may (preflight) without a key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_EXPOSED_HEADERS,
            max_age=600,
        )
    if root_path:
        app.add_middleware(UnderRootPath, root_path=root_path)
    app.add_middleware(EchoesRequestId)
    if watches:
        app.add_middleware(WatchedApp, watches=watches)
    return app


def _lifespan(
    registry: Registry,
    poller: Poller | None,
    gauges: ProcessGauges,
    assignment: Assignment | None,
    watches: tuple[Watch, ...],
) -> Any:
    async def load() -> None:
        if poller is None:
            await registry.load_all(assignment)
        else:
            await poller.begin()
            await asyncio.gather(registry.load_all(assignment), poller.run())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(load())
        loading.add_done_callback(_log_failure)
        # Where nobody else reads them, they are measured when somebody asks.
        measuring = asyncio.create_task(gauges.keep_fresh()) if registry.pages.are_shared else None
        try:
            yield
        finally:
            loading.cancel()
            if measuring is not None:
                measuring.cancel()
            await registry.close()
            for watch in watches:
                if isinstance(watch, spans.Spans):
                    await asyncio.to_thread(watch.close)

    return lifespan


def _log_failure(loading: asyncio.Task[None]) -> None:
    """`load_all` tells each model's failure itself; when it fails as a whole, no model becomes ready: here is why."""
    if not loading.cancelled() and (error := loading.exception()) is not None:
        log.error("loading the models failed unexpectedly", exc_info=error)


# --- documentation ------------------------------------------------------------------------------------------------


# Whoever looks for a page that is not there would fill the log.
_READING = ("GET", "HEAD", "OPTIONS")


def _document_infer(app: FastAPI, registry: Registry) -> None:
    derive = app.openapi

    def openapi() -> dict[str, Any]:
        """Not cached beyond FastAPI's own part: the examples follow the models that are READY now."""
        ready = dict.fromkeys(status.name for status in registry.states() if status.state is ModelState.READY)
        models = [registry.metadata(name) for name in ready]
        return describe_infer(describe_predict(derive(), models), INFER_PATHS, models)

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema


# --- errors -------------------------------------------------------------------------------------------------------


def _tell_every_error_alike(app: FastAPI, refusals: RefusalLines) -> None:
    """{"error": text}, application/json: the framework's own errors included, or tritonclient cannot read them.

    A request that was to change something and has not has a line in the log; infer routes tell of theirs themselves.
    """

    async def answer_service_error(request: Request, error: Exception) -> Response:
        answer = answer_error(error)
        if request.method not in _READING and isinstance(error, ServiceError):
            refusals.tell(None, None, answer, tags_of(request.scope), request.url.path)
        return _to_response(answer)

    app.add_exception_handler(ServiceError, answer_service_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    # Starlette raises it again behind the answer, so that the HTTP server logs its traceback.
    app.add_exception_handler(Exception, _answer_service_error)


async def _answer_service_error(_: Request, error: Exception) -> Response:
    return _to_response(answer_error(error))


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    text = f"{request.method} {request.url.path}: {error.detail}"
    if error.status_code == 404:
        text = f"there is no {request.method} {request.url.path} here; /docs lists every route"
    elif error.status_code == 405:
        headers["allow"] = _with_head(headers.get("allow", "GET"))
        text = f"{request.url.path} does not take {request.method}, only {headers['allow']}"
    pairs = ((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items())
    return _to_response(make_answer(error.status_code, encode_error(text), *pairs))


def _with_head(allow: str) -> str:
    """Every GET route answers HEAD as well, see `HeadAsGet`."""
    methods = sorted({method.strip() for method in allow.split(",")} | ({"HEAD"} if "GET" in allow else set()))
    return ", ".join(methods)


async def _answer_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return _to_response(make_answer(422, encode_error(f"{request.method} {request.url.path}: {found}")))


def _to_response(answer: Answer) -> Response:
    response = Response(answer.body, answer.status)
    response.raw_headers = list(answer.headers)
    return response


# --- HEAD ---------------------------------------------------------------------------------------------------------


class HeadAsGet:
    """Answers HEAD as GET without the body (RFC 9110, 9.3.2), for every route alike; FastAPI's routes take GET only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, send_without_body)


# --- root path ----------------------------------------------------------------------------------------------------


class UnderRootPath:
    """Answers requests with `root_path` before their path and those without alike: proxies strip it, or do not, and
    clients inside reach the server without a proxy. Links (the docs page, OpenAPI's `servers`) begin with it."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            # ASGI's `path` has the root path in it, stripped by a proxy or not.
            if path != self._root_path and not path.startswith(f"{self._root_path}/"):
                path = self._root_path + path
            scope = {**scope, "path": path, "root_path": self._root_path}
        await self._app(scope, receive, send)
