"""Operators that move entries: each passes any gauge, from either side, along exactly the entries that it moves.

What is "exactly" is found by moving: the node runs on tensors whose entries are all different numbers, and whatever
number arrives tells where it came from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.carriers.laws_oracle import (
    Asked,
    Axes,
    Solution,
    ask,
    assert_laws_hold,
    encode,
    known_of,
    node_of,
    refusal,
    run_node,
)
from tests.training.fold.models import Array, build
from training.fold.carriers.shaping import RULES
from training.fold.laws import NoShift, Port, Positive, ports
from training.fold.refusal import Refusal
from training.reference import evaluate

_FIRST_ID = 1000.5  # unlike the numbers of other operands


def entries_that_meet(model: ir.Model, op_name: str, axes: dict[str, Axes]) -> int:
    """How many gauges are independent, given where they lie: by moving numbers that are all different."""
    node, known = node_of(model, op_name), known_of(model)
    operands: dict[ir.Value, Array] = {}
    origin: dict[float, tuple[str, int]] = {}
    parent: dict[tuple[str, int], tuple[str, int]] = {}

    def root(entry: tuple[str, int]) -> tuple[str, int]:
        while parent[entry] != entry:
            entry = parent[entry]
        return entry

    for value in (value for value in node.inputs if value is not None):
        constant = known.constant(value)
        if value.name not in axes:
            assert constant is not None or value.dtype is ir.DataType.INT64
            operands[value] = np.zeros(value.shape.numpy(), np.int64) if constant is None else constant
            continue
        shape = [2 if size is None else size for size in known.dims(value) or ()]
        ids = _FIRST_ID + len(origin) + np.arange(math.prod(shape), dtype=np.float64)
        places = [(value.name, place) for place in port_places(shape, axes[value.name])]
        origin |= zip(ids.tolist(), places, strict=True)
        parent |= {place: place for place in places}
        operands[value] = ids.reshape(shape)
    for output, array in run_node(model, node, operands).items():
        if output.name in axes:
            places = [(output.name, place) for place in port_places(array.shape, axes[output.name])]
            parent |= {place: place for place in places}
            for number, place in zip(array.ravel().tolist(), places, strict=True):
                if number in origin:
                    parent[root(place)] = root(origin[number])
    return len({root(entry) for entry in parent})


def port_places(shape: Any, axes: Axes) -> list[int]:
    """For each element, in order, its entry in a port along `axes`."""
    if not axes:
        return [0] * math.prod(shape)
    grid = np.indices(shape).reshape(len(shape), -1)
    return np.ravel_multi_index([grid[axis] for axis in axes], [shape[axis] for axis in axes]).tolist()


def assert_exact(model: ir.Model, op: str, value: str, axes: Axes, **how: Any) -> Asked:
    """The laws hold, and tie nothing that the node does not tie."""
    asked = assert_laws_hold(model, op, value, axes, rules=RULES, **how)
    assert not asked.pinned
    assert asked.scales == entries_that_meet(model, op, asked.axes)
    return asked


@dataclass(frozen=True)
class Case:
    """`y = ...(x, ...)`: the gauge of x along `x_axes` is one of y along `y_axes`, and the other way round."""

    node: str
    x: str  # its type
    x_axes: Axes
    y_axes: Axes
    back: Axes | None = None  # where x is stored if asked from y, if elsewhere
    opset: int = 17
    y: str = "float[]"  # its type: inferred, or declared
    constants: dict[str, Array] = field(default_factory=dict)

    @property
    def op(self) -> str:
        return self.node.partition("=")[2].partition("(")[0].partition("<")[0].strip()

    def model(self) -> ir.Model:
        graph = f"g ({self.x} x) => ({self.y} y) {{ {self.node} }}"
        return build(graph, opset=self.opset, **self.constants)


def ints(*numbers: int) -> Array:
    return np.array(numbers, dtype=np.int64)


def case(
    node: str,
    x: str,
    x_axes: Axes,
    y_axes: Axes,
    back: Axes | None = None,
    opset: int = 17,
    y: str = "float[]",
    **constants: Array,
) -> Case:
    return Case(node, f"float[{x}]", x_axes, y_axes, back, opset, y, constants)


DISTINCT, EQUAL, DYNAMIC = "2,6,3,4", "4,4,4,4", "N,6,3,4"

CASES = [
    case("y = Identity (x)", DISTINCT, (1,), (1,)),
    case("y = Identity (x)", DYNAMIC, (1, 3), (1, 3)),
    case("y = Dropout (x)", DYNAMIC, (1,), (1,)),
    case("y = Dropout <ratio = 0.5> (x)", DYNAMIC, (1,), (1,), opset=7),
    case("y = Dropout <is_test = 1> (x)", DYNAMIC, (1,), (1,), opset=6),
    case("y = Dropout (x, r, t)", DISTINCT, (3,), (3,), r=np.float32(0.5), t=np.array(False)),
    case("y = Cast <to = 10> (x)", DISTINCT, (1,), (1,), y="float16[]"),
    case("y = Cast <to = 11> (x)", EQUAL, (2,), (2,), y="double[]"),
    case("y = CastLike (x, h)", DISTINCT, (1,), (1,), y="float16[]", h=np.zeros(1, np.float16)),
    case("y = CastLike (x, x)", DISTINCT, (1,), (1,)),
    # Transpose
    case("y = Transpose <perm = [0, 2, 3, 1]> (x)", DISTINCT, (1,), (3,)),
    case("y = Transpose <perm = [0, 2, 3, 1]> (x)", EQUAL, (1,), (3,)),
    case("y = Transpose <perm = [3, 0, 1, 2]> (x)", DISTINCT, (1, 3), (0, 2)),
    case("y = Transpose (x)", DYNAMIC, (1, 2), (1, 2)),
    # Squeeze and Unsqueeze
    case("y = Squeeze (x, a)", "N,6,1,1", (1,), (1,), a=ints(2, 3)),
    case("y = Squeeze (x, a)", "1,1,6,4", (2,), (1,), a=ints(-4)),
    case("y = Squeeze <axes = [0]> (x)", "1,6,4", (1, 2), (0, 1), opset=11),
    case("y = Squeeze (x)", "2,1,6,1", (2,), (1,)),
    case("y = Unsqueeze (x, a)", "N,6", (1,), (1,), a=ints(2, 3)),
    case("y = Unsqueeze (x, a)", "6,6", (1,), (3,), a=ints(0, 2)),
    case("y = Unsqueeze <axes = [-2]> (x)", "2,6", (1,), (2,), opset=11),
    # Slice
    case("y = Slice (x, s, e, a)", DISTINCT, (1,), (1,), s=ints(1), e=ints(5), a=ints(1)),
    case("y = Slice (x, s, e, a)", DYNAMIC, (1,), (1,), s=ints(1, 0), e=ints(2**62, 1), a=ints(2, 0)),
    case("y = Slice (x, s, e, a, d)", DISTINCT, (1,), (1,), s=ints(-1), e=ints(-(2**62)), a=ints(-3), d=ints(-2)),
    case("y = Slice (x, s, e, a, d)", EQUAL, (1, 2), (1, 2), s=ints(0, 3), e=ints(3, 0), a=ints(1, 2), d=ints(2, -1)),
    case("y = Slice (x, s, e)", EQUAL, (1,), (1,), s=ints(0, 1), e=ints(2, 3)),
    case("y = Slice <axes = [1], starts = [2], ends = [1000]> (x)", DISTINCT, (1,), (1,), opset=9),
    case("y = Slice <starts = [0, -5], ends = [1, -1]> (x)", DISTINCT, (1, 3), (1, 3), opset=1),
    # Gather
    case("y = Gather <axis = 1> (x, i)", DISTINCT, (1,), (1,), i=ints(5, 0, 0, -2)),
    case("y = Gather <axis = 1> (x, i)", EQUAL, (1,), (1,), i=ints(3, 2, 1, 0)),
    case("y = Gather <axis = -3> (x, i)", DYNAMIC, (1,), (1, 2), i=ints(5, 0, 3, -2).reshape(2, 2)),
    case("y = Gather <axis = 2> (x, i)", DYNAMIC, (1,), (1,), i=ints(1).reshape(())),
    case("y = Gather <axis = 0> (x, i)", DISTINCT, (1,), (0,), i=ints(1).reshape(())),
    case("y = Gather <axis = 2> (x, i)", EQUAL, (3,), (4,), i=ints(1, 0).reshape(1, 2)),
    case("y = Gather (x, i)", DYNAMIC, (1, 3), (2, 4), i=ints(1, 0).reshape(1, 2)),
    # Expand and Tile
    case("y = Expand (x, s)", "N,6,1,1", (1,), (1,), s=ints(1, 1, 3, 4)),
    case("y = Expand (x, s)", "1,6,4", (1,), (2,), s=ints(2, 1, 6, 1)),
    case("y = Expand (x, s)", "2,1,4", (1,), (1,), s=ints(2, 3, 4)),
    case("y = Expand (x, s)", "6,1", (0,), (1,), s=ints(3, 1, 5)),
    case("y = Tile (x, r)", DISTINCT, (1,), (1,), r=ints(1, 3, 1, 1)),
    case("y = Tile (x, r)", EQUAL, (1, 2), (1, 2), r=ints(2, 2, 1, 3)),
    case("y = Tile (x, r)", DYNAMIC, (1,), (1,), r=ints(3, 1, 2, 1)),
    # Blocks
    case("y = DepthToSpace <blocksize = 2> (x)", "N,12,3,4", (1,), (1,)),
    case('y = DepthToSpace <blocksize = 2, mode = "CRD"> (x)', "2,12,3,4", (1,), (1,)),
    case("y = DepthToSpace <blocksize = 2> (x)", "4,4,4,4", (1,), (1,), opset=9),
    case('y = DepthToSpace <blocksize = 2, mode = "DCR"> (x)', "4,8,H,W", (0, 1), (0, 1)),
    case("y = SpaceToDepth <blocksize = 2> (x)", "N,3,4,6", (1,), (1,)),
    case("y = SpaceToDepth <blocksize = 3> (x)", "2,9,9,9", (1,), (1,), opset=1),
    # Flatten
    case("y = Flatten (x)", DYNAMIC, (1,), (1,), back=(1, 2, 3)),
    case("y = Flatten (x)", EQUAL, (1,), (1,), back=(1, 2, 3)),
    case("y = Flatten (x)", "N,3,4,6", (3,), (1,), back=(1, 2, 3)),
    case("y = Flatten (x)", "N,6,1,1", (1,), (1,)),
    case("y = Flatten <axis = -1> (x)", "N,T,6", (2,), (1,)),
    case("y = Flatten <axis = 0> (x)", "2,3,4", (1,), (1,), back=(0, 1, 2)),
    case("y = Flatten <axis = 3> (x)", "2,3,4", (2,), (0,), back=(0, 1, 2)),
    # Reshape
    case("y = Reshape (x, s)", DYNAMIC, (1,), (1,), back=(1, 2, 3), s=ints(0, -1)),
    case("y = Reshape (x, s)", DYNAMIC, (1,), (1,), back=(1, 2, 3), s=ints(-1, 72)),
    case("y = Reshape (x, s)", EQUAL, (1,), (1,), back=(1, 2, 3), s=ints(4, 64)),
    case("y = Reshape <shape = [0, -1]> (x)", DYNAMIC, (2,), (1,), back=(1, 2, 3), opset=4, y="float[N,72]"),
    case("y = Reshape (x, s)", "N,3,4,6", (3,), (1,), back=(1, 2, 3), s=ints(0, 72)),  # NHWC
    case("y = Reshape (x, s)", "N,6,3,4", (1,), (1, 2), s=ints(0, 2, 3, 3, 4)),  # channel shuffle
    case("y = Reshape (x, s)", "N,3,2,H,W", (1, 2), (1,), s=ints(0, 6, 0, -1)),
    case("y = Reshape (x, s)", "N,T,6", (2,), (2, 3), s=ints(0, 0, 2, 3)),  # attention
    case("y = Reshape (x, s)", "N,T,2,3", (2, 3), (2,), s=ints(0, 0, -1)),
    case("y = Reshape (x, s)", "N,T,6", (2,), (1,), s=ints(-1, 6)),
    case("y = Reshape (x, s)", "B,6", (1,), (2,), s=ints(-1, 2, 6)),
    case("y = Reshape (x, s)", "N,6,H,W", (1,), (1,), s=ints(0, 6, -1)),  # the image is one axis, the channels stay
    case("y = Reshape (x, s)", "N,6,H,W", (1,), (1,), s=ints(0, 0, -1)),
    case("y = Reshape (x, s)", "4,6,5", (0,), (0,), s=ints(4, 5, 6)),
    case("y = Reshape (x, s)", "4,6,5", (1,), (1, 2), back=(1, 2), s=ints(4, 5, 6)),  # groups of 30 that do not align
    case("y = Reshape (x, s)", "4,4,4", (1,), (0,), back=(0, 1), s=ints(16, 4)),
    case("y = Reshape (x, s)", "2,6", (1,), (1,), s=ints(0, 6, 1, 1)),
    case("y = Reshape (x, s)", "1,6,1", (1,), (0,), s=ints(6)),
    case("y = Reshape (x, s)", "N,12,3,4", (1,), (1, 2, 3), s=ints(0, 3, 2, 2, 3, 4)),  # pixel shuffle
    case("y = Reshape <allowzero = 1> (x, s)", "2,6,4", (1,), (1, 2), s=ints(2, 3, 2, 4)),
]


@pytest.mark.parametrize("given", CASES, ids=lambda c: f"{c.node} {c.x} {c.x_axes} opset {c.opset}")
class TestOneOperand:
    def test_asked_from_the_operand_the_gauge_passes_exactly(self, given: Case) -> None:
        asked = assert_exact(given.model(), given.op, "x", given.x_axes)

        assert asked.axes["y"] == given.y_axes
        assert asked.free("x")

    def test_asked_from_the_output_it_is_the_same(self, given: Case) -> None:
        asked = assert_exact(given.model(), given.op, "y", given.y_axes)

        assert asked.axes["x"] == (given.back or given.x_axes)

    def test_where_both_ends_are_decided_either_side_gives_the_same_law(self, given: Case) -> None:
        placed = {"x": given.x_axes, "y": given.y_axes}

        there = assert_exact(given.model(), given.op, "x", given.x_axes, axes_of=placed)
        back = assert_exact(given.model(), given.op, "y", given.y_axes, axes_of=placed)

        assert (there.scales, there.shifts) == (back.scales, back.shifts)


def joined(
    node: str, opset: int = 17, parts: str = "float[N,2,3,4] a, float[N,3,3,4] b", **constants: Array
) -> ir.Model:
    return build(f"g ({parts}) => (float[] y) {{ {node} }}", opset=opset, **constants)


class TestConcat:
    @pytest.mark.parametrize("start", ["a", "b", "y"])
    @pytest.mark.parametrize("opset", [4, 17])
    def test_along_the_gauge_each_part_has_its_own_entries(self, start: str, opset: int) -> None:
        asked = assert_exact(joined("y = Concat <axis = 1> (a, b)", opset), "Concat", start, (1,))

        assert asked.axes == {"a": (1,), "b": (1,), "y": (1,)}
        assert asked.scales == 5

    @pytest.mark.parametrize("start", ["a", "y"])
    def test_along_another_axis_all_parts_share_them(self, start: str) -> None:
        model = joined("y = Concat <axis = -1> (a, b)", parts="float[4,4,4,4] a, float[4,4,4,W] b")

        assert assert_exact(model, "Concat", start, (1,)).scales == 4

    def test_one_tensor_twice(self) -> None:
        asked = assert_exact(joined("y = Concat <axis = 1> (a, b, a)"), "Concat", "a", (1,))

        assert asked.scales == 5

    def test_axis_1_where_opset_1_says_nothing(self) -> None:
        assert assert_exact(joined("y = Concat (a, b)", opset=1), "Concat", "y", (1,)).scales == 5

    @pytest.mark.parametrize("axis", [1, 2])
    def test_a_constant_part_changes_with_the_gauge(self, axis: int) -> None:
        node = f"y = Concat <axis = {axis}> (a, k)"
        model = joined(node, parts="float[4,4,4,4] a", k=np.arange(256.0, dtype=np.float32).reshape(4, 4, 4, 4))

        asked = assert_exact(model, "Concat", "y", (1,))

        assert asked.axes == {"a": (1,), "k": (1,), "y": (1,)}

    def test_parts_of_several_axes(self) -> None:
        asked = assert_exact(joined("y = Concat <axis = 1> (a, b)"), "Concat", "y", (1, 3))

        assert asked.scales == 20

    def test_a_part_of_unknown_size_before_it_refuses(self) -> None:
        model = joined("y = Concat <axis = 1> (b, a)", parts="float[N,2,3] a, float[N,C,3] b")

        assert "[?, 2, 3] into [?, ?, 3]" in refusal(model, "Concat", "a", (1,), rules=RULES)


class TestSplit:
    @pytest.mark.parametrize(("start", "axes"), [("x", (1,)), ("a", (1,)), ("c", (1,))])
    @pytest.mark.parametrize(
        ("opset", "node"),
        [
            (17, "a, b, c = Split <axis = 1> (x, s)"),
            (17, "a, b, c = Split <axis = -3> (x, s)"),
            (11, "a, b, c = Split <axis = 1, split = [2, 1, 3]> (x)"),
        ],
    )
    def test_along_the_gauge_into_parts(self, start: str, axes: Axes, opset: int, node: str) -> None:
        sizes = {"s": ints(2, 1, 3)} if "(x, s)" in node else {}
        model = build(f"g (float[N,6,3,4] x) => (float[] a, float[] b, float[] c) {{ {node} }}", opset=opset, **sizes)

        asked = assert_exact(model, "Split", start, axes)

        assert asked.scales == 6
        assert set(asked.axes) == {"x", "a", "b", "c"}

    @pytest.mark.parametrize(
        ("opset", "node", "x"),
        [
            (17, "a, b = Split <axis = 1> (x)", "2,6,3"),
            (2, "a, b = Split <axis = 1> (x)", "6,6,6"),
            (18, "a, b = Split <axis = 1, num_outputs = 2> (x)", "2,5,3"),  # 3 and 2
        ],
    )
    def test_into_parts_of_no_given_size(self, opset: int, node: str, x: str) -> None:
        model = build(f"g (float[{x}] x) => (float[] a, float[] b) {{ {node} }}", opset=opset)

        assert_exact(model, "Split", "x", (1,))
        assert_exact(model, "Split", "b", (1,))

    def test_along_another_axis_all_parts_share_the_gauge_whatever_their_sizes(self) -> None:
        model = build(
            "g (float[2,6,4] x, int64[2] s) => (float[2,6,a] a, float[2,6,b] b) {a, b = Split<axis = 2>(x, s)}"
        )

        asked = assert_laws_hold(model, "Split", "a", (1,), rules=RULES, feeds={"s": ints(1, 3)})

        assert asked.scales == 6

    def test_an_output_that_is_left_out_does_not_matter(self) -> None:
        model = build("g (float[2,6,4] x) => (float[] b) { , b = Split <axis = 1> (x) }")

        assert assert_laws_hold(model, "Split", "x", (1,), rules=RULES).axes == {"x": (1,), "b": (1,)}


def padded(node: str, opset: int = 17, x: str = "4,4,4,4", **constants: Array) -> ir.Model:
    return build(f"g (float[{x}] x) => (float[] y) {{ {node} }}", opset=opset, **constants)


IMAGE = ints(0, 0, 1, 2, 0, 0, 3, 0)
ZERO_PADS = [
    ("y = Pad (x, p)", 17, {"p": IMAGE}),
    ("y = Pad (x, p, v)", 17, {"p": IMAGE, "v": np.float32(0)}),
    ("y = Pad (x, p, v)", 11, {"p": IMAGE, "v": np.array([-0.0], np.float32)}),
    ("y = Pad (x, p, v, a)", 18, {"p": ints(1, 1), "v": np.float32(0), "a": ints(-1)}),
    ("y = Pad (x, p, , a)", 19, {"p": ints(0, 2), "a": ints(3)}),
    ("y = Pad <pads = [0, 0, 1, 0, 0, 0, 0, 1]> (x)", 2, {}),
    ('y = Pad <mode = "constant", pads = [0, 0, -1, 2, 0, 0, 0, 0], value = 0.0> (x)', 10, {}),
]
EDGE_PADS = [
    ('y = Pad <mode = "reflect"> (x, p)', 17, {"p": IMAGE}),
    ('y = Pad <mode = "edge"> (x, p, v)', 17, {"p": IMAGE, "v": np.float32(7)}),
    ('y = Pad <mode = "edge", pads = [0, 0, 1, 1, 0, 0, 1, 1]> (x)', 2, {}),
    ('y = Pad <mode = "wrap"> (x, p)', 19, {"p": IMAGE}),
    ("y = Pad (x, p, v)", 17, {"p": ints(0, 0, -1, 0, 0, 0, 0, -2), "v": np.float32(7)}),  # crops only
    ("y = Pad (x, p)", 17, {"p": ints(0, 0, 0, 0, 0, 0, 0, 0)}),
]


# Of x's four channels, and those added to them.
CHANNEL_PADS: list[tuple[str, int, dict[str, Array], int]] = [
    ("y = Pad (x, p)", 17, {"p": ints(0, 0, 0, 0, 0, 3, 0, 0)}, 4),
    ("y = Pad (x, p, v)", 17, {"p": ints(0, 1, 0, 0, 0, 2, 0, 0), "v": np.float32(0)}, 4),
    ("y = Pad (x, p, , a)", 18, {"p": ints(2, 2), "a": ints(-3)}, 4),
    ('y = Pad <mode = "constant", pads = [0, 0, 0, 0, 0, 2, 0, 0]> (x)', 10, {}, 4),
    ("y = Pad (x, p)", 17, {"p": ints(0, -1, 0, 0, 0, 3, 0, 0)}, 4),
    ("y = Pad (x, p)", 17, {"p": ints(0, -2, 0, 0, 0, -1, 0, 0)}, 4),
    ("y = Pad (x, p)", 17, {"p": ints(0, 1, 1, 0, 0, 0, 0, 0)}, 0),  # and a row of zeros in every channel
    ("y = Pad (x, p)", 17, {"p": ints(0, 1, -1, 0, 0, 0, 0, -1)}, 4),  # and crops
    ("y = Pad (x, p)", 17, {"p": ints(1, 1, 0, 0, 0, 0, 0, 0)}, 0),  # and an image of zeros
]


class TestPad:
    @pytest.mark.parametrize("start", ["x", "y"])
    @pytest.mark.parametrize(("node", "opset", "constants"), ZERO_PADS)
    def test_zeros_let_every_scale_pass_and_no_shift(self, node: str, opset: int, constants: Any, start: str) -> None:
        asked = assert_exact(padded(node, opset, **constants), "Pad", start, (1,))

        assert (asked.scales, asked.shifts) == (4, 0)
        assert asked.tied(NoShift)
        assert not asked.tied(Positive)

    @pytest.mark.parametrize("start", ["x", "y"])
    @pytest.mark.parametrize(("node", "opset", "constants"), EDGE_PADS)
    def test_copies_of_real_elements_let_every_gauge_pass(
        self, node: str, opset: int, constants: Any, start: str
    ) -> None:
        asked = assert_exact(padded(node, opset, **constants), "Pad", start, (1,))

        assert (asked.scales, asked.shifts) == (4, 4)

    @pytest.mark.parametrize("value", [np.inf, -np.inf])
    def test_infinities_let_every_positive_scale_and_every_shift_pass(self, value: float) -> None:
        asked = assert_exact(padded("y = Pad (x, p, v)", p=IMAGE, v=np.float32(value)), "Pad", "y", (1,))

        assert (asked.scales, asked.shifts) == (4, 4)
        assert asked.tied(Positive)

    @pytest.mark.parametrize("start", ["x", "y"])
    @pytest.mark.parametrize(
        ("node", "opset", "constants", "free"), CHANNEL_PADS, ids=[f"{row[0]} {row[2]}" for row in CHANNEL_PADS]
    )
    def test_channels_of_zeros_ask_nothing_of_the_others(
        self, node: str, opset: int, constants: Any, free: int, start: str
    ) -> None:
        """Every scale, of theirs too; shifts of those that have no zeros in them."""
        asked = assert_exact(padded(node, opset, **constants), "Pad", start, (1,))

        assert (asked.free("x"), asked.free("y"), asked.shifts) == (True, True, free)

    @pytest.mark.parametrize("start", ["x", "y"])
    def test_channels_of_another_number_keep_it(self, start: str) -> None:
        model = padded("y = Pad (x, p, v)", p=ints(0, 1, 0, 0, 0, 2, 0, 0), v=np.float32(7))

        asked = assert_laws_hold(model, "Pad", start, (1,), rules=RULES)

        assert asked.free("x") and asked.moved["y"].tolist() == [False, *[True] * 4, False, False]
        assert (asked.scales, asked.shifts) == (4, 4)

    def test_channels_of_infinities_keep_their_sign(self) -> None:
        model = padded("y = Pad (x, p, v)", p=ints(0, 1, 0, 0, 0, 0, 0, 0), v=np.float32(np.inf))

        asked = assert_exact(model, "Pad", "x", (1,))

        assert (asked.scales, asked.shifts) == (5, 5)
        assert [law.index.tolist() for law in asked.laws if isinstance(law, Positive) and law.index is not None]

    @pytest.mark.parametrize(
        ("mode", "opset", "margins"),
        [("edge", 17, (6, 1)), ("reflect", 17, (3, 2)), ("wrap", 19, (4, 1)), ("edge", 17, (-1, -2))],
    )
    @pytest.mark.parametrize("start", ["x", "y"])
    def test_copies_of_channels_have_the_gauge_of_theirs(
        self, mode: str, opset: int, margins: tuple[int, int], start: str
    ) -> None:
        amounts = ints(0, margins[0], 1, 0, 0, margins[1], 0, 1)

        asked = assert_exact(padded(f'y = Pad <mode = "{mode}"> (x, p)', opset, p=amounts), "Pad", start, (1,))

        assert (asked.scales, asked.shifts) == (4, 4)

    @pytest.mark.parametrize(("axes", "shifts"), [((1, 2), 16), ((2,), 0)])
    def test_rows_of_zeros_are_entries_where_rows_are(self, axes: Axes, shifts: int) -> None:
        """Along channels and rows both margins are entries of their own; along rows alone each has zeros in it."""
        model = padded("y = Pad (x, p)", p=ints(0, 1, 1, 0, 0, 0, 2, 0))

        asked = assert_exact(model, "Pad", "y", axes)

        assert asked.axes == {"x": axes, "y": axes} and asked.shifts == shifts

    def test_one_channel_that_becomes_three(self) -> None:
        asked = assert_exact(padded("y = Pad (x, p)", x="2,1,4,4", p=ints(0, 0, 0, 0, 0, 2, 0, 0)), "Pad", "x", (1,))

        assert (asked.axes["y"], asked.scales, asked.shifts) == ((1,), 3, 1)

    def test_a_gauge_that_lies_elsewhere_meets_zeros_in_every_entry(self) -> None:
        model = padded("y = Pad (x, p)", p=ints(0, 1, 0, 0, 0, 0, 0, 0))

        asked = assert_laws_hold(model, "Pad", "x", (1,), rules=RULES, axes_of={"y": (3,)})

        assert (asked.scales, asked.shifts) == (1, 0)

    def test_unknown_image_sizes_do_not_matter(self) -> None:
        model = build("g (float[N,6,H,W] x) => (float[N,6,h,w] y) { y = Pad (x, p) }", p=IMAGE)

        assert assert_exact(model, "Pad", "x", (1,)).scales == 6

    @pytest.mark.parametrize(
        ("node", "constants", "reason"),
        [
            # What is declared is not what it makes.
            (
                "y = Pad (x, p)",
                {"p": ints(0, 1, 0, 0, 0, 0, 0, 0)},
                "is padded along axis 1 by (1, 0) into [4, 4, ?, ?]",
            ),
            ("y = Pad (x, p)", {"p": ints(0, -5, 0, 0, 0, 5, 0, 0)}, "is padded along axis 1 by (-5, 5)"),
            ('y = Pad <mode = "reflect"> (x, p)', {"p": ints(0, 4, 0, 0, 0, -4, 0, 0)}, "along axis 1 by (4, -4)"),
            ('y = Pad <mode = "edge"> (x, p)', {"p": ints(0, 1, 0, 0, 0, -1, 0, 0)}, "along axis 1 by (1, -1)"),
            ('y = Pad <mode = "reflect"> (x, p)', {"p": ints(0, 4, 0, 0, 0, 0, 0, 0)}, "along axis 1 by (4, 0)"),
            ('y = Pad <mode = "wrap"> (x, p)', {"p": ints(0, 0, 0, 0, 0, 5, 0, 0)}, "along axis 1 by (0, 5)"),
            ("y = Pad (x, p, v)", {"p": ints(0, -1, 1, 0, 0, 1, 0, 0), "v": np.float32(7)}, "is padded with 7"),
            ('y = Pad <mode = "mirror"> (x, p)', {"p": IMAGE}, "is padded in mode 'mirror'"),
            ("y = Pad (x, p, v)", {"p": IMAGE, "v": np.float32(7)}, "is padded with 7, expected 0 or an infinity"),
            ("y = Pad (x, p, v)", {"p": IMAGE, "v": np.float32(np.nan)}, "is padded with nan"),
            ("y = Pad (x, p, v)", {"p": IMAGE, "v": np.float32(-3.4028235e38)}, "is padded with -3.40282e+38"),
        ],
    )
    def test_what_is_not_exact_is_refused(self, node: str, constants: dict[str, Array], reason: str) -> None:
        model = build(f"g (float[4,4,4,4] x) => (float[4,4,a,b] y) {{ {node} }}", **constants)

        said = refusal(model, "Pad", "x", (1,), rules=RULES)

        assert reason in said
        assert "Pad of 'y'" in said


RANK_4 = "float[a,b,c,d]"
REFUSED = [
    ("y = Dropout <is_test = 0> (x)", DISTINCT, (1,), 6, "float[]", {}, "training mode"),
    ("y = Dropout (x)", DISTINCT, (1,), 1, "float[]", {}, "training mode"),
    ("y = Dropout (x, r, t)", DISTINCT, (1,), 17, "float[]", {"r": np.float32(0.5), "t": np.array(True)}, "training"),
    ("y = Cast <to = 6> (x)", DISTINCT, (1,), 17, "int32[]", {}, "casts FLOAT to INT32, expected BFLOAT16, DOUBLE"),
    ("y = CastLike (x, h)", DISTINCT, (1,), 17, "int64[]", {"h": np.zeros(1, np.int64)}, "casts FLOAT to INT64"),
    ("y = Reshape (x, s)", "N,6,H,W", (1,), 17, "float[]", {"s": ints(0, -1)}, "[?, 6, ?, ?] into [?, ?]"),
    ("y = Reshape (x, s)", "N,6,H,W", (1,), 17, "float[]", {"s": ints(-1, 2, 3, 12)}, "leave unproved"),
    ("y = Reshape (x, s)", "2,6,4", (1,), 17, "float[a,b,c]", {"s": ints(2, 5, 5)}, "would make 25 entries of 24"),
    ("y = Reshape (x, s)", "0,6,4", (1,), 17, "float[]", {"s": ints(0, 4, 6)}, "size 0"),
    ("y = Reshape <allowzero = 1> (x, s)", "2,6,4", (1,), 17, "float[a,b,c]", {"s": ints(0, 4, 6)}, "size 0"),
    (
        "y = Reshape (x, s)",
        "2,6",
        (1,),
        17,
        "float[a,b,c]",
        {"s": ints(2, 6, 0)},
        "copies axis 2, which its operand lacks",
    ),
    ("y = Reshape (x, s)", "2,6", (1,), 17, "float[2,2,4]", {"s": ints(2, 2, 3)}, "axis 2 of size 3, declared is 4"),
    ("y = Reshape (x, s)", "2,6", (1,), 17, "float[2,6]", {"s": ints(2, 2, 3)}, "3 entries and an output of rank 2"),
    ("y = Reshape (x, s)", "8192,1024", (0, 1), 17, "float[]", {"s": ints(1024, 8192)}, "more than 131072 entries"),
    ("y = Transpose (x)", "4096,4096", (0, 1), 17, "float[]", {}, "more than 131072 entries"),
    ("y = Flatten (x)", "N,6,H,4", (1,), 17, "float[a,b]", {}, "leave unproved"),
    ("y = Flatten <axis = 5> (x)", DISTINCT, (1,), 17, "float[a,b]", {}, "cut before axis 5"),
    ("y = Transpose <perm = [0, 2, 1]> (x)", DISTINCT, (1,), 17, RANK_4, {}, "permuted by [0, 2, 1]"),
    ("y = Squeeze (x)", "N,6,1", (1,), 17, "float[a]", {}, "not all sizes are known"),
    ("y = Squeeze (x, a)", "2,6,1", (1,), 17, "float[2,6]", {"a": ints(3)}, "names axis 3 of a tensor of rank 3"),
    (
        "y = Squeeze (x, a)",
        "2,6,1",
        (1,),
        17,
        "float[2,6,1]",
        {"a": ints(2)},
        "keeps axes [0, 1], its output has rank 3",
    ),
    (
        "y = Slice (x, s, e, a)",
        *(DISTINCT, (1,), 17, RANK_4),
        {"s": ints(0, 1), "e": ints(1, 2), "a": ints(1, -3)},
        "cut twice",
    ),
    (
        "y = Slice (x, s, e, a)",
        *(DISTINCT, (1,), 17, RANK_4),
        {"s": ints(0, 1), "e": ints(1), "a": ints(1)},
        "is cut along axes [1] from [0, 1] to [1]",
    ),
    (
        "y = Gather <axis = 1> (x, i)",
        DISTINCT,
        (1,),
        17,
        RANK_4,
        {"i": ints(0, 6)},
        "read at 0 to 6 of 6 entries of axis 1",
    ),
    (
        "y = Gather <axis = 4> (x, i)",
        DISTINCT,
        (1,),
        17,
        RANK_4,
        {"i": ints(0, 6)},
        "names axis 4 of a tensor of rank 4",
    ),
    ("y = Tile (x, q)", DISTINCT, (1,), 17, RANK_4, {"q": ints(1, 1, 1)}, "repeated as often as is not constant"),
    ("y = Tile (x, t, a)", DISTINCT, (1,), 1, RANK_4, {"t": ints(2), "a": ints(0, 1)}, "is tiled along"),
    ("y = Concat (x, x)", DISTINCT, (1,), 4, RANK_4, {}, "the axis of Concat of 'y' is not known"),
    ("y = DepthToSpace <blocksize = 2> (x)", "2,8,2,2", (2,), 17, "float[]", {}, "unproved"),
    ("y = DepthToSpace <blocksize = 2> (x)", "2,6,2,2", (1,), 17, RANK_4, {}, "moves blocks of 4 places in mode 'DCR'"),
    (
        "a, y = Split <axis = 1> (x)",
        "2,5,2",
        (1,),
        17,
        "float[]",
        {},
        "splits 5 entries into 2 parts of no known sizes",
    ),
    ("a, y = Split <axis = 1> (x, s)", "2,5,2", (1,), 17, "float[]", {"s": ints(2, 2)}, "2 parts of sizes [2, 2]"),
]


class TestRefusals:
    @pytest.mark.parametrize(("node", "x", "axes", "opset", "y", "constants", "reason"), REFUSED)
    def test_what_is_not_proved_is_refused_with_its_reason(
        self, node: str, x: str, axes: Axes, opset: int, y: str, constants: dict[str, Array], reason: str
    ) -> None:
        model = build(f"g (float[{x}] x) => ({y} y) {{ {node} }}", opset=opset, **constants)
        op = next(n.op_type for n in model.graph if "y" in [output.name for output in n.outputs])

        said = refusal(model, op, "x", axes, rules=RULES)

        assert reason in said
        assert op in said

    @pytest.mark.parametrize(
        ("how", "node", "reason"),
        [
            ("int64[8] h", "Pad (x, h)", "is padded by amounts, or along axes, that are not constant"),
            ("float h", "Pad (x, p, h)", "is padded with 'h', expected one constant number"),
            ("int64[1] h", "Squeeze (x, h)", "has axes that are not constant"),
            ("int64[1] h", "Unsqueeze (x, h)", "has axes that are not constant"),
            ("int64[1] h", "Slice (x, h, one, one)", "unproved"),
            ("int64[1] h", "Slice (x, one, one, h)", "is cut along axes that are not constant"),
            ("int64[1] h", "Slice (x, one, one, one, h)", "unproved"),
            ("int64[3] h", "Gather <axis = 1> (x, h)", "unproved"),
            ("int64[] h", "Gather <axis = 1> (x, h)", "indices that are not known to have rank 1"),
            ("int64[4] h", "Tile (x, h)", "repeated as often as is not constant"),
            ("int64[4] h", "Reshape (x, h)", "unproved"),
            ("bool h", "Dropout (x, , h)", "may drop at random"),
        ],
    )
    def test_what_a_caller_decides_is_not_proved(self, how: str, node: str, reason: str) -> None:
        rank = {"Squeeze": "a,b,c", "Unsqueeze": "a,b,c,d,e", "Pad": "4,6,a,b"}.get(node.split()[0], "a,b,c,d")
        graph = f"g (float[4,6,3,4] x, {how}) => (float[{rank}] y) {{ [op] y = {node} }}"

        assert reason in refusal(build(graph, p=IMAGE, one=ints(1)), "op", "x", (1,), rules=RULES)

    def test_a_used_dropout_mask(self) -> None:
        model = build("g (float[2,6] x) => (float[] y, bool[] m) { y, m = Dropout (x) }")

        assert "has a mask that is read" in refusal(model, "Dropout", "x", (1,), rules=RULES)

    def test_operands_that_only_say_how(self) -> None:
        model = build("g (float[2,6] x, float r) => (float[] y) { y = Dropout (x, r) }")

        said = refusal(model, "Dropout", "r", (), rules=RULES)

        assert said == "'r' tells Dropout of 'y' what to do, it is not what is moved"

    def test_unknown_ranks(self) -> None:
        model = build("g (float[] x) => (float[] y) { y = Identity (x) }")

        assert refusal(model, "Identity", "x", (1,), rules=RULES) == "the rank of 'x' of Identity of 'y' is not known"

    def test_a_gauge_that_lies_elsewhere_ties_everything_or_nothing_wrongly(self) -> None:
        """y is stored along its second image axis: x's channels and y's columns can only all be one number."""
        model = build("g (float[2,6,3,4] x) => (float[] y) { y = Identity (x) }")

        asked = assert_laws_hold(model, "Identity", "x", (1,), rules=RULES, axes_of={"y": (3,)})

        assert asked.scales == 1

    @pytest.mark.parametrize(
        ("node", "x", "axes", "y"),
        [
            ("DepthToSpace <blocksize = 2> (x)", "1,8,2,2", (2,), "1,2,4,4"),
            ("Reshape (x, s)", "N,6,H,4", (1,), "N,C,12"),
            ("Slice (x, u, one, one)", "1,6,2,4", (1,), "1,3,2,4"),
        ],
    )
    def test_ports_that_were_decided_do_not_make_up_for_a_proof(self, node: str, x: str, axes: Axes, y: str) -> None:
        decided = (2,) if node.startswith(("D", "R")) else (1,)
        graph = f"g (float[{x}] x, int64[3] s, int64[1] u) => (float[{y}] y) {{ [op] y = {node} }}"

        said = refusal(build(graph, one=ints(1)), "op", "x", axes, rules=RULES, axes_of={"y": decided})

        assert "sizes that are not known leave unproved how these meet" in said

    def test_a_reshape_is_proved_around_axes_of_which_nothing_is_known(self) -> None:
        """Neither by number nor by name: a 0 copies the second one, whatever it is, and what is left is at the end."""
        graph = "g (float[?,?,6,?,4] x) => (float[a,b,c,d,e] y) { y = Reshape (x, s) }"
        model = build(graph.replace("a,b,c,d,e", "a,b,2,3,e"), s=ints(0, 0, 2, 3, -1))

        asked = assert_exact(model, "Reshape", "x", (2,))

        assert asked.axes["y"] == (2, 3)

    def test_the_type_operand_of_castlike_has_no_law(self) -> None:
        model = build("g (float[2,6] x, float16[6] h) => (float16[] y) { y = CastLike (x, h) }")

        assert ask(model, "CastLike", "h", (0,), rules=RULES) == ()


class TestConstants:
    def test_an_embedding_table_takes_the_gauge_whatever_is_looked_up(self) -> None:
        table = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
        model = build("g (int64[N,T] i) => (float[] y) { y = Gather (k, i) }", k=table)

        asked = assert_laws_hold(model, "Gather", "y", (2,), rules=RULES, feeds={"i": ints(3, 0, 4, 4).reshape(2, 2)})

        assert asked.axes == {"y": (2,), "k": (1,)}
        assert asked.scales == 6
        assert next(port for law in asked.laws for port in ports(law) if port.value.name == "k").reader is not None

    def test_rows_that_are_looked_up_dynamically_have_no_gauge_of_their_own(self) -> None:
        model = build("g (float[5,6] x, int64[N] i) => (float[] y) { y = Gather (x, i) }")

        asked = assert_laws_hold(model, "Gather", "x", (1,), rules=RULES, feeds={"i": ints(3, 0)})
        said = refusal(model, "Gather", "x", (0,), rules=RULES)

        assert asked.scales == 6
        assert "unproved" in said


class TestPlacing:
    """Where the other end of a regrouped tensor is stored: where its neighbours want it, if the axes permit."""

    def test_all_axes_that_hold_the_entries(self) -> None:
        assert stored("y = Reshape (x, s)", "N,12", (1,), s=ints(0, 3, 1, 4)) == (1, 3)

    @pytest.mark.parametrize(("native", "placed", "free"), [((3,), (3,), 4), ((1, 3), (1, 3), 12), ((0,), (1, 3), 12)])
    def test_native_axes_among_them_win(self, native: Axes, placed: Axes, free: int) -> None:
        model = build("g (float[N,12] x) => (float[] y) { y = Reshape (x, s) }", s=ints(0, 3, 1, 4))

        asked = assert_exact(model, "Reshape", "x", (1,), native_axes={"y": native})

        assert (asked.axes["y"], asked.scales) == (placed, free)

    @pytest.mark.parametrize("decided", [(1,), (2,), (1, 2, 3), (3,)])
    def test_what_was_decided_stays(self, decided: Axes) -> None:
        model = build("g (float[N,3,2,5] x) => (float[N,30] y) { y = Flatten (x) }")

        asked = assert_exact(model, "Flatten", "y", (1,), axes_of={"x": decided})

        assert asked.axes["x"] == decided
        assert asked.scales == math.prod((2, 3, 2, 5)[axis] for axis in decided)

    @pytest.mark.parametrize(
        ("node", "x", "axes", "constants", "placed"),
        [
            ("y = Squeeze (x, a)", "N,1,3,4", (1,), {"a": ints(1)}, (1,)),
            ("y = Squeeze (x, a)", "1,6", (0,), {"a": ints(0)}, (0,)),
            ("y = Gather <axis = 1> (x, a)", "N,6,1,4", (1,), {"a": ints(2).reshape(())}, (1,)),
            ("y = Unsqueeze (x, a)", "N,1,4", (1,), {"a": ints(1)}, (2,)),
            ("y = Expand (x, a)", "N,1,3", (1,), {"a": ints(1, 5, 1)}, (1,)),
        ],
    )
    def test_a_gauge_of_one_number_goes_where_there_is_a_place(
        self, node: str, x: str, axes: Axes, constants: dict[str, Array], placed: Axes
    ) -> None:
        assert stored(node, x, axes, **constants) == placed

    @pytest.mark.parametrize("node", ["Squeeze (x, a)", "Reshape (x, s)"])
    def test_a_gauge_of_one_number_goes_where_the_neighbours_want_it(self, node: str) -> None:
        model = build(f"g (float[N,1,3,4] x) => (float[] y) {{ [op] y = {node} }}", a=ints(1), s=ints(0, 3, 4))

        asked = assert_exact(model, "op", "x", (1,), native_axes={"y": (2,)})

        assert (asked.axes["y"], asked.scales) == ((2,), 1)

    def test_a_tensor_without_axes_has_no_place(self) -> None:
        model = build("g (float[6] x) => (float[] y) { y = Gather (x, i) }", i=ints(2).reshape(()))

        said = refusal(model, "Gather", "x", (0,), rules=RULES)

        assert said == "Gather of 'y': 'y' [] has no axis of known size for a gauge"


def stored(node: str, x: str, axes: Axes, **constants: Array) -> Axes:
    model = build(f"g (float[{x}] x) => (float[] y) {{ {node} }}", **constants)
    (op,) = [n.op_type for n in model.graph]
    return assert_exact(model, op, "x", axes).axes["y"]


CHAINS = {  # name: (input, nodes, constants, {where to start: how many numbers the whole chain leaves free})
    "channel shuffle": (
        "float[N,6,5,5] x",
        """a = Reshape (x, grouped)
           b = Transpose <perm = [0, 2, 1, 3, 4]> (a)
           y = Reshape (b, joined)""",
        {"grouped": ints(-1, 2, 3, 5, 5), "joined": ints(-1, 6, 5, 5)},
        {("x", (1,)): 6, ("y", (1,)): 6},
    ),
    "channel shuffle that asks for the sizes of its input": (
        "float[N,6,H,W] x",
        """size = Shape (x)
           n = Slice (size, zero, one)
           image = Slice (size, two, four)
           grouped = Concat <axis = 0> (n, groups, image)
           joined = Concat <axis = 0> (n, channels, image)
           a = Reshape (x, grouped)
           b = Transpose <perm = [0, 2, 1, 3, 4]> (a)
           y = Reshape (b, joined)""",
        {
            "groups": ints(2, 3),
            "channels": ints(6),
            **{name: ints(number) for name, number in (("zero", 0), ("one", 1), ("two", 2), ("four", 4))},
        },
        {("x", (1,)): 6, ("y", (1,)): 6},
    ),
    "pixel shuffle": (
        "float[N,12,3,2] x",
        """a = Reshape (x, blocks)
           b = Transpose <perm = [0, 1, 4, 2, 5, 3]> (a)
           y = Reshape (b, image)""",
        {"blocks": ints(-1, 3, 2, 2, 3, 2), "image": ints(-1, 3, 6, 4)},
        {("x", (1,)): 12, ("y", (1,)): 3},
    ),
    "pixel shuffle of an image of unknown size": (
        "float[N,12,H,W] x",
        """size = Shape (x)
           n = Slice (size, zero, one)
           h = Slice (size, two, three)
           w = Slice (size, three, four)
           blocks = Concat <axis = 0> (n, parts, h, w)
           wide_h = Mul (h, two)
           wide_w = Mul (w, two)
           image = Concat <axis = 0> (n, three, wide_h, wide_w)
           a = Reshape (x, blocks)
           b = Transpose <perm = [0, 1, 4, 2, 5, 3]> (a)
           y = Reshape (b, image)""",
        {"zero": ints(0), "one": ints(1), "two": ints(2), "three": ints(3), "four": ints(4), "parts": ints(3, 2, 2)},
        {("x", (1,)): 3, ("y", (1,)): 3},
    ),
    "an image of unknown size becomes tokens": (
        "float[N,6,H,W] x",
        """a = Reshape (x, tokens)
           y = Transpose <perm = [0, 2, 1]> (a)""",
        {"tokens": ints(0, 6, -1)},
        {("x", (1,)): 6, ("y", (2,)): 6},
    ),
    "heads of attention": (
        "float[N,T,6] x",
        """a = Reshape (x, heads)
           b = Transpose <perm = [0, 2, 1, 3]> (a)
           c = Transpose <perm = [0, 2, 1, 3]> (b)
           y = Reshape (c, joined)""",
        {"heads": ints(0, 0, 2, 3), "joined": ints(0, 0, 6)},
        {("x", (2,)): 6, ("y", (2,)): 6},
    ),
    "every second pixel into the channels": (
        "float[N,3,4,4] x",
        """a = Slice (x, even, e, hw, two)
           b = Slice (x, odd, e, hw, two)
           y = Concat <axis = 1> (a, b)""",
        {"even": ints(0, 0), "odd": ints(1, 0), "e": ints(99, 99), "hw": ints(2, 3), "two": ints(2, 2)},
        {("x", (1,)): 3, ("y", (1,)): 3},
    ),
}
CHAIN_STARTS = [(name, *start, free) for name, chain in CHAINS.items() for start, free in chain[3].items()]


def reach(model: ir.Model, value: str, axes: Axes) -> Asked:
    """Ask every node of the graph from every port, breadth first."""
    asked, waiting = Asked(axes={value: axes}), [value]
    everything = {v.name: v for node in model.graph for v in (*node.inputs, *node.outputs) if v is not None}
    while waiting:
        tensor = everything[waiting.pop(0)]
        for node in (node for node in model.graph if tensor in (*node.inputs, *node.outputs)):
            if node.op_type == "Shape":  # looks at no number
                continue
            answer = RULES[node.op_type](node, Port(tensor, asked.axes[tensor.name]), known_of(model, asked.axes))
            assert not isinstance(answer, Refusal), answer.reason
            asked.laws.extend(answer)
            for port in (port for law in answer for port in ports(law) if port.value.name not in asked.axes):
                asked.axes[port.value.name] = port.axes
                waiting.append(port.value.name)
    return asked


class TestChains:
    @pytest.mark.parametrize(("chain", "start", "axes", "free"), CHAIN_STARTS)
    def test_a_gauge_passes_the_whole_chain(self, chain: str, start: str, axes: Axes, free: int) -> None:
        x_type, nodes, constants, _ = CHAINS[chain]
        model = build(f"g ({x_type}) => (float[] y) {{ {nodes} }}", **constants)
        rng = np.random.default_rng(len(chain))

        asked = reach(model, start, axes)
        solution = Solution(asked, known_of(model))
        gauges = solution.draw(rng, negative=True)
        (x,), (y,) = model.graph.inputs, model.graph.outputs
        plain = rng.normal(size=[2 if size is None else size for size in known_of(model).dims(x) or ()])
        before = evaluate(model, {"x": plain})["y"]
        after = evaluate(model, {"x": encode(x, plain, gauges)})["y"]

        assert asked.scales == free
        np.testing.assert_allclose(after, encode(y, before, gauges), rtol=1e-12, atol=1e-12)


def random_reshape(rng: np.random.Generator) -> tuple[ir.Model, dict[str, Axes]]:
    """Both shapes are random groupings of the same small factors; sizes are hidden behind names and -1."""
    factors = rng.choice([1, 2, 2, 3], size=rng.integers(2, 6)).tolist()

    def grouping() -> list[int]:
        cuts = sorted(rng.integers(0, len(factors) + 1, size=rng.integers(0, 4)).tolist())
        return [math.prod(factors[a:b]) for a, b in zip([0, *cuts], [*cuts, len(factors)], strict=True)]

    source, target = grouping(), grouping()
    named = [f"D{axis}" if size == 2 and rng.random() < 0.3 else str(size) for axis, size in enumerate(source)]
    shape = [0 if place < len(source) and source[place] == size else size for place, size in enumerate(target)]
    if rng.random() < 0.7:
        shape[rng.integers(len(shape))] = -1
    model = build(f"g (float[{','.join(named)}] x) => (float[] y) {{ y = Reshape (x, s) }}", s=ints(*shape))
    known = known_of(model)
    (x,), (y,) = model.graph.inputs, model.graph.outputs
    placed = {}
    for value in (x, y):
        fixed = [axis for axis, size in enumerate(known.dims(value) or ()) if size is not None]
        some = rng.choice(fixed, size=min(len(fixed), int(rng.integers(1, 3))), replace=False) if fixed else []
        placed[value.name or ""] = tuple(sorted(int(axis) for axis in some))
    return model, placed


class TestAnyReshape:
    def test_is_exact_wherever_it_is_not_refused(self) -> None:
        rng = np.random.default_rng(3)
        exact = 0
        for _ in range(200):
            model, placed = random_reshape(rng)
            if () in placed.values():
                continue
            start = str(rng.choice(["x", "y"]))
            decided = placed if rng.random() < 0.7 else {start: placed[start]}
            answer = ask(model, "Reshape", start, placed[start], rules=RULES, axes_of=decided)
            if not isinstance(answer, Refusal):
                asked = assert_laws_hold(model, "Reshape", start, placed[start], rules=RULES, axes_of=decided, draws=2)
                assert asked.pinned or asked.scales == entries_that_meet(model, "Reshape", asked.axes)
                exact += not asked.pinned
        assert exact > 120
