from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from service.latency_curve import LatencyCurve

CURVES = st.dictionaries(st.sampled_from([1, 2, 4, 8, 16, 32, 64]), st.floats(1e-6, 10.0), min_size=1)


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [
        pytest.param(1, 1.0, id="measured"),
        pytest.param(2, 1.5, id="between"),
        pytest.param(3, 2.0, id="measured-too"),
        pytest.param(6, 4.0, id="beyond-nothing-more-is-gained-a-row"),
    ],
)
def test_time_is_linear_between_measured_points(rows: int, seconds: float) -> None:
    assert LatencyCurve({1: 1.0, 3: 2.0}).seconds(rows) == pytest.approx(seconds)


def test_one_point_is_taken_to_grow_with_the_rows() -> None:
    assert LatencyCurve({1: 0.5}).seconds(4) == pytest.approx(2.0)


def test_a_curve_that_falls_is_noise_and_not_a_gift() -> None:
    curve = LatencyCurve({1: 1.0, 2: 2.0, 4: 1.5})
    assert curve.seconds(3) == pytest.approx(2.0)


@pytest.mark.parametrize("measured", [{}, {0: 1.0}, {1: 0.0}, {1: -1.0}])
def test_a_curve_needs_something_to_stand_on(measured: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="latency curve needs"):
        LatencyCurve(measured)


@pytest.mark.parametrize(
    ("measured", "waiting", "worth"),
    [
        pytest.param({1: 1.0, 2: 2.0, 4: 4.0}, 4, 1, id="linear"),
        pytest.param({1: 1.0, 2: 1.0, 4: 1.0}, 4, 4, id="flat"),
        pytest.param({1: 1.0, 2: 1.0, 4: 1.0}, 3, 3, id="flat-not-all-there"),
        pytest.param({1: 1.0, 2: 1.2, 4: 2.4}, 4, 2, id="saturates-at-two"),
        pytest.param({1: 1.0, 2: 1.2, 4: 8.0}, 4, 2, id="falls-off-a-cache"),
        pytest.param({1: 1.0, 2: 1.98}, 2, 1, id="within-noise"),
        pytest.param({1: 1.0, 2: 1.2}, 1, 1, id="one"),
        pytest.param({1: 1.0, 2: 1.2}, 0, 0, id="none"),
    ],
)
def test_the_smallest_batch_that_serves_as_many_rows_a_second(
    measured: dict[int, float], waiting: int, worth: int
) -> None:
    assert LatencyCurve(measured).rows_worth_running(waiting) == worth


def test_sizes_far_beyond_what_was_measured_are_reached_a_doubling_at_a_time() -> None:
    """The slope between 4 and 8 rows is an error of measurement: followed to 40 rows it would promise half as much
    again, and one run of 40 would cost all who wait their deadlines."""
    curve = LatencyCurve({1: 0.02, 2: 0.04, 4: 0.08, 8: 0.145})
    assert curve.rows_worth_running(40) == 8
    chosen = {curve.rows_to_run(40) for _ in range(64)}
    assert chosen == {4, 8, 16}


def test_the_curve_follows_what_batches_take() -> None:
    curve = LatencyCurve({1: 1.0, 8: 8.0})
    for _ in range(60):
        curve.observe(1, 2.0)
    assert curve.seconds(1) == pytest.approx(2.0, rel=0.01)


def test_a_machine_that_became_slower_is_slower_for_all_sizes() -> None:
    """Or sizes that nobody runs just then would look better every time, and batches would climb to the largest."""
    curve = LatencyCurve({2**power: 0.017 * 2**power for power in range(7)})
    used = []
    for _ in range(500):
        used.append(curve.rows_to_run(64))
        curve.observe(used[-1], 0.034 * used[-1])
    assert curve.seconds(64) == pytest.approx(0.034 * 64, rel=0.1)
    # One in sixteen tries twice the rows, and that is all.
    assert sorted(used)[: len(used) * 14 // 16] == [1] * (len(used) * 14 // 16)


def test_more_rows_never_take_less() -> None:
    curve = LatencyCurve({1: 1.0, 8: 1.0})
    for _ in range(200):
        curve.observe(1, 20.0)
        curve.observe(8, 10.0)
    assert curve.seconds(8) >= curve.seconds(1)


def test_more_rows_do_not_take_many_times_more_a_row() -> None:
    curve = LatencyCurve({1: 1.0, 8: 8.0})
    for _ in range(60):
        curve.observe(1, 0.01)
    assert curve.seconds(8) <= 4.01 * 8 * 0.01


def test_a_single_hiccup_does_not_make_the_curve_useless() -> None:
    curve = LatencyCurve({1: 0.001})
    curve.observe(1, 60.0)
    assert curve.seconds(1) < 0.003


def test_a_size_that_was_never_measured_is_believed_when_it_is_seen() -> None:
    curve = LatencyCurve({1: 1.0})
    assert curve.seconds(4) == pytest.approx(4.0)
    curve.observe(4, 1.2)
    assert curve.seconds(4) == pytest.approx(1.2, rel=0.05)
    # A part of the surprise may be that the machine is faster than it was.
    assert 0.9 < curve.seconds(1) < 1.0


def test_one_lucky_run_does_not_make_a_size_look_best_for_long() -> None:
    """All sizes take the same a row; a run of 3, which was never measured, happened to be short by a sixth."""
    curve = LatencyCurve({1: 0.02, 8: 0.16})
    for _ in range(20):
        curve.observe(8, 0.16)
    curve.observe(3, 0.05)
    assert curve.rows_worth_running(8) == 3
    for _ in range(5):
        curve.observe(3, 0.06)
    assert curve.seconds(3) / 3 == pytest.approx(curve.seconds(8) / 8, rel=0.03)
    for _ in range(150):
        rows = curve.rows_to_run(8)
        curve.observe(rows, 0.02 * rows)
    assert curve.seconds(3) / 3 == pytest.approx(curve.seconds(8) / 8, rel=0.02)
    assert curve.seconds(8) == pytest.approx(0.16, rel=0.03)


def test_what_only_one_size_has_become_is_told_from_what_the_machine_has_become() -> None:
    curve = LatencyCurve({1: 1.0, 2: 2.0, 4: 4.0})
    for _ in range(100):
        curve.observe(1, 1.0)
        curve.observe(2, 3.0)
    assert curve.seconds(1) == pytest.approx(1.0, rel=0.1)
    assert curve.seconds(2) == pytest.approx(3.0, rel=0.1)
    for _ in range(100):
        curve.observe(1, 2.0)
    assert curve.seconds(2) == pytest.approx(6.0, rel=0.1)


def test_points_do_not_grow_without_end() -> None:
    curve = LatencyCurve({1: 1.0})
    for rows in range(1, 2000):
        curve.observe(rows, 1.0)
    assert len(curve.points) <= 32


def test_a_size_that_was_measured_in_a_bad_moment_is_tried_again() -> None:
    """In truth every batch takes 1 s; the measurement says that 2 rows take 10."""
    curve = LatencyCurve({1: 1.0, 2: 10.0})
    assert curve.rows_worth_running(2) == 1
    tried = []
    for _ in range(400):
        tried.append(curve.rows_to_run(2))
        curve.observe(tried[-1], 1.0)
    assert tried[0] == 1
    assert tried[-60:].count(2) >= 58


def test_what_was_learnt_of_a_size_in_a_bad_minute_is_unlearnt_in_a_few_tries() -> None:
    """8 rows take 12 s and 16 take 17; but while 16 ran, hundreds of times, they took 28. Then 8 run, and 16 rarely."""
    curve = LatencyCurve({1: 4.0, 8: 12.0, 16: 17.0})
    for _ in range(50):
        curve.observe(8, 12.0)
        for _ in range(6):
            curve.observe(16, 28.0)
    assert curve.rows_worth_running(16) == 8
    tries = 0
    while tries < 20 and curve.rows_worth_running(16) == 8:
        tries += 1
        for _ in range(31):
            curve.observe(8, 12.0)
        curve.observe(16, 17.0)
    assert 0 < tries < 10


def test_a_step_in_what_batches_take_does_not_hide_the_sizes_behind_it() -> None:
    """As ONNX Runtime with two threads takes them: from 16 rows on a second one is woken. What is known of the largest
    sizes comes from a bad moment; trying one doubling after the other would end at 8 rows."""

    def takes_s(rows: int) -> float:
        return 30e-6 if rows < 16 else 62e-6 + rows * 1e-7

    curve = LatencyCurve({rows: takes_s(rows) for rows in (1, 2, 4, 8, 16)} | {32: 240e-6, 64: 700e-6})
    assert curve.rows_worth_running(64) == 8
    used = []
    for _ in range(2000):
        used.append(curve.rows_to_run(64))
        curve.observe(used[-1], takes_s(used[-1]))
    assert used[-200:].count(64) > 180


def test_only_what_takes_next_to_no_time_is_tried_with_all_rows_at_once() -> None:
    for row_s, tried in ((1e-6, {8, 64}), (1e-3, {8})):
        curve = LatencyCurve({1: 1.1 * row_s, 4: 4 * row_s, 64: 64 * row_s})
        sizes = set()
        for _ in range(256):
            size = curve.rows_to_run(64)
            assert curve.is_trying == (size != 4)
            sizes.add(size)
        assert sizes == {2, 4} | tried


def test_a_cliff_that_appears_behind_the_best_size_is_got_away_from() -> None:
    """Batches of more than 16 rows have become three times as slow: half of 64 is no better, a quarter is."""
    curve = LatencyCurve({2**power: 0.01 + 0.001 * 2**power for power in range(7)})
    used = []
    for _ in range(4000):
        rows = curve.rows_to_run(64)
        used.append(rows)
        curve.observe(rows, (0.01 + 0.001 * rows) * (3 if rows > 16 else 1))
    assert used[0] == 64
    assert used[-200:].count(16) > 150


def test_trying_other_sizes_is_rare() -> None:
    curve = LatencyCurve({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0})
    assert sum(curve.rows_to_run(8) != 1 for _ in range(160)) == 10
    flat = LatencyCurve({1: 1.0, 8: 1.0})
    assert sum(flat.rows_to_run(8) != 8 for _ in range(128)) == 2


def test_what_is_worth_running_follows_the_curve() -> None:
    curve = LatencyCurve({1: 1.0, 2: 1.0})
    assert curve.rows_worth_running(2) == 2
    for _ in range(40):
        curve.observe(2, 4.0)
        curve.observe(1, 1.0)
    assert curve.rows_worth_running(2) == 1


@given(measured=CURVES, rows=st.integers(1, 200))
def test_what_is_worth_running_is_never_more_than_there_is(measured: dict[int, float], rows: int) -> None:
    assert 1 <= LatencyCurve(measured).rows_worth_running(rows) <= rows


def test_sizes_that_are_not_seen_do_not_drift_away() -> None:
    """A size whose runs are now short, now long, says nothing about the others but that they cannot be longer."""
    curve = LatencyCurve({1: 1e-4, 16: 2e-4})
    for number in range(10_000):
        curve.observe(16, 2e-4 if number % 2 else 2e-2)
    assert curve.seconds(1) <= 2e-2
    curve.observe(16, 2e-4)
    curve.observe(16, 2e-4)
    assert curve.seconds(1) <= curve.seconds(16)


@given(measured=CURVES, observed=st.lists(st.tuples(st.integers(1, 64), st.floats(0, 1e3))), rows=st.integers(1, 200))
def test_expected_times_stay_positive(measured: dict[int, float], observed: list[tuple[int, float]], rows: int) -> None:
    curve = LatencyCurve(measured)
    for observed_rows, seconds in observed:
        curve.observe(observed_rows, seconds)
    assert curve.seconds(rows) > 0
