"""The algebra of windows, against convolutions computed pixel by pixel from their definition."""

from __future__ import annotations

from itertools import product
from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.fold.affine import Affine
from training.fold.branches.window import Axis, Frame, Window, added, diagonal, followed, identity, mean, total


def apply(window: Window, x: np.ndarray) -> np.ndarray:
    """x: [inputs, n]. One output pixel, channel and tap at a time; outside of x is zero."""
    frame, axis = window.frame, window.frame.axes[0]
    outs, ins = frame.outputs // frame.group, frame.inputs // frame.group
    y = np.empty((frame.outputs, axis.size(x.shape[1])))
    for o, p in product(range(frame.outputs), range(y.shape[1])):
        y[o, p] = window.bias[o]
        for i, j in product(range(ins), range(axis.count)):
            at = axis.stride * p + axis.start + axis.step * j
            if 0 <= at < x.shape[1]:
                y[o, p] += window.kernel[o, i, j] * x[o // outs * ins + i, at]
    return y


@st.composite
def frames(draw: st.DrawFn, inputs: int = 4, outputs: int = 4, padded: bool = True) -> Frame:
    kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    pads = (draw(st.integers(0, 3)), draw(st.integers(0, 3))) if padded else (0, 0)
    axis = Axis.of(kernel, draw(st.integers(1, 3)), dilation, pads)
    both = gcd(inputs, outputs)
    group = draw(st.sampled_from([g for g in range(1, both + 1) if both % g == 0]))
    return Frame(inputs, outputs, group, (axis,))


def window_on(frame: Frame, seed: int, bias: bool = True) -> Window:
    rng = np.random.default_rng(seed)
    return Window(frame, rng.normal(size=frame.shape), rng.normal(size=frame.outputs) * bias)


@settings(deadline=None, max_examples=150)
@given(frames(), frames(), st.integers(12, 16))
def test_a_sum_of_windows_is_the_window_of_the_sum(a: Frame, b: Frame, size: int) -> None:
    frame = added(a, b, (size,))
    lines_up = a.axes[0].stride == b.axes[0].stride and a.axes[0].size(size) == b.axes[0].size(size)
    assert (frame is not None) == lines_up
    if frame is None:
        return
    assert min(frame.axes[0].pads) >= 0
    x = np.random.default_rng(0).normal(size=(4, size))
    windows = [window_on(a, 1), window_on(b, 2)]
    expected = apply(windows[0], x) + apply(windows[1], x)
    np.testing.assert_allclose(apply(total(windows, frame), x), expected, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=150)
@given(frames(outputs=6), frames(inputs=6, padded=False), st.booleans())
def test_an_unpadded_window_after_another_is_one_window(a: Frame, b: Frame, bias: bool) -> None:
    frame = followed(a, b, bias=bias)
    assert frame is not None and frame.group == gcd(a.group, b.group)
    x = np.random.default_rng(0).normal(size=(4, 40))
    first, second = window_on(a, 1, bias), window_on(b, 2)
    expected = apply(second, apply(first, x))
    np.testing.assert_allclose(apply(second.after(first, frame), x), expected, rtol=0, atol=1e-11)


@settings(deadline=None, max_examples=100)
@given(frames(inputs=6), st.sampled_from([1, 2, 3, 6]), st.integers(1, 3))
def test_a_padded_window_after_a_pointwise_one_without_bias(b: Frame, group: int, stride: int) -> None:
    a = Frame(6, 6, group, (Axis.of(1, stride, 1, (0, 0)),))
    frame = followed(a, b, bias=False)
    assert frame is not None
    x = np.random.default_rng(0).normal(size=(6, 30))
    first, second = window_on(a, 1, bias=False), window_on(b, 2)
    np.testing.assert_allclose(apply(second.after(first, frame), x), apply(second, apply(first, x)), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("kernel", "pads", "bias"), [(1, (0, 0), True), (3, (0, 0), False), (1, (1, 1), False)], ids=["bias", "3", "pads"]
)
def test_padding_between_two_windows_is_refused(kernel: int, pads: tuple[int, int], bias: bool) -> None:
    first = Frame(4, 4, 1, (Axis.of(kernel, 1, 1, pads),))
    second = Frame(4, 4, 1, (Axis.of(3, 1, 1, (1, 1)),))
    assert followed(first, second, bias=bias) is None


def test_identity_mean_and_maps() -> None:
    x = np.random.default_rng(0).normal(size=(4, 7))
    np.testing.assert_array_equal(apply(identity(4, 1), x), x)
    averaged = apply(mean(4, (Axis.of(3, 1, 1, (0, 0)),)), x)
    np.testing.assert_allclose(averaged, (x[:, :-2] + x[:, 1:-1] + x[:, 2:]) / 3, rtol=0, atol=1e-15)
    affine = Affine(np.array([1.0, -2, 0, 3]), np.array([5.0, 1, 0, -1]), np.array([0.5, 0, 1, 2]))
    window = window_on(Frame(4, 4, 2, (Axis.of(3, 1, 1, (0, 0)),)), 1)
    np.testing.assert_allclose(apply(window.mapped(affine), x), affine(apply(window, x), 0), rtol=0, atol=1e-13)
    np.testing.assert_allclose(apply(window.fed(affine), x), apply(window, affine(x, 0)), rtol=0, atol=1e-13)


def test_multiply_adds_are_counted_by_block_and_tap() -> None:
    axes = (Axis.of(3, 2, 1, (1, 1)), Axis.of(5, 1, 1, (2, 2)))
    frame = Frame(8, 4, 2, axes)
    assert (frame.macs, frame.pixels) == (4 * 4 * 15, 2)
    assert diagonal(8, 2).macs == 8
    assert diagonal(8, 0, grouped=False).macs == 64
