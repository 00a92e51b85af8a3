"""Shifts: the equations hold in the solution, a contradiction says nothing, and marks are gone back to exactly."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.fold.shifts import Shifts


def test_what_is_undetermined_is_zero():
    shifts = Shifts(2)
    assert shifts.equation([(0, 1.0), (1, -1.0)], np.array([3.0, 4.0]))

    found = shifts.solution(3)

    assert (found[0] - found[1]).tolist() == [3.0, 4.0]
    assert found[2].tolist() == [0.0, 0.0]
    assert 0.0 in (found[0, 0], found[1, 0])


def test_a_contradiction_is_refused_and_says_nothing():
    shifts = Shifts(1)
    assert shifts.equation([(0, 1.0)], 2.0)

    assert not shifts.equation([(0, 1.0)], 3.0)
    assert shifts.equation([(0, 2.0)], 4.0)
    assert shifts.solution(1).tolist() == [[2.0]]


def test_one_strand_that_contradicts_is_enough():
    shifts = Shifts(2)
    assert shifts.equation([(0, 1.0)], np.array([1.0, 1.0]))

    assert not shifts.equation([(0, 1.0)], np.array([1.0, 1.5]))


def test_a_residual_stream_takes_every_shift_that_its_blocks_want():
    """x1 = x0 + f0, x2 = x1 + f1, ... and every x is told what it should be."""
    depth, shifts = 50, Shifts(1)
    x, f = range(depth + 1), range(depth + 1, 2 * depth + 1)
    for k in range(depth):
        assert shifts.equation([(x[k + 1], 1.0), (x[k], -1.0), (f[k], -1.0)])
    for k in x:
        assert shifts.equation([(k, 1.0)], float(k * k))

    found = shifts.solution(2 * depth + 1)[:, 0]

    assert found[list(x)].tolist() == [k * k for k in x]
    assert found[list(f)].tolist() == [2 * k + 1 for k in range(depth)]


def test_a_coefficient_that_vanishes_in_one_strand_is_no_pivot():
    shifts = Shifts(2)

    assert not shifts.equation([(0, np.array([1.0, 0.0]))], 1.0)
    assert shifts.equation([(0, np.array([1.0, 0.0])), (1, 1.0)], 1.0)


def test_a_wish_is_not_granted_by_shifts_that_are_many_times_what_was_asked_for():
    """Two branches that are scaled nearly alike: a shift of 1 would be made of 1000 and -1000."""
    shifts, alike = Shifts(1), np.array([1.001])
    assert shifts.equation([(0, 1.0), (1, 1.0)])

    assert not shifts.wish([(0, 1.0), (1, alike)], 1.0)
    assert shifts.wish([(0, 1.0), (1, alike)], 0.0)
    assert shifts.solution(2).tolist() == [[0.0], [0.0]]


def test_what_must_hold_is_solved_however_alike_two_branches_are():
    shifts = Shifts(1)
    assert shifts.equation([(0, 1.0), (1, 1.0)])

    assert shifts.equation([(0, 1.0), (1, np.array([1.001]))], 1.0)
    np.testing.assert_allclose(shifts.solution(2)[:, 0], [-1000.0, 1000.0])


rows = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 7), st.sampled_from([-2.0, -1.0, 1.0, 3.0])), max_size=4), st.integers(-5, 5)
    ),
    max_size=12,
)


@given(rows, st.integers(0, 12))
def test_accepted_equations_hold_and_refused_ones_contradict_them(equations, back_at):
    """Against NumPy's rank: a row is refused exactly when it raises the rank of the augmented matrix alone."""
    shifts, matrix, right = Shifts(1), [], []
    for number, (terms, constant) in enumerate(equations):
        row = np.zeros(8)
        for place, c in terms:
            row[place] += c
        mark = shifts.mark()
        held = shifts.equation(terms, float(constant))
        plain = np.linalg.matrix_rank(np.array([*matrix, row]))
        augmented = np.linalg.matrix_rank(
            np.array([[*r, k] for r, k in zip([*matrix, row], [*right, constant], strict=True)])
        )
        assert held == (plain == augmented)
        if number == back_at:
            shifts.back_to(mark)
        elif held:
            matrix.append(row)
            right.append(constant)

    found = shifts.solution(8)[:, 0]
    for row, constant in zip(matrix, right, strict=True):
        np.testing.assert_allclose(row @ found, constant, atol=1e-9 * (1 + np.abs(row) @ np.abs(found)))
