"""The door to uvicorn: what it is told, signals, drain.

SIGTERM stops the server in order:

    not ready -> serve on for `drain_grace_s`, each connection up to its next answer -> no new connections, requests in
    flight finish (what has not by `drain_limit_s` is refused) -> models close -> exit code 0

SIGINT skips the grace, and so does a second signal; one more refuses what is left. Knows nothing of routes, and of
models only whether there is any hope; the application is made by `service.app`.
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any

import uvicorn

from service import __version__
from service.access import Guard, warn_of_strangers
from service.crowd import Crowd
from service.errors import ModelNotReady
from service.listening import BACKLOG, CannotServe, let_nobody_join, open_door
from service.memory import give_back, keep_what_is_there
from service.off_loop import refuse_unfinished
from service.open_files import connections_within, raise_limit
from service.settings import Settings
from service.tls import make_context

if TYPE_CHECKING:
    from service.assignment import Assignment
    from service.control import Control
    from service.counter_pages import Pages
    from service.process_gauges import ProcessGauges
    from service.refusal_lines import RefusalLines
    from service.registry import Registry
    from service.shared_memory import SharedMemory
    from service.watching import Watch

log = logging.getLogger(__name__)

# Behind the drain limit, for its refusals to be written and for peers to read them.
_LAST_ANSWERS_S = 1
_UVICORNS_OWN = "httptools"


def run(settings: Settings, plan: str = "as asked") -> int:
    """Serves until a signal ends it; returns the exit code. plan: why in one process, for the log.

    Raises SettingsError when the file of keys or those of TLS cannot be used, and CannotServe when the address is not
    to be had, and later when the only model turns out not to be servable.
    """
    guard, context = Guard.of(settings), make_context(settings)
    door = open_door(settings)
    try:
        # Late: importing the application takes most of the start-up time, and the port is ours already.
        parts = make_parts(settings, guard, context)
        server = Server(configuration(settings, parts), parts, settings)
        log.info("foldserve %s listens on %s", __version__, door.addresses(is_tls=context is not None))
        log.info("1 process serves: %s", plan)
        warn_of_strangers(settings, guard)
        server.listen_to_signals()
        server.run(sockets=list(door.slots[0]))
    finally:
        door.remove()
    return server.after()


# --- what a process serves with -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parts:
    """Of one process. context: of TLS."""

    registry: Registry
    regions: SharedMemory
    guard: Guard
    crowd: Crowd
    gauges: ProcessGauges
    refusals: RefusalLines
    context: ssl.SSLContext | None

    def each_second(self) -> tuple[Callable[[], object], ...]:
        """What is to be called about so often."""
        return self.guard.refresh, self._give_back, self.refusals.end_seconds

    def _give_back(self) -> None:
        """Ten thousand connections take 70 MB, which the process would keep for the next ten thousand."""
        if self.crowd.has_thinned():
            give_back()


def make_parts(settings: Settings, guard: Guard, context: ssl.SSLContext | None, pages: Pages | None = None) -> Parts:
    """pages: where counters lie; without them, memory of its own."""
    from service.process_gauges import ProcessGauges
    from service.refusal_lines import RefusalLines
    from service.registry import Registry
    from service.shared_memory import SharedMemory

    registry = Registry(settings, pages)
    return Parts(
        registry,
        SharedMemory(is_enabled=settings.system_shared_memory, max_request_bytes=settings.max_body_bytes),
        guard,
        Crowd(connections_within(raise_limit(), settings.max_connections)),
        ProcessGauges(registry),
        RefusalLines(registry.count_refusal),
        context,
    )


def configuration(
    settings: Settings,
    parts: Parts,
    *,
    control: Control | None = None,
    assignment: Assignment | None = None,
) -> uvicorn.Config:
    """What uvicorn is told. control, assignment: see `build_app`."""
    from service.app import build_app, make_poller, make_watches

    watches = make_watches(settings)
    app = build_app(
        parts.registry,
        settings.max_body_bytes,
        regions=parts.regions,
        root_path=settings.root_path,
        guard=parts.guard,
        cors_origins=settings.cors_origins,
        control=control,
        assignment=assignment,
        poller=make_poller(settings, parts.registry),
        server_timing=settings.server_timing,
        gauges=parts.gauges,
        refusals=parts.refusals,
        watches=watches,
    )
    protocol, context = _protocol(settings, parts, watches), parts.context
    config = _Config(
        app,
        http=protocol,
        # uvicorn counts the asking connection too; ours does without (crowd.py), and tells it before it asks.
        limit_concurrency=parts.crowd.most + 1 if protocol == _UVICORNS_OWN else None,
        loop="auto" if sys.platform == "win32" else "uvloop",
        ws="none",
        lifespan="on",
        log_config=None,  # __main__ has configured logging
        access_log=False,
        # No `Server:` header: it tells an attacker what to try, and every answer would carry it.
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        # Whoever sits in front of us is not known here; a forged X-Forwarded-For must not be believed.
        proxy_headers=False,
        backlog=BACKLOG,
        ssl_context_factory=None if context is None else lambda *_: context,
    )
    if context is not None:
        config.tls_limits_s = {
            "ssl_handshake_timeout": settings.head_timeout_s,
            # How long the last answer may take to be read.
            "ssl_shutdown_timeout": settings.answer_stall_s,
        }
    return config


class _Config(uvicorn.Config):
    """uvicorn's, which leaves the time for TLS to the loop: 60 s to begin, for connections that are not counted yet."""

    tls_limits_s: Mapping[str, float] = MappingProxyType({})


def _protocol(settings: Settings, parts: Parts, watches: tuple[Watch, ...]) -> Any:
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
    from service.stages import Stages, ToldStages
    from service.timers import RunningLoop
    from service.watched_lane import WatchedLane

    registry, guard = parts.registry, parts.guard
    make_stages = ToldStages if settings.server_timing else Stages
    begin = functools.partial(
        begin_infer,
        registry,
        max_body_bytes=settings.max_body_bytes,
        regions=parts.regions,
        make_stages=make_stages,
    )
    heads = HeadMemory(
        settings.max_body_bytes,
        settings.max_head_bytes,
        settings.max_header_count,
        # The ASGI route knows what to say to a page of another origin.
        also_unusual=frozenset({b"origin"} if settings.cors_origins else ()),
        admits=guard.admits_infer if guard.has_keys else None,
        always_tags=bool(watches),
    )
    guard.when_keys_change(heads.forget)
    poll = BusyPoll(RunningLoop(), cores=read_plan().cores, processes=settings.workers)
    refuse = functools.partial(refuse_early, registry)
    lane: Any = functools.partial(WatchedLane, watches=watches, make_stages=make_stages) if watches else Lane
    return functools.partial(
        lane, begin, refuse, parts.refusals, heads, poll, limits=Limits.of(settings), crowd=parts.crowd
    )


# --- the server ---------------------------------------------------------------------------------------------------


class Server(uvicorn.Server):
    """uvicorn's, with a drain: `begin_drain`, `end_grace`, and `shutdown` behind it, on the event loop."""

    def __init__(self, config: uvicorn.Config, parts: Parts, settings: Settings) -> None:
        super().__init__(config)
        self._registry = parts.registry
        self._each_second = parts.each_second()
        self._drain_limit_s = settings.drain_limit_s
        self._drain_grace_s = settings.drain_grace_s
        parts.gauges.connections = lambda: len(self.server_state.connections)
        self._drain_began_s: float | None = None
        self._accepts = True
        self._has_settled = False
        self.gave_up = ""
        logging.getLogger("uvicorn.error").addFilter(self.tell_the_drain_in_our_words)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, which does not ask for the limits of TLS."""
        if isinstance(self.config, _Config) and self.config.tls_limits_s:
            loop: Any = asyncio.get_running_loop()
            loop.create_server = functools.partial(loop.create_server, **self.config.tls_limits_s)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; true ends serving."""
        self.gave_up = self._registry.why_hopeless()
        if not self._has_settled and self._registry.is_settled():
            self._has_settled = True
            keep_what_is_there()
        if counter % 10 == 0:
            for call in self._each_second:
                call()
        return await super().on_tick(counter) or bool(self.gave_up)

    # --- the drain ---

    def handle_exit(self, sig: int, _: FrameType | None) -> None:
        try:
            asyncio.get_running_loop().call_soon_threadsafe(self._heed, signal.Signals(sig))
        except RuntimeError:  # before the event loop runs
            log.info("%s: stopping", signal.Signals(sig).name)
            self.should_exit = True

    def _heed(self, sig: signal.Signals) -> None:
        grace_s = 0 if sig is signal.SIGINT or not self.started else min(self._drain_grace_s, self._drain_limit_s)
        if self._drain_began_s is not None and self.should_exit:
            self._refuse_what_is_left("there was another signal")
            asyncio.get_running_loop().call_later(_LAST_ANSWERS_S, self._cut_off)
        elif self._drain_began_s is not None:
            log.info("%s again: finishing requests in flight", sig.name)
            self.end_grace()
        elif grace_s:
            log.info("%s: not ready from now on, but serving on for %g s", sig.name, grace_s)
            self.begin_drain(grace_s)
        else:
            log.info("%s: finishing requests in flight", sig.name)
            self.begin_drain(0)

    def begin_drain(self, grace_s: float, *, is_replaced: bool = False) -> None:
        """Serves on for `grace_s`, each connection up to its next answer; then ends. Readiness says so at once.

        is_replaced: another process serves at the same port. Then this one accepts no connection any more, and says
        nothing of not being ready: whoever asks means the server, which is.
        """
        if self._drain_began_s is not None:
            return
        loop = asyncio.get_running_loop()
        self._drain_began_s = loop.time()
        self._accepts = not is_replaced
        if is_replaced:
            for listener in self.servers:
                listener.close()
        else:
            self._registry.begin_drain()
        self.server_state.is_draining = True  # type: ignore[attr-defined]  # for connections to come (connection.py)
        for connection in list(self.server_state.connections):
            if drain := getattr(connection, "drain", None):
                drain()
        if grace_s:
            loop.call_later(grace_s, self.end_grace)
        else:
            self.end_grace()

    def end_grace(self) -> None:
        """No new connections from now on; what has begun to come is answered."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, which waits for every connection to end; what has not been answered by the limit is refused."""
        loop = asyncio.get_running_loop()
        self.begin_drain(0)  # where no signal has
        assert self._drain_began_s is not None
        left_s = max(0.0, self._drain_began_s + self._drain_limit_s - loop.time())
        limit = loop.call_later(left_s, self._refuse_what_is_left)
        self.config.timeout_graceful_shutdown = left_s + _LAST_ANSWERS_S  # type: ignore[assignment]  # fractions do
        self.server_state.is_ending = True  # type: ignore[attr-defined]  # for connections to come (connection.py)
        # uvicorn closes its listeners now. These are the same in the kernel, and keep them open for a moment more.
        last = [sock.dup() for sock in sockets or [] if self._accepts]
        loop.call_soon(self._accept_who_waits, last)
        await super().shutdown(sockets)
        limit.cancel()

    def _accept_who_waits(self, listeners: list[socket.socket]) -> None:
        """The kernel has accepted them, and they may have sent their requests: closing the listener would reset them.
        Nobody may come between the last `accept` and `close`, or would be reset as well."""
        protocol = self.connection_maker()
        loop = asyncio.get_running_loop()
        for listener in listeners:
            listener.setblocking(False)
            let_nobody_join(listener)
            with listener, contextlib.suppress(OSError):  # BlockingIOError: there is nobody any more
                while True:
                    peer, _ = listener.accept()
                    task = loop.create_task(loop.connect_accepted_socket(protocol, peer, ssl=self.config.ssl))
                    self.server_state.tasks.add(task)  # type: ignore[arg-type]  # to be waited for as well
                    task.add_done_callback(self.server_state.tasks.discard)

    def _refuse_what_is_left(self, why: str = "the drain limit has passed") -> None:
        refused = self._registry.give_up() + refuse_unfinished(ModelNotReady("the server is stopping"))
        log.warning("%s: requests refused: %d", why, refused)

    def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def connection_maker(self) -> Any:
        """What an event loop calls for each accepted socket, as uvicorn's own `startup` has it."""
        make: Any = self.config.http_protocol_class
        known = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        return functools.partial(make, **known)

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
        signal.signal(signal.SIGHUP, self._stay)

    @staticmethod
    def _stay(*_: object) -> None:
        """With several processes SIGHUP replaces them and loses nothing; here it must at least lose nothing."""
        with contextlib.suppress(RuntimeError):  # before the event loop runs
            asyncio.get_running_loop().call_soon_threadsafe(
                log.warning,
                "SIGHUP: a single process cannot be replaced while it serves; start with --workers 2 or more for that",
            )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again after a clean stop, so that the process dies of it; we exit 0."""
        yield
