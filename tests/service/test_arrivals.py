from __future__ import annotations

import math

import pytest

from service.arrivals import Arrivals
from service.latency_curve import LatencyCurve

FLAT = {1: 0.08, 8: 0.08}
LINEAR = {1: 0.08, 8: 0.64}


def taught(curve: dict[int, float], *, come_back: int, after_s: float, batches: int = 30) -> tuple[Arrivals, float]:
    """Arrivals that have seen so many rows come back, so long after each batch; and the time of the last one's end."""
    arrivals = Arrivals(LatencyCurve(curve))
    now = 0.0
    for _ in range(batches):
        arrivals.finished(now)
        arrivals.arrived(come_back, now + after_s)
        now += 10.0
    arrivals.finished(now)
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
