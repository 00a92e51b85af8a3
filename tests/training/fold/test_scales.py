"""Scales: ratios along paths, contradictions, signs, and taking things back."""

from __future__ import annotations

import numpy as np
import pytest

from training.fold.scales import Scales


def solved(scales: Scales, places: int, weights: list[float] | None = None) -> np.ndarray:
    return scales.solution(np.array(weights or [1.0] * places))


def test_a_pinned_place_is_one_and_ratios_follow_the_path():
    scales = Scales(3, 2)

    assert scales.tie(0, 1, np.array([2.0, -3.0]))
    assert scales.tie(1, 2, np.array([0.5, 4.0]))
    assert scales.pin(2)

    assert solved(scales, 3).tolist() == [[1.0, -12.0], [0.5, 4.0], [1.0, 1.0]]


def test_a_cycle_that_agrees_is_no_contradiction_and_one_that_does_not_says_nothing():
    scales = Scales(3, 1)
    assert scales.tie(0, 1, 2.0) and scales.tie(1, 2, 3.0)

    assert scales.tie(0, 2, 6.0)
    assert not scales.tie(0, 2, 5.0)
    assert not scales.tie(0, 2, 6.0 * (1 + 1e-6))

    assert scales.pin(0)
    np.testing.assert_allclose(solved(scales, 3)[:, 0], [1, 1 / 2, 1 / 6])


def test_one_channel_that_contradicts_is_enough():
    scales = Scales(2, 3)
    assert scales.tie(0, 1, np.array([1.0, 2.0, 3.0]))

    assert not scales.tie(0, 1, np.array([1.0, 2.0, 3.5]))


def test_two_pins_contradict_a_ratio_between_them():
    scales = Scales(2, 1)
    assert scales.pin(0) and scales.pin(1)

    assert not scales.tie(0, 1, 2.0)
    assert scales.tie(0, 1, 1.0)


def test_a_positive_place_turns_its_whole_tree():
    scales = Scales(2, 2)
    assert scales.tie(0, 1, np.array([-2.0, 2.0]))

    assert scales.positive(0)

    assert (solved(scales, 2, [1, 5]) == [[2.0, 2.0], [-1.0, 1.0]]).all()


def test_signs_that_contradict_are_refused_across_a_join():
    scales = Scales(2, 1)
    assert scales.positive(0) and scales.positive(1)

    assert not scales.tie(0, 1, -1.0)
    assert scales.tie(0, 1, 3.0)
    assert not Scales(1, 1).tie(0, 0, -1.0)


def test_a_pinned_place_is_positive_already():
    scales = Scales(2, 1)
    assert scales.pin(0) and scales.tie(1, 0, -2.0)

    assert scales.positive(0)
    assert not scales.positive(1)


def test_the_heaviest_place_of_a_free_tree_keeps_its_numbers():
    scales = Scales(3, 1)
    assert scales.tie(0, 1, 4.0) and scales.tie(1, 2, 0.5)

    assert solved(scales, 3, [1, 1, 9])[:, 0].tolist() == [2.0, 0.5, 1.0]


@pytest.mark.parametrize("ratio", [0.0, np.inf, np.nan])
def test_a_ratio_that_is_no_number_is_refused(ratio):
    with np.errstate(all="ignore"):
        assert not Scales(2, 1).tie(0, 1, ratio)


def test_going_back_to_a_mark_leaves_no_trace():
    scales = Scales(4, 1)
    assert scales.tie(0, 1, 2.0)
    before = solved(scales, 4)
    mark = scales.mark()

    assert scales.tie(1, 2, 3.0) and scales.positive(2) and scales.pin(3) and scales.tie(3, 0, 5.0)
    scales.back_to(mark)

    assert (solved(scales, 4) == before).all()
    assert scales.tie(3, 0, -7.0) and scales.tie(1, 2, -5.0)


def test_what_is_needed_cannot_be_killed_until_all_who_need_it_are_gone():
    scales = Scales(2, 1)
    assert scales.need(0) and scales.need(1) and scales.tie(0, 1, 2.0)

    assert not scales.kill(0)
    assert scales.release(0) and not scales.kill(0)
    assert scales.release(1) and scales.kill(0)
    assert solved(scales, 2).tolist() == [[0.0], [0.0]]


def test_what_is_dead_cannot_be_needed_nor_tied_to_what_is():
    scales = Scales(3, 1)
    assert scales.kill(0) and scales.need(1)

    assert not scales.need(0)
    assert not scales.tie(0, 1) and not scales.tie(1, 0) and not scales.pin(0)
    assert scales.tie(2, 0, 5.0) and not scales.need(2)


def test_needs_are_taken_back_with_the_ties_that_joined_them():
    scales = Scales(3, 1)
    assert scales.need(0)
    mark = scales.mark()

    assert scales.release(0) and scales.need(1) and scales.tie(0, 1) and scales.tie(1, 2) and scales.need(2)
    scales.back_to(mark)

    assert not scales.kill(0)
    assert scales.kill(1) and scales.kill(2)
