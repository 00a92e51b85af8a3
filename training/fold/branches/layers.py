"""Merged operators as nodes. Their constants are announced here and written by edits.apply, all at once, at the end.

Until then a node made here still holds the constants of the branch it is named after; its numbers, unrounded, are in
`exact`, so that what is merged twice is rounded once. Knows names, attributes and dtypes; decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from training.fold import weights
from training.fold.affine import Affine, Array
from training.fold.branches.terms import Facts, Layout, Made, Operator
from training.fold.branches.window import Window
from training.fold.edits import SetOperand, annotate
from training.fold.graph import label
from training.fold.refusal import Refusal
from training.fold.shapes import Shapes


@dataclass(frozen=True, eq=False)
class Layer:
    """An operator to be made: `window` on `x`, named after `model`, in its storage dtype."""

    x: ir.Value
    window: Window
    model: Operator
    layout: Layout
    weight: Array
    bias: Array | None  # None where it is zero
    fits_gemm: bool  # a Linear on a matrix
    like: ir.Value  # has the shape and type of its result

    @property
    def size(self) -> int:
        """Nodes."""
        return 2 if self.layout is Layout.LINEAR and self.bias is not None and not self.fits_gemm else 1


def layer(x: ir.Value, window: Window, model: Operator, layout: Layout, facts: Facts, like: ir.Value) -> Layer | None:
    """Rounded once; None where that is not finite."""
    assert model.weight is not None
    old = facts.constants.of(model.weight)
    assert not isinstance(old, Refusal)
    kernel = window.kernel if layout is Layout.CONVOLUTION else window.kernel.T
    weight, bias = weights.round_once(kernel, old.dtype), weights.round_once(window.bias, old.dtype)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        return None
    fits_gemm = layout is Layout.LINEAR and facts.shapes.rank(x) == 2
    return Layer(x, window, model, layout, weight, bias if bias.any() else None, fits_gemm, like)


@dataclass(eq=False)
class Workshop:
    """Makes nodes. `new_name`: from a wish to a name that is free; `exact`, `pending`: of nodes made here, which may be
    gone again."""

    new_name: Callable[[str], str]
    shapes: Shapes
    exact: dict[ir.Node, Made] = field(default_factory=dict)
    pending: dict[ir.Node, list[SetOperand]] = field(default_factory=dict)
    stale: list[ir.Value] = field(default_factory=list)  # what was read before an edit
    fresh: set[ir.Node] = field(default_factory=set)  # that were not there before

    def install(self, new: Layer, node: ir.Node | None, before: ir.Node) -> tuple[ir.Node, ir.Value]:
        """As `node`, which changes what it is and keeps its output; None: as a new node in front of `before`.

        Returns the node that holds the weight, and the value that holds the result.
        """
        if new.size == 2:
            product = self._make(new, None, before, with_bias=False)
            if node is not None and node.op_type not in ("Add", "Sub", "Sum"):  # it was a layer; now the product is
                node.name = self.new_name(f"{label(node)}_bias")
            add = self.become(node, "Add", [product.outputs[0], None], before, like=new.like)
            assert new.bias is not None and new.model.weight is not None
            self.pending[add] = [SetOperand(add, 1, new.bias, new.model.weight, "bias")]
            one = np.ones_like(new.window.bias)
            self.exact[add] = Made(new.layout, Affine(one, np.zeros_like(one), new.window.bias))
            return product, add.outputs[0]
        made = self._make(new, node, before, with_bias=new.bias is not None)
        return made, made.outputs[0]

    def become(
        self,
        node: ir.Node | None,
        op_type: str,
        operands: Sequence[ir.Value | None],
        before: ir.Node,
        attributes: Sequence[ir.Attr] = (),
        like: ir.Value | None = None,
    ) -> ir.Node:
        """`node` turns into this operator; None: a new one in front of `before`, its output typed `like` another."""
        if node is not None:
            node.op_type = op_type
            node.attributes.clear()
            node.attributes.update({attribute.name: attribute for attribute in attributes})
            self.read(node, operands)
            self.exact.pop(node, None)
            self.pending.pop(node, None)
            return node
        output = ir.Value(name=self.new_name(f"{before.outputs[0].name}_branch"))
        if like is not None:
            annotate(output, self.shapes.dtype(like), self.shapes.symbols(like))
        fresh = ir.Node("", op_type, operands, attributes, outputs=[output])
        fresh.name = self.new_name(f"{label(before)}_branch")
        assert isinstance(before.graph, ir.Graph)
        before.graph.insert_before(before, fresh)
        self.fresh.add(fresh)
        return fresh

    def read(self, node: ir.Node, operands: Sequence[ir.Value | None]) -> None:
        """`node` reads these, in this order, and nothing else."""
        self.stale += [value for value in node.inputs if value is not None]
        node.resize_inputs(len(operands))
        for index, value in enumerate(operands):
            node.replace_input_with(index, value)

    def edits(self) -> list[SetOperand]:
        """For the nodes that are still there."""
        return [edit for node, edits in self.pending.items() if node.graph is not None for edit in edits]

    def _make(self, new: Layer, node: ir.Node | None, before: ir.Node, *, with_bias: bool) -> ir.Node:
        model, window = new.model.node, new.window
        name, metadata = model.name, dict(model.metadata_props)
        old_bias = model.inputs[2] if len(model.inputs) > 2 else None
        operands = [new.x, new.model.weight, *([old_bias] if with_bias else [])]
        if new.layout is Layout.CONVOLUTION:
            op_type, attributes = "Conv", _conv_attributes(window)
        else:
            op_type, attributes = ("Gemm" if with_bias else "MatMul"), []
        made = self.become(node, op_type, operands, before, attributes, new.like)
        made.name = name
        made.metadata_props.clear()
        made.metadata_props.update(metadata)
        assert new.model.weight is not None
        self.pending[made] = [SetOperand(made, 1, new.weight, new.model.weight, "weight")]
        if with_bias and new.bias is not None:
            self.pending[made].append(SetOperand(made, 2, new.bias, new.model.weight, "bias"))
        bias = window.bias if with_bias else np.zeros_like(window.bias)
        self.exact[made] = Made(new.layout, Window(window.frame, window.kernel, bias))
        return made


def _conv_attributes(window: Window) -> list[ir.Attr]:
    axes = window.frame.axes
    return [
        ir.AttrInt64s("dilations", [axis.step for axis in axes]),
        ir.AttrInt64("group", window.frame.group),
        ir.AttrInt64s("kernel_shape", list(window.frame.taps)),
        ir.AttrInt64s("pads", [axis.pads[end] for end in (0, 1) for axis in axes]),
        ir.AttrInt64s("strides", [axis.stride for axis in axes]),
    ]
