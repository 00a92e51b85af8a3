"""Where a batch runs: on the loop's own thread when it is short, otherwise on the instance's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import closing

import pytest

from service.errors import InferenceFailed
from service.instances import INLINE_REQUEST_S, INLINE_S, Instances
from service.latency_curve import LatencyCurve
from service.ticket import BatchOutcome


def compute(items: Sequence[str]) -> BatchOutcome[str]:
    """Answers with the name of the thread that ran it."""
    return BatchOutcome([threading.current_thread().name for _ in items])


def run(
    row_s: float, batches: Sequence[Sequence[str]], *, rows: Sequence[int] | None = None, count: int = 1
) -> tuple[list[BatchOutcome[str]], list[bool]]:
    """Outcomes in the order in which they came, and for each batch whether it was finished at once.

    rows: of each batch; without it, one for each of its requests.
    """

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
        for items, batch_rows in zip(batches, rows or [len(items) for items in batches], strict=True):
            before = len(outcomes)
            instances(items, batch_rows, finished)
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
    outcomes, at_once = run(INLINE_S + INLINE_REQUEST_S, [["a"]])
    assert outcomes == [BatchOutcome(["m instance 0"])]
    assert at_once == [False]


def test_rows_decide_which_it_is() -> None:
    _, at_once = run(INLINE_S / 2, [["a"], ["a"]], rows=[1, 3])
    assert at_once == [True, False]


def test_a_batch_of_many_requests_may_take_longer_for_answering_them_takes_longer_still():
    few, many = ["a"] * 2, ["a"] * 64
    rows_s = (INLINE_S + 10 * INLINE_REQUEST_S) / 64
    _, at_once = run(rows_s, [few, many], rows=[64, 64])
    assert at_once == [False, True]


class Machine:
    """Runs batches of one model one after the other; `takes_s` of the clock each. Tells which ran in place."""

    def __init__(self, curve: LatencyCurve, takes_s: float) -> None:
        self.takes_s = takes_s
        self.error: InferenceFailed | None = None
        self._now = 0.0
        self.ran_here: list[bool] = []
        self._instances: Instances[str, str] = Instances(
            self._compute, curve, count=1, name="m", clock=lambda: self._now
        )

    def _compute(self, items: Sequence[str]) -> BatchOutcome[str]:
        self._now += self.takes_s
        self.ran_here.append(threading.current_thread() is threading.main_thread())
        return compute(items) if self.error is None else BatchOutcome(None, self.error)

    def close(self) -> None:
        self._instances.close()

    def run(self, batches: int, rows: int = 1) -> list[bool]:
        async def scenario() -> None:
            for _ in range(batches):
                answered: asyncio.Future[BatchOutcome[str]] = asyncio.get_running_loop().create_future()
                self._instances(["a"] * rows, rows, answered.set_result)
                await answered

        self.ran_here = []
        asyncio.run(scenario())
        return self.ran_here


def test_a_batch_that_seems_only_just_too_long_is_tried_in_place_now_and_then() -> None:
    for looks_s, tried in ((2 * INLINE_S, 2), (1.0, 0)):
        with closing(Machine(LatencyCurve({1: looks_s}), 2 * INLINE_S)) as machine:
            assert machine.run(64).count(True) == tried


def test_what_a_try_in_place_took_decides_for_batches_of_its_size() -> None:
    """As after a bad moment: the curve knows what the way to the thread and back took, and nothing else any more."""
    with closing(Machine(LatencyCurve({1: 2 * INLINE_S, 4: 3 * INLINE_S}), INLINE_S / 10)) as machine:
        assert machine.run(40, rows=2) == [False] * 30 + [True] * 10
        assert machine.run(1, rows=1) == [True]  # fewer take no longer
        assert machine.run(1, rows=4) == [False]
        machine.takes_s = 2 * INLINE_S
        assert machine.run(3, rows=2) == [True, False, False]


def test_a_model_that_was_short_at_load_is_tried_however_long_it_takes_in_threads() -> None:
    curve = LatencyCurve({1: INLINE_S / 2})
    with closing(Machine(curve, INLINE_S / 2)) as machine:
        for _ in range(100):
            curve.observe(1, 1.0)
        assert machine.run(33) == [False] * 30 + [True] * 3


def test_a_model_that_has_become_long_is_tried_more_and_more_seldom() -> None:
    curve = LatencyCurve({1: INLINE_S / 2})
    with closing(Machine(curve, 15e-3)) as machine:
        for _ in range(100):
            curve.observe(1, 15e-3)
        here = machine.run(31 * (1 + 2 + 4 + 8))
    assert [number + 1 for number, was_here in enumerate(here) if was_here] == [31, 31 * 3, 31 * 7, 31 * 15]


def test_what_is_refused_at_once_tells_nothing_of_what_the_others_take() -> None:
    with closing(Machine(LatencyCurve({1: 1.5e-3}), INLINE_S / 10)) as machine:
        machine.error = InferenceFailed("index out of range")
        assert machine.run(64).count(True) == 2
        machine.error, machine.takes_s = None, 1.5e-3
        assert machine.run(28).count(True) == 0


def test_holding_up_the_loop_is_forgiven_after_many_short_batches() -> None:
    with closing(Machine(LatencyCurve({1: 1e-6}), 1.0)) as machine:
        assert machine.run(1 + 64 + 1).count(True) == 2  # the next 256 run in threads, then 1,024 would
        machine.takes_s = 1e-6
        machine.run(256 + 2 * 1024)
        machine.takes_s = 1.0
        assert machine.run(1 + 64 + 1) == [True] + [False] * 64 + [True]


def test_batches_behind_one_that_held_up_the_loop_run_in_threads_for_longer_each_time() -> None:
    """A model whose runs take what they like: the curve knows only of short ones."""
    with closing(Machine(LatencyCurve({1: 1e-6}), 1.0)) as machine:
        here = machine.run(1 + 64 + 1 + 256 + 1)
    assert [number for number, was_here in enumerate(here) if was_here] == [0, 65, 65 + 257]


@pytest.mark.parametrize("count", [1, 3])
def test_every_batch_comes_back_however_many_instances_there_are(count: int) -> None:
    outcomes, _ = run(1.0, [["x"] for _ in range(20)], count=count)
    ran = {name for outcome in outcomes for name in outcome.results or ()}
    assert len(outcomes) == 20
    assert ran <= {f"m instance {number}" for number in range(count)}


def test_closing_ends_the_threads() -> None:
    run(1.0, [["x"]], count=2)
    left = [thread for thread in threading.enumerate() if thread.name.startswith("m instance")]
    for thread in left:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in left)
