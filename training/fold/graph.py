"""Questions about a graph: what is this node, and who reads this tensor's numbers? No arithmetic, no edits."""

from __future__ import annotations

import onnx_ir as ir

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
