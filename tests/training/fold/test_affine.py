"""The affine value: what BatchNormalization is, composition, and why it is kept centred."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.fold.affine import Affine, from_batchnorm
from training.fold.refusal import Refusal

numbers = st.floats(-1e3, 1e3, allow_subnormal=False)
pairs = st.tuples(numbers, numbers).map(np.array)
affines = st.builds(Affine, pairs, pairs, pairs)


def of(gamma, beta, mean, variance, epsilon=0.0):
    return from_batchnorm(*(np.array([value]) for value in (gamma, beta, mean, variance)), epsilon=epsilon)


def test_batchnorm_is_gamma_over_deviation_around_the_mean():
    affine = of(6.0, 5.0, 3.0, 4.0)

    assert affine(np.array([3.0]), axis=0) == 5.0  # the mean goes to beta
    assert affine(np.array([5.0]), axis=0) == 11.0  # one deviation more adds gamma
    assert affine.shift == -4.0


def test_epsilon_is_the_float32_of_the_attribute():
    assert of(1.0, 0.0, 0.0, 0.0, 1e-5).scale == 1 / np.sqrt(float(np.float32(1e-5)))


@pytest.mark.parametrize(
    ("variance", "epsilon", "reason"),
    [
        (0.0, 0.0, "variance + epsilon is 0 in channel 0, expected positive and finite"),
        (-1.0, 1e-5, "variance + epsilon is -0.99999 in channel 0, expected positive and finite"),
        (np.inf, 1e-5, "variance + epsilon is inf in channel 0, expected positive and finite"),
        (np.nan, 1e-5, "variance + epsilon is nan in channel 0, expected positive and finite"),
    ],
)
def test_a_variance_without_a_root_is_refused(variance, epsilon, reason):
    assert of(1.0, 0.0, 0.0, variance, epsilon) == Refusal(reason)


@pytest.mark.parametrize(
    "bad", [(np.inf, 0.0, 0.0), (0.0, np.nan, 0.0), (0.0, 0.0, -np.inf), (1e308, 0.0, 0.0)], ids=str
)
def test_a_map_that_is_not_finite_is_refused(bad):
    assert of(*bad, 1e-300) == Refusal("scale, mean or bias of channel 0 is not finite")


def test_the_centred_form_does_not_cancel():
    """A bias one ulp from a large mean: the expanded form `b * s + t` loses every digit, the centred one none."""
    mean = 1e8 + 1 / 3
    bias = np.nextafter(mean, np.inf)
    affine = of(1.0, 0.25, mean, 1e-8)
    exact = Fraction(float(affine.scale[0])) * (Fraction(bias) - Fraction(mean)) + Fraction(1, 4)

    expanded = bias * affine.scale + affine.shift

    assert affine(np.array([bias]), axis=0)[0] == pytest.approx(float(exact), rel=1e-15)
    assert abs(expanded[0] - float(exact)) > 1e-5


@given(affines, affines, pairs)
def test_composition_is_one_map_after_the_other(outer, inner, x):
    magnitude = np.abs(outer.scale) * (
        np.abs(inner.scale) * (np.abs(x) + np.abs(inner.center)) + np.abs(inner.offset) + np.abs(outer.center)
    ) + np.abs(outer.offset)

    difference = outer.after(inner)(x, axis=0) - outer(inner(x, axis=0), axis=0)

    assert (np.abs(difference) <= 1e-14 * magnitude).all()


@given(affines)
def test_the_identity_is_neutral(affine):
    identity = Affine.identity(2)
    for same in (affine.after(identity), identity.after(affine)):
        x = np.array([0.5, -2.0])
        # Bit for bit: 1 * (v - 0) + 0 rounds nothing; composing with the identity inside moves the center into offset.
        magnitude = np.abs(affine.scale) * (np.abs(x) + np.abs(affine.center)) + np.abs(affine.offset)
        assert (np.abs(same(x, 0) - affine(x, 0)) <= 1e-15 * magnitude * 4).all()


def test_it_applies_along_the_axis_it_is_told():
    affine = Affine.scaling(np.array([1.0, 10.0]))

    assert affine(np.ones((2, 2)), axis=0).tolist() == [[1, 1], [10, 10]]
    assert affine(np.ones((2, 2)), axis=1).tolist() == [[1, 10], [1, 10]]
    assert affine(np.ones((3, 1)), axis=1).tolist() == [[1, 10]] * 3
