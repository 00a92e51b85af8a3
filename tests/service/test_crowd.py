from __future__ import annotations

import pytest

from service.crowd import Crowd, Place


def test_so_many_are_admitted_and_the_next_is_turned_away() -> None:
    crowd = Crowd(2)
    assert [crowd.enter() for _ in range(3)] == [Place.ADMITTED, Place.ADMITTED, Place.TURNED_AWAY]
    assert crowd.admitted == 2


def test_who_is_being_told_takes_no_place_of_those_admitted() -> None:
    crowd = Crowd(1)
    first, told = crowd.enter(), crowd.enter()
    crowd.leave(first)
    assert crowd.enter() is Place.ADMITTED
    crowd.leave(told)
    assert crowd.enter() is Place.TURNED_AWAY


def test_a_flood_is_closed_without_a_word() -> None:
    crowd = Crowd(1)
    places = [crowd.enter() for _ in range(1000)]
    assert places[-1] is Place.SHUT_OUT
    assert places.count(Place.TURNED_AWAY) < 300
    for place in places:
        crowd.leave(place)
    assert crowd.enter() is Place.ADMITTED


def test_many_that_have_gone_are_told_of_once() -> None:
    crowd = Crowd(5000)
    for _ in range(2000):
        crowd.enter()
    assert not crowd.has_thinned()
    for _ in range(1500):
        crowd.leave(Place.ADMITTED)
    assert crowd.has_thinned()
    assert not crowd.has_thinned()
    for _ in range(500):
        crowd.leave(Place.ADMITTED)
    assert not crowd.has_thinned(), "these were few"


def test_a_flood_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    crowd = Crowd(1, clock=lambda: now)
    for _ in range(500):
        crowd.enter()
    now = 60.0
    crowd.enter()
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "connections refused: 1",
        "connections refused: 499",
    ]
