from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest

from service.off_loop import Work, in_thread, refuse_unfinished


def run(steps: Any) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(steps(), timeout=30)

    return asyncio.run(bounded())


def test_what_follows_runs_on_the_event_loop_and_the_work_does_not() -> None:
    threads: list[str] = []

    def compute() -> int:
        threads.append(threading.current_thread().name)
        return 5

    async def steps() -> int:
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def then(result: int) -> None:
            threads.append(threading.current_thread().name)
            done.set_result(result)

        in_thread(Work.READ, compute, then, done.set_exception)
        return await done

    assert run(steps) == 5
    assert threads == ["read_0", threading.current_thread().name]


def test_what_it_raises_is_told() -> None:
    async def steps() -> Exception:
        told: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        in_thread(Work.READ, lambda: 1 // 0, lambda _: None, told.set_result)
        return await told

    assert isinstance(run(steps), ZeroDivisionError)


def test_what_is_given_up_never_begins_or_is_never_told() -> None:
    begun, told = threading.Event(), []
    held = threading.Event()

    def hold() -> None:
        begun.set()
        held.wait(30)

    async def steps() -> None:
        first = in_thread(Work.READ, hold, told.append, told.append)
        second = in_thread(Work.READ, lambda: told.append("begun"), told.append, told.append)
        await asyncio.to_thread(begun.wait, 30)
        first()
        second()
        held.set()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        in_thread(Work.READ, lambda: None, done.set_result, told.append)
        await done

    run(steps)
    assert told == []


def test_giving_up_behind_the_work_gives_up_what_followed() -> None:
    calls: list[str] = []

    async def steps() -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def then(_: None) -> Any:
            done.set_result(None)
            return lambda: calls.append("cancelled")

        cancel = in_thread(Work.READ, lambda: None, then, done.set_exception)
        await done
        cancel()

    run(steps)
    assert calls == ["cancelled"]


def test_what_fails_behind_a_caller_who_has_left_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    async def steps() -> None:
        in_thread(Work.READ, lambda: 1 // 0, lambda _: None, lambda _: None)()
        begun = threading.Event()

        def fail() -> None:
            begun.set()
            raise ValueError

        give_up = in_thread(Work.READ, fail, lambda _: None, lambda _: None)
        await asyncio.to_thread(begun.wait, 30)
        give_up()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        in_thread(Work.READ, lambda: None, done.set_result, done.set_exception)
        await done

    run(steps)
    gc.collect()
    assert not caplog.records


def test_what_is_unfinished_can_be_refused_once(caplog: pytest.LogCaptureFixture) -> None:
    held = threading.Event()
    told: list[Any] = []

    async def steps() -> list[int]:
        in_thread(Work.READ, lambda: held.wait(30), told.append, told.append)
        in_thread(Work.READ, lambda: told.append("begun"), told.append, told.append)
        cancel = in_thread(Work.READ, lambda: told.append("begun"), told.append, told.append)
        cancel()
        counts = [refuse_unfinished(ValueError("over")), refuse_unfinished(ValueError("over"))]
        held.set()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        in_thread(Work.READ, lambda: None, done.set_result, told.append)
        await done
        return [*counts, refuse_unfinished(ValueError("over"))]

    assert run(steps) == [2, 0, 0]
    assert [str(error) for error in told] == ["over", "over"]
    assert not caplog.records


def test_without_a_thread_the_caller_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(work: Work) -> Any:
        raise RuntimeError("can't start new thread")

    async def steps() -> int:
        monkeypatch.setattr("service.off_loop._thread_of", no_thread)
        with pytest.raises(RuntimeError, match="new thread"):
            in_thread(Work.READ, lambda: None, lambda _: None, lambda _: None)
        return refuse_unfinished(ValueError("over"))

    assert run(steps) == 0


def test_what_would_end_a_program_is_told_like_any_failure() -> None:
    def leave() -> None:
        raise SystemExit

    async def steps() -> Exception:
        told: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        in_thread(Work.READ, leave, lambda _: None, told.set_result)
        return await told

    assert str(run(steps)) == "SystemExit in a thread"


class Body:
    """As large as one likes."""


def succeeds(body: Body) -> Body:
    return body


def fails(body: Body) -> Body:
    raise ValueError("no")


@pytest.mark.parametrize("compute", [succeeds, fails])
@pytest.mark.parametrize("gives_up", [False, True])
def test_what_is_over_is_freed_without_the_cycle_collector(compute: Any, gives_up: bool) -> None:
    """It counts objects, not bytes: of a thousand refused bodies of a megabyte each it would not free one."""

    async def steps() -> weakref.ref[Body]:
        body = Body()
        seen = weakref.ref(body)
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def over(_: Any) -> None:
            told.set_result(None)

        cancel = in_thread(Work.READ, lambda body=body: compute(body), over, over)
        del body
        if gives_up:
            cancel()
            behind: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            in_thread(Work.READ, lambda: None, behind.set_result, behind.set_exception)
            await behind
        else:
            await told
        await asyncio.sleep(0)
        return seen

    gc.collect()
    gc.disable()
    try:
        assert run(steps)() is None
    finally:
        gc.enable()
