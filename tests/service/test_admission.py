from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from service.admission import Admission
from service.errors import DeadlineExceeded, Overloaded
from service.latency_curve import LatencyCurve
from service.scheduler import Scheduler
from service.ticket import BatchOutcome, Run
from service.waiting import QueueSpace, Waiting
from tests.service.virtual_time import Loop

DEADLINE_S = 1.0


@dataclass
class Overload:
    """Requests of one row, ten times as many as can be answered, each worth nothing after `DEADLINE_S`."""

    row_s: float
    slowness: Callable[[float], float]
    """How many times as long as measured a run takes that begins so many seconds after the start."""
    loop: Loop = field(default_factory=Loop)
    in_time: int = 0
    late: int = 0

    def __post_init__(self) -> None:
        self._began_s = self.loop.now_s
        self._random = random.Random(1)
        curve = LatencyCurve({rows: rows * self.row_s for rows in (1, 2, 4, 8)})
        self.scheduler: Scheduler[None, None] = Scheduler(
            self._run, curve, self.loop, name="m", max_batch_rows=64, max_queue_size=1024, instances=1
        )

    def run_for(self, seconds: float) -> float:
        """The share of the rows that could have been computed that was answered in time."""
        self._send()
        self.loop.advance(seconds)
        steps = 1000
        possible = (
            sum(1 / self.slowness(seconds * step / steps) for step in range(steps)) * seconds / steps / self.row_s
        )
        return self.in_time / possible

    def _run(self, items: Sequence[None], rows: int, finished: Callable[[BatchOutcome[Any]], None]) -> None:
        took_s = (
            rows * self.row_s * self.slowness(self.loop.now_s - self._began_s) * math.exp(self._random.gauss(0, 0.04))
        )
        self.loop.call_at(self.loop.now_s + took_s, lambda: finished(BatchOutcome([None] * len(items))))

    def _send(self) -> None:
        self.loop.call_at(self.loop.now_s + self._random.expovariate(10 / self.row_s), self._send)
        sent_s = self.loop.now_s

        def told(outcome: object) -> None:
            if outcome is None:
                self.in_time += self.loop.now_s - sent_s <= DEADLINE_S
                self.late += self.loop.now_s - sent_s > DEADLINE_S

        with contextlib.suppress(Overloaded):
            self.scheduler.submit(None, told, rows=1, deadline_s=sent_s + DEADLINE_S)


@pytest.mark.parametrize(
    ("row_s", "left_s", "told"),
    [
        pytest.param(2.7, 3.3, "would answer within about 3.4 s, the request allows 3.3 s; 2.7 s are expected, "
                     "with a margin of a quarter; it was not run", id="seconds"),
        pytest.param(2.4, 2.999, "within about 3 s, the request allows 2.999 s; 2.4 s are expected",
                     id="as-many-digits-as-tell-them-apart"),
        pytest.param(100.0, 0.05, "within about 120 s, the request allows 50 ms; 100 s are", id="each-in-its-own-unit"),
        pytest.param(1.0, 5e-6, "the request allows 5 us (timeout is a number of microseconds); 1 s are", id="tiny"),
        pytest.param(1.0, -85e-6, "model 'm': the request's timeout passed before it was complete, by 85 us "
                     "(timeout is a number of microseconds); it was not run", id="passed"),
    ],
)  # fmt: skip
def test_a_deadline_that_cannot_be_kept_is_refused_in_figures_that_make_sense(
    row_s: float, left_s: float, told: str
) -> None:
    """One instance runs, and is expected to end at once."""
    space = QueueSpace()
    admission = Admission[None, None](
        Waiting(space), [Run([])], LatencyCurve({1: row_s}), space,
        name="model 'm'", max_batch_rows=1, max_queue_size=1, instances=1,
    )  # fmt: skip
    with pytest.raises(DeadlineExceeded) as refused:
        admission.require(1, 0, 0.0, left_s)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "slowness",
    [
        pytest.param(lambda now: 1.0, id="as-measured"),
        pytest.param(lambda now: 1.5, id="slower-than-measured"),
        pytest.param(lambda now: 2.0 if now % 10 > 7 else 1.0, id="halved-for-seconds-by-a-neighbour"),
    ],
)
def test_an_overloaded_model_spends_its_time_on_answers_in_time(slowness: Callable[[float], float]) -> None:
    overload = Overload(row_s=0.018, slowness=slowness)
    assert overload.run_for(20.0) > 0.93
    assert overload.late <= 0.02 * overload.in_time
