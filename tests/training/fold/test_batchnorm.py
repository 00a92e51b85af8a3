"""BatchNormalization of every opset: when it is a constant map, and the reason when it is not."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.models import affine_of, build, mild_statistics, rng_of
from training.fold.batchnorm import BatchNorm, read_batchnorm
from training.fold.constants import Constants
from training.fold.refusal import Refusal
from training.fold.shapes import Shapes

STATS = mild_statistics(rng_of(0), 4)
BATCH = "it normalises with the statistics of each batch"


def read(node: str, opset: int, nodes: str = "", outputs: str = "double[N,4] y", inputs: str = "", **constants):
    graph = f"m (double[N,4] x{inputs}) => ({outputs}) {{ {nodes} [bn] {node} }}"
    model = build(graph, opset=opset, **(STATS | constants))
    node = next(n for n in model.graph if n.op_type == "BatchNormalization")
    return read_batchnorm(node, opset, Constants(Shapes(model)))


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 17, 21, 25])
def test_without_attributes_it_is_a_constant_map_from_opset_7_on(opset):
    record = read("y = BatchNormalization (x, g, b, m, v)", opset)

    assert isinstance(record, BatchNorm)
    slope, shift = affine_of(STATS)
    np.testing.assert_allclose(record.affine.scale, slope, rtol=1e-15)
    np.testing.assert_allclose(record.affine.shift, shift, rtol=1e-12)
    assert (record.x.name, record.y.name) == ("x", "y")


@pytest.mark.parametrize("opset", [1, 6])
def test_before_opset_7_it_has_to_say_is_test(opset):
    assert isinstance(read("y = BatchNormalization <is_test = 1> (x, g, b, m, v)", opset), BatchNorm)
    for said in ("", "<is_test = 0>"):
        refusal = read(f"y = BatchNormalization {said} (x, g, b, m, v)", opset)
        assert refusal == Refusal(f"is_test=0 (opset {opset}): {BATCH}")


def test_epsilon_is_read_as_float32():
    record = read("y = BatchNormalization <epsilon = 0.001> (x, g, b, m, v)", 17)

    np.testing.assert_array_equal(record.affine.scale, STATS["g"] / np.sqrt(STATS["v"] + float(np.float32(0.001))))


REFUSED = {
    "training_mode": (
        "y = BatchNormalization <training_mode = 1> (x, g, b, m, v)", 14, {},
        f"training_mode=1: {BATCH}"),
    "running mean used": (
        "y, mm, vv = BatchNormalization (x, g, b, m, v)", 14,
        {"outputs": "double[N,4] y, double[4] mm"},
        "its output 'mm' (running statistics) is used"),
    "five outputs": (
        "y, mm, vv, sm, sv = BatchNormalization (x, g, b, m, v)", 9, {},
        "it has 5 outputs, which in opset 9 means training mode"),
    "spatial=0, opset 7": (
        "y = BatchNormalization <spatial = 0> (x, g, b, m, v)", 7, {},
        "spatial=0: its scale differs within a channel"),
    "spatial=0, opset 6": (
        "y = BatchNormalization <spatial = 0, is_test = 1> (x, g, b, m, v)", 6, {},
        "spatial=0: its scale differs within a channel"),
    "scale computed": (
        "y = BatchNormalization (x, q, b, m, v)", 17, {"nodes": "[r] q = LRN <size = 1> (g)"},
        "scale is not constant: 'q' is computed by LRN 'r'"),
    "B an input": (
        "y = BatchNormalization (x, g, q, m, v)", 17, {"inputs": ", double[4] q"},
        "B is not constant: 'q' is a graph input"),
    "mean of the batch": (
        "y = BatchNormalization (x, g, b, q, v)", 17, {"nodes": "[r] q = ReduceMean <axes = [0], keepdims = 0> (x)"},
        "input_mean is not constant: 'q' is computed by ReduceMean 'r' from 'x'"),
    "variance overridable": (
        "y = BatchNormalization (x, g, b, m, q)", 17, {"inputs": ", double[4] q", "q": np.ones(4)},
        "input_var is not constant: 'q' is a graph input with a default that a caller may override"),
    "lengths differ": (
        "y = BatchNormalization (x, g, q, m, v)", 17, {"q": np.ones(3)},
        "B 'q' has shape [3], expected [4], as scale"),
    "not a vector": (
        "y = BatchNormalization (x, q, b, m, v)", 17, {"q": np.ones((1, 4))},
        "scale 'q' has shape [1, 4], expected one axis"),
    "variance negative": (
        "y = BatchNormalization (x, g, b, m, q)", 17, {"q": np.array([1.0, -1.0, 1.0, 1.0])},
        "variance + epsilon is -0.99999 in channel 1, expected positive and finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_constant_map_is_refused(case):
    node, opset, more, reason = case
    assert read(node, opset, **more) == Refusal(reason)


@pytest.mark.parametrize(("opset", "said"), [(6, "<is_test = 1>"), (14, ""), (17, "<training_mode = 0>")])
def test_extra_outputs_that_nobody_reads_do_no_harm_where_the_mode_is_said(opset, said):
    assert isinstance(read(f"y, mm, vv = BatchNormalization {said} (x, g, b, m, v)", opset), BatchNorm)


def test_a_missing_operand_is_refused():
    node = ir.Node("", "BatchNormalization", [ir.val("x"), ir.val("g")], name="bn")
    node.outputs[0].name = "y"
    constants = Constants(Shapes(build("m (float x) => (float y) { y = Relu (x) }")))

    assert read_batchnorm(node, 17, constants) == Refusal("scale is not constant: 'g' is not computed in this graph")
    node = ir.Node("", "BatchNormalization", [None], name="bn")
    assert read_batchnorm(node, 17, constants) == Refusal("BatchNormalization 'bn' lacks its operand X")
