"""Moves a Reshape that merges or splits leading axes past a MatMul, where a BatchNormalization is next to it.

    Reshape_2D(x W) = Reshape_2D(x) W        x [.., K], W [K, N]: only leading axes are regrouped

A Linear without bias on [N, T, F] is a MatMul, which can hold no shift; on [N * T, F] it is one that can, as a Gemm. In
LeViT and its like the BatchNormalization stands on [N * T, F] with a Reshape on either side, so that the same number of
operators, in another order, holds it all. Knows no gauges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

from training.fold.edits import annotate, new_names, sweep, take_over_identity
from training.fold.graph import is_standard, number_readers
from training.fold.known import Known
from training.fold.shapes import Dims

_Names = Callable[[str], str]
"""From a name to one that is new in all scopes, as `edits.new_names` gives it."""


def flatten_linears(model: ir.Model, known: Known) -> int:
    """Move what can be moved, in place, in subgraphs too; how many were."""
    moved, names = 0, new_names(model)
    for node in list(model.graph.all_nodes()):
        if is_standard(node, "MatMul") and _weight_columns(node, known) is not None:
            moved += _pull_up(node, known, names) or _push_down(node, known, names)
    return moved


def _weight_columns(node: ir.Node, known: Known) -> int | None:
    """N, if the right operand is a constant matrix [K, N]."""
    dims = None if node.inputs[1] is None else known.dims(node.inputs[1])
    constant = node.inputs[1] is not None and known.constants.holds(node.inputs[1])
    return dims[1] if constant and dims is not None and len(dims) == 2 else None


def _pull_up(node: ir.Node, known: Known, names: _Names) -> bool:
    """MatMul -> Reshape to rank 2 -> BatchNormalization becomes Reshape -> MatMul -> BatchNormalization.

    (1) The Reshape, or a Flatten, is all that reads the MatMul's numbers; who asks for its shape is given one that is
    put together of the operand's. (2) It keeps the last axis, of known size, and merges all others.
    """
    x, weight, product = node.inputs[0], node.inputs[1], node.outputs[0]
    readers = number_readers(product)
    if x is None or weight is None or len(readers) != 1 or product.is_graph_output():
        return False
    regroup, askers = readers[0], [use.node for use in product.uses() if use.node is not readers[0]]
    if regroup.op_type not in ("Reshape", "Flatten") or regroup.inputs[0] is not product:
        return False
    if not is_standard(regroup) or regroup.graph is not node.graph or not _merges(regroup, known):
        return False
    flat, sizes, rank = regroup.outputs[0], known.dims(weight) or (None, None), len(known.dims(product) or ())
    rows, columns = sizes
    if rows is None or columns is None or not _next_to_batchnorm(reader.node for reader in flat.uses()):
        return False
    if not all(_asks_for_all_sizes(asker, node) for asker in askers):
        return False
    target = _constant(node, np.array([-1, rows], dtype=np.int64), names(f"{flat.name}_rows"))
    early = ir.Node("", "Reshape", [x, target], name=names(f"{regroup.name or flat.name}_early"))
    early.outputs[0].name = names(f"{flat.name}_operand")
    annotate(early.outputs[0], known.shapes.dtype(x), [(known.dims(flat) or (None, None))[0], rows])
    assert node.graph is not None
    node.graph.insert_before(node, early)
    if askers:
        shape = _shape_with_last(node, x, rank, columns, f"{product.name}_shape", names)
        for asker in askers:
            asker.outputs[0].replace_all_uses_with(shape)
            node.graph.remove(asker, safe=True)
    node.replace_input_with(0, early.outputs[0])
    flat.replace_all_uses_with(product, replace_graph_outputs=True)
    left_over = [operand for operand in regroup.inputs[1:] if operand is not None]
    node.graph.remove(regroup, safe=True)
    sweep(left_over)
    take_over_identity(product, flat)
    return True


def _asks_for_all_sizes(asker: ir.Node, node: ir.Node) -> bool:
    """Is it a Shape, of the whole shape, in the node's own graph?"""
    plain = is_standard(asker, "Shape") and not asker.attributes and asker.graph is node.graph
    return plain and not asker.outputs[0].is_graph_output()


def _shape_with_last(node: ir.Node, x: ir.Value, rank: int, last: int, name: str, names: _Names) -> ir.Value:
    """The sizes of `x` with another last one, in front of `node`; with operators that are the same in every opset."""
    leading = _constant(node, np.arange(rank - 1, dtype=np.int64), names(f"{name}_leading"))
    new = _constant(node, np.array([last], dtype=np.int64), names(f"{name}_last"))
    whole = ir.Node("", "Shape", [x], name=names(f"{name}_whole"))
    kept = ir.Node("", "Gather", [whole.outputs[0], leading], name=names(f"{name}_kept"))
    joined = ir.Node("", "Concat", [kept.outputs[0], new], [ir.AttrInt64("axis", 0)], name=names(name))
    assert node.graph is not None
    for one, length in ((whole, rank), (kept, rank - 1), (joined, rank)):
        one.outputs[0].name = names(f"{one.name}_out")
        one.outputs[0].type, one.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([length])
        node.graph.insert_before(node, one)
    return joined.outputs[0]


def _push_down(node: ir.Node, known: Known, names: _Names) -> bool:
    """BatchNormalization -> Reshape from rank 2 -> MatMul becomes BatchNormalization -> MatMul -> Reshape.

    (1) The MatMul is all that reads the Reshape. (2) It keeps the last axis, of known size, and splits the other.
    """
    regrouped, columns = node.inputs[0], _weight_columns(node, known)
    reshape = None if regrouped is None else regrouped.producer()
    if reshape is None or regrouped is None or not is_standard(reshape, "Reshape") or columns is None:
        return False
    flat = reshape.inputs[0]
    dims = None if flat is None else known.dims(flat)
    if flat is None or dims is None or len(dims) != 2 or dims[1] is None:
        return False
    sizes = _target(reshape, known)
    keeps = len(sizes) > 2 and (known.dims(regrouped) or (None,))[-1] == dims[1] and sizes[-1] is not None
    keeps = keeps and not _may_copy_columns(reshape, sizes, known.dims(regrouped) or (), dims[1])
    alone = len(list(regrouped.uses())) == 1 and not regrouped.is_graph_output() and reshape.graph is node.graph
    producer = flat.producer()
    if not keeps or not alone or producer is None or not _next_to_batchnorm([producer]):
        return False
    product = node.outputs[0]
    late_target = _with_last(reshape, node, columns, names(f"{product.name}_shape"), names, known)
    attributes = list(reshape.attributes.values())
    name = names(f"{reshape.name or regrouped.name}_late")
    late = ir.Node("", "Reshape", [product, late_target], attributes, name=name)
    assert node.graph is not None
    product.replace_all_uses_with(late.outputs[0], replace_graph_outputs=True)
    late.replace_input_with(0, product)
    take_over_identity(late.outputs[0], product)
    product.name = names(f"{late.outputs[0].name}_flat")
    annotate(product, known.shapes.dtype(flat), [dims[0], columns])
    node.replace_input_with(0, flat)
    node.graph.insert_after(node, late)
    left_over = [operand for operand in reshape.inputs[1:] if operand is not None]
    node.graph.remove(reshape, safe=True)
    sweep(left_over)
    return True


def _may_copy_columns(reshape: ir.Node, sizes: list[int | None], split: Dims, columns: int) -> bool:
    """Can one of the sizes in front of the last be 0, which copies axis 1, the one that changes?

    A size that is computed may turn out so. With `allowzero` a 0 is a size like any other.
    """
    if reshape.attributes.get_int("allowzero", 0):
        return False
    return 0 in sizes[1:-1] or (sizes[1] is None and split[1] in (None, columns))


def _target(reshape: ir.Node, known: Known) -> list[int | None]:
    """The sizes that a Reshape asks for, None where one is computed; empty where not even their number is known."""
    target = reshape.inputs[1] if len(reshape.inputs) > 1 else None
    constant = known.constant(target)
    if constant is not None:
        return [int(size) for size in np.atleast_1d(constant)]
    concat = None if target is None else target.producer()
    if concat is None or not is_standard(concat, "Concat"):
        return []
    parts = [known.constant(part) for part in concat.inputs]
    lengths = [None if part is None else known.dims(part) for part in concat.inputs]
    if any(length != (1,) for length in lengths):
        return []
    return [None if part is None else int(part[0]) for part in parts]


def _with_last(reshape: ir.Node, node: ir.Node, size: int, name: str, names: _Names, known: Known) -> ir.Value:
    """The target of `reshape` with another last size, in front of `node`, as a tensor of this name, which is new."""
    target = reshape.inputs[1]
    assert target is not None and node.graph is not None
    constant = known.constant(target)
    if constant is not None:
        return _constant(node, np.array([*constant[:-1], size], dtype=np.int64), name)
    concat = target.producer()
    assert concat is not None
    last = _constant(node, np.array([size], dtype=np.int64), names(f"{name}_last"))
    new = ir.Node("", "Concat", [*concat.inputs[:-1], last], [ir.AttrInt64("axis", 0)], name=name)
    new.outputs[0].name, new.outputs[0].type, new.outputs[0].shape = name, target.type, target.shape
    node.graph.insert_before(node, new)
    return new.outputs[0]


def _merges(reshape: ir.Node, known: Known) -> bool:
    x, y = reshape.inputs[0], reshape.outputs[0]
    before, after = None if x is None else known.dims(x), known.dims(y)
    if before is None or after is None or len(before) < 3 or len(after) != 2:
        return False
    return before[-1] is not None and before[-1] == after[1]


def _next_to_batchnorm(nodes: Iterable[ir.Node]) -> bool:
    return any(is_standard(node, "BatchNormalization") for node in nodes)


def _constant(node: ir.Node, array: np.ndarray, name: str) -> ir.Value:
    """A new integer constant in the node's graph, of a name that is new, as a Constant node: it needs no IR version."""
    constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(array))], name=name)
    constant.outputs[0].name = name
    constant.outputs[0].type, constant.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape(array.shape)
    assert node.graph is not None
    node.graph.insert_before(node, constant)
    return constant.outputs[0]
