"""The queue's bookkeeping against a plain list that is searched from one end to the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings

from service.ticket import Ticket
from service.waiting import QueueSpace, Waiting

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 2), st.sampled_from("AB"), st.sampled_from([1.0, 5.0, 5.0, math.inf])),
        st.tuples(st.just("remove"), st.integers(0, 9)),
        st.tuples(st.just("take"), st.integers(1, 4)),
        st.tuples(st.just("expire"), st.sampled_from([1.0, 5.0])),
    ),
    max_size=40,
)


def ticket(item: int, *, rows: int = 1, group: str = "", priority: int = 0, deadline_s: float = math.inf) -> Any:
    return Ticket(item, rows, 10, group, lambda told: None, priority, 0.0, deadline_s)


@settings(max_examples=200)
@given(_STEPS)
def test_whatever_comes_and_goes_the_oldest_of_the_best_priority_is_next(steps: Sequence[Any]) -> None:
    space = QueueSpace()
    waiting: Waiting[int, None] = Waiting(space)
    plain: list[tuple[int, int, Any]] = []
    for number, step in enumerate(steps):
        match step:
            case ("add", priority, group, deadline_s):
                plain.append((priority, number, ticket(number, group=group, priority=priority, deadline_s=deadline_s)))
                waiting.add(plain[-1][2])
            case ("remove", index) if index < len(plain):
                waiting.remove(plain.pop(index)[2])
            case ("take", most) if plain:
                group = min(plain)[2].group
                expected = [each for each in sorted(plain) if each[2].group == group][:most]
                assert waiting.take(most, 9, lambda rows, deadline_s: True) == [each[2] for each in expected]
                plain = [each for each in plain if each not in expected]
            case ("expire", now):
                expired = [each for each in plain if each[2].deadline_s <= now]
                assert set(waiting.remove_expired(now)) == {each[2] for each in expired}
                plain = [each for each in plain if each not in expired]
        assert waiting.requests == waiting.rows == len(plain)
        assert space.used_bytes == 10 * len(plain)
        assert waiting.groups == len({each[2].group for each in plain})
        assert waiting.earliest_deadline_s == min((each[2].deadline_s for each in plain), default=math.inf)
        assert set(waiting.everybody) == {each[2] for each in plain}
        if plain:
            assert waiting.oldest is min(plain)[2]


def test_a_deadline_that_stays_does_not_keep_those_that_were_taken_behind_it() -> None:
    """One that is never taken has the earliest deadline, and thousands with later ones pass."""
    waiting: Waiting[int, None] = Waiting(QueueSpace())
    waiting.add(ticket(0, priority=1, deadline_s=1.0))
    for number in range(1, 3000):
        waiting.add(ticket(number, deadline_s=2.0))
        assert len(waiting.take(1, 1, lambda rows, deadline_s: True)) == 1
    assert len(waiting._deadlines) < 300


def test_those_who_give_up_behind_one_who_waits_are_swept() -> None:
    waiting: Waiting[int, None] = Waiting(QueueSpace())
    waiting.add(ticket(0))
    for number in range(1, 3000):
        given_up = ticket(number)
        waiting.add(given_up)
        waiting.remove(given_up)
        assert given_up.item is None
    assert sum(map(len, waiting._groups.values())) < 300
    assert waiting.oldest.item == 0
