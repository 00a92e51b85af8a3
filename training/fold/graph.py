"""Questions about a graph: who reads this tensor, and may its numbers change? No arithmetic, no edits."""

from __future__ import annotations

import onnx_ir as ir

from training.fold.refusal import Refusal

# (operator, operand) pairs that look at a tensor's shape or type and never at its numbers. Folding keeps both, so
# these readers do not stand in its way; the exporter's `CastLike(0, conv)` and `Shape(conv)` are of this kind.
_LOOKS_AT_SHAPE_ONLY = frozenset(
    {("Shape", 0), ("Size", 0), ("CastLike", 1), ("EyeLike", 0), ("RandomNormalLike", 0), ("RandomUniformLike", 0)}
)


def is_standard(node: ir.Node, op_type: str | None = None) -> bool:
    """Is it an operator of ONNX's own domain (and of this type)?"""
    return node.domain in ("", "ai.onnx") and op_type in (None, node.op_type)


def label(node: ir.Node) -> str:
    """A node's name; a nameless node goes by its first output, which is unique too."""
    return node.name or node.outputs[0].name or node.op_type


def describe(node: ir.Node) -> str:
    """For messages: `Conv 'conv1'`, or `Conv of 'h3'` where the node has no name."""
    return f"{node.op_type} '{node.name}'" if node.name else f"{node.op_type} of '{node.outputs[0].name}'"


def number_readers(value: ir.Value) -> list[ir.Node]:
    """Nodes that read the value's numbers, in subgraphs too; one entry a use."""
    return [
        use.node
        for use in value.uses()
        if not (is_standard(use.node) and (use.node.op_type, use.idx) in _LOOKS_AT_SHAPE_ONLY)
    ]


def may_change(value: ir.Value, reader: ir.Node) -> Refusal | None:
    """May the numbers of `value` become others, if only `reader` is told? None when they may.

    1. It is computed by a node of the same graph as the reader (a loop body must not change its surroundings).
    2. It is no output of a graph.
    3. Nobody else reads its numbers, be it in a body of If, Loop or Scan.
    """
    producer = value.producer()
    if producer is None:
        return Refusal(f"'{value.name}' is {_origin(value)}, no node computes it")
    if producer.graph is not reader.graph:
        return Refusal(f"'{value.name}' of {describe(producer)} is computed outside the subgraph of {describe(reader)}")
    tensor = f"output '{value.name}' of {describe(producer)}"
    if value.is_graph_output():
        return Refusal(f"{tensor} is also a graph output")
    captors = [node for node in number_readers(value) if node.graph is not reader.graph]
    if captors:
        return Refusal(f"{tensor} is also read inside a subgraph, by {describe(captors[0])}")
    others = [describe(node) for node in number_readers(value) if node is not reader]
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        return Refusal(f"{tensor} has {len(others) + 1} consumers: {describe(reader)}, {shown}")
    return None


def _origin(value: ir.Value) -> str:
    if value.is_graph_input():
        return "a graph input"
    return "an initializer" if value.is_initializer() else "undefined"
