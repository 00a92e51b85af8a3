"""Shapes as declared or inferred, without annotating the model."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.models import build, serialized
from training.fold.shape_rules import RULES
from training.fold.shapes import Shapes


def test_declared_and_inferred():
    model = build(
        "m (double[N,4,6] x) => (y) { h = Conv (x, w) p = Relu (h) y = Flatten (p) }",
        w=np.ones((300, 4, 3)),  # large: inference sees its shape only
    )
    before = serialized(model)
    shapes = Shapes(model)
    x, (h, _, y) = model.graph.inputs[0], (node.outputs[0] for node in model.graph)

    assert shapes.dims(x) == (None, 4, 6) and shapes.dtype(x) == ir.DataType.DOUBLE
    assert shapes.dims(h) == (None, 300, 4) and shapes.dtype(h) == ir.DataType.DOUBLE
    assert shapes.rank(y) == 2
    assert serialized(model) == before


def test_what_cannot_be_known_is_unknown():
    model = build("m (double[2] x) => (y) { y = own.Thing (x) }")
    shapes = Shapes(model)

    assert shapes.dims(model.graph[0].outputs[0]) is None
    assert shapes.rank(model.graph[0].outputs[0]) is None
    assert shapes.dtype(model.graph[0].outputs[0]) is None


def test_a_graph_that_contradicts_itself_is_unknown_not_an_error():
    model = build("m (double[2,3] x) => (y) { h = MatMul (x, w) y = Relu (h) }", w=np.ones((4, 4)))

    assert Shapes(model).dims(model.graph[1].outputs[0]) is None


def test_a_tensor_made_after_inference_is_unknown():
    model = build("m (double[2,3] x) => (y) { y = Relu (x) }")
    shapes = Shapes(model)
    shapes.dims(model.graph[0].outputs[0])

    assert shapes.rank(ir.val("new")) is None


def shapes_of(text: str, opset: int = 17, **constants):
    """What is known of each node output, by name."""
    model = build(text, opset=opset, **constants)
    shapes = Shapes(model)
    return {output.name: shapes.symbols(output) for node in model.graph for output in node.outputs}


def test_symbolic_sizes_keep_their_names():
    found = shapes_of(
        """m (float[N,3,H,W] x, float[N,5,H,W] z) => (y) {
            c = Concat <axis = 1> (x, z) t = Transpose <perm = [0,2,3,1]> (c) y = Relu (t) }"""
    )

    assert found == {"c": ("N", 8, "H", "W"), "t": ("N", "H", "W", 8), "y": ("N", "H", "W", 8)}


def test_a_size_that_is_declared_without_a_number_is_inferred():
    model = build("m (float[2,3] x) => (y) { h = Relu (x) y = Relu (h) }")
    model.graph[0].outputs[0].shape = ir.Shape([None, 3])

    assert Shapes(model).symbols(model.graph[0].outputs[0]) == (2, 3)


@pytest.mark.parametrize(("statistics", "channels"), [("v v v v", 5), ("v v v u", "unk__0")])
def test_a_batchnorm_has_as_many_channels_as_parameters(statistics: str, channels: int | str):
    """Behind a Reshape that infers a size beside a free one, inference makes up a name."""
    maps = " ".join(
        f"n{i} = BatchNormalization (r, {scale}, {scale}, {scale}, {scale})"
        for i, scale in enumerate(statistics.split())
    )
    found = shapes_of(
        f"""m (float[N,3,10] x) => (y) {{
            s = Shape (x) c = Slice (s, zero, one) t = Concat <axis = 0> (c, less)
            r = Reshape (x, t) {maps} y = Relu (n0) }}""",
        zero=np.array([0]),
        one=np.array([1]),
        less=np.array([-1, 6]),
        v=np.ones(5, np.float32),
        u=np.ones(4, np.float32),
    )

    assert found["y"][1:] == (channels, 6)


def test_graphs_inside_nodes_may_use_the_same_names():
    model = build(
        """m (float[2,3] x, bool c) => (y) { y = If (c) <
            then_branch = yes () => (s) { h = Relu (x) s = Transpose (h) },
            else_branch = no () => (t) { h = Transpose (x) t = Relu (h) }> }"""
    )
    shapes = Shapes(model)
    inner = [shapes.dims(graph[0].outputs[0]) for graph in model.graph.subgraphs()]

    assert sorted(inner) == [(2, 3), (3, 2)]


def test_large_constants_are_shown_without_their_numbers(tmp_path):
    """Not a byte of this one is there to be read."""
    model = build(
        "m (float[N,3,H,W] x) => (y) { y = Conv <pads = [1,1,1,1]> (x, w) }", w=np.ones((8, 3, 3, 3), np.float32)
    )
    model.graph.initializers["w"].const_value = ir.ExternalTensor(
        "gone.bin", 0, 864, ir.DataType.FLOAT, shape=ir.Shape((8, 3, 3, 3)), name="w", base_dir=tmp_path
    )

    assert Shapes(model).dims(model.graph[0].outputs[0]) == (None, 8, None, None)


def test_a_large_constant_node_too():
    model = build("m (float[N,300] x) => (y) { k = Identity (w) y = MatMul (x, k) }", w=np.ones((300, 7), np.float32))
    tensor = model.graph.initializers["w"].const_value
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], name="k")
    node.outputs[0].name = "k2"
    model.graph.insert_before(model.graph[0], node)
    model.graph[1].replace_input_with(0, node.outputs[0])

    assert Shapes(model).dims(model.graph[2].outputs[0]) == (None, 7)
    assert node.attributes["value"].as_tensor() is tensor


# ONNX's inference says nothing of these: it begins with opset 6, and ends where it does not know an operator.
OBVIOUS = {
    "an old BatchNormalization": ("y = BatchNormalization <is_test = 1> (x, v, v, v, v)", 5, ("N", 4, 6, 6)),
    "an old Relu": ("y = Relu (x)", 5, ("N", 4, 6, 6)),
    "an old Add along an axis": ("y = Add <broadcast = 1, axis = 1> (x, v)", 5, ("N", 4, 6, 6)),
    "an old Add": ("y = Add (x, x)", 5, ("N", 4, 6, 6)),
    "an old Concat": ("y = Concat (x, x)", 3, ("N", 8, 6, 6)),
    "a chain": ("a = Relu (x) b = Sigmoid (a) y = Dropout <is_test = 1> (b)", 5, ("N", 4, 6, 6)),
    "an old Upsample": ("y = Upsample <height_scale = 2.0, width_scale = 2.0> (x)", 5, (None, None, None, None)),
    "a Conv behind the unknown": ("u = own.Thing (x) y = Conv (u, w)", 17, (None, 7, None, None)),
    "a ConvTranspose behind the unknown": (
        "u = own.Thing (x) y = ConvTranspose <group = 2> (u, w)", 17, (None, 8, None, None)),
    "a BatchNormalization behind that": (
        "u = own.Thing (x) c = Conv (u, w) y = BatchNormalization (c, v, v, v, v)", 17, (None, 7, None, None)),
    "a pool behind that": (
        "u = own.Thing (x) c = Conv (u, w) p = MaxPool <kernel_shape = [2, 2]> (c) y = GlobalAveragePool (p)",
        17, (None, 7, 1, 1)),
    "a Linear behind the unknown": ("u = own.Thing (x) y = Gemm <transB = 1> (u, m)", 17, (None, 3)),
    "a transposed Conv behind the unknown": (
        "u = own.Thing (x) c = Conv (u, w) y = Transpose <perm = [0, 2, 3, 1]> (c)", 17, (None, None, None, 7)),
    "a flat one": ("u = own.Thing (x) c = Conv (u, w) y = Flatten (c)", 17, (None, None)),
    "a broadcast sum of the unknown": (
        "u = own.Thing (x) c = Conv (u, w) d = Conv (x, e) y = Add (c, d)", 17, (None, 7, 4, 4)),
    "an old Reshape behind the old": (
        "b = Upsample <height_scale = 2.0, width_scale = 2.0> (x) y = Reshape <shape = [0, -1, 4]> (b)", 1,
        (None, None, 4)),
    "a Reshape behind the unknown": ("u = own.Thing (x) y = Reshape (u, s)", 13, (None, 4, None)),
    "an old Squeeze of the unknown": (
        "u = own.Thing (x) c = Conv (u, w) p = GlobalAveragePool (c) y = Squeeze <axes = [2, -1]> (p)", 9, (None, 7)),
    "an old Unsqueeze behind that": (
        "u = own.Thing (x) f = Gemm <transB = 1> (u, m) y = Unsqueeze <axes = [-1, 0]> (f)", 9, (1, None, 3, 1)),
    "an old mean of the unknown": (
        "u = own.Thing (x) c = Conv (u, w) y = ReduceMean <axes = [2, 3], keepdims = 0> (c)", 9, (None, 7)),
    "a mean of the unknown": ("u = own.Thing (x) c = Conv (u, w) y = ReduceMean (c, t)", 18, (None, 7, None, 1)),
    "a mean over all of the unknown": (
        "u = own.Thing (x) c = Conv (u, w) y = ReduceMean <keepdims = 0> (c)", 18, ()),
    "a mean that may be over all or nothing": (
        "u = own.Thing (x) c = Conv (u, w) y = ReduceMean <noop_with_empty_axes = 1> (c)", 18, None),
    "the unknown itself": ("y = own.Thing (x)", 17, None),
    "a Relu of it": ("u = own.Thing (x) y = Relu (u)", 17, None),
    "a sum with it": ("u = own.Thing (x) y = Add (u, x)", 17, None),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "opset", "expected"), OBVIOUS.values(), ids=OBVIOUS.keys())
def test_what_is_obvious_is_known(nodes, opset, expected):
    constants = {"v": (4,), "w": (7, 4, 3, 3), "e": (7, 4, 3, 3), "m": (3, 5)}
    found = shapes_of(
        f"m (float[N,4,6,6] x) => (y) {{ {nodes} }}",
        opset,
        **{name: np.ones(shape, np.float32) for name, shape in constants.items()},
        s=np.array([0, 4, -1]),
        t=np.array([-1]),
    )

    assert found["y"] == expected


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(1, 3), (2, 1)], (2, 3)),
        ([("N", 3), (3,)], ("N", 3)),
        ([("N", 1), ("N", "C")], ("N", "C")),
        ([("N", 3), ("M", 3)], (None, 3)),
        ([(None, 3), (5, 3)], (5, 3)),
        ([(None, 3), (1, 3)], (None, 3)),
        ([(2, 3), (4, 3)], (None, 3)),
        ([(2,), None], None),
    ],
)
def test_the_broadcast_rule(shapes, expected):
    node = ir.Node("", "Add", [ir.val("a"), ir.val("b")])

    assert RULES["Add"](node, shapes) == expected


def test_the_obvious_agrees_with_onnx():
    """Where both know something, sizes are equal: the rules are asked about graphs that ONNX can judge."""
    model = build(
        """m (float[2,4,8,6] x, float[4,8,6] b) => (y, z) {
            c = Conv <pads = [1,1,1,1]> (x, w) t = ConvTranspose <strides = [2,2]> (c, u) r = LeakyRelu (t)
            a = Add (x, b) m = MatMul (a, k) p = AveragePool <kernel_shape = [2,2]> (x) g = GlobalMaxPool (x)
            q = Concat <axis = -2> (x, x) f = Flatten <axis = 2> (x) y = Gemm <transA = 1> (f, v)
            h = Reshape (x, s) j = Unsqueeze (x, e) d = Squeeze (j, e) n = ReduceMax (x, e)
            l = ReduceSum <keepdims = 0> (x) z = Transpose (q) }""",
        opset=18,
        s=np.array([0, -1, 6]),
        e=np.array([-1, 1]),
        w=np.ones((5, 4, 3, 3), np.float32),
        u=np.ones((5, 3, 2, 2), np.float32),
        k=np.ones((6, 9), np.float32),
        v=np.ones((8, 7), np.float32),
    )
    shapes = Shapes(model)
    for node in model.graph:
        theirs = shapes.symbols(node.outputs[0])
        ours = RULES[node.op_type](node, [shapes.symbols(value) for value in node.inputs])
        assert ours is not None and len(ours) == len(theirs)
        assert all(mine in (None, size) for mine, size in zip(ours, theirs, strict=True))
