"""The supervisor of `--workers N`: N processes on one port that are one server to whoever asks.

    supervisor ──── control channel ────┬── worker, seat 0 ── listens at slot 0
        │                               └── worker, seat 1 ── listens at slot 1
        └── holds every listening socket open, and serves nobody itself

Each slot has a listening socket of its own on the same port (SO_REUSEPORT: the kernel spreads new connections by a hash
of their addresses). A slot outlives the process that listens there: what dies is replaced, and until the new process
has loaded its models another one listens there as well, so a connection that waits is never lost.

What all are to serve is decided in decisions.py. Imports nothing heavy: what it supervises must not be able to bring it
down. Knows no model and no request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from service import __version__
from service.access import Guard, warn_of_strangers
from service.assignment import LoadParameters
from service.board import Board, Seat
from service.channel import Channel, ChannelClosed, RemoteDefect
from service.child_signals import kept_from_children
from service.control import ActedUpon, nobody_polls
from service.counter_pages import PAGE_BYTES, mark_dead
from service.cpu_plan import in_words, read_plan
from service.decisions import Decisions
from service.errors import ServiceError
from service.listening import CannotServe, open_door
from service.settings import Settings
from service.tls import make_context
from service.version_states import STARTING
from service.worker_birth import Birth, page_of
from service.worker_process import WorkerProcess

if TYPE_CHECKING:
    from service.polling import Poller

log = logging.getLogger(__name__)

# For what takes no time: a worker that does not do it within so long never will.
_AT_ONCE_S = 10.0
_PING_EVERY_S = 5.0
_SHORTLY_S = 0.01
# A signal that a worker had reaches us within so long, if it was meant for all.
_SAME_SIGNAL_S = 0.1
# An event loop that stands still for so long; loading large models, in threads, may hold it up for some seconds.
_PING_LIMIT_S = 60.0
# Behind what a worker may take to end by itself.
_KILLED_AFTER_S = 5.0
# A worker that ends before it has loaded its models is replaced after a pause, twice as long each time in a row.
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
# In a row, before the server has ever been ready: it will not be.
_MOST_FALSE_STARTS = 3

# sys.path as ours, and nothing of the folder we were started in.
_BOOT = "import sys; sys.path[:] = {path!r}; from service.worker import main; sys.exit(main(sys.argv[1:]))"


class WorkersFailed(Exception):
    """The workers cannot serve what they were to. `str(error)` is one line."""


class Supervisor:
    """`slots`: for each worker the listening sockets of all addresses. `argv`: the server's command line."""

    def __init__(self, settings: Settings, argv: Sequence[str], slots: Sequence[Sequence[socket.socket]]) -> None:
        self._settings = settings
        self._argv = list(argv)
        self._slots = slots
        seats = 2 * len(slots)
        self._board_file = _anonymous_file(Board.bytes_for(seats))
        self._board = Board(mmap.mmap(self._board_file, Board.bytes_for(seats)), seats)
        self._pages = _anonymous_file(seats * PAGE_BYTES)
        self._workers: list[WorkerProcess] = []
        self._listeners: dict[int, WorkerProcess] = {}
        self._false_starts: Counter[int] = Counter()
        self._starting: Counter[int] = Counter()
        """By slot: ends in a row before what was assigned was loaded, and processes that are about to be."""
        self._vacated = asyncio.Event()
        self._decisions = Decisions(self._members, self._why_not)
        self._acted_upon: ActedUpon = nobody_polls
        self._balancing = asyncio.Lock()
        self._stop = asyncio.Event()
        self._is_restarting = self._is_restart_wanted = False
        self._grace_s = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure = ""

    async def run(self) -> None:
        """Serves until a signal ends it. Raises WorkersFailed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop, number)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._go_on(self._restart_all()))
        try:
            await self._begin_polling()
            await asyncio.gather(*(self._start(slot) for slot in range(len(self._slots))))
            await self._stop.wait()
        finally:
            self._stop.set()
            self._board.stopping()
            while any(self._starting.values()):  # what has begun has its files passed on
                await asyncio.sleep(_SHORTLY_S)
            # From here on each is open as long as a worker listens on it, see worker.py.
            for sock in {sock for sockets in self._slots for sock in sockets}:
                sock.close()
            await asyncio.gather(*(self._end(worker, self._grace_s) for worker in tuple(self._workers)))
            for task in self._tasks:
                task.cancel()
        if self._failure:
            raise WorkersFailed(self._failure)

    async def _begin_polling(self) -> None:
        """What changes on disk is noticed here, where nothing that has been acted upon is forgotten with a worker."""
        if self._settings.repository_poll_s:
            from service.polling import Poller

            poller = Poller(self._settings, self._decisions, call=asyncio.to_thread)
            await poller.begin()
            self._acted_upon = poller.acted_upon
            self._go_on(self._poll(poller))

    async def _poll(self, poller: Poller) -> None:
        try:
            await poller.run()
        except Exception:  # a defect of ours: models are still served, and loaded when somebody asks
            log.exception("polling has ended")

    def _asked_to_stop(self, number: int) -> None:
        """In order; without the grace on Ctrl-C, and on a second signal."""
        name = signal.Signals(number).name
        if self._stop.is_set():
            log.info("%s again: the workers end now", name)
            for worker in self._workers:
                with contextlib.suppress(ProcessLookupError):
                    worker.process.terminate()
            return
        if number == signal.SIGTERM:
            self._grace_s = min(self._settings.drain_grace_s, self._settings.drain_limit_s)
        log.info("%s: not ready from now on; the workers serve on for %g s, then finish", name, self._grace_s)
        self._board.stopping()
        self._stop.set()

    def _members(self) -> list[WorkerProcess]:
        """Who can be asked, and is to stay."""
        return [one for one in self._workers if one.talks.is_set() and not one.is_leaving]

    def _why_not(self) -> str:
        if self._stop.is_set():
            return "the server is stopping; nothing is loaded or unloaded any more"
        return "" if self._board.has_started else f"{STARTING} in every worker process; try again in a moment"

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        self._stop.set()

    def _go_on(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the supervisor failed unexpectedly", exc_info=error)
            self._fail(f"the supervisor failed unexpectedly: {type(error).__name__}: {error}")

    # --- births and deaths ---

    async def _start(self, slot: int) -> WorkerProcess | None:
        """A new process for `slot`, which begins with the assignment of now. None when the server stops meanwhile."""
        self._starting[slot] += 1
        try:
            while not self._stop.is_set():
                seat = next((seat for seat in range(self._board.seats) if seat not in self._board.taken()), None)
                if seat is None:  # those that leave sit there still
                    self._vacated.clear()
                    await self._either(self._vacated, self._stop)
                    continue
                self._board.write(seat, Seat.TAKEN)
                try:
                    return await self._spawn(slot, seat)
                except OSError as error:
                    self._board.write(seat, Seat(0))
                    log.error("worker %d cannot be started, and is tried again: %s", slot + 1, error)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stop.wait(), _LONGEST_PAUSE_S / 4)
            return None
        finally:
            self._starting[slot] -= 1

    async def _spawn(self, slot: int, seat: int) -> WorkerProcess:
        """Raises OSError."""
        assignment = self._decisions.assignment
        ours, theirs = socket.socketpair()
        birth = Birth(
            number=slot + 1,
            workers=len(self._slots),
            seat=seat,
            seats=self._board.seats,
            control=theirs.fileno(),
            board=self._board_file,
            pages=self._pages,
            listeners=tuple(tuple(sock.fileno() for sock in sockets) for sockets in self._slots),
        )
        try:
            # Ctrl-C in a terminal, and its end, reach every process; we tell the workers what to do about them.
            with theirs, kept_from_children(signal.SIGINT, signal.SIGHUP):
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", _BOOT.format(path=sys.path), birth.to_json(), *self._argv,
                    stdin=subprocess.DEVNULL, pass_fds=birth.files(),
                )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        worker = WorkerProcess(slot, seat, process, Channel({}), assignment)
        worker.channel = Channel(self._handlers(worker))
        self._workers.append(worker)
        first = json.dumps(assignment and assignment.to_json()).encode() + b"\n"
        self._go_on(worker.channel.serve(ours, first=first))
        self._go_on(self._bury(worker))
        self._go_on(self._watch(worker))
        return worker

    @staticmethod
    async def _either(*events: asyncio.Event) -> None:
        waiting = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()

    def _handlers(self, worker: WorkerProcess) -> dict[str, Callable[..., Awaitable[Any]]]:
        async def hello() -> None:
            worker.talks.set()
            await self._balance()

        async def settled() -> None:
            await self._settled(worker)

        async def leaving() -> bool:
            """Whether another one takes its place: not when all are told to end, us included."""
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _SAME_SIGNAL_S)
            if self._stop.is_set():
                return False
            worker.is_leaving = True
            self._go_on(self._replace(worker))
            return True

        async def hopeless(reason: str) -> None:
            if not self._board.has_started:
                worker.is_leaving = True
                self._fail(reason)
            else:
                log.error("%s cannot load what the others serve, and is replaced: %s", worker, reason)

        async def load(name: str, parameters: LoadParameters | None = None) -> None:
            async with self._acted_upon(name):
                await all_of_us.load(name, parameters)

        async def unload(name: str) -> None:
            async with self._acted_upon(name):
                await all_of_us.unload(name)

        all_of_us = self._decisions
        asked = (
            hello, settled, leaving, hopeless, load, unload, all_of_us.index,
            all_of_us.register_region, all_of_us.unregister_regions,
        )  # fmt: skip
        return {function.__name__: function for function in asked}

    async def _settled(self, worker: WorkerProcess) -> None:
        """It has loaded what it was to, as far as it could."""
        try:
            if await self._decisions.bring_up_to_date(worker):
                worker.settled.set()
                self._false_starts[worker.slot] = 0
            else:
                worker.kill()
        except ChannelClosed:
            return  # its end is told elsewhere
        except Exception as error:  # whatever it is: a worker that neither listens nor ends would be the worst
            if not self._stop.is_set():
                log.error("%s cannot have what the others have, and is replaced: %s", worker, error)
                worker.kill()
            return
        await self._balance()
        everybody = [one for one in self._workers if not one.is_leaving]
        if len(everybody) >= len(self._slots) and all(one.settled.is_set() for one in everybody):
            self._board.started()

    async def _watch(self, worker: WorkerProcess) -> None:
        """Kills it when its event loop has stood still for long: somebody waits for each of its answers."""
        while not worker.ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(worker.ended.wait(), _PING_EVERY_S)
            if not worker.talks.is_set() or worker.ended.is_set():
                continue
            try:
                await asyncio.wait_for(worker.channel.call("ping"), _PING_LIMIT_S)
            except TimeoutError:
                log.error("%s has not answered for %g s, and is killed", worker, _PING_LIMIT_S)
                worker.kill()
            except (ChannelClosed, RemoteDefect):
                continue  # it ends

    async def _bury(self, worker: WorkerProcess) -> None:
        """What is to be done when its process has ended."""
        code = await worker.process.wait()
        worker.ended.set()
        self._workers.remove(worker)
        with page_of(self._pages, worker.seat) as page:
            mark_dead(page)
        self._board.write(worker.seat, Seat(0))
        self._vacated.set()
        worker.channel.close()
        if not self._stop.is_set():
            if not worker.is_leaving:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
                log.error("%s %s%s", worker, how, "" if self._has_heir(worker) else "; another one takes its place")
            await self._replace(worker)

    async def _replace(self, worker: WorkerProcess) -> None:
        """Another process for its slot, unless there is one or one is being started."""
        self._go_on(self._balance())
        if not worker.settled.is_set() and worker.ended.is_set():
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self._false_starts[worker.slot], 16))
            self._false_starts[worker.slot] += 1
            if self._false_starts[worker.slot] >= _MOST_FALSE_STARTS and not self._board.has_started:
                self._fail("worker processes end before they have loaded their models; the log tells why")
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause_s)
        if not self._has_heir(worker) and not self._stop.is_set():
            await self._start(worker.slot)

    def _has_heir(self, worker: WorkerProcess) -> bool:
        """Whether its slot has a process that stays, or is to have one in a moment."""
        there = [one for one in self._workers if one.slot == worker.slot and not one.is_leaving]
        return bool(there) or self._starting[worker.slot] > 0

    async def _end(self, worker: WorkerProcess, grace_s: float, *, is_replaced: bool = False) -> None:
        """In order, if it can; behind its limit, by force."""
        worker.is_leaving = True
        try:
            if not worker.talks.is_set():
                with contextlib.suppress(ProcessLookupError):
                    worker.process.terminate()  # it has nothing to finish
            else:
                drain = worker.channel.call("drain", grace_s=grace_s, is_replaced=is_replaced)
                await asyncio.wait_for(drain, _KILLED_AFTER_S)
            await asyncio.wait_for(worker.ended.wait(), self._settings.drain_limit_s + _KILLED_AFTER_S)
        except (TimeoutError, ChannelClosed, RemoteDefect):
            worker.kill()
        await worker.ended.wait()

    async def _restart_all(self) -> None:
        """SIGHUP: each worker is replaced in turn, by a new process that serves before the old one goes. Whoever asks
        for it meanwhile may have changed what those that are new have read already: then all once more."""
        self._is_restart_wanted = True
        if self._is_restarting:
            log.info("SIGHUP again: once more, behind the restart that is under way")
            return
        self._is_restarting = True
        try:
            while self._is_restart_wanted and not self._stop.is_set():
                self._is_restart_wanted = False
                log.info("SIGHUP: the workers are replaced, one after the other")
                for slot in range(len(self._slots)):
                    if not await self._restart(slot):
                        break
        finally:
            self._is_restarting = False

    async def _restart(self, slot: int) -> bool:
        """False when that did not work, and the others had better stay."""
        olds = [one for one in self._workers if one.slot == slot and not one.is_leaving]
        if not olds:
            return True  # it is being replaced anyway
        new = await self._start(slot)
        if new is None:
            return False
        await self._either(new.settled, new.ended, self._stop)
        if self._stop.is_set():
            return False
        if not new.settled.is_set():
            log.error("%s ended before it had loaded its models: the others stay as they are", new)
            return False
        for old in olds:
            old.is_leaving = True
        await self._balance()
        for old in olds:
            await self._end(old, self._settings.drain_grace_s, is_replaced=True)
        return True

    # --- who listens where ---

    async def _balance(self) -> None:
        """Every slot has somebody who listens there: the worker of its own, or else any other."""
        async with self._balancing:
            for slot in range(len(self._slots)):
                await self._appoint(slot, self._choose(slot))

    def _choose(self, slot: int) -> WorkerProcess | None:
        # At the start nobody has settled, and all listen: liveness is answered while models load.
        able = [
            one
            for one in self._workers
            if one.talks.is_set() and not one.is_leaving and (one.settled.is_set() or not self._board.has_started)
        ]
        own = [one for one in able if one.slot == slot]
        others = [one for one in able if one.settled.is_set()]
        return own[-1] if own else others[0] if others else None

    async def _appoint(self, slot: int, new: WorkerProcess | None) -> None:
        old = self._listeners.get(slot)
        if new is None or new is old or not await self._obeys(new, "listen", slot):
            return
        self._listeners[slot] = new
        if old is not None and not old.ended.is_set():
            await self._obeys(old, "leave", slot)

    async def _obeys(self, worker: WorkerProcess, what: str, slot: int) -> bool:
        """Whether it did at once, as it should; if not it is killed, and its end brings us here again."""
        try:
            await asyncio.wait_for(worker.channel.call(what, slot=slot), _AT_ONCE_S)
        except ChannelClosed:
            return False
        except (TimeoutError, RemoteDefect, ServiceError) as error:
            log.error("%s does not %s, and is killed: %s", worker, what, str(error) or f"no answer in {_AT_ONCE_S:g} s")
            worker.kill()
            return False
        return True


def _anonymous_file(size_bytes: int) -> int:
    """A file in memory, of zeros, that child processes may map."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("foldserve")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, size_bytes)
    return file


def run(settings: Settings, argv: Sequence[str], plan: str) -> int:
    """Serves until a signal ends it; returns the exit code. argv: the command line that `settings` were read from.
    plan: why with so many workers, for the log.

    Raises what `server.run` raises.
    """
    # What every worker would refuse is refused once, here.
    guard, context = Guard.of(settings), make_context(settings)
    door = open_door(settings)
    log.info("foldserve %s listens on %s", __version__, door.addresses(is_tls=context is not None))
    log.info("%d workers serve: %s", settings.workers, plan)
    if settings.workers > (cores := read_plan().cores):
        log.warning("%d workers share %s: more workers than cores serve less", settings.workers, in_words(cores))
    warn_of_strangers(settings, guard)
    try:
        asyncio.run(Supervisor(settings, argv, door.slots).run())
    except WorkersFailed as error:
        raise CannotServe(str(error)) from error
    finally:
        door.remove()
    log.info("stopped")
    return 0
