"""Steps by their numbers, from any to any, under whatever engine."""

from __future__ import annotations

import pytest

from training.engine import run_steps


@pytest.mark.parametrize(
    ("first", "total", "last", "made"),
    [
        (0, 4, 99, [0, 1, 2, 3]),
        (2, 4, 99, [2, 3]),
        (0, 4, 2, [0, 1]),
        (3, 9, 4, [3]),
        (4, 4, 99, []),
        (5, 4, 99, []),
    ],
)
def test_steps_are_made_in_order_until_the_end_or_a_stop(first: int, total: int, last: int, made: list[int]):
    seen: list[int] = []
    told: list[int] = []

    def goes_on(steps: int) -> bool:
        told.append(steps)
        return steps < last

    end = run_steps(seen.append, first=first, total=total, goes_on=goes_on)

    assert (seen, told) == (made, [number + 1 for number in made])
    assert end == (made[-1] + 1 if made else first)


def test_what_a_step_raises_comes_through(caplog: pytest.LogCaptureFixture):
    def step(number: int) -> None:
        if number == 2:
            raise ArithmeticError("in step 2")

    with pytest.raises(ArithmeticError, match="in step 2"):
        run_steps(step, first=0, total=4, goes_on=lambda _: True)
    assert caplog.text == ""
