"""The door to uvicorn: sockets, signals, drain.

Sockets are bound here, before anything heavy is imported: a port that is taken is told at once, and connections that
come early wait in the backlog instead of being refused. SIGTERM and SIGINT stop the server in order: no new
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
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from service import __version__
from service.errors import ModelNotReady
from service.memory import keep_what_is_there
from service.off_loop import refuse_unfinished
from service.settings import Settings

if TYPE_CHECKING:
    from service.registry import Registry
    from service.shared_memory import SharedMemory

log = logging.getLogger(__name__)

# Longer than the idle time of common load balancers (60 s), so that they close a connection rather than we: the other
# way round a request sent in that instant is lost.
_KEEP_ALIVE_S = 75
# Behind the drain limit, for its refusals to be written and for peers to read them.
_LAST_ANSWERS_S = 1
# Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
_BACKLOG = 2048


class CannotServe(Exception):
    """There is nothing to listen on, or nothing to serve. `str(error)` is one line."""


def run(settings: Settings) -> int:
    """Serves until a signal ends it; returns the exit code.

    Raises CannotServe when the address is not to be had, and later when the only model turns out not to be servable.
    """
    sockets = listen(settings.host, settings.port)
    # Late: importing the application takes most of the start-up time, and the port is ours already.
    from service.app import build_app
    from service.process_gauges import ProcessGauges
    from service.registry import Registry
    from service.shared_memory import SharedMemory

    registry = Registry(settings)
    gauges = ProcessGauges(registry)
    regions = SharedMemory(is_enabled=settings.system_shared_memory, max_request_bytes=settings.max_body_bytes)
    config = uvicorn.Config(
        build_app(
            registry,
            settings.max_body_bytes,
            regions=regions,
            root_path=settings.root_path,
            server_timing=settings.server_timing,
            gauges=gauges,
        ),
        http=_protocol(registry, settings, regions),
        loop="auto" if sys.platform == "win32" else "uvloop",
        ws="none",
        lifespan="on",
        log_config=None,  # __main__ has configured logging
        access_log=False,
        # No `Server:` header: it tells an attacker what to try, and every answer would carry it.
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.drain_limit_s + _LAST_ANSWERS_S,
        # Whoever sits in front of us is not known here; a forged X-Forwarded-For must not be believed.
        proxy_headers=False,
        backlog=_BACKLOG,
    )
    server = _Server(config, registry, settings.drain_limit_s)
    gauges.connections = lambda: len(server.server_state.connections)
    logging.getLogger("uvicorn.error").addFilter(server.tell_the_drain_in_our_words)
    log.info("foldserve %s listens on %s", __version__, ", ".join(_address(sock) for sock in sockets))
    server.listen_to_signals()
    server.run(sockets=sockets)
    if server.gave_up:
        raise CannotServe(server.gave_up)
    log.info("stopped")
    code = 0 if server.started else 1
    if registry.gave_up or not registry.is_settled():
        # Python would wait for the thread that loads, or computes, which may take minutes and cannot be interrupted;
        # nobody is going to use what comes of it. Nothing is left to lose: both only read.
        logging.shutdown()
        os._exit(code)
    return code


def _protocol(registry: Registry, settings: Settings, regions: SharedMemory) -> Any:
    """What uvicorn makes for each connection: the lane where it fits the installed uvicorn, otherwise uvicorn's own."""
    from service.uvicorn_fit import why_unfit

    if misfit := why_unfit():
        log.warning("requests take the slower way, through the application: %s; install the pinned uvicorn", misfit)
        return "httptools"

    from service.busy_poll import BusyPoll
    from service.cpu_plan import read_plan
    from service.http_lane import Lane
    from service.infer import begin_infer, refuse_early
    from service.lane_heads import HeadMemory
    from service.stages import Stages, ToldStages
    from service.timers import RunningLoop

    begin = functools.partial(
        begin_infer,
        registry,
        max_body_bytes=settings.max_body_bytes,
        regions=regions,
        make_stages=ToldStages if settings.server_timing else Stages,
    )
    heads = HeadMemory(settings.max_body_bytes, Lane.limits.head_bytes)
    poll = BusyPoll(RunningLoop(), cores=read_plan().cores)
    refuse = functools.partial(refuse_early, registry)
    return functools.partial(Lane, begin, refuse, registry.count_refusal, heads, poll)


def listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets for every address of `host`, all with the same port. Raises CannotServe."""
    sockets: list[socket.socket] = []
    try:
        # A name may have several addresses: localhost is both ::1 and 127.0.0.1.
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            # Lets a restarted server listen at once; on Linux it does not let two servers share a port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            chosen = sockets[0].getsockname()[1] if len(sockets) > 1 else port
            sock.bind((address[0], chosen, *address[2:]))
            # Now rather than in uvicorn: two servers can bind one port, only one of them can listen on it.
            sock.listen(_BACKLOG)
    except (OSError, UnicodeError) as error:
        for sock in sockets:
            sock.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CannotServe(f"cannot listen on {host}:{port}: {reason}; choose another --host or --port") from error
    return sockets


class _Server(uvicorn.Server):
    """uvicorn closes its listeners first when told to exit; a grace period (not ready, but serving on) goes into
    `handle_exit`, before `should_exit` is set."""

    def __init__(self, config: uvicorn.Config, registry: Registry, drain_limit_s: float) -> None:
        super().__init__(config)
        self._registry = registry
        self._drain_limit_s = drain_limit_s
        self._has_settled = False
        self.gave_up = ""

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; true ends serving."""
        self.gave_up = self._registry.why_hopeless()
        if not self._has_settled and self._registry.is_settled():
            self._has_settled = True
            keep_what_is_there()
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


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if sock.family == socket.AF_INET6 else f"http://{host}:{port}"
