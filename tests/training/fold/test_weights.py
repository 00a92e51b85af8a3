"""Arithmetic on weights against definitions written as loops, and the single rounding."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.fold.affine import Affine
from training.fold.weights import BFLOAT16, fold_constant, round_once, widen


@pytest.mark.parametrize(
    ("constant", "rank", "folded"),
    [
        ((), 2, (7,)), ((1,), 2, (7,)), ((7,), 2, (7,)), ((1, 7), 2, (1, 7)), ((5, 1), 2, (5, 7)), ((5, 7), 2, (5, 7)),
        ((), 4, (7, 1, 1)), ((6,), 4, (7, 1, 6)), ((7, 1, 1), 4, (7, 1, 1)), ((2, 1, 1, 1), 4, (2, 7, 1, 1)),
    ],
    ids=str,
)  # fmt: skip
def test_a_folded_constant_has_the_fewest_axes_that_hold_the_channels(constant, rank, folded):
    affine = Affine(np.arange(1.0, 8), np.ones(7), np.arange(7.0))
    values = np.arange(1.0, np.prod(constant) + 1).reshape(constant)

    result = fold_constant(values, affine, rank)

    assert result.shape == folded
    # The law: adding the folded constant to a scaled tensor is the affine of the sum, in NumPy's broadcasting.
    u = np.random.default_rng(0).normal(size=(5 if rank == 2 else 2, 7, 1, 6)[:rank])
    np.testing.assert_allclose(affine(u, 1) - affine(np.zeros_like(u), 1) + result, affine(u + values, 1))


class TestRoundOnce:
    """float64 to storage in one rounding, to nearest, ties to even."""

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (1 + 2**-8 + 2**-40, 1 + 2**-7),  # just above a tie: float32 on the way would round it onto the tie
            (1 + 2**-8 - 2**-40, 1.0),
            (1 + 3 * 2**-8 - 2**-40, 1 + 2**-7),
            (1 + 2**-8, 1.0),  # the tie itself goes to even
            (1 + 3 * 2**-8, 1 + 2**-6),
            (-(1 + 2**-8 + 2**-40), -(1 + 2**-7)),
            (0.0, 0.0),
            (1e300, np.inf),
            (-1e300, -np.inf),
            (1e-300, 0.0),
        ],
        ids=str,
    )
    def test_bfloat16_is_not_rounded_twice(self, value, expected):
        assert float(round_once(np.array([value]), BFLOAT16)[0]) == expected

    def test_the_library_would_round_twice(self):
        """Why the detour exists; when this fails, ml_dtypes has mended it and the detour can go."""
        assert float(np.array([1 + 3 * 2**-8 - 2**-40]).astype(ml_dtypes.bfloat16)[0]) == 1 + 2**-6

    @pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float16), np.dtype(np.float32)], ids=str)
    @given(st.floats(-6e4, 6e4), st.integers(-60, 60))
    def test_no_neighbour_is_nearer(self, dtype, value, step):
        near = float(np.array([value]).astype(dtype).astype(np.float64)[0])
        value = near * (1 + step * 2.0**-14)  # crowd around representable numbers and ties
        if abs(value) > 6e4:
            return

        rounded = round_once(np.array([value]), dtype)

        mine = abs(Fraction(float(rounded[0])) - Fraction(value))
        for neighbour in (np.nextafter(rounded, dtype.type(np.inf)), np.nextafter(rounded, dtype.type(-np.inf))):
            if np.isfinite(neighbour.astype(np.float64)[0]):
                assert mine <= abs(Fraction(float(neighbour[0])) - Fraction(value))

    def test_nan_and_inf_pass(self):
        values = round_once(np.array([np.nan, np.inf, -np.inf]), BFLOAT16).astype(np.float64)
        assert np.isnan(values[0]) and values[1:].tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)], ids=str)
def test_widening_is_exact(dtype):
    values = np.array([1 / 3, -7e-5, 3e4]).astype(dtype)

    assert np.array_equal(round_once(widen(values), dtype), values)
