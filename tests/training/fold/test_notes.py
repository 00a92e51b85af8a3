"""Sizes that a model notes on its tensors are believed until one is seen to be untrue."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.models import build, rng_of, statistics
from training.fold import fold
from training.fold.notes import forget_stale_sizes

NODES = "h = Conv <pads=[1,1,1,1]> (x, w) s = Sigmoid (h) y = Conv <strides=[2,2], pads=[0,0,1,1]> (s, v)"
WEIGHTS = {"w": np.ones((4, 3, 3, 3), np.float32), "v": np.ones((2, 4, 2, 2), np.float32)}


def noted(sizes: str, *notes: tuple[int | str | None, ...], nodes: str = NODES) -> ir.Model:
    """`notes`: of each node's output in turn."""
    model = build(f"m (float[{sizes}] x) => (y) {{ {nodes} }}", **WEIGHTS)
    for node, note in zip(model.graph, notes, strict=False):
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(note)
    return model


@pytest.mark.parametrize(
    ("sizes", "note", "forgotten"),
    [
        ("1,3,8,8", (1, 4, 8, 8), False),
        ("1,3,8,8", (1, 4, 9, 8), True),
        ("N,3,8,8", ("N", 4, 8, 8), False),
        ("N,3,8,8", (1, 4, 8, 8), True),  # the batch was freed afterwards
        ("N,3,H,W", (1, 4, 8, 8), True),
        ("N,3,H,W", ("N", 4, "H", "W"), False),
        ("N,3,H,W", ("N", 4, "H", 8), True),
        ("N,3,H,W", (None, 4, None, None), False),
        ("1,3,8,8", (4, 8, 8), True),
    ],
)
def test_a_note_that_inference_contradicts_takes_all_notes_along(sizes: str, note: tuple, forgotten: bool) -> None:
    model = noted(sizes, note, note)
    assert forget_stale_sizes(model) is forgotten
    assert [node.outputs[0].shape is None for node in list(model.graph)[:2]] == [forgotten] * 2
    assert model.graph.inputs[0].shape is not None


def test_behind_an_operator_of_ones_own_notes_are_all_there_is() -> None:
    model = noted("N,3,H,W", (5, 4, 9, 9), nodes="h = own.Thing (x) s = Sigmoid (h) y = Conv (s, v)")
    assert not forget_stale_sizes(model)
    assert model.graph[0].outputs[0].shape == ir.Shape((5, 4, 9, 9))


@pytest.mark.parametrize(("free", "kept"), [(False, 0), (True, 1)])
def test_a_stale_note_does_not_say_which_windows_read_padding(free: bool, kept: int) -> None:
    """Of 8 pixels windows of 2 in steps of 2 read none of the padding behind; of 9 the last one does."""
    nodes = """h = Conv <pads=[1,1,1,1]> (x, w) s = Sigmoid (h) n = BatchNormalization (s, g, b, m, v)
               y = Conv <strides=[2,2], pads=[0,0,1,1]> (n, u)"""
    sizes = "N,3,H,W" if free else "1,3,8,8"
    weights = {"w": WEIGHTS["w"].astype(np.float64), "u": WEIGHTS["v"].astype(np.float64), **statistics(rng_of(3), 4)}
    model = build(f"m (double[{sizes}] x) => (y) {{ {nodes} }}", **weights)
    for node in list(model.graph)[:3]:
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.DOUBLE), ir.Shape((1, 4, 8, 8))
    assert fold(model)[1].summary()["kept"] == kept
