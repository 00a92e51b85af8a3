"""Writes a tensor that is cut into a sequence, of which every piece is then taken by a constant index, as one Split.

    SplitToSequence(x, sizes) -> SequenceAt(.., 0), SequenceAt(.., 2)   becomes   a, unread, c = Split(x, sizes)

torch writes `chunk` and `split` so when it is asked not to optimise, and a sequence is no tensor that a gauge could lie
on. Knows no gauges. Whatever is not certain to be the same is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from training.fold.edits import SetOperand, annotate, apply, bypass, new_names, sweep
from training.fold.graph import is_standard, label
from training.fold.known import Known
from training.fold.shape_rules import Sizes

_SIZES_ARE_AN_OPERAND = 13  # the opset from which on Split takes them so
_MOST_PIECES = 1 << 10  # a Split names them all, read or not


@dataclass(frozen=True, eq=False)
class _Unpacking:
    """A SplitToSequence, along which axis it cuts, and where; those that read it, and which piece each takes."""

    node: ir.Node
    axis: int
    sizes: list[int]
    takers: list[tuple[ir.Node, int]]


def unpack_sequences(model: ir.Model, known: Known) -> int:
    """Turn them into Split, in place, in subgraphs too; how many were.

    (1) The sequence is no graph output, and all that reads it is SequenceAt with a constant index, in the same graph.
    (2) Where to cut is constant: sizes, or one size for all pieces but the last of an axis of known size; without
    either, pieces of size 1 that keep the axis. Sizes are 1 or more. Opset 13 or later.
    What cuts a piece of another may have to wait for a second call, with what is `known` by then.
    """
    if known.opset < _SIZES_ARE_AN_OPERAND:
        return 0
    nodes = [node for node in model.graph.all_nodes() if is_standard(node, "SplitToSequence")]
    found = [one for one in (_read(node, known) for node in nodes) if one is not None]
    if found:
        _carry_out(model, found, known)
    return len(found)


def _read(node: ir.Node, known: Known) -> _Unpacking | None:
    axis = node.attributes.get_int("axis", 0)
    sizes = _sizes(node, axis, known)
    takers = _takers(node, len(sizes), known) if sizes else None
    return _Unpacking(node, axis, sizes, takers) if sizes and takers else None


def _sizes(node: ir.Node, axis: int, known: Known) -> list[int] | None:
    """Of the pieces along `axis`, none of them empty; None where they are not known, or do not fit the operand."""
    x = node.inputs[0]
    dims = None if x is None else known.dims(x)
    if dims is not None and not -len(dims) <= axis < len(dims):
        return None
    whole = None if dims is None else dims[axis]
    cut = node.inputs[1] if len(node.inputs) > 1 else None
    if cut is None:
        given = np.array(1) if node.attributes.get_int("keepdims", 1) == 1 else None
    else:
        given = known.constant(cut)  # `keepdims` does not count then
    if given is None or given.dtype.kind != "i" or given.ndim > 1 or given.size == 0 or given.min() < 1:
        return None
    if given.ndim == 1:
        sizes = [int(size) for size in given[: _MOST_PIECES + 1]]
        return sizes if len(sizes) <= _MOST_PIECES and whole in (None, sum(sizes)) else None
    size = int(given)
    if not whole or whole > size * _MOST_PIECES:
        return None
    return [min(size, whole - start) for start in range(0, whole, size)]


def _takers(node: ir.Node, pieces: int, known: Known) -> list[tuple[ir.Node, int]] | None:
    """Who reads the sequence, and which piece; None where something else than a piece is asked of it."""
    sequence, takers = node.outputs[0], []
    if sequence.is_graph_output():
        return None
    for use in sequence.uses():
        if not is_standard(use.node, "SequenceAt") or use.node.graph is not node.graph:
            return None
        index = known.constant(use.node.inputs[1])
        if index is None or index.ndim or index.dtype.kind != "i" or not -pieces <= int(index) < pieces:
            return None
        takers.append((use.node, int(index) % pieces))
    return takers


def _carry_out(model: ir.Model, found: list[_Unpacking], known: Known) -> None:
    new_name, splits = new_names(model), []
    for one in found:
        x, sequence = one.node.inputs[0], one.node.outputs[0]
        assert x is not None
        pieces = []
        for number, size in enumerate(one.sizes):
            piece = ir.Value(name=new_name(f"{sequence.name}_{number}"))
            annotate(piece, known.shapes.dtype(x), _cut(known.shapes.symbols(x), one.axis, size))
            pieces.append(piece)
        axis = ir.AttrInt64("axis", one.axis)
        splits.append(ir.Node("", "Split", one.node.inputs, [axis], outputs=pieces, name=one.node.name))
    operands = [_sizes_operand(one, split, known) for one, split in zip(found, splits, strict=True)]
    for one, split in zip(found, splits, strict=True):
        _replace(one, split)
    apply(model, [operand for operand in operands if operand is not None])


def _cut(sizes: Sizes | None, axis: int, size: int) -> Sizes | None:
    """The operand's, but for one axis; whoever took the piece may say more."""
    if sizes is None:
        return None
    return tuple(size if place == axis % len(sizes) else other for place, other in enumerate(sizes))


def _sizes_operand(one: _Unpacking, split: ir.Node, known: Known) -> SetOperand | None:
    """The sizes as Split wants them; None where SplitToSequence was given just that."""
    cut = one.node.inputs[1] if len(one.node.inputs) > 1 else None
    given = known.constant(cut)
    if given is not None and given.ndim == 1 and given.dtype == np.int64:
        return None
    name = f"{label(one.node)}_sizes"
    return SetOperand(split, 1, np.array(one.sizes, dtype=np.int64), cut or split.outputs[0], "constant", name)


def _replace(one: _Unpacking, split: ir.Node) -> None:
    """Every piece takes over the name of who took it: of a graph output, where one did."""
    node, graph = one.node, one.node.graph
    assert graph is not None
    split.doc_string = node.doc_string
    split.metadata_props.update(node.metadata_props)
    graph.insert_before(node, split)
    left_over, named = [], set()
    for taker, place in sorted(one.takers, key=lambda pair: not pair[0].outputs[0].is_graph_output()):
        taker.replace_input_with(0, split.outputs[place])
        left_over += bypass(taker, 0, keeps_name=place in named)
        named.add(place)
    graph.remove(node, safe=True)
    sweep(left_over)
