"""Judges a linear operator's laws and rewrite by what they mean: store its ends under gauges, compare what comes out.

    judged = judge(model, rng)         # asks both ends' rules, draws gauges that obey, rewrites, compares in float64
    judged.x, judged.y                 # the laws of the ends, or the reason of a refusal
    judged.model                       # the model after the rewrite

The model has one input `x` and one output `y`; the node under test is called `op`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tests.training.fold.carriers.laws_oracle import known_of, node_of
from tests.training.fold.models import reload
from training.fold.edits import Edit, apply
from training.fold.known import Known
from training.fold.laws import Free, Gauge, Law, NoScale, NoShift, Port, Positive
from training.fold.linear import REWRITES, RULES, native_axes
from training.fold.refusal import Refusal
from training.reference import evaluate, widened

Array = NDArray[Any]
Answer = tuple[Law, ...] | str


class Given:
    """Gauges by value; the identity for all others."""

    def __init__(self, **gauges: Gauge) -> None:
        self._gauges = gauges

    def of(self, value: ir.Value | None, reader: ir.Node | None = None) -> Gauge | None:
        del reader
        return None if value is None else self._gauges.get(value.name or "")


@dataclass
class Judged:
    x: Answer
    y: Answer
    model: ir.Model
    gauges: dict[str, Gauge]


def law_of(model: ir.Model, value_name: str, axes: tuple[int, ...] | None = None) -> Answer:
    """What the rule of `op` says of the port at `axes`, by default the one that the operator calls its own."""
    node, known = node_of(model, "op"), known_of(model)
    value = next(v for v in (*node.inputs, *node.outputs) if v is not None and v.name == value_name)
    axes = axes or native_axes(node, value, known)
    if axes is None:
        return "no native axes"
    laws = RULES[node.op_type](node, Port(value, axes), known)
    return laws.reason if isinstance(laws, Refusal) else laws


def kinds(answer: Answer) -> list[type]:
    assert not isinstance(answer, str), answer
    return [type(law) for law in answer]


def gauge(axes: tuple[int, ...], scale: Array, shift: Array | float = 0.0) -> Gauge:
    """Along one axis."""
    return Gauge(axes, (len(scale),), scale, np.broadcast_to(np.float64(shift), scale.shape).copy())


def obeying(answer: Answer, known: Known, rng: np.random.Generator) -> Gauge | None:
    """A gauge that these laws of one port allow: scales of both signs, shifts of any size. None for a refusal."""
    if isinstance(answer, str):
        return None
    port = answer[0].port  # type: ignore[union-attr]
    sizes = tuple((known.dims(port.value) or ())[axis] or 0 for axis in port.axes)
    size = prod(sizes)
    scale, shift = rng.uniform(0.3, 3, size) * rng.choice([-1.0, 1.0], size), rng.normal(size=size) * 5
    for law in answer:
        match law:
            case Free():
                pass
            case NoShift():
                shift = np.zeros(size)
            case NoScale():
                scale = np.ones(size)
            case Positive():
                scale = np.abs(scale)
            case _:
                raise AssertionError(f"{law} is not a law of one end")
    return Gauge(port.axes, sizes, scale, shift)


def edits_of(model: ir.Model, gauges: Given) -> tuple[Edit, ...] | Refusal:
    node = node_of(model, "op")
    return REWRITES[node.op_type](node, gauges, known_of(model))


def rewritten(model: ir.Model, gauges: Given) -> ir.Model:
    """A copy of the model, with `op` rewritten for `gauges`."""
    model = reload(model)
    edits = edits_of(model, gauges)
    assert not isinstance(edits, Refusal), edits
    apply(model, edits)
    return reload(model)


def judge(
    model: ir.Model,
    rng: np.random.Generator,
    ends: str = "xy",
    tolerance: float = 1e-11,
    **axes: tuple[int, ...],
) -> Judged:
    """Exact to `tolerance` of the summed magnitudes, on noise and on constants, with gauges at these `ends`; where
    `axes` says nothing of an end, along its own."""
    known = known_of(model)
    answers = {end: law_of(model, end, axes.get(end)) for end in "xy"}
    found = {end: obeying(answers[end], known, rng) for end in ends}
    gauges = {end: gauge for end, gauge in found.items() if gauge is not None}
    after = rewritten(model, Given(**gauges))
    assert_stored_alike(model, after, gauges, rng, tolerance)
    return Judged(answers["x"], answers["y"], after, gauges)


def assert_stored_alike(
    before: ir.Model, after: ir.Model, gauges: dict[str, Gauge], rng: np.random.Generator, tolerance: float = 1e-11
) -> None:
    """`after` makes of the stored x what is stored for the y that `before` makes of x."""
    shape = before.graph.inputs[0].shape
    assert shape is not None
    for x in (rng.normal(size=shape.numpy()), np.ones(shape.numpy())):
        stored = _encode(x, gauges.get("x"))
        plain = evaluate(before, {"x": x})["y"]
        expected, got = _encode(plain, gauges.get("y")), evaluate(after, {"x": stored})["y"]
        size = evaluate(after, {"x": np.abs(stored)}, read=lambda tensor: np.abs(widened(tensor)))["y"]
        size = np.abs(size) + np.abs(expected) + np.abs(_encode(plain, gauges.get("y"), shifted=False))
        assert got.shape == expected.shape
        np.testing.assert_array_less(np.abs(got - expected), tolerance * size + 1e-300)


def _encode(array: Array, gauge: Gauge | None, *, shifted: bool = True) -> Array:
    if gauge is None:
        return array
    scaled = gauge.spread(gauge.scale, array.ndim) * array
    return scaled + gauge.spread(gauge.shift, array.ndim) if shifted else scaled
