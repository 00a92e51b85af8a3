"""What is decided for all workers: in all or in none, whatever becomes of one of them meanwhile. The workers are fakes
that answer as told; real ones are in tests/end_to_end/test_workers.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from service.assignment import Assigned, Assignment, rows_to_json
from service.channel import ChannelClosed
from service.decisions import Decisions
from service.errors import LoadFailed, ModelNotReady, RequestMismatch
from service.version_states import ModelState
from service.worker_process import WorkerProcess

READY, UNAVAILABLE = ModelState.READY, ModelState.UNAVAILABLE


class Fake:
    """A worker that serves versions by name, and notes what it is asked. `fails`: by call, what it raises instead."""

    def __init__(self, **serves: int) -> None:
        self.channel = self
        self.serves = dict(serves)
        self.fails: dict[str, Exception] = {}
        self.on_disk = 1
        self.asked: list[str] = []
        self.regions: set[str] = set()
        self.is_leaving = False
        self.settled = asyncio.Event()
        self.settled.set()
        self.before: Callable[[str], None] = lambda what: None

    async def call(self, what: str, **members: Any) -> Any:
        self.asked.append(what)
        self.before(what)
        await asyncio.sleep(0)
        if what in self.fails:
            raise self.fails[what]
        return getattr(self, f"_{what}")(**members)

    def _prepare(self, name: str, parameters: Any, numbers: list[int] | None) -> Any:
        self.prepared = (name, numbers[0] if numbers else self.on_disk)
        self.parameters = parameters
        return rows_to_json([Assigned(*self.prepared, READY)])

    def _commit(self, name: str) -> None:
        self.serves[name] = self.prepared[1]

    def _abort(self, name: str, reason: str) -> None:
        pass

    def _unload(self, name: str) -> None:
        del self.serves[name]

    def _assigned(self) -> Any:
        return rows_to_json([Assigned(name, version, READY) for name, version in self.serves.items()])

    def _index(self) -> Any:
        return [{"name": name, "version": str(version), "state": "READY"} for name, version in self.serves.items()]

    def _register_region(self, name: str, key: str, offset: int, size_bytes: int) -> None:
        self.regions.add(name)

    def _unregister_regions(self, name: str | None) -> None:
        self.regions = self.regions - {name} if name else set()


def deciding(test: Callable[[Decisions, list[Fake]], Awaitable[None]], *workers: Fake) -> None:
    """Runs `test` on decisions about these workers, which all serve what the first one does."""
    there = list(workers)
    decisions = Decisions(lambda: cast("list[WorkerProcess]", [one for one in there if not one.is_leaving]), lambda: "")
    decisions.assignment = Assignment(
        tuple(Assigned(name, version, READY) for name, version in there[0].serves.items())
    )
    asyncio.run(asyncio.wait_for(test(decisions, there), 10))


def served(workers: list[Fake]) -> list[dict[str, int]]:
    return [one.serves for one in workers]


def test_a_load_is_committed_when_all_have_prepared_it():
    async def test(decisions: Decisions, workers: list[Fake]) -> None:
        for one in workers:
            one.on_disk = 2
        await decisions.load("m")
        assert served(workers) == [{"m": 2}] * 2
        assert decisions._decided().rows == (Assigned("m", 2, READY),)

    deciding(test, Fake(m=1), Fake(m=1))


@pytest.mark.parametrize(
    ("error", "told"),
    [(LoadFailed("broken"), LoadFailed), (ChannelClosed("it has ended"), ModelNotReady)],
    ids=["refused", "died"],
)
def test_a_load_that_one_cannot_prepare_is_undone_in_all(error: Exception, told: type[Exception]):
    async def test(decisions: Decisions, workers: list[Fake]) -> None:
        workers[1].fails["prepare"] = error
        for one in workers:
            one.on_disk = 2
        with pytest.raises(told):
            await decisions.load("m")
        assert served(workers) == [{"m": 1}] * 2
        assert workers[0].asked[:2] == ["prepare", "abort"]
        assert decisions._decided().rows == (Assigned("m", 1, READY),)

    deciding(test, Fake(m=1), Fake(m=1))


def test_a_worker_that_is_born_while_others_prepare_is_asked_as_well():
    async def test(decisions: Decisions, workers: list[Fake]) -> None:
        late = Fake(m=1)
        workers[0].before = lambda what: workers.append(late) if late not in workers else None
        for one in (*workers, late):
            one.on_disk = 2
        await decisions.load("m")
        assert served(workers) == [{"m": 2}] * 2

    deciding(test, Fake(m=1))


def test_a_worker_that_leaves_meanwhile_has_no_say():
    async def test(decisions: Decisions, workers: list[Fake]) -> None:
        leaving = workers[1]
        leaving.before = lambda _: setattr(leaving, "is_leaving", True)
        leaving.fails["prepare"] = ModelNotReady("the server is stopping")
        workers[0].on_disk = 2
        await decisions.load("m")
        assert workers[0].serves == {"m": 2}

    deciding(test, Fake(m=1), Fake(m=1))


def test_nothing_is_loaded_where_nobody_can_be_asked():
    async def test(decisions: Decisions, workers: list[Fake]) -> None:
        workers.clear()
        for ask in (lambda: decisions.load("m"), decisions.index):
            with pytest.raises(ModelNotReady, match="no worker process can be asked"):
                await ask()

    deciding(test, Fake(m=1))


def test_unloading_is_written_down_before_anybody_is_asked():
    async def test(decisions: Decisions, workers: list[Fake]) -> None:
        workers[1].fails["unload"] = ChannelClosed("it has ended")
        await decisions.unload("m")
        (row,) = decisions._decided().rows
        assert (row.state, row.counts, workers[0].serves) == (UNAVAILABLE, False, {})

    deciding(test, Fake(m=1), Fake(m=1))


def test_a_region_that_one_cannot_open_is_registered_in_none_and_the_dead_have_no_part():
    async def test(decisions: Decisions, workers: list[Fake]) -> None:
        workers[1].fails["register_region"] = RequestMismatch("no such object")
        with pytest.raises(RequestMismatch):
            await decisions.register_region("r", "/key", 0, 8)
        assert [one.regions for one in workers] == [set(), set()]
        workers[1].fails["register_region"] = ChannelClosed("it has ended")
        await decisions.register_region("r", "/key", 0, 8)
        assert workers[0].regions == {"r"}
        assert decisions._decided().regions == {"r": ("/key", 0, 8)}
        await decisions.unregister_regions()
        assert decisions._decided().regions == {}

    deciding(test, Fake(m=1), Fake(m=1))


def test_a_new_worker_gets_what_was_decided_while_it_could_not_be_asked():
    async def test(decisions: Decisions, workers: list[Fake]) -> None:
        await decisions.register_region("r", "/key", 0, 8)
        late = Fake(m=1, gone=1)
        late.on_disk = 3  # newer than what the others serve
        cast("Any", late).began_with = Assignment((Assigned("m", 1, READY),))
        assert await decisions.bring_up_to_date(cast("WorkerProcess", late))
        assert (late.serves, late.regions) == ({"m": 2}, {"r"})

    deciding(test, Fake(m=2))


def test_what_a_client_has_sent_with_its_load_goes_to_new_workers_until_the_next_load_or_unload():
    sent = {"traffic": {"canary": {"version": 2, "weight": 0.5}}}

    async def parameters_of_a_late_worker(decisions: Decisions) -> Any:
        late = Fake(m=1)
        late.parameters = "not asked"
        cast("Any", late).began_with = Assignment((Assigned("m", 1, READY),))
        assert await decisions.bring_up_to_date(cast("WorkerProcess", late))
        return late.parameters

    async def test(decisions: Decisions, workers: list[Fake]) -> None:
        await decisions.load("m", sent)
        assert workers[0].parameters == sent
        assert await parameters_of_a_late_worker(decisions) == sent
        workers[0].fails["prepare"] = LoadFailed("broken")
        with pytest.raises(LoadFailed):
            await decisions.load("m")
        assert await parameters_of_a_late_worker(decisions) == sent, "nothing was changed"
        del workers[0].fails["prepare"]
        await decisions.load("m")
        assert await parameters_of_a_late_worker(decisions) == "not asked"
        await decisions.load("m", sent)
        await decisions.unload("m")
        assert decisions._decided().parameters == {}

    deciding(test, Fake(m=1))


@pytest.mark.parametrize("alone", [False, True])
def test_a_worker_that_cannot_have_what_the_others_serve_must_not_answer_for_them(alone: bool):
    async def test(decisions: Decisions, workers: list[Fake]) -> None:
        if alone:
            workers.clear()
        late = Fake(other=1)
        late.fails["prepare"] = LoadFailed("its file has gone")
        cast("Any", late).began_with = decisions.assignment
        assert await decisions.bring_up_to_date(cast("WorkerProcess", late)) is alone
        assert {row.name for row in decisions._decided().ready()} == ({"other"} if alone else {"m", "other"})

    deciding(test, Fake(m=1, other=1))
