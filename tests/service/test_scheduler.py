"""The dynamic batcher on a loop and with a runner that the test holds in its hand: no thread, sleep or wall clock."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from service.errors import DeadlineExceeded, InferenceFailed, ModelNotReady, QueueFull
from service.latency_curve import LatencyCurve
from service.scheduler import Scheduler
from service.ticket import BatchOutcome, BatchRecord
from service.waiting import QueueSpace
from tests.service.virtual_time import Loop


class Runner:
    """Runs a batch when the test says so; answers "<item>!" and fails when an item is called "bad"."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self._running: list[tuple[Sequence[str], Callable[[BatchOutcome[str]], None]]] = []

    def __call__(self, items: Sequence[str], rows: int, finished: Callable[[BatchOutcome[str]], None]) -> None:
        self.started.append(list(items))
        self._running.append((items, finished))

    def finish(self) -> None:
        """The batch that began first ends."""
        items, finished = self._running.pop(0)
        finished(outcome_of(items))


def outcome_of(items: Sequence[str]) -> BatchOutcome[str]:
    if "bad" in items:
        return BatchOutcome(None, InferenceFailed(f"one of {len(items)} is bad"))
    return BatchOutcome([f"{item}!" for item in items])


class Bench:
    """A scheduler with everything around it, and what its callers were told."""

    def __init__(self, curve: dict[int, float] | None = None, runner: Any = None, **options: Any) -> None:
        """Without `curve` a batch takes 1 s, however large: as many rows as possible are worth running together."""
        self.loop = Loop()
        self.runner = Runner() if runner is None else runner
        self.records: list[BatchRecord] = []
        self.splits = 0
        self.told: dict[str, Any] = {}
        self.tickets: dict[str, Any] = {}
        given: dict[str, Any] = {"name": "model 'm'", "max_batch_rows": 4, "max_queue_size": 100}
        self.scheduler: Scheduler[str, str] = Scheduler(
            self.runner,
            LatencyCurve(curve or {1: 1.0, 64: 1.0}),
            self.loop,
            on_batch=self.records.append,
            on_split=self._split,
            **given | {"max_queue_delay_s": 0.0} | options,
        )

    def _split(self) -> None:
        self.splits += 1

    def submit(self, *items: str, rows: int = 1, **options: Any) -> None:
        for item in items:
            self.tickets[item] = self.scheduler.submit(
                item, lambda told, item=item: self.told.setdefault(item, told), rows=rows, **options
            )

    def turn(self) -> None:
        self.loop.turn()

    def finish(self, batches: int = 1) -> None:
        for _ in range(batches):
            self.runner.finish()
            self.turn()


# --- what runs, and when ------------------------------------------------------------------------------------------


def test_an_idle_instance_runs_a_request_in_the_same_turn() -> None:
    bench = Bench()
    bench.submit("a")
    bench.turn()
    assert bench.runner.started == [["a"]]
    bench.finish()
    assert bench.told == {"a": "a!"}


def test_requests_of_one_turn_run_together_and_so_do_those_that_wait() -> None:
    bench = Bench()
    bench.submit("a", "b")
    bench.turn()
    bench.submit("c", "d")
    bench.finish(2)
    assert bench.runner.started == [["a", "b"], ["c", "d"]]
    assert bench.told == {"a": "a!", "b": "b!", "c": "c!", "d": "d!"}


def test_what_has_run_is_counted_before_its_callers_are_told_and_what_failed_is_not() -> None:
    counted: list[tuple[int, int, int]] = []
    bench = Bench(on_run=lambda requests, rows: counted.append((requests, rows, len(bench.told))))
    bench.submit("a", "b", rows=2)
    bench.turn()
    bench.submit("bad", "c")
    bench.finish()
    bench.finish(3)
    assert counted == [(2, 4, 0), (1, 1, 3)]
    assert bench.told.keys() == {"a", "b", "bad", "c"}


def test_done_is_never_called_before_submit_returns() -> None:
    bench = Bench(runner=lambda items, rows, finished: finished(outcome_of(items)))
    bench.submit("a")
    assert bench.told == {}
    bench.turn()
    assert bench.told == {"a": "a!"}


def test_a_batch_counts_rows_and_never_lets_a_later_request_pass() -> None:
    """max_batch_rows 4: after 3 rows the next request of 2 does not fit, and the one of 1 behind it must wait too."""
    bench = Bench()
    bench.submit("running")
    bench.turn()
    bench.submit("three", rows=3)
    bench.submit("two", rows=2)
    bench.submit("one")
    bench.finish(3)
    assert bench.runner.started == [["running"], ["three"], ["two", "one"]]


def test_requests_of_no_rows_do_not_make_a_batch_endless() -> None:
    bench = Bench()
    bench.submit(*"abcdef", rows=0)
    bench.turn()
    assert bench.runner.started == [["a", "b", "c", "d"]]


def test_groups_never_mix_and_the_oldest_head_goes_first() -> None:
    bench = Bench()
    bench.submit("running")
    bench.turn()
    for item, group in (("a1", "A"), ("b1", "B"), ("a2", "A"), ("b2", "B"), ("c1", "C")):
        bench.submit(item, group=group)
    bench.finish(4)
    assert bench.runner.started == [["running"], ["a1", "a2"], ["b1", "b2"], ["c1"]]


def test_a_busy_group_does_not_starve_another() -> None:
    bench = Bench(max_batch_rows=1)
    bench.submit("running")
    bench.turn()
    bench.submit("a1", group="A")
    bench.submit("b1", group="B")
    bench.submit("a2", "a3", "a4", group="A")
    bench.finish(5)
    assert bench.runner.started.index(["b1"]) == 2


def test_those_who_would_run_behind_it_take_no_place_and_no_time_from_a_request() -> None:
    bench = Bench(curve={1: 1.0, 64: 64.0}, max_queue_size=3)
    bench.submit("running")
    bench.turn()
    for number in range(3):
        bench.submit(f"low {number}", priority=2)
    with pytest.raises(QueueFull):
        bench.submit("one more", priority=2)
    bench.submit("urgent", priority=1, deadline_s=bench.loop.now_s + 3)
    with pytest.raises(QueueFull):
        bench.submit("one more still", priority=2)
    bench.finish(2)
    assert bench.runner.started[:2] == [["running"], ["urgent"]]


def test_a_lower_priority_number_runs_first_and_equals_in_order() -> None:
    bench = Bench(max_batch_rows=1)
    bench.submit("running")
    bench.turn()
    for item, priority in (("late", 2), ("first", 1), ("later", 2), ("second", 1)):
        bench.submit(item, priority=priority)
    bench.finish(4)
    assert bench.runner.started == [["running"], ["first"], ["second"], ["late"], ["later"]]


def test_instances_run_side_by_side() -> None:
    bench = Bench(instances=2)
    bench.submit("a")
    bench.turn()
    bench.submit("b")
    bench.turn()
    bench.submit("c", "d")
    bench.turn()
    assert bench.runner.started == [["a"], ["b"]]
    assert bench.scheduler.queue_size == 2
    bench.finish(3)
    assert bench.runner.started[2:] == [["c", "d"]]


def test_no_more_rows_run_together_than_pay() -> None:
    """Twice the rows take twice the time: a larger batch would only keep its first caller waiting."""
    bench = Bench(curve={1: 1.0, 2: 2.0, 4: 4.0})
    bench.submit("a", "b", "c")
    bench.turn()
    bench.finish(2)
    assert bench.runner.started == [["a"], ["b"], ["c"]]


def test_batches_that_end_at_once_let_the_loop_read_in_between() -> None:
    """Each turn of the loop runs one batch, although all of them wait already."""
    started: list[list[str]] = []

    def at_once(items: Sequence[str], rows: int, finished: Callable[[BatchOutcome[str]], None]) -> None:
        started.append(list(items))
        finished(outcome_of(items))

    bench = Bench(runner=at_once, max_batch_rows=1)
    bench.submit("a", "b")
    soon, bench.loop._soon = bench.loop._soon, []
    for callback in soon:
        callback()
    assert started == [["a"]]
    bench.turn()
    assert started == [["a"], ["b"]]


# --- waiting for company ------------------------------------------------------------------------------------------


def closed_loop(bench: Bench, clients: int, batch_s: float, rounds: int) -> None:
    """Clients that ask again as soon as they are answered, half of them out of step."""
    names = (f"{number}" for number in itertools.count())
    bench.submit(*itertools.islice(names, clients // 2))
    bench.loop.advance(0.001)
    bench.submit(*itertools.islice(names, clients - clients // 2))
    for _ in range(rounds):
        bench.loop.advance(batch_s)
        before = len(bench.told)
        bench.finish()
        bench.loop.advance(0.001)
        bench.submit(*itertools.islice(names, len(bench.told) - before))
        bench.loop.advance(0.5 * batch_s)


def test_an_instance_waits_for_those_who_usually_come_back_when_that_pays() -> None:
    """A batch takes 1 s whatever its size: two batches of 2 in turn would serve half as many as one of 4."""
    bench = Bench(max_queue_delay_s=10.0)
    closed_loop(bench, clients=4, batch_s=1.0, rounds=30)
    assert [len(batch) for batch in bench.runner.started[:2]] == [2, 2]
    assert [len(batch) for batch in bench.runner.started[-5:]] == [4, 4, 4, 4, 4]


@pytest.mark.parametrize(
    ("curve", "delay_s"),
    [
        pytest.param({1: 1.0, 2: 2.0, 4: 4.0}, 10.0, id="larger-batches-do-not-pay"),
        pytest.param({1: 1.0, 4: 1.0}, 0.0, id="max-queue-delay-is-0"),
    ],
)
def test_an_idle_instance_never_waits_when(curve: dict[int, float], delay_s: float) -> None:
    bench = Bench(curve=curve, max_queue_delay_s=delay_s)
    closed_loop(bench, clients=4, batch_s=1.0, rounds=30)
    assert max(len(batch) for batch in bench.runner.started[2:]) <= 2


def test_two_halves_that_take_turns_find_out_that_together_they_are_served_twice_as_fast() -> None:
    """The curve was measured in a bad moment: it says that 4 rows take 2.5 s, and they take 1 s like 2 rows. Only
    batches of 2 ever run, so nothing would correct it."""
    bench = Bench({1: 1.0, 2: 1.0, 4: 2.5}, max_queue_delay_s=10.0)
    closed_loop(bench, clients=4, batch_s=1.0, rounds=200)
    assert [len(batch) for batch in bench.runner.started[:30]] == [2] * 30
    assert [len(batch) for batch in bench.runner.started[-20:]].count(4) >= 18


@pytest.mark.parametrize("delay_s", [pytest.param(10.0, id="free"), pytest.param(0.1, id="capped")])
def test_company_that_does_not_come_is_waited_for_less_than_one_run(delay_s: float) -> None:
    bench = Bench(max_queue_delay_s=10.0)
    closed_loop(bench, clients=4, batch_s=1.0, rounds=30)
    bench.scheduler._max_queue_delay_s = delay_s
    while bench.runner._running:
        bench.finish()
    started = len(bench.runner.started)
    bench.submit("alone")
    bench.turn()
    assert bench.runner.started[started:] == []
    bench.loop.advance(min(delay_s, bench.scheduler.curve.seconds(1)))
    assert bench.runner.started[started:] == [["alone"]]


# --- refusals -----------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    """5 wait, 4 rows a batch, a batch takes 1 s: one runs, one is full, and the next would take this request too."""
    bench = Bench(max_queue_size=5)
    bench.submit("running")
    bench.turn()
    bench.submit(*"abcde")
    with pytest.raises(QueueFull, match=r"queue of model 'm' is full: 5 requests wait, max_queue_size is 5") as caught:
        bench.submit("f")
    assert caught.value.retry_after_s == pytest.approx(3.0)
    bench.finish(3)
    assert len(bench.told) == 6


def test_requests_that_hold_too_many_bytes_are_refused_with_the_figures() -> None:
    bench = Bench(space=QueueSpace(1000))
    bench.submit("running", size_bytes=900)
    bench.turn()
    bench.submit("a", size_bytes=600)
    with pytest.raises(QueueFull) as caught:
        bench.submit("b", size_bytes=401)
    assert str(caught.value) == (
        "the queue of model 'm' is full: waiting requests hold 600 bytes, this one needs at least 401 more, and the "
        "server has room for 1000; try again in about 2 s"
    )
    assert caught.value.retry_after_s == pytest.approx(2.0)
    bench.submit("c", size_bytes=400)
    with pytest.raises(QueueFull, match="1000 bytes, this one needs at least 1 more"):
        bench.submit("d", size_bytes=1)


@pytest.mark.parametrize("how", ["runs", "cancelled", "expired", "closed"])
def test_bytes_are_free_again_when_a_request(how: str) -> None:
    space = QueueSpace(1000)
    bench = Bench(space=space)
    bench.submit("running")
    bench.turn()
    bench.submit("a", size_bytes=700, deadline_s=bench.loop.now_s + 2.5)
    assert space.used_bytes == 700
    match how:
        case "runs":
            bench.finish()
        case "cancelled":
            bench.scheduler.cancel(bench.tickets["a"])
        case "expired":
            bench.loop.advance(3.0)
        case "closed":
            bench.scheduler.close(lambda: None, drain=False)
    assert space.used_bytes == 0


def test_a_queue_that_is_empty_takes_one_request_whatever_others_hold() -> None:
    """However large it is, and however long another model's queue: otherwise it could never be served."""
    space = QueueSpace(1000)
    other, bench = Bench(space=space), Bench(space=space)
    other.submit("running")
    other.turn()
    other.submit("waiting", size_bytes=1000)
    bench.submit("large", size_bytes=5000)
    with pytest.raises(QueueFull, match="waiting requests hold 6000 bytes"):
        bench.submit("next", size_bytes=1)


def test_a_request_whose_body_is_still_coming_is_refused_once_nothing_more_fits() -> None:
    bench = Bench(space=QueueSpace(1000))
    bench.submit("running")
    bench.turn()
    bench.submit("a", size_bytes=999)
    bench.scheduler.check_admission(1, math.inf)
    bench.submit("b", size_bytes=1)
    with pytest.raises(QueueFull, match="waiting requests hold 1000 bytes"):
        bench.scheduler.check_admission(1, math.inf)


def test_retry_after_follows_the_measured_batch_time() -> None:
    bench = Bench(max_queue_size=1)
    for number in range(60):
        bench.submit(str(number))
        bench.turn()
        bench.loop.advance(11.0)
        bench.finish()
    bench.submit("running")
    bench.turn()
    bench.submit("waiting")
    with pytest.raises(QueueFull) as caught:
        bench.submit("c")
    assert caught.value.retry_after_s == pytest.approx(22.0, rel=0.1)


def test_a_place_is_free_again_after_the_queue_moved() -> None:
    bench = Bench(max_queue_size=1)
    bench.submit("a")
    bench.turn()
    bench.submit("b")
    bench.finish()
    bench.submit("c")
    bench.finish(2)
    assert bench.told == {"a": "a!", "b": "b!", "c": "c!"}


def test_more_rows_than_a_batch_holds_is_a_defect_of_the_caller() -> None:
    with pytest.raises(ValueError, match="5 rows can never run"):
        Bench().submit("a", rows=5)


# --- deadlines ----------------------------------------------------------------------------------------------------


def test_a_deadline_that_cannot_be_met_is_refused_on_arrival() -> None:
    bench = Bench()
    bench.submit("running")
    bench.turn()
    with pytest.raises(DeadlineExceeded, match=r"would answer within about 2\.5 s, the request allows 2\.4 s"):
        bench.submit("a", deadline_s=bench.loop.now_s + 2.4)
    bench.submit("b", deadline_s=bench.loop.now_s + 2.6)
    assert bench.scheduler.queue_size == 1


def test_an_idle_instance_tries_what_it_does_not_expect_to_manage() -> None:
    """It was measured at 1 s in a bad moment and takes 0.1: were nothing run, that would never be found out."""
    bench = Bench()
    for number in range(40):
        bench.submit(str(number), deadline_s=bench.loop.now_s + 0.3)
        bench.turn()
        bench.loop.advance(0.1)
        bench.finish()
    assert bench.told["0"] == "0!"
    assert bench.scheduler.curve.seconds(1) == pytest.approx(0.1, rel=0.1)


def test_a_deadline_that_has_passed_on_arrival_is_never_run() -> None:
    bench = Bench()
    with pytest.raises(DeadlineExceeded, match="timeout passed before it was complete"):
        bench.submit("a", deadline_s=bench.loop.now_s)
    bench.turn()
    assert bench.runner.started == []


def test_a_request_whose_deadline_passes_while_it_waits_is_told_then_and_never_runs() -> None:
    bench = Bench()
    bench.submit("running")
    bench.turn()
    bench.submit("a", deadline_s=bench.loop.now_s + 2.5)
    bench.submit("b")
    bench.loop.advance(2.4)
    assert bench.told == {}
    bench.loop.advance(0.2)
    assert isinstance(bench.told["a"], DeadlineExceeded)
    assert str(bench.told["a"]) == (
        "model 'm': of the request's timeout of 2.5 s, 2.5 s went by behind others; it was not run"
    )
    bench.finish(2)
    assert bench.runner.started == [["running"], ["b"]]


def test_a_request_that_could_not_be_answered_in_time_any_more_is_not_run() -> None:
    """0.6 s are left when its turn comes, and a run takes 1 s."""
    bench = Bench()
    bench.submit("running")
    bench.turn()
    bench.submit("a", deadline_s=bench.loop.now_s + 2.6)
    bench.submit("b")
    bench.loop.advance(2.0)
    bench.finish()
    assert isinstance(bench.told["a"], DeadlineExceeded)
    assert bench.runner.started == [["running"], ["b"]]


def test_company_makes_nobody_late_who_would_be_in_time_alone() -> None:
    """Four rows together pay, but take 2 s; when its turn comes the first has 1.7 s left, enough for two."""
    bench = Bench(curve={1: 1.0, 4: 2.0})
    bench.submit("running")
    bench.turn()
    bench.submit("a", deadline_s=bench.loop.now_s + 2.8)
    bench.submit("b", "c", "d")
    bench.loop.advance(1.1)
    bench.finish(3)
    assert bench.runner.started == [["running"], ["a", "b"], ["c", "d"]]


# --- giving up ----------------------------------------------------------------------------------------------------


def test_a_request_cancelled_while_it_waits_never_runs() -> None:
    bench = Bench()
    bench.submit("a")
    bench.turn()
    bench.submit("b", "c")
    bench.scheduler.cancel(bench.tickets["b"])
    assert bench.scheduler.queue_size == 1
    bench.finish(2)
    assert bench.told == {"a": "a!", "c": "c!"}
    assert bench.runner.started == [["a"], ["c"]]


def test_a_request_cancelled_while_it_runs_harms_nobody() -> None:
    bench = Bench()
    bench.submit("a", "b")
    bench.turn()
    bench.scheduler.cancel(bench.tickets["a"])
    bench.scheduler.cancel(bench.tickets["a"])
    bench.finish()
    assert bench.told == {"b": "b!"}


def test_cancelled_requests_leave_nothing_behind() -> None:
    """While one low priority waits at the front of nothing, a million come and go: memory follows those that wait."""
    bench = Bench(max_queue_size=10)
    bench.submit("running")
    bench.turn()
    for number in range(5000):
        bench.submit("x", priority=number % 7, group=number % 3, deadline_s=bench.loop.now_s + 50)
        bench.scheduler.cancel(bench.tickets["x"])
    assert bench.scheduler.queue_size == 0
    waiting = bench.scheduler._waiting
    assert sum(map(len, waiting._groups.values())) + len(waiting._deadlines) < 1000


def test_groups_and_items_go_with_those_that_waited_in_them() -> None:
    """Shapes are the callers' to choose: a thousand of them, given up or expired, must leave nothing behind."""
    bench = Bench(max_queue_size=10_000)
    bench.submit("running")
    bench.turn()
    for number in range(1000):
        hurries = {"deadline_s": bench.loop.now_s + 5000} if number % 2 else {}
        bench.submit(str(number), group=number, **hurries)
    for number in range(0, 1000, 2):
        bench.scheduler.cancel(bench.tickets[str(number)])
    bench.loop.advance(6000.0)
    assert bench.scheduler.queue_size == 0
    assert not bench.scheduler._waiting.groups
    assert all(ticket.item is None for name, ticket in bench.tickets.items() if name != "running")
    bench.finish()
    assert bench.tickets["running"].item is None
    assert bench.scheduler._admission.expected_s(1, bench.loop.now_s) < 10


# --- failures -----------------------------------------------------------------------------------------------------


def test_only_the_guilty_request_of_a_batch_fails() -> None:
    bench = Bench()
    bench.submit("a", "b", "bad", "d")
    bench.turn()
    bench.finish(5)
    assert bench.runner.started == [["a", "b", "bad", "d"], ["a", "b"], ["bad", "d"], ["bad"], ["d"]]
    assert {item: told for item, told in bench.told.items() if item != "bad"} == {"a": "a!", "b": "b!", "d": "d!"}
    assert str(bench.told["bad"]) == "one of 1 is bad"


def test_one_guilty_request_of_64_costs_no_more_than_twelve_runs() -> None:
    bench = Bench(max_batch_rows=64)
    bench.submit(*[str(number) for number in range(40)], "bad", *[str(number) for number in range(41, 64)])
    bench.turn()
    bench.finish(13)
    assert len(bench.told) == 64
    assert len(bench.runner.started) == 13


def test_the_instance_is_idle_again_after_a_failure() -> None:
    bench = Bench()
    bench.submit("bad")
    bench.turn()
    bench.finish()
    bench.submit("a")
    bench.turn()
    bench.finish()
    assert bench.told["a"] == "a!"


def test_pieces_of_a_failed_batch_are_not_run_for_those_who_gave_up() -> None:
    bench = Bench()
    bench.submit("bad", "b", "c", "d")
    bench.turn()
    for item in "cd":
        bench.scheduler.cancel(bench.tickets[item])
    bench.finish(3)
    assert bench.runner.started == [["bad", "b", "c", "d"], ["bad", "b"], ["bad"], ["b"]]


def test_a_caller_that_cannot_be_told_does_not_keep_the_others_from_being_told(caplog: Any) -> None:
    bench = Bench()

    def fails(told: object) -> None:
        raise ZeroDivisionError("connection is gone")

    bench.scheduler.submit("a", fails, rows=1)
    bench.submit("b")
    bench.turn()
    bench.finish()
    assert bench.told == {"b": "b!"}
    assert "connection is gone" in caplog.text


# --- closing ------------------------------------------------------------------------------------------------------


def test_closing_finishes_what_waits_and_admits_nothing_more() -> None:
    bench = Bench()
    bench.submit("a")
    bench.turn()
    bench.submit("b")
    closed: list[str] = []
    bench.scheduler.close(lambda: closed.append("closed"))
    with pytest.raises(ModelNotReady, match="model 'm' is UNLOADING"):
        bench.submit("c")
    bench.finish()
    assert closed == []
    bench.finish()
    assert bench.told == {"a": "a!", "b": "b!"}
    assert closed == ["closed"]


def test_closing_without_draining_refuses_what_waits_but_not_what_runs() -> None:
    bench = Bench()
    bench.submit("a")
    bench.turn()
    bench.submit("b")
    bench.scheduler.close(lambda: None, drain=False)
    assert isinstance(bench.told["b"], ModelNotReady)
    bench.finish()
    assert bench.told["a"] == "a!"


def test_closing_an_idle_scheduler_is_over_in_the_same_turn() -> None:
    bench = Bench()
    closed: list[str] = []
    bench.scheduler.close(lambda: closed.append("closed"))
    bench.turn()
    assert closed == ["closed"]


# --- what the statistics are told ---------------------------------------------------------------------------------


def test_a_batch_is_recorded_with_the_sums_over_its_requests() -> None:
    bench = Bench()
    bench.submit("running")
    bench.turn()
    bench.loop.advance(0.25)
    bench.submit("a", "b", rows=2)
    bench.loop.advance(0.75)
    bench.finish()
    bench.loop.advance(2.0)
    bench.finish()
    nothing = {"failed": 0, "input_s": 0, "infer_s": 0, "output_s": 0}
    first, second = bench.records
    began_s = first.began_s
    assert first == BatchRecord(
        requests=1, rows=1, queue_s=0, total_s=1.0, submitted_s=[began_s], began_s=began_s, run_s=1.0, **nothing
    )
    assert second == BatchRecord(
        requests=2,
        rows=4,
        queue_s=1.5,
        total_s=5.5,
        submitted_s=[began_s + 0.25] * 2,
        began_s=began_s + 1.0,
        run_s=2.0,
        **nothing,
    )


def test_only_what_is_told_to_callers_is_recorded_as_failed() -> None:
    bench = Bench()
    bench.submit("a", "bad")
    bench.turn()
    bench.finish(3)
    assert [(record.requests, record.failed) for record in bench.records] == [(1, 0), (0, 1)]
    assert [record.poisoned for record in bench.records] == [0, 1]
    assert bench.splits == 1


def test_what_fails_alone_from_the_beginning_has_poisoned_nobody() -> None:
    bench = Bench()
    bench.submit("bad")
    bench.turn()
    bench.finish()
    assert [(record.failed, record.poisoned) for record in bench.records] == [(1, 0)]
    assert bench.splits == 0


# --- any interleaving ---------------------------------------------------------------------------------------------

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 4), st.sampled_from("ABC"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("finish")),
        st.tuples(st.just("advance"), st.sampled_from([0.01, 0.3, 1.0, 5.0])),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(
    steps=_STEPS,
    instances=st.integers(1, 3),
    curve=st.sampled_from([{1: 1.0, 4: 1.0}, {1: 1.0, 4: 4.0}, {1: 0.5, 2: 0.6, 4: 1.9}]),
    delay_s=st.sampled_from([0.0, 0.2, 100.0]),
)
def test_any_interleaving_gives_each_caller_its_own_answer_once(
    steps: Sequence[Any], instances: int, curve: dict[int, float], delay_s: float
) -> None:
    """Whatever comes, waits, fails, expires and is given up, in any order: each caller that has not given up is told
    once, its own answer, no batch is too large or mixed, and nobody of the same priority is overtaken in a group."""
    bench = Bench(curve, instances=instances, max_queue_delay_s=delay_s, max_queue_size=20)
    submitted: dict[str, tuple[int, str, int]] = {}
    given_up: set[str] = set()
    refused: set[str] = set()
    for step in steps:
        match step:
            case ("submit", rows, group, priority, hurries):
                item = f"{len(submitted)}"
                submitted[item] = (rows, group, priority)
                deadline = {"deadline_s": bench.loop.now_s + 2.0} if hurries else {}
                try:
                    bench.submit(item, rows=rows, group=group, priority=priority, **deadline)
                except (QueueFull, DeadlineExceeded):
                    refused.add(item)
            case ("cancel", number) if (item := f"{number}") in bench.tickets and item not in bench.told:
                bench.scheduler.cancel(bench.tickets[item])
                given_up.add(item)
            case ("finish",) if bench.runner._running:
                bench.finish()
            case ("advance", seconds):
                bench.loop.advance(seconds)
    bench.loop.advance(200.0)
    while bench.runner._running:
        bench.finish()
        bench.loop.advance(200.0)
    assert bench.scheduler.is_idle
    assert bench.told.keys() == submitted.keys() - given_up - refused
    assert all(told == f"{item}!" or isinstance(told, DeadlineExceeded) for item, told in bench.told.items())
    ran = [item for batch in bench.runner.started for item in batch]
    assert len(ran) == len(set(ran))
    for batch in bench.runner.started:
        assert sum(submitted[item][0] for item in batch) <= 4
        assert len({submitted[item][1] for item in batch}) == 1
    for group, priority in itertools.product("ABC", range(3)):
        order = [int(item) for item in ran if submitted[item][1:] == (group, priority)]
        assert order == sorted(order)
