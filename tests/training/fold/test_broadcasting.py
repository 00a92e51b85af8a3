"""Where an operand lies against the output of its operator."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.fold.models import build
from training.fold.broadcasting import aligned, operand_port, output_axes
from training.fold.driver import known_of
from training.fold.laws import Port
from training.fold.refusal import Refusal


def posed(x: str, y: str = "2,3,4"):
    model = build(f"m (double[{x}] x, double[{y}] z) => (double[{y}] y) {{ [op] y = Add (x, z) }}")
    return model.graph[0], known_of(model, 17)


@pytest.mark.parametrize(
    ("x", "axes", "expected"),
    [("2,3,4", (1,), (1,)), ("3,4", (0,), (1,)), ("3,4", (0, 1), (1, 2)), ("4", (0,), (2,)), ("1,3,1", (1,), (1,))],
)
def test_axes_are_counted_from_the_right(x, axes, expected):
    node, known = posed(x)

    assert output_axes(node, Port(node.inputs[0], axes), known) == expected
    assert output_axes(node, Port(node.outputs[0], expected), known) == expected


@pytest.mark.parametrize(
    ("x", "axes", "own", "index"),
    [
        ("2,3,4", (1,), (1,), None),
        ("3,1", (1,), (0,), None),
        ("2,1,4", (1,), (1,), [0, 0, 0]),
        ("4", (2,), (0,), None),
        ("1", (2,), (0,), [0, 0, 0, 0]),
        ("3,1", (1, 2), (0, 1), [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        ("1,4", (1, 2), (0, 1), [0, 1, 2, 3] * 3),
        ("1,1", (1, 2), (0, 1), [0] * 12),
    ],
)
def test_each_output_entry_reads_one_entry_of_the_operand(x, axes, own, index):
    node, known = posed(x)

    port, entries = operand_port(node, node.inputs[0], axes, known)

    assert (port.value, port.axes, port.reader) == (node.inputs[0], own, None)
    assert entries is None if index is None else entries.tolist() == index


@pytest.mark.parametrize(
    ("x", "y", "axes", "reason"),
    [
        ("4", "2,3,4", (1,), "'x' of Add 'op' lacks axis (1,) of its output"),
        ("2,C,4", "2,3,4", (1,), "the size of 'x' of Add 'op' along axis (1,) is not known"),
        ("2,1,4", "2,C,4", (1,), "'x' of Add 'op' does not broadcast to its output along axis (1,)"),
        ("2,2,4", "2,3,4", (1,), "'x' of Add 'op' does not broadcast to its output along axis (1,)"),
    ],
)
def test_what_cannot_be_told_is_refused(x, y, axes, reason):
    node, known = posed(x, y)

    assert operand_port(node, node.inputs[0], axes, known) == Refusal(reason)


def test_an_operand_that_is_not_there_is_refused():
    node, known = posed("2,3,4")

    assert operand_port(node, None, (1,), known) == Refusal("the rank of an operand of Add 'op' is not known")


@pytest.mark.parametrize(
    ("shape", "x", "expected"),
    [
        ((), "2,3,4", (1, 1, 1)),
        ((4,), "2,3,4", (1, 1, 4)),
        ((3, 1), "2,3,4", (1, 3, 1)),
        ((2, 3, 4), "2,3,4", (2, 3, 4)),
        ((1, 1), "N,C", (1, 1)),
    ],
)
def test_a_constant_is_shaped_like_the_tensor_that_it_fits(shape, x, expected):
    node, known = posed(x, x)

    assert aligned(np.ones(shape), node.inputs[0], known).shape == expected


@pytest.mark.parametrize(
    ("shape", "x", "reason"),
    [
        ((1, 2, 3, 4), "2,3,4", "a constant of shape [1, 2, 3, 4] enlarges 'x', or its rank is not known"),
        ((3,), "2,3,1", "a constant of shape [3] is not proved to fit 'x' [2, 3, 1]"),
        ((3,), "2,3,K", "a constant of shape [3] is not proved to fit 'x' [2, 3, None]"),
        ((2, 1, 1), "1,3,4", "a constant of shape [2, 1, 1] is not proved to fit 'x' [1, 3, 4]"),
    ],
)
def test_one_that_enlarges_it_or_might_is_refused(shape, x, reason):
    node, known = posed(x, x)

    assert aligned(np.ones(shape), node.inputs[0], known) == Refusal(reason)
