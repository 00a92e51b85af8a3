from __future__ import annotations

import math

import pytest

from service.arrivals import Arrivals
from service.latency_curve import LatencyCurve

FLAT = {1: 0.08, 8: 0.08}
LINEAR = {1: 0.08, 8: 0.64}


def taught(curve: dict[int, float], *, come_back: int, after_s: float, batches: int = 30) -> tuple[Arrivals, float]:
    """Arrivals that have seen so many rows come back, so long after each batch of 4; and when the last one ended."""
    arrivals = Arrivals(LatencyCurve(curve))
    now = 0.0
    for _ in range(batches):
        arrivals.finished(4, now)
        arrivals.arrived(come_back, now + after_s)
        now += 10.0
    arrivals.finished(4, now)
    return arrivals, now


def test_rows_that_usually_come_are_worth_waiting_for_on_a_flat_curve() -> None:
    arrivals, now = taught(FLAT, come_back=4, after_s=0.009)
    assert arrivals.worth_waiting_until(1, 8, now) == pytest.approx(now + 0.01)


@pytest.mark.parametrize(
    ("curve", "come_back", "after_s", "waiting"),
    [
        pytest.param(LINEAR, 4, 0.009, 1, id="a-linear-curve"),
        pytest.param(FLAT, 4, 0.2, 1, id="they-come-later-than-a-run"),
        pytest.param(FLAT, 0, 0.009, 1, id="nobody-comes-back"),
        pytest.param(FLAT, 1, 0.07, 8, id="few-and-late-against-many-that-wait"),
    ],
)
def test_waiting_does_not_pay_when(curve: dict[int, float], come_back: int, after_s: float, waiting: int) -> None:
    arrivals, now = taught(curve, come_back=come_back, after_s=after_s)
    assert arrivals.worth_waiting_until(waiting, 64, now) <= now


def test_now_and_then_a_wait_is_tried_that_the_curve_does_not_promise_to_pay() -> None:
    """One of 32, as long as rows are expected; and what came of it may run together whatever the curve says."""
    arrivals, now = taught(LINEAR, come_back=4, after_s=0.009)
    tried = []
    for batch in range(64):
        arrivals.finished(4, now)
        waits = arrivals.worth_waiting_until(4, 8, now) > now
        assert arrivals.has_tried == waits
        tried += [batch] if waits else []
        arrivals.arrived(4, now + 0.009)
        now += 10.0
    assert len(tried) == 2
    assert tried[1] - tried[0] == 32


def test_of_a_small_batch_fewer_are_expected_than_of_a_large_one() -> None:
    """Batches of 1 and 3 take turns, and everybody comes back: 3 behind the large one, not 2 behind each."""
    arrivals = Arrivals(LatencyCurve(FLAT))
    now = 0.0
    for batch in range(40):
        arrivals.finished(rows := 1 + 2 * (batch % 2), now)
        arrivals.arrived(rows, now + 0.009)
        now += 10.0
    arrivals.finished(3, now)
    arrivals.arrived(2, now + 0.001)
    assert arrivals.worth_waiting_until(2, 8, now + 0.001) > now + 0.001
    arrivals.arrived(1, now + 0.002)
    assert arrivals.worth_waiting_until(3, 8, now + 0.002) == -math.inf


def test_those_who_have_come_already_are_not_waited_for() -> None:
    arrivals, now = taught(FLAT, come_back=4, after_s=0.009)
    arrivals.arrived(3, now + 0.001)
    assert arrivals.worth_waiting_until(3, 8, now + 0.001) > now
    arrivals.arrived(1, now + 0.002)
    assert arrivals.worth_waiting_until(4, 8, now + 0.002) == -math.inf


def test_a_window_that_has_passed_is_over() -> None:
    arrivals, now = taught(FLAT, come_back=4, after_s=0.009)
    assert arrivals.worth_waiting_until(1, 8, now + 1.0) <= now + 1.0


def test_nobody_waits_longer_than_callers_bear_however_long_a_run_takes() -> None:
    arrivals, now = taught({1: 60.0, 8: 60.0}, come_back=4, after_s=0.05)
    assert now < arrivals.worth_waiting_until(1, 8, now) <= now + 0.1


def test_before_the_first_batch_nothing_is_known() -> None:
    arrivals = Arrivals(LatencyCurve(FLAT))
    arrivals.arrived(1, 5.0)
    assert arrivals.worth_waiting_until(1, 8, 5.0) == -math.inf
