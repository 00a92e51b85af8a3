"""The way out for operators without a row in the table: onnx.reference evaluates the single node, on float64 inputs.

onnx.reference is slow and a few of its operators round to float32 inside; that is why everything the folding engine
touches has a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator

from training.reference.op import Array, Op, UnsupportedOperator

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


def by_onnx_reference(node: ir.Node, op: Op, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    """Evaluate one node. Raises UnsupportedOperator, with the cause, when onnx.reference cannot."""
    if node.op_type in RANDOM:
        raise unsupported(node, "its result is random, so that there is nothing to compare with")
    try:
        model = _one_node_model(node, op, inputs)
        names = [info.name for info in model.graph.input]
        present = [array for array in inputs if array is not None]
        return tuple(ReferenceEvaluator(model).run(None, dict(zip(names, present, strict=True))))
    except Exception as error:  # onnx.reference raises whatever its NumPy code raises
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise unsupported(node, f"onnx.reference says {cause}") from error


def onnx_reference_has(node: ir.Node, opset: int) -> bool:
    """Has onnx.reference an implementation of the operator, whose answer is not random?"""
    if node.op_type in RANDOM:
        return False
    proto = ir.serde.serialize_node(node)
    inputs, outputs = (
        [helper.make_empty_tensor_value_info(name) for name in some if name] for some in (proto.input, proto.output)
    )
    graph = helper.make_graph([proto], "one_node", inputs, outputs)
    try:
        ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, opset)]))
    except Exception:  # whatever its constructors raise
        return False
    return True


def _one_node_model(node: ir.Node, op: Op, inputs: Sequence[Array | None]) -> onnx.ModelProto:
    proto = ir.serde.serialize_node(node)
    names = ["" if array is None else f"input_{i}" for i, array in enumerate(inputs)]
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(f"output_{i}" if asked else "" for i, asked in enumerate(op.outputs))
    for attribute in proto.attribute:  # inside a local function: `x = @y` takes the caller's value
        if attribute.ref_attr_name:
            attribute.CopyFrom(helper.make_attribute(attribute.name, op.attributes[attribute.name]))
    graph = helper.make_graph(
        [proto],
        "one_node",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, inputs, strict=True)
            if array is not None
        ],
        [helper.make_empty_tensor_value_info(name) for name in proto.output if name],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, op.opset)])


def unsupported(node: ir.Node, why: str) -> UnsupportedOperator:
    domain = node.domain or "ai.onnx"
    return UnsupportedOperator(
        f"node {node.name!r}: operator {node.op_type!r} of domain {domain!r} cannot be evaluated: {why}", node
    )
