"""The dynamic batcher against a runner that the test holds in its hand: no thread, no sleep, no wall clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from service.errors import InferenceFailed, ModelNotReady, QueueFull
from service.scheduler import Scheduler


class Runner:
    """Runs a batch when the test says so; answers "<item>!" and fails for items called "bad"."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self._gate = asyncio.Semaphore(0)

    async def __call__(self, items: Sequence[str]) -> Sequence[str]:
        self.started.append(list(items))
        await self._gate.acquire()
        if "bad" in items:
            raise InferenceFailed(f"one of {len(items)} is bad")
        return [f"{item}!" for item in items]

    def finish(self, batches: int = 1) -> None:
        for _ in range(batches):
            self._gate.release()


class Clock:
    """Advances by one batch time whenever it is read twice."""

    def __init__(self, step_s: float = 1.0) -> None:
        self.now_s = 0.0
        self._step_s = step_s

    def __call__(self) -> float:
        self.now_s += self._step_s
        return self.now_s


def make(runner: Callable[[Sequence[str]], Awaitable[Sequence[str]]], **changes: Any) -> Scheduler[str, str]:
    options: dict[str, Any] = {
        "name": "model 'm'", "max_batch_rows": 4, "max_queue_size": 100, "instances": 1, "clock": Clock(),
    }  # fmt: skip
    return Scheduler(runner, **options | changes)


def submit(
    scheduler: Scheduler[str, str], *items: str, rows: int = 1, group: Hashable = None
) -> list[asyncio.Task[str]]:
    return [asyncio.ensure_future(scheduler.submit(item, rows=rows, group=group)) for item in items]


async def settle() -> None:
    """Lets every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def on_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), timeout=30))  # a hang fails instead of stopping the run

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@on_a_loop
async def test_an_idle_instance_runs_a_request_at_once() -> None:
    runner = Runner()
    scheduler = make(runner)
    (a,) = submit(scheduler, "a")
    await settle()
    assert runner.started == [["a"]]
    runner.finish()
    assert await a == "a!"


@on_a_loop
async def test_requests_that_wait_run_together_in_order() -> None:
    runner = Runner()
    scheduler = make(runner)
    tasks = submit(scheduler, "a", "b", "c", "d")
    await settle()
    runner.finish(2)
    assert await asyncio.gather(*tasks) == ["a!", "b!", "c!", "d!"]
    assert runner.started == [["a"], ["b", "c", "d"]]


@on_a_loop
async def test_a_batch_counts_rows_and_never_lets_a_later_request_pass() -> None:
    """max_batch_rows 4: after 3 rows the next request of 2 does not fit, and the one of 1 behind it must wait too."""
    runner = Runner()
    scheduler = make(runner)
    first = submit(scheduler, "running")
    await settle()
    tasks = first + submit(scheduler, "three", rows=3) + submit(scheduler, "two", rows=2) + submit(scheduler, "one")
    await settle()
    runner.finish(3)
    await asyncio.gather(*tasks)
    assert runner.started == [["running"], ["three"], ["two", "one"]]


@on_a_loop
async def test_groups_never_mix_and_the_oldest_head_goes_first() -> None:
    runner = Runner()
    scheduler = make(runner)
    tasks = submit(scheduler, "running")
    await settle()
    for item, group in (("a1", "A"), ("b1", "B"), ("a2", "A"), ("b2", "B"), ("c1", "C")):
        tasks += submit(scheduler, item, group=group)
    await settle()
    runner.finish(4)
    await asyncio.gather(*tasks)
    assert runner.started == [["running"], ["a1", "a2"], ["b1", "b2"], ["c1"]]


@on_a_loop
async def test_a_busy_group_does_not_starve_another() -> None:
    runner = Runner()
    scheduler = make(runner, max_batch_rows=1)
    tasks = submit(scheduler, "running")
    await settle()
    tasks += submit(scheduler, "a1", group="A") + submit(scheduler, "b1", group="B")
    for number in range(2, 6):
        tasks += submit(scheduler, f"a{number}", group="A")
    await settle()
    runner.finish(len(tasks))
    await asyncio.gather(*tasks)
    assert runner.started.index(["b1"]) == 2


@on_a_loop
async def test_instances_run_side_by_side() -> None:
    runner = Runner()
    scheduler = make(runner, instances=2)
    tasks = submit(scheduler, "a", "b", "c", "d")
    await settle()
    assert runner.started == [["a"], ["b"]]
    assert scheduler.queue_size == 2
    runner.finish(3)
    await asyncio.gather(*tasks)
    assert runner.started[2:] == [["c", "d"]]


@on_a_loop
async def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    """5 wait, 4 rows a batch, a batch takes 1 s on the test's clock: two batches of work are queued."""
    runner = Runner()
    scheduler = make(runner, max_queue_size=5, expected_batch_s=1.0)
    tasks = submit(scheduler, "running", "a", "b", "c", "d", "e")
    await settle()
    with pytest.raises(QueueFull, match=r"queue of model 'm' is full: 5 requests wait, max_queue_size is 5") as caught:
        await scheduler.submit("f", rows=1, group=None)
    assert caught.value.retry_after_s == pytest.approx(2.0)
    runner.finish(3)
    assert len(await asyncio.gather(*tasks)) == 6


@on_a_loop
async def test_retry_after_follows_the_measured_batch_time() -> None:
    runner = Runner()
    scheduler = make(runner, max_queue_size=1, clock=Clock(step_s=11.0), expected_batch_s=1.0)
    for _ in range(40):
        runner.finish()
        await scheduler.submit("a", rows=1, group=None)
    tasks = submit(scheduler, "running", "waiting")
    await settle()
    with pytest.raises(QueueFull) as caught:
        await scheduler.submit("b", rows=1, group=None)
    assert caught.value.retry_after_s == pytest.approx(11.0, rel=0.01)
    runner.finish(2)
    await asyncio.gather(*tasks)


@on_a_loop
async def test_a_place_is_free_again_after_the_queue_moved() -> None:
    runner = Runner()
    scheduler = make(runner, max_queue_size=1)
    tasks = submit(scheduler, "a", "b")
    await settle()
    runner.finish()
    await settle()
    tasks += submit(scheduler, "c")
    await settle()
    runner.finish(2)
    assert await asyncio.gather(*tasks) == ["a!", "b!", "c!"]


@on_a_loop
async def test_a_request_cancelled_while_it_waits_never_runs() -> None:
    runner = Runner()
    scheduler = make(runner)
    a, b, c = submit(scheduler, "a", "b", "c")
    await settle()
    b.cancel()
    await settle()
    assert scheduler.queue_size == 1
    runner.finish(2)
    assert await asyncio.gather(a, c) == ["a!", "c!"]
    assert runner.started == [["a"], ["c"]]


@on_a_loop
async def test_a_request_cancelled_while_it_runs_harms_nobody() -> None:
    runner = Runner()
    scheduler = make(runner)
    tasks = submit(scheduler, "first", "a", "b")
    await settle()
    runner.finish()
    await settle()
    tasks[1].cancel()
    runner.finish()
    assert await tasks[2] == "b!"


@on_a_loop
async def test_cancelling_everything_that_waits_frees_the_whole_queue() -> None:
    runner = Runner()
    scheduler = make(runner, max_queue_size=50)
    running = submit(scheduler, "running")
    await settle()
    for _ in range(3):
        waiting = submit(scheduler, *[str(number) for number in range(50)])
        await settle()
        assert scheduler.queue_size == 50
        for task in waiting:
            task.cancel()
        await settle()
        assert scheduler.queue_size == 0
    runner.finish()
    assert await asyncio.gather(*running) == ["running!"]


@on_a_loop
async def test_only_the_guilty_request_of_a_batch_fails() -> None:
    runner = Runner()
    scheduler = make(runner)
    tasks = submit(scheduler, "first", "a", "bad", "b")
    await settle()
    runner.finish(5)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [results[0], results[1], results[3]] == ["first!", "a!", "b!"]
    assert isinstance(results[2], InferenceFailed)
    assert str(results[2]) == "one of 1 is bad"
    assert runner.started == [["first"], ["a", "bad", "b"], ["a"], ["bad"], ["b"]]


@on_a_loop
async def test_the_instance_is_idle_again_after_a_failure() -> None:
    runner = Runner()
    scheduler = make(runner)
    runner.finish(2)
    with pytest.raises(InferenceFailed):
        await scheduler.submit("bad", rows=1, group=None)
    assert await scheduler.submit("a", rows=1, group=None) == "a!"


@on_a_loop
async def test_a_runner_that_returns_too_few_results_is_an_error_not_a_hang() -> None:
    async def forgetful(items: Sequence[str]) -> Sequence[str]:
        return []

    with pytest.raises(ValueError, match="shorter"):
        await make(forgetful).submit("a", rows=1, group=None)


@on_a_loop
async def test_closing_finishes_what_waits_and_admits_nothing_more() -> None:
    runner = Runner()
    scheduler = make(runner)
    tasks = submit(scheduler, "a", "b")
    await settle()
    closing = asyncio.ensure_future(scheduler.close())
    await settle()
    with pytest.raises(ModelNotReady, match="model 'm' is UNLOADING"):
        await scheduler.submit("c", rows=1, group=None)
    assert not closing.done()
    runner.finish(2)
    await closing
    assert await asyncio.gather(*tasks) == ["a!", "b!"]


@on_a_loop
async def test_closing_without_draining_refuses_what_waits_but_not_what_runs() -> None:
    runner = Runner()
    scheduler = make(runner)
    a, b = submit(scheduler, "a", "b")
    await settle()
    runner.finish()
    await scheduler.close(drain=False)
    assert await a == "a!"
    with pytest.raises(ModelNotReady):
        await b


@on_a_loop
async def test_more_rows_than_a_batch_holds_is_a_defect_of_the_caller() -> None:
    with pytest.raises(ValueError, match="5 rows can never run"):
        await make(Runner()).submit("a", rows=5, group=None)


@given(
    requests=st.lists(st.tuples(st.integers(1, 4), st.sampled_from("ABC"), st.booleans()), max_size=30),
    instances=st.integers(1, 3),
)
def test_any_mixture_gives_each_caller_its_own_answer(requests: list[tuple[int, str, bool]], instances: int) -> None:
    """Rows, groups and instances at will, some callers give up: every other gets its own result, no batch is too
    large or mixed, and within a group nobody is overtaken."""
    batches: list[list[tuple[int, int, str]]] = []

    async def runner(items: Sequence[tuple[int, int, str]]) -> Sequence[int]:
        batches.append(list(items))
        await asyncio.sleep(0)
        return [number for number, _, _ in items]

    async def scenario() -> None:
        scheduler: Scheduler[tuple[int, int, str], int] = Scheduler(
            runner, name="m", max_batch_rows=4, max_queue_size=100, instances=instances, clock=Clock()
        )
        tasks = [
            asyncio.ensure_future(scheduler.submit((number, rows, group), rows=rows, group=group))
            for number, (rows, group, _) in enumerate(requests)
        ]
        await asyncio.sleep(0)
        for task, (_, _, gives_up) in zip(tasks, requests, strict=True):
            if gives_up:
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await scheduler.close()
        for number, (result, (_, _, gives_up)) in enumerate(zip(results, requests, strict=True)):
            assert result == number or (gives_up and isinstance(result, asyncio.CancelledError))

    asyncio.run(scenario())
    for batch in batches:
        assert sum(rows for _, rows, _ in batch) <= 4
        assert len({group for _, _, group in batch}) == 1
    for group in "ABC":
        started = [number for batch in batches for number, _, of in batch if of == group]
        assert started == sorted(started)
