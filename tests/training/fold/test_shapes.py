"""Shapes as declared or inferred, without annotating the model."""

import numpy as np
import onnx_ir as ir

from tests.training.fold.models import build, serialized
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
