"""Where a batch runs: on the loop's own thread when it is short, otherwise on the instance's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from service.instances import INLINE_S, Instances
from service.latency_curve import LatencyCurve
from service.ticket import BatchOutcome


def compute(items: Sequence[str]) -> BatchOutcome[str]:
    """Answers with the name of the thread that ran it."""
    return BatchOutcome([threading.current_thread().name for _ in items])


def run(row_s: float, batches: Sequence[Sequence[str]], count: int = 1) -> tuple[list[BatchOutcome[str]], list[bool]]:
    """Outcomes in the order in which they came, and for each batch whether it was finished at once."""

    async def scenario() -> tuple[list[BatchOutcome[str]], list[bool]]:
        instances: Instances[str, str] = Instances(compute, LatencyCurve({1: row_s}), count=count, name="m")
        outcomes: list[BatchOutcome[str]] = []
        all_there = asyncio.Event()

        def finished(outcome: BatchOutcome[str]) -> None:
            assert threading.current_thread() is threading.main_thread()
            outcomes.append(outcome)
            if len(outcomes) == len(batches):
                all_there.set()

        at_once = []
        for items in batches:
            before = len(outcomes)
            instances(items, len(items), finished)
            at_once.append(len(outcomes) > before)
        async with asyncio.timeout(30):
            await all_there.wait()
        instances.close()
        return outcomes, at_once

    return asyncio.run(scenario())


def test_a_short_batch_runs_where_it_is() -> None:
    outcomes, at_once = run(INLINE_S / 10, [["a", "b"]])
    assert outcomes == [BatchOutcome([threading.main_thread().name] * 2)]
    assert at_once == [True]


def test_a_long_batch_never_holds_up_the_loop() -> None:
    outcomes, at_once = run(INLINE_S, [["a"]])
    assert outcomes == [BatchOutcome(["m instance 0"])]
    assert at_once == [False]


def test_rows_decide_which_it_is() -> None:
    _, at_once = run(INLINE_S / 2, [["a"], ["a", "b"]])
    assert at_once == [True, False]


def test_a_batch_that_seems_only_just_too_long_is_tried_in_place_now_and_then() -> None:
    _, at_once = run(2 * INLINE_S, [["a"] for _ in range(64)])
    assert at_once.count(True) == 2
    _, at_once = run(1.0, [["a"] for _ in range(64)])
    assert at_once.count(True) == 0


def test_batches_behind_one_that_held_up_the_loop_run_in_threads_for_longer_each_time() -> None:
    """A model whose runs take what they like: the curve knows only of short ones."""
    here: list[bool] = []
    now = [0.0]

    def slow(items: Sequence[str]) -> BatchOutcome[str]:
        here.append(threading.current_thread() is threading.main_thread())
        now[0] += 1.0
        return compute(items)

    async def scenario() -> None:
        instances: Instances[str, str] = Instances(
            slow, LatencyCurve({1: 1e-6}), count=1, name="m", clock=lambda: now[0]
        )
        for _ in range(1 + 64 + 1 + 256 + 1):
            answered = asyncio.Event()
            instances(["a"], 1, lambda _, told=answered: told.set())  # type: ignore[misc]
            await answered.wait()
        instances.close()

    asyncio.run(scenario())
    assert [number for number, was_here in enumerate(here) if was_here] == [0, 65, 65 + 257]


@pytest.mark.parametrize("count", [1, 3])
def test_every_batch_comes_back_however_many_instances_there_are(count: int) -> None:
    outcomes, _ = run(1.0, [["x"] for _ in range(20)], count)
    ran = {name for outcome in outcomes for name in outcome.results or ()}
    assert len(outcomes) == 20
    assert ran <= {f"m instance {number}" for number in range(count)}


def test_closing_ends_the_threads() -> None:
    run(1.0, [["x"]], count=2)
    left = [thread for thread in threading.enumerate() if thread.name.startswith("m instance")]
    for thread in left:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in left)
