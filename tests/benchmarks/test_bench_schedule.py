"""What the table of `make bench-schedule` says of figures that are written down here."""

from __future__ import annotations

import pytest

from tests.benchmarks.bench_schedule import AGAIN, OURS, QUICK, WHOLE, Figures, Found, misses, setting, table

ONE, MANY = setting(1, 0), setting(64, 500)


def rounds(*rates: float) -> list[Figures]:
    return [Figures(per_s, 1000 / per_s, 1.5) for per_s in rates]


@pytest.fixture
def found() -> Found:
    """The machine is half as fast in the second round; `MANY` is the better setting, and a little better than ours."""
    return {
        ("wide", 8, OURS): rounds(900, 450, 880),
        ("wide", 8, AGAIN): rounds(909, 454.5, 888.8),
        ("wide", 8, ONE): rounds(300, 150, 2000),
        ("wide", 8, MANY): rounds(1000, 500, 1000),
    }


def test_the_best_static_setting_has_the_best_median_and_ratios_are_of_the_same_round(found: Found) -> None:
    *_, row = table(found).splitlines()
    assert row == "| wide | 8 | 880 | 1.14 | 1.5 | 1000 | 1.00 | 64 rows, 500 us | 0.900 | 1.010 |"


def test_what_is_below_the_target_is_named(found: Found) -> None:
    assert misses(found) == ["MISSED wide, 8 clients: 0.900 of 64 rows, 500 us, target 0.95"]
    found["wide", 8, OURS] = rounds(960, 480, 960)
    assert misses(found) == []


@pytest.mark.parametrize("pace", [QUICK, WHOLE])
def test_a_batch_of_one_row_waits_for_nobody(pace: object) -> None:
    assert [delay_us for rows, delay_us in pace.settings if rows == 1] == [0]
    assert len(pace.settings) == 1 + (len(pace.batch_sizes) - 1) * len(pace.delays_us)
