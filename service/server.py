"""The door to uvicorn: what it is told, signals, drain.

SIGTERM and SIGINT stop the server in order: no new
connections, requests in flight finish (what has not by `drain_limit_s` is refused), models close, exit code 0.
Knows nothing of routes, and of models only whether there is any hope; the application is made by `service.app`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from service import __version__
from service.access import Guard, warn_of_strangers
from service.crowd import Crowd
from service.errors import ModelNotReady
from service.listening import BACKLOG, CannotServe, open_door
from service.memory import keep_what_is_there
from service.off_loop import refuse_unfinished
from service.open_files import connections_within, raise_limit
from service.settings import Settings
from service.tls import make_context

if TYPE_CHECKING:
    from service.assignment import Assignment
    from service.control import Control
    from service.registry import Registry
    from service.shared_memory import SharedMemory

log = logging.getLogger(__name__)

# Behind the drain limit, for its refusals to be written and for peers to read them.
_LAST_ANSWERS_S = 1
_UVICORNS_OWN = "httptools"


def run(settings: Settings, plan: str = "as asked") -> int:
    """Serves until a signal ends it; returns the exit code. plan: why in one process, for the log.

    Raises SettingsError when the file of keys or those of TLS cannot be used, and CannotServe when the address is not
    to be had, and later when the only model turns out not to be servable.
    """
    guard = Guard.of(settings)
    context = make_context(settings)
    door = open_door(settings)
    try:
        # Late: importing the application takes most of the start-up time, and the port is ours already.
        from service.registry import Registry

        registry = Registry(settings)
        server = Server(
            configuration(settings, registry, regions_for(settings), guard, context), registry, settings.drain_limit_s
        )
        server.each_second.append(guard.refresh)
        log.info("foldserve %s listens on %s", __version__, door.addresses(is_tls=context is not None))
        log.info("1 process serves: %s", plan)
        warn_of_strangers(settings, guard)
        server.listen_to_signals()
        server.run(sockets=list(door.slots[0]))
    finally:
        door.remove()
    return server.after()


def regions_for(settings: Settings) -> SharedMemory:
    from service.shared_memory import SharedMemory

    return SharedMemory(is_enabled=settings.system_shared_memory, max_request_bytes=settings.max_body_bytes)


def configuration(
    settings: Settings,
    registry: Registry,
    regions: SharedMemory,
    guard: Guard,
    context: ssl.SSLContext | None,
    *,
    control: Control | None = None,
    assignment: Assignment | None = None,
) -> uvicorn.Config:
    """What uvicorn is told. context: of TLS. control, assignment: see `build_app`."""
    # Late, as above.
    from service.app import build_app

    app = build_app(
        registry,
        settings.max_body_bytes,
        regions=regions,
        root_path=settings.root_path,
        guard=guard,
        cors_origins=settings.cors_origins,
        control=control,
        assignment=assignment,
    )
    protocol = _protocol(registry, settings, regions, guard)
    return uvicorn.Config(
        app,
        http=protocol,
        # uvicorn counts the asking connection too; ours does without (crowd.py), and tells it before it asks.
        limit_concurrency=settings.max_connections + 1 if protocol == _UVICORNS_OWN else None,
        loop="auto" if sys.platform == "win32" else "uvloop",
        ws="none",
        lifespan="on",
        log_config=None,  # __main__ has configured logging
        access_log=False,
        # No `Server:` header: it tells an attacker what to try, and every answer would carry it.
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.drain_limit_s + _LAST_ANSWERS_S,
        # Whoever sits in front of us is not known here; a forged X-Forwarded-For must not be believed.
        proxy_headers=False,
        backlog=BACKLOG,
        ssl_context_factory=None if context is None else lambda *_: context,
    )


def _protocol(registry: Registry, settings: Settings, regions: SharedMemory, guard: Guard) -> Any:
    """What uvicorn makes for each connection: the lane where it fits the installed uvicorn, otherwise uvicorn's own."""
    from service.uvicorn_fit import why_unfit

    if misfit := why_unfit():
        log.warning("requests take the slower way, through the application: %s; install the pinned uvicorn", misfit)
        return _UVICORNS_OWN

    from service.busy_poll import BusyPoll
    from service.connection import Limits
    from service.cpu_plan import read_plan
    from service.http_lane import Lane
    from service.infer import begin_infer, refuse_early
    from service.lane_heads import HeadMemory
    from service.timers import RunningLoop

    begin = functools.partial(begin_infer, registry, max_body_bytes=settings.max_body_bytes, regions=regions)
    heads = HeadMemory(
        settings.max_body_bytes,
        settings.max_head_bytes,
        settings.max_header_count,
        # The ASGI route knows what to say to a page of another origin.
        also_unusual=frozenset({b"origin"} if settings.cors_origins else ()),
        admits=guard.admits_infer if guard.has_keys else None,
    )
    guard.when_keys_change(heads.forget)
    poll = BusyPoll(RunningLoop(), cores=read_plan(settings.workers).cores)
    crowd = Crowd(connections_within(raise_limit(), settings.max_connections))
    refuse = functools.partial(refuse_early, registry)
    return functools.partial(Lane, begin, refuse, heads, poll, limits=Limits.of(settings), crowd=crowd)


class Server(uvicorn.Server):
    """uvicorn closes its listeners first when told to exit; a grace period (not ready, but serving on) goes into
    `handle_exit`, before `should_exit` is set."""

    def __init__(self, config: uvicorn.Config, registry: Registry, drain_limit_s: float) -> None:
        super().__init__(config)
        self._registry = registry
        self._drain_limit_s = drain_limit_s
        self._has_settled = False
        self.gave_up = ""
        self.each_second: list[Callable[[], object]] = []
        logging.getLogger("uvicorn.error").addFilter(self.tell_the_drain_in_our_words)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; true ends serving."""
        self.gave_up = self._registry.why_hopeless()
        if not self._has_settled and self._registry.is_settled():
            self._has_settled = True
            keep_what_is_there()
        if counter % 10 == 0:
            for call in self.each_second:
                call()
        return await super().on_tick(counter) or bool(self.gave_up)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        log.info("%s: finishing requests in flight", signal.Signals(sig).name)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, which waits for every connection to end; what has not been answered by the limit is refused."""
        limit = asyncio.get_running_loop().call_later(self._drain_limit_s, self._refuse_what_is_left)
        await super().shutdown(sockets)
        limit.cancel()

    def _refuse_what_is_left(self) -> None:
        refused = self._registry.give_up() + refuse_unfinished(ModelNotReady("the server is stopping"))
        log.warning("the drain limit has passed: requests refused: %d", refused)

    def connection_maker(self) -> Any:
        """What an event loop calls for each accepted socket, as uvicorn's own `startup` has it."""
        make: Any = self.config.http_protocol_class
        return functools.partial(
            make,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )

    def after(self) -> int:
        """The exit code, when `run` has returned. Raises CannotServe when there was nothing to serve."""
        if self.gave_up:
            raise CannotServe(self.gave_up)
        log.info("stopped")
        code = 0 if self.started else 1
        if self._registry.gave_up or not self._registry.is_settled():
            # Python would wait for the thread that loads, or computes, which may take minutes and cannot be
            # interrupted; nobody is going to use what comes of it. Nothing is left to lose: both only read.
            logging.shutdown()
            os._exit(code)
        return code

    def tell_the_drain_in_our_words(self, record: logging.LogRecord) -> bool:
        """uvicorn counts its tasks, of which the lane has none, and logs a traceback for each that it cuts off: of
        requests that have not come whole, or whose answers are not read."""
        if "timeout graceful shutdown exceeded" in record.msg:
            busy = sum(getattr(connection, "is_busy", True) for connection in self.server_state.connections)
            record.msg, record.args = "the drain limit has passed: requests cut off: %d", (busy,)
        return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))

    def listen_to_signals(self) -> None:
        """Before the event loop runs, so that there is no moment without a handler."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again after a clean stop, so that the process dies of it; we exit 0."""
        yield
