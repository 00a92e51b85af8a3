"""What all workers are to serve, decided in one place: loads, unloads and regions of shared memory, in all or in none.

What is decided is first written down (`assignment`): a load is prepared in every worker, and committed only when all
are. A worker that dies before that undoes it; one that is born meanwhile is asked as well; one that dies behind it is
replaced by one that begins with the new assignment. Knows no process: whom to ask is passed in.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from service.assignment import Assigned, Assignment, LoadParameters, ready, rows_from_json
from service.channel import ChannelClosed
from service.errors import LoadFailed, ModelNotReady, NotFound, quoted
from service.version_states import UNLOADED, ModelState
from service.worker_process import WorkerProcess

log = logging.getLogger(__name__)

# For what takes no time: who does not answer within so long is passed over.
_AT_ONCE_S = 10.0


class Decisions:
    """`members`: who can be asked now. `why_not`: why nothing can be changed now; empty when it can."""

    def __init__(self, members: Callable[[], list[WorkerProcess]], why_not: Callable[[], str]) -> None:
        self._members = members
        self._why_not = why_not
        self.assignment: Assignment | None = None
        """None until the first worker has told what there is."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def index(self) -> list[dict[str, Any]]:
        """Of each version the state that is furthest from READY."""
        calls = [asyncio.wait_for(one.channel.call("index"), _AT_ONCE_S) for one in self._members()]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        answers = [answer for answer in answers if not isinstance(answer, TimeoutError)]  # workers.py sees to those
        _raise_first_of(answers)
        if not any(isinstance(answer, list) for answer in answers):
            raise ModelNotReady(_NOBODY)
        rows: dict[tuple[str, str | None], dict[str, Any]] = {}
        for row in itertools.chain(*(answer for answer in answers if isinstance(answer, list))):
            place = (row["name"], row["version"])
            if place not in rows or _RANK[row["state"]] < _RANK[rows[place]["state"]]:
                rows[place] = row
        return sorted(rows.values(), key=lambda row: (row["name"], int(row["version"] or 0)))

    async def load(self, name: str, parameters: LoadParameters | None = None) -> None:
        """In every worker or in none. Raises as `Registry.load` does, and ModelNotReady when a worker dies."""
        self._require_running()
        async with self._lock(name):
            asked: dict[WorkerProcess, list[dict[str, Any]]] = {}
            try:
                # Those that are born meanwhile begin with the assignment of before.
                while missing := [one for one in self._members() if one not in asked]:
                    answers = await self._answers(missing, "prepare", name=name, parameters=parameters, numbers=None)
                    asked |= {
                        one: answer
                        for one, answer in zip(missing, answers, strict=True)
                        if not isinstance(answer, BaseException)
                    }
                    _raise_first(name, _of_those_that_stay(missing, answers))
                if not asked:
                    raise ModelNotReady(_NOBODY)
                rows = rows_from_json(next(iter(asked.values())))
            except BaseException as error:
                await self._answers(list(asked), "abort", name=name, reason=f"undone: {error}")
                await self._write_down(name)
                raise
            self.assignment = self._require_running().with_model(name, rows, parameters)
            await self._in_each(list(asked), "commit", name=name)

    async def unload(self, name: str) -> None:
        """In every worker. Raises ModelNotReady."""
        self._require_running()
        async with self._lock(name):
            assignment = self._require_running()
            rows = [
                Assigned(name, row.version, ModelState.UNAVAILABLE, UNLOADED, counts=False)
                for row in assignment.rows
                if row.name == name
            ]
            self.assignment = assignment.with_model(name, rows)
            await self._in_each(self._members(), "unload", name=name)

    async def register_region(self, name: str, key: str, offset: int, size_bytes: int) -> None:
        """In every worker or in none. Raises what `SharedMemory.register` raises."""
        self._require_running()
        async with self._lock(_REGIONS):
            workers = self._members()
            region = {"name": name, "key": key, "offset": offset, "size_bytes": size_bytes}
            answers = await self._answers(workers, "register_region", **region)
            if any(isinstance(answer, BaseException) and not isinstance(answer, ChannelClosed) for answer in answers):
                done = [one for one, answer in zip(workers, answers, strict=True) if answer is None]
                await self._answers(done, "unregister_regions", name=name)
            _raise_first_of(answers)
            assignment = self._require_running()
            regions = {**assignment.regions, name: (key, offset, size_bytes)}
            self.assignment = replace(assignment, regions=regions)

    async def unregister_regions(self, name: str | None = None) -> None:
        """In every worker."""
        self._require_running()
        async with self._lock(_REGIONS):
            assignment = self._require_running()
            left = {one: region for one, region in assignment.regions.items() if name not in (None, one)}
            self.assignment = replace(assignment, regions=left)
            await self._in_each(self._members(), "unregister_regions", name=name)

    async def _in_each(self, workers: Sequence[WorkerProcess], what: str, **members: Any) -> None:
        """What is decided already. Raises what one of them raises, unless it leaves or has ended."""
        answers = await self._answers(workers, what, **members)
        _raise_first_of(_of_those_that_stay(workers, answers))

    async def _answers(self, workers: Sequence[WorkerProcess], what: str, **members: Any) -> list[Any]:
        """Of each, in order, a value or an error; of those that end meanwhile ChannelClosed."""
        return await asyncio.gather(*(one.channel.call(what, **members) for one in workers), return_exceptions=True)

    async def _write_down(self, name: str) -> None:
        """What a load that failed has left of `name`: a model that was not there before is UNAVAILABLE now."""
        for worker in self._members():
            if not worker.settled.is_set():
                continue
            with contextlib.suppress(ChannelClosed):
                rows = [row for row in rows_from_json(await worker.channel.call("assigned")) if row.name == name]
                assignment = self._require_running()
                self.assignment = assignment.with_model(name, rows, assignment.parameters.get(name))
                return

    def _lock(self, name: str) -> asyncio.Lock:
        """One at a time for a name. Locks that nobody holds are forgotten: names are the caller's to invent."""
        return self._locks.setdefault(name, asyncio.Lock())

    def _decided(self) -> Assignment:
        assert self.assignment is not None
        return self.assignment

    def _require_running(self) -> Assignment:
        if reason := self._why_not():
            raise ModelNotReady(reason)
        return self._decided()

    # --- new workers ---

    async def bring_up_to_date(self, worker: WorkerProcess) -> bool:
        """Of one that has loaded what it was to, as far as it could: whether it may answer for the others now. Where it
        cannot have what they serve it must not; where there are no others, what it can serve is what there is.

        Raises ChannelClosed when it ends meanwhile, and whatever it fails of.
        """
        rows = rows_from_json(await worker.channel.call("assigned"))
        if self.assignment is None:
            self.assignment = Assignment(rows)
            return True
        await self._catch_up(worker, replace(worker.began_with or self.assignment, rows=rows))
        rows = rows_from_json(await worker.channel.call("assigned"))
        missing = [row for row in self.assignment.ready() if row.place not in {one.place for one in ready(rows)}]
        if not missing:
            return True
        told = ", ".join(f"{row.name} version {row.version}" for row in missing)
        if any(one.settled.is_set() for one in self._members() if one is not worker):
            log.error("%s cannot load %s, which the others serve: it must not serve", worker, told)
            return False
        log.error("no worker can load %s any more: the server goes on without it", told)
        self.assignment = replace(self.assignment, rows=rows)
        return True

    async def _catch_up(self, worker: WorkerProcess, has: Assignment) -> None:
        """With what was decided while it could not be asked yet."""
        for name in has.names_changed(self._decided()):
            async with self._lock(name):
                assignment = self._decided()
                numbers = sorted(row.version for row in assignment.ready() if row.name == name and row.version)
                if numbers:
                    parameters = assignment.parameters.get(name)
                    try:
                        await worker.channel.call("prepare", name=name, parameters=parameters, numbers=numbers)
                    except (LoadFailed, NotFound) as error:
                        log.error("%s: %s", worker, error)
                    else:
                        await worker.channel.call("commit", name=name)
                elif any(row.state is ModelState.READY for row in has.rows if row.name == name):
                    await worker.channel.call("unload", name=name)
        async with self._lock(_REGIONS):
            regions = self._decided().regions
            if regions != has.regions:
                await worker.channel.call("unregister_regions", name=None)
                for name, (key, offset, size_bytes) in regions.items():
                    await worker.channel.call(
                        "register_region", name=name, key=key, offset=offset, size_bytes=size_bytes
                    )


_NOBODY = "no worker process can be asked at the moment; try again"
# No model is called so.
_REGIONS = "/regions"
# Triton's words, furthest from READY first.
_RANK = {"LOADING": 0, "UNLOADING": 1, "UNAVAILABLE": 2, "READY": 3}


def _of_those_that_stay(workers: Sequence[WorkerProcess], answers: Sequence[object]) -> list[object]:
    """Who leaves in order has no part in it any more."""
    return [answer for one, answer in zip(workers, answers, strict=True) if not one.is_leaving]


def _raise_first_of(answers: Sequence[object]) -> None:
    """But not that somebody has ended: what it was to do, it has no part in any more."""
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, ChannelClosed):
            raise answer


def _raise_first(name: str, answers: Sequence[object]) -> None:
    """Of what went wrong what the model is to blame for, if anything is."""
    _raise_first_of(answers)
    if any(isinstance(answer, ChannelClosed) for answer in answers):
        raise ModelNotReady(
            f"model {quoted(name)} cannot be loaded: a worker process ended meanwhile, so nothing was changed in any; "
            f"if it ends again, the model may be the reason"
        )
