"""Edits of a graph, decided elsewhere: remove a node that became the identity, give operands new constants, sweep up.

No arithmetic. Nothing is written in place: a constant that other nodes share stays as it is, and every distinct new
content becomes one new initializer, which inherits the old one's name where the old one is gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from training.fold.affine import Array
from training.fold.graph import is_standard, label


@dataclass(frozen=True, eq=False)
class SetOperand:
    """Operand `index` of `node` becomes the constant `array` (in its storage dtype).

    `origin` is the constant it was made from: edits with the same origin, role and content share one new constant.
    """

    node: ir.Node
    index: int
    array: Array
    origin: ir.Value
    role: str  # "weight", "bias", "constant"
    name: str = ""  # that the new constant would like, where it replaces none


@dataclass(frozen=True)
class SetAttribute:
    node: ir.Node
    attribute: ir.Attr


@dataclass(frozen=True)
class BecomeGemm:
    """A MatMul of two matrices turns into the Gemm that computes the same and can hold a bias; name and output stay."""

    node: ir.Node


@dataclass(frozen=True, eq=False)
class Become:
    """`node` turns into `op_type(x, array)`, x being its operand `place`; name and output stay.

    A second one for the same node comes behind it.
    """

    node: ir.Node
    op_type: str
    place: int
    array: Array
    attributes: tuple[ir.Attr, ...] = ()


Edit = SetOperand | SetAttribute | BecomeGemm | Become


def bypass(node: ir.Node, place: int, *, keeps_name: bool = False) -> list[ir.Value]:
    """Take a node out whose first output equals its operand `place` by now; return what it read otherwise.

    The tensor that stays carries the *output's* name, type, shape and annotations, because it holds the output's
    numbers, and graph outputs keep theirs. `keeps_name`: it holds its own numbers still, and keeps its own. A tensor
    whose name is bound keeps it too. Where that is so of both ends, no tensor can have both names: an Identity stays.
    """
    x, y = node.inputs[place], node.outputs[0]
    assert node.graph is not None and x is not None
    left_over = [value for index, value in enumerate(node.inputs) if value is not None and index != place]
    fixed = _is_bound(x, node)
    if fixed and y.is_graph_output():
        node.resize_inputs(1)
        node.replace_input_with(0, x)
        node.op_type = "Identity"
        node.attributes.clear()
        return left_over
    y.replace_all_uses_with(x, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
    if not (fixed or keeps_name):
        take_over_identity(x, y)
    return left_over


def _is_bound(x: ir.Value, reader: ir.Node) -> bool:
    """Is its name not for `reader`'s graph to change: an input, a constant, an output, a tensor from further out?

    Nor may a subgraph give such a tensor as its output: ONNX wants that computed, or an input, in the graph itself.
    """
    producer = x.producer()
    return producer is None or producer.graph is not reader.graph or x.is_graph_output()


def bypass_identities(model: ir.Model) -> None:
    """Take out every Identity, but for those between two tensors that both have to keep their names."""
    for node in list(model.graph.all_nodes()):
        if not is_standard(node, "Identity") or node.inputs[0] is None:
            continue
        x, y = node.inputs[0], node.outputs[0]
        bound = _is_bound(x, node)
        if not (bound and y.is_graph_output()):
            bypass(node, 0, keeps_name=bound or not y.is_graph_output())


def apply(model: ir.Model, edits: Sequence[Edit]) -> None:
    """Carry out `edits`."""
    names = _Names(model)
    operands: list[SetOperand] = []
    became: set[ir.Node] = set()
    left_over: list[ir.Value] = []
    for edit in edits:
        match edit:
            case SetOperand():
                operands.append(edit)
            case SetAttribute():
                edit.node.attributes.add(edit.attribute)
            case BecomeGemm():
                edit.node.op_type = "Gemm"
            case Become():
                node = edit.node
                if node in became:
                    node = _append(node, edit.op_type, edit.op_type.lower(), names)
                else:
                    left_over += _become(edit)
                    became.add(node)
                name = f"{label(edit.node)}_{edit.op_type.lower()}"
                operands.append(SetOperand(node, 1, edit.array, node.outputs[0], name, name))
    _set_operands(model, operands, names)
    sweep(left_over)


def sweep(values: Iterable[ir.Value]) -> None:
    """Remove what nobody reads any more among `values`, and what only they were made from."""
    pending = list(values)
    while pending:
        value = pending.pop()
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        node = value.producer()
        if value.is_initializer() and value.graph is not None and value.name is not None:
            del value.graph.initializers[value.name]
        elif node is not None and node.graph is not None and _is_unread(node):
            pending += [operand for operand in node.inputs if operand is not None]
            node.graph.remove(node, safe=True)


def _is_unread(node: ir.Node) -> bool:
    return not any(output.uses() or output.is_graph_output() for output in node.outputs)


def take_over_identity(value: ir.Value, pattern: ir.Value) -> None:
    value.const_value = None
    value.name = pattern.name
    value.type = pattern.type if pattern.type is not None else value.type
    value.shape = pattern.shape if pattern.shape is not None else value.shape
    value.doc_string = pattern.doc_string
    for mine, theirs in ((value.metadata_props, pattern.metadata_props), (value.meta, pattern.meta)):
        mine.clear()
        mine.update(theirs)


def _become(edit: Become) -> list[ir.Value]:
    """Change the node but for its constant; return what it no longer reads."""
    node = edit.node
    x = node.inputs[edit.place]
    left_over = [value for value in node.inputs if value is not None and value is not x]
    node.op_type = edit.op_type
    node.attributes.clear()
    for attribute in edit.attributes:
        node.attributes.add(attribute)
    node.resize_inputs(2)
    node.replace_input_with(0, x)
    node.replace_input_with(1, None)
    if len(node.outputs) > 1:
        node.resize_outputs(1)
    return left_over


def _append(node: ir.Node, op_type: str, what: str, names: _Names) -> ir.Node:
    """A node behind `node`, without its constant yet; it takes over the name of the node's output."""
    before = node.outputs[0]
    after = ir.Value(name=None)
    add = ir.Node("", op_type, [before, None], outputs=[after], name=names.new(f"{node.name or before.name}_{what}"))
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    add.replace_input_with(0, before)
    take_over_identity(after, before)
    before.name = names.new(f"{after.name}_before_{what}")
    graph.insert_after(node, add)
    return add


def _set_operands(model: ir.Model, edits: list[SetOperand], names: _Names) -> None:
    fresh: dict[object, tuple[ir.Value, str, ir.Value]] = {}  # what it is -> new value, the name it would like, origin
    replaced: list[ir.Value] = []
    shared = _shared_origins(edits)
    for edit in edits:
        key = (edit.origin, edit.role, _digest(edit.array)) if edit.origin in shared else edit
        if edit.index >= len(edit.node.inputs):
            edit.node.resize_inputs(edit.index + 1)
        old = edit.node.inputs[edit.index]
        if key not in fresh:
            wish = old.name if old is not None else edit.name or _bias_name(edit.origin.name)
            fresh[key] = (_constant_value(edit.array), wish or edit.role, edit.origin)
        edit.node.replace_input_with(edit.index, fresh[key][0])
        if old is not None:
            replaced.append(old)
    homes = {origin: _home(origin, model) for _, _, origin in fresh.values()}
    sweep(replaced)
    names.forget_all_but(model)
    for value, wish, origin in fresh.values():
        _register(value, names.new(wish), homes[origin], as_node=model.ir_version < 4)


def _shared_origins(edits: list[SetOperand]) -> set[ir.Value]:
    """Constants that more than one node's new operand is made from: only their contents need comparing."""
    nodes: dict[ir.Value, set[ir.Node]] = {}
    for edit in edits:
        nodes.setdefault(edit.origin, set()).add(edit.node)
    return {origin for origin, users in nodes.items() if len(users) > 1}


def _digest(array: Array) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def _constant_value(array: Array) -> ir.Value:
    tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape))
    return ir.Value(type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)


def _home(origin: ir.Value, model: ir.Model) -> ir.Graph:
    """The graph whose scope the origin is defined in: whoever saw the origin sees what is made from it."""
    graph = origin.graph
    return graph if isinstance(graph, ir.Graph) else model.graph


def _register(value: ir.Value, name: str, graph: ir.Graph, *, as_node: bool) -> None:
    """An initializer; below IR version 4 a Constant node, since initializers had to be graph inputs there."""
    tensor = value.const_value
    assert tensor is not None
    if as_node:
        constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], name=name)
        constant.outputs[0].name = name
        constant.outputs[0].type, constant.outputs[0].shape = value.type, value.shape
        value.replace_all_uses_with(constant.outputs[0])
        graph.insert_before(graph[0], constant)
    else:
        value.name = name
        graph.register_initializer(value)


def _bias_name(weight: str | None) -> str:
    weight = weight or "weight"
    return f"{weight.removesuffix('weight')}bias" if weight.endswith("weight") else f"{weight}_bias"


class _Names:
    """Every name in the model, values and nodes, in all scopes: a name that is new here shadows nothing."""

    def __init__(self, model: ir.Model) -> None:
        self._taken = _all_names(model)

    def new(self, wish: str) -> str:
        """`wish`, or `wish_1`, `wish_2`, ..., whichever is free; taken from then on."""
        name, count = wish, 0
        while name in self._taken:
            count += 1
            name = f"{wish}_{count}"
        self._taken.add(name)
        return name

    def forget_all_but(self, model: ir.Model) -> None:
        """Names whose owners are gone are free again."""
        self._taken = _all_names(model)


def annotate(value: ir.Value, dtype: ir.DataType | None, sizes: Sequence[int | str | None] | None) -> None:
    """Declare what is known of a new tensor. Of unknown type nothing: a shape without a type cannot be written."""
    if dtype is not None:
        value.type = ir.TensorType(dtype)
        value.shape = None if sizes is None else ir.Shape(sizes)


def new_names(model: ir.Model) -> Callable[[str], str]:
    """From the name that is wished for to one that is new in all scopes, and taken from then on."""
    return _Names(model).new


def _all_names(model: ir.Model) -> set[str]:
    names: set[str | None] = set()
    for graph in model.graphs():
        names.update(graph.initializers)
        names.update(value.name for value in (*graph.inputs, *graph.outputs))
        for node in graph:
            names.add(node.name)
            names.update(output.name for output in node.outputs)
    return {name for name in names if name}
