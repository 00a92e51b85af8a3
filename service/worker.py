"""One of several processes that serve on one port: what it is given at birth, and what its supervisor can ask of it.

It listens where it is told to, loads what it is told to, and ends when it is told to, or when its supervisor has gone.
A request it answers exactly as a single process would. workers.py is the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import mmap
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from service.access import Guard
from service.all_workers import AllWorkers
from service.assignment import Assignment, LoadParameters, rows_to_json
from service.board import Board, Seat
from service.channel import Channel, ChannelClosed
from service.errors import ServiceError
from service.listening import CannotServe
from service.logs import configure_logging
from service.prepared import Prepared
from service.server import Parts, Server, configuration, make_parts
from service.settings import Settings, SettingsError
from service.shared_memory import SharedMemory
from service.tls import make_context
from service.worker_birth import Birth

log = logging.getLogger(__name__)

UNUSABLE, LOST = 2, 3
"""Exit codes: of a worker whose keys or certificate cannot be used, and of one whose supervisor has gone."""


def main(argv: Sequence[str]) -> int:
    """argv: the birth, then the server's own command line. Returns the exit code."""
    birth = Birth.from_json(argv[0])
    settings = Settings.from_command_line(argv[1:], os.environ)
    connections = -(-settings.max_connections // birth.workers)
    settings = dataclasses.replace(
        settings,
        workers=birth.workers,
        max_connections=connections,
        repository_poll_s=0.0,  # the supervisor does that, for all
    )
    configure_logging(settings.log_level, settings.log_format, birth.number)
    control = socket.socket(fileno=birth.control)
    try:
        assignment = _read_assignment(control)
    except ConnectionError:
        return LOST
    try:
        guard, context = Guard.of(settings), make_context(settings)
    except SettingsError as error:  # the files have changed since the supervisor read them
        log.error("this worker cannot serve: %s", error)
        return UNUSABLE
    parts = make_parts(settings, guard, context, birth.open_pages())
    for name, region in (assignment.regions if assignment else {}).items():
        _register_again(parts.regions, name, *region)
    board = Board(mmap.mmap(birth.board, Board.bytes_for(birth.seats)), birth.seats)
    worker = Worker(parts, board, birth)
    config = configuration(settings, parts, control=worker.everybody, assignment=assignment)
    worker.server = server = WorkerServer(worker, control, config, parts, settings)
    signal.signal(signal.SIGTERM, server.handle_exit)
    server.run(sockets=[])
    return server.after()


def _read_assignment(control: socket.socket) -> Assignment | None:
    """The first line; nothing follows it until we have spoken. Blocks: there is no event loop yet. Raises
    ConnectionError."""
    control.setblocking(True)
    line = bytearray()
    while not line.endswith(b"\n"):
        part = control.recv(1 << 16)
        if not part:
            raise ConnectionError("the supervisor has gone")
        line += part
    control.setblocking(False)
    members = json.loads(line)
    return None if members is None else Assignment.from_json(members)


def _register_again(regions: SharedMemory, name: str, key: str, offset: int, size_bytes: int) -> None:
    try:
        regions.register(name, key, offset, size_bytes)
    except ServiceError as error:  # its owner may have removed the object: who held it open still can use it
        log.warning("a region of shared memory that other workers have cannot be had: %s", error)


class Worker:
    """What the supervisor may ask: the handlers of the channel."""

    def __init__(self, parts: Parts, board: Board, birth: Birth) -> None:
        self.board = board
        self.birth = birth
        self.server: WorkerServer
        self._registry = parts.registry
        self._regions = parts.regions
        self._prepared: dict[str, Prepared] = {}
        asked = (
            self.listen, self.leave, self.prepare, self.commit, self.abort, self.unload, self.index, self.assigned,
            self.register_region, self.unregister_regions, self.ping, self.drain,
        )  # fmt: skip
        self.channel = Channel({method.__name__: method for method in asked})
        self.everybody = AllWorkers(self.channel, board)

    async def listen(self, slot: int) -> None:
        """Takes new connections at the sockets of `slot`."""
        await self.server.listen(slot, self.birth.listeners[slot])
        self.publish()

    async def leave(self, slot: int) -> None:
        """Takes no more there; those that it has stay."""
        self.server.leave(slot)
        self.publish()

    async def prepare(
        self, name: str, parameters: LoadParameters | None, numbers: list[int] | None
    ) -> list[dict[str, Any]]:
        """Loads what is to answer for `name` once it is committed; returns its rows of the assignment."""
        await self._registry.until_scanned()
        prepared = self._prepared[name] = await self._registry.prepare(
            name, parameters, None if numbers is None else frozenset(numbers)
        )
        return rows_to_json(prepared.assigned())

    async def commit(self, name: str) -> None:
        self._prepared.pop(name).commit()
        self.publish()

    async def abort(self, name: str, reason: str) -> None:
        """Of what was never prepared here, nothing."""
        if (prepared := self._prepared.pop(name, None)) is not None:
            await prepared.abort(reason)
        self.publish()

    async def unload(self, name: str) -> None:
        await self._registry.until_scanned()
        await self._registry.unload(name)
        self.publish()

    async def index(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(row) for row in await self._registry.index()]

    async def assigned(self) -> list[dict[str, Any]]:
        return rows_to_json(self._registry.assigned())

    async def register_region(self, name: str, key: str, offset: int, size_bytes: int) -> None:
        self._regions.register(name, key, offset, size_bytes)

    async def unregister_regions(self, name: str | None) -> None:
        self._regions.unregister(name)

    async def ping(self) -> None:
        """The event loop turns."""

    async def drain(self, grace_s: float, *, is_replaced: bool) -> None:
        """Ends in order, see `Server.begin_drain`."""
        self.server.begin_drain(grace_s, is_replaced=is_replaced)
        self.publish()

    def publish(self) -> None:
        """Tells the other processes whether requests can be sent here: behind each call, so that whoever asked for it
        sees at once what came of it; and ten times a second, since a first load ends by itself, and an unload may wait
        long for what still runs."""
        self.board.set(self.birth.seat, Seat.READY, on=self._registry.is_ready())
        self.board.set(self.birth.seat, Seat.LISTENING, on=self.server.listens)


class WorkerServer(Server):
    """Listens where the worker is told to, and tells the supervisor how it is."""

    def __init__(self, worker: Worker, control: socket.socket, *of_server: Any) -> None:
        super().__init__(*of_server)
        self._worker = worker
        self._control = control
        self._listening: dict[int, list[asyncio.Server]] = {}
        self._talks: set[asyncio.Task[None]] = set()
        self._last: list[socket.socket] = []
        self._has_told = self.is_lost = False

    @property
    def listens(self) -> bool:
        return bool(self._listening) and not self.should_exit

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._go_on(self._converse())

    async def listen(self, slot: int, files: Sequence[int]) -> None:
        """Takes connections at sockets that all workers and the supervisor hold open."""
        if slot in self._listening or self._drain_began_s is not None:
            return
        self._listening[slot] = []
        for file in files:
            # A file of its own: closing it leaves the socket open, and what waits in it, for the others.
            sock = socket.socket(fileno=os.dup(file))
            listener = await asyncio.get_running_loop().create_server(
                self.connection_maker(), sock=sock, ssl=self.config.ssl, backlog=self.config.backlog
            )
            self._listening[slot].append(listener)
            self.servers.append(listener)

    def _heed(self, sig: signal.Signals) -> None:
        """SIGTERM of this worker alone: another one takes its place, so the server goes on being ready."""
        if self._drain_began_s is not None or not self.started:
            super()._heed(sig)
            return
        self._go_on(self._leave_in_order(sig))

    async def _leave_in_order(self, sig: signal.Signals) -> None:
        """The same signal may have reached the supervisor (systemd sends it to every process of a service): then the
        whole server stops, and it tells us so."""
        is_replaced = True
        with contextlib.suppress(ChannelClosed):
            is_replaced = await self._worker.channel.call("leaving")
        if is_replaced and self._drain_began_s is None:
            log.info("%s: another worker takes the place of this one", sig.name)
            self.begin_drain(self._drain_grace_s, is_replaced=True)
            self._worker.publish()

    def begin_drain(self, grace_s: float, *, is_replaced: bool = False) -> None:
        if self._drain_began_s is None:
            self._keep_only(() if is_replaced else tuple(self._listening))
        super().begin_drain(grace_s, is_replaced=is_replaced)
        if is_replaced:
            self._listening.clear()

    def _keep_only(self, slots: Sequence[int]) -> None:
        """When all processes have kept what they listen on, a socket closes with the one that does so there: who
        connects later is refused, rather than left waiting for nobody and reset. Those who wait then are answered at
        the end."""
        listeners = self._worker.birth.listeners
        self._last = [socket.socket(fileno=os.dup(file)) for slot in slots for file in listeners[slot]]
        for file in {file for slot in listeners for file in slot}:
            os.close(file)
        for sock in self._last:
            sock.setblocking(False)

    def leave(self, slot: int) -> None:
        for listener in self._listening.pop(slot, []):
            listener.close()
            self.servers.remove(listener)

    async def on_tick(self, counter: int) -> bool:
        over = await super().on_tick(counter)
        self._worker.publish()
        if over:
            return True
        if self._has_settled and not self._has_told and self._worker.channel.is_open:
            self._has_told = True
            self._go_on(self._tell("settled"))
        return self.is_lost

    def after(self) -> int:
        try:
            code = super().after()
        except CannotServe:
            return 1  # the supervisor has been told, and tells it
        return LOST if self.is_lost else code

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's
        if self.gave_up:
            await self._tell("hopeless", reason=self.gave_up)
        # Those who wait in the kernel are answered at the end; closing these leaves the supervisor's open.
        self.begin_drain(0)  # where nobody has asked for it
        await super().shutdown(self._last)

    async def _converse(self) -> None:
        """Until the supervisor has gone."""
        await self._worker.channel.serve(self._control, begun=lambda: self._go_on(self._tell("hello")))
        if not self.should_exit:
            log.error("the supervisor has ended, so this worker does")
            self.is_lost = True

    async def _tell(self, what: str, **members: Any) -> None:
        with contextlib.suppress(ChannelClosed):  # then there is nobody to tell
            await self._worker.channel.call(what, **members)

    def _go_on(self, talk: Any) -> None:
        task = asyncio.get_running_loop().create_task(talk)
        self._talks.add(task)
        task.add_done_callback(self._talks.discard)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
