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
import ssl
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from service import __version__
from service.access import Guard, is_local
from service.crowd import Crowd
from service.errors import ModelNotReady
from service.memory import give_back, keep_what_is_there
from service.off_loop import refuse_unfinished
from service.open_files import connections_within, raise_limit
from service.settings import Settings
from service.tls import make_context
from service.unix_socket import UnixSocket

if TYPE_CHECKING:
    from service.registry import Registry
    from service.shared_memory import SharedMemory

log = logging.getLogger(__name__)

# Behind the drain limit, for its refusals to be written and for peers to read them.
_LAST_ANSWERS_S = 1
_UVICORNS_OWN = "httptools"
# Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
_BACKLOG = 2048


class CannotServe(Exception):
    """There is nothing to listen on, or nothing to serve. `str(error)` is one line."""


def run(settings: Settings) -> int:
    """Serves until a signal ends it; returns the exit code.

    Raises SettingsError when the file of keys or those of TLS cannot be used, and CannotServe when the address is not
    to be had, and later when the only model turns out not to be servable.
    """
    guard = Guard.of(settings)
    context = make_context(settings)
    door = _listen_on_file(settings) if settings.unix_socket else None
    sockets = [door.sock] if door else listen(settings.host, settings.port)
    try:
        code, is_idle = _serve(settings, guard, sockets, context)
    finally:
        if door is not None:
            door.remove()
    if not is_idle:
        # Python would wait for the thread that loads, or computes, which may take minutes and cannot be interrupted;
        # nobody is going to use what comes of it. Nothing is left to lose: both only read.
        logging.shutdown()
        os._exit(code)
    return code


def _serve(
    settings: Settings, guard: Guard, sockets: list[socket.socket], context: ssl.SSLContext | None
) -> tuple[int, bool]:
    """The exit code, and whether all threads have ended."""
    # Late: importing the application takes most of the start-up time, and the port is ours already.
    from service.app import build_app
    from service.registry import Registry
    from service.shared_memory import SharedMemory

    registry = Registry(settings)
    regions = SharedMemory(is_enabled=settings.system_shared_memory, max_request_bytes=settings.max_body_bytes)
    crowd = Crowd(connections_within(raise_limit(), settings.max_connections))
    protocol = _protocol(registry, settings, regions, guard, crowd)
    config = uvicorn.Config(
        build_app(
            registry,
            settings.max_body_bytes,
            regions=regions,
            root_path=settings.root_path,
            guard=guard,
            cors_origins=settings.cors_origins,
        ),
        http=protocol,
        # uvicorn counts the asking connection too; ours does without (crowd.py), and tells it before it asks.
        limit_concurrency=crowd.most + 1 if protocol == _UVICORNS_OWN else None,
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
        backlog=_BACKLOG,
        ssl_context_factory=None if context is None else lambda *_: context,
    )
    server = _Server(config, registry, settings.drain_limit_s)
    if context is not None:
        # The second is how long the last answer may take to be read.
        server.tls_limits_s = {
            "ssl_handshake_timeout": settings.head_timeout_s,
            "ssl_shutdown_timeout": settings.answer_stall_s,
        }
    server.each_second += [guard.refresh, functools.partial(_give_back_after, crowd)]
    logging.getLogger("uvicorn.error").addFilter(server.tell_the_drain_in_our_words)
    log.info("foldserve %s listens on %s", __version__, ", ".join(_address(sock, context) for sock in sockets))
    if not guard.has_keys and not is_local(settings):
        log.warning(
            "whoever reaches this server can ask it: there is no --api-key-file; requests that change anything are %s",
            "taken, too (--control-routes on)" if guard.has_control else "switched off",
        )
    server.listen_to_signals()
    server.run(sockets=sockets)
    if server.gave_up:
        raise CannotServe(server.gave_up)
    log.info("stopped")
    return 0 if server.started else 1, registry.is_settled() and not registry.gave_up


def _protocol(registry: Registry, settings: Settings, regions: SharedMemory, guard: Guard, crowd: Crowd) -> Any:
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
    poll = BusyPoll(RunningLoop(), cores=read_plan().cores)
    refuse = functools.partial(refuse_early, registry)
    return functools.partial(Lane, begin, refuse, heads, poll, limits=Limits.of(settings), crowd=crowd)


def _give_back_after(crowd: Crowd) -> None:
    """Ten thousand connections take 70 MB, which the process would keep for the next ten thousand."""
    if crowd.has_thinned():
        give_back()


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


def _listen_on_file(settings: Settings) -> UnixSocket:
    """Raises CannotServe."""
    assert settings.unix_socket is not None
    try:
        return UnixSocket(settings.unix_socket, int(settings.unix_socket_mode, 8), _BACKLOG)
    except OSError as error:
        reason = f"cannot listen on --unix-socket {str(settings.unix_socket)!r}: {error.strerror}"
        raise CannotServe(f"{reason}; choose another path") from error


class _Server(uvicorn.Server):
    """uvicorn closes its listeners first when told to exit; a grace period (not ready, but serving on) goes into
    `handle_exit`, before `should_exit` is set."""

    def __init__(self, config: uvicorn.Config, registry: Registry, drain_limit_s: float) -> None:
        super().__init__(config)
        self._registry = registry
        self._drain_limit_s = drain_limit_s
        self._has_settled = False
        self.gave_up = ""
        self.tls_limits_s: dict[str, float] = {}
        self.each_second: list[Callable[[], object]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, which leaves the time for TLS to the loop: 60 s to begin, for connections not counted yet."""
        if self.tls_limits_s:
            loop: Any = asyncio.get_running_loop()
            loop.create_server = functools.partial(loop.create_server, **self.tls_limits_s)
        await super().startup(sockets)

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


def _address(sock: socket.socket, context: ssl.SSLContext | None) -> str:
    scheme = "http" if context is None else "https"
    if sock.family == getattr(socket, "AF_UNIX", None):
        return f"{scheme}+unix://{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{scheme}://{host}:{port}"
