from __future__ import annotations

from collections.abc import Callable

import pytest

from service.busy_poll import LIMIT_S, BusyPoll

SOON_S = LIMIT_S / 5
LATE_S = LIMIT_S * 20
TURN_S = LIMIT_S / 50


class Loop:
    """An event loop whose turns take `TURN_S` each."""

    def __init__(self) -> None:
        self.now = 100.0
        self.turns = 0
        self._callbacks: list[Callable[[], object]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], object]) -> None:
        self._callbacks.append(callback)

    def run(self, seconds: float) -> None:
        """Turns as long as anything is to be called, then sleeps."""
        end = self.now + seconds
        while self._callbacks and self.now < end:
            callbacks, self._callbacks = self._callbacks, []
            for callback in callbacks:
                callback()
            self.now += TURN_S
            self.turns += 1
        self.now = end


def requests(poll: BusyPoll, loop: Loop, gaps_s: list[float], connections: int = 1) -> int:
    """Answered at once, the next one so long after each, by each connection in turn; how many turns the loop made
    meanwhile."""
    before = loop.turns
    for number, gap_s in enumerate(gaps_s):
        poll.answered(number % connections)
        loop.run(gap_s)
        poll.received((number + 1) % connections)
    loop.run(LIMIT_S)
    return loop.turns - before


def test_a_loop_whose_requests_come_soon_stays_awake_for_them() -> None:
    loop = Loop()
    poll = BusyPoll(loop, cores=2)
    requests(poll, loop, [SOON_S] * 10)
    before = loop.turns
    poll.answered(0)
    loop.run(SOON_S)
    assert loop.turns - before >= int(SOON_S / TURN_S)


def test_it_sleeps_when_nothing_has_come_within_the_limit() -> None:
    loop = Loop()
    poll = BusyPoll(loop, cores=2)
    requests(poll, loop, [SOON_S] * 10)
    before = loop.turns
    poll.answered(0)
    loop.run(10 * LIMIT_S)
    assert loop.turns - before <= LIMIT_S / TURN_S + 2


@pytest.mark.parametrize(
    ("gaps_s", "cores"),
    [
        pytest.param([LATE_S] * 40, 2, id="requests-that-come-late"),
        pytest.param([SOON_S, LATE_S, LATE_S] * 20, 2, id="mostly-late"),
        pytest.param([SOON_S] * 40, 1, id="a-single-core-which-the-client-may-need"),
    ],
)
def test_it_costs_nothing_with(gaps_s: list[float], cores: int) -> None:
    loop = Loop()
    assert requests(BusyPoll(loop, cores=cores), loop, gaps_s) == 0


def test_it_stops_when_requests_no_longer_come_soon() -> None:
    loop = Loop()
    poll = BusyPoll(loop, cores=2)
    requests(poll, loop, [SOON_S] * 20)
    requests(poll, loop, [LATE_S] * 8)
    assert requests(poll, loop, [LATE_S] * 20) == 0


def test_requests_that_come_together_are_one_piece_of_news() -> None:
    """Only the time behind an answer counts: of a late burst, none but the first was waited for."""
    loop = Loop()
    poll = BusyPoll(loop, cores=2)
    for _ in range(20):
        poll.answered(0)
        loop.run(LATE_S)
        for connection in range(10):
            poll.received(connection)
    assert loop.turns == 0


@pytest.mark.parametrize(
    ("processes", "connections", "stays_awake"),
    [
        pytest.param(1, 2, True, id="one-process-for-any-caller"),
        pytest.param(2, 1, True, id="one-of-several-for-a-lone-caller"),
        pytest.param(2, 2, False, id="one-of-several-for-nobody-else"),
    ],
)
def test_a_core_is_kept_busy_only_where_no_other_process_may_need_it(
    processes: int, connections: int, stays_awake: bool
) -> None:
    loop = Loop()
    poll = BusyPoll(loop, cores=2, processes=processes)
    assert (requests(poll, loop, [SOON_S] * 20, connections) > 0) == stays_awake
