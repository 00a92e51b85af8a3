"""A sum of branches: the largest tree of Add, Sub, Sum, and of channelwise maps between them, over its leaves.

Knows where each leaf stands (under which factors), not what is behind it; edits nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from training.fold.affine import Float64s
from training.fold.branches.chains import is_only_for
from training.fold.branches.terms import Map, Reader
from training.fold.graph import is_standard

_SUMS = ("Add", "Sub", "Sum")
_MAX_DEPTH = 100  # nested sums; the tree is walked by recursion


@dataclass(frozen=True, eq=False)
class Leaf:
    """Operand `index` of `reader`."""

    reader: ir.Node
    index: int
    value: ir.Value


@dataclass(frozen=True, eq=False)
class Constant:
    """Operand `index` of `reader`: one number a channel, or one for all."""

    reader: ir.Node
    index: int
    value: ir.Value
    vector: Float64s
    rank: int  # as it is stored


@dataclass(frozen=True, eq=False)
class Scaled:
    """A map over a sum."""

    link: Map
    below: Scaled | Total


@dataclass(frozen=True, eq=False)
class Total:
    """The sum of `parts`, one an operand of `node`, each times its sign."""

    node: ir.Node
    parts: tuple[Tree, ...]
    signs: tuple[float, ...]


Tree = Leaf | Constant | Scaled | Total
Ranks = frozenset[int | None]


@dataclass(frozen=True, eq=False)
class Place:
    """Where an end of the tree stands: the sum holds it times `factor`, [1] or [channels], a constant multiplied in."""

    end: Leaf | Constant
    factor: Float64s
    ranks: Ranks  # of the tensors on which the factor is a vector; {None} where its vectors differ
    sums_only: bool  # no map between it and the root, so that a leaf's factor is a sign


def is_sum(node: ir.Node, read: Reader) -> bool:
    """Of at least two tensors, of which it may have to stretch one."""
    if not is_standard(node) or node.op_type not in _SUMS or len(node.inputs) < 2 or None in node.inputs:
        return False
    return not node.attributes.get_int("broadcast", 0) and read.link(node) is None


def read_total(node: ir.Node, read: Reader, depth: int = 0) -> Total:
    """The tree whose root is `node`, which `is_sum`."""
    parts = tuple(_part(node, index, read, depth) for index in range(len(node.inputs)))
    signs = tuple(-1.0 if node.op_type == "Sub" and index == 1 else 1.0 for index in range(len(parts)))
    return Total(node, parts, signs)


def _part(reader: ir.Node, index: int, read: Reader, depth: int) -> Tree:
    value = reader.inputs[index]
    assert value is not None
    array = read.constant(reader, index)
    if array is not None:
        vector = read.vector(reader, index, reader.outputs[0])
        return Leaf(reader, index, value) if vector is None else Constant(reader, index, value, vector, array.ndim)
    return _sum_below(value, reader, read, depth) or Leaf(reader, index, value)


def _sum_below(value: ir.Value, reader: ir.Node, read: Reader, depth: int) -> Scaled | Total | None:
    producer = value.producer()
    if depth > _MAX_DEPTH or producer is None or not is_only_for(value, reader):
        return None
    if is_sum(producer, read):
        return read_total(producer, read, depth + 1)
    link = read.link(producer)
    if not isinstance(link, Map) or producer.outputs[0] is not value:
        return None
    below = _sum_below(link.x, producer, read, depth + 1)
    return None if below is None else Scaled(link, below)


def places(total: Total, read: Reader) -> Iterator[Place]:
    """All ends of the tree, in order."""
    yield from _places(total, np.ones(1), True, frozenset(), read)


def _places(tree: Tree, factor: Float64s, sums_only: bool, ranks: Ranks, read: Reader) -> Iterator[Place]:
    match tree:
        case Leaf():
            yield Place(tree, factor, ranks, sums_only)
        case Constant():
            rank = read.facts.shapes.rank(tree.reader.outputs[0])
            yield Place(tree, *_times(factor, ranks, tree.vector, rank), sums_only=sums_only)
        case Total():
            for part, sign in zip(tree.parts, tree.signs, strict=True):
                yield from _places(part, factor * sign, sums_only, ranks, read)
        case Scaled(link, below):
            factor, ranks = _times(factor, ranks, link.affine.scale, read.facts.shapes.rank(link.x))
            yield from _places(below, factor, False, ranks, read)


def _times(factor: Float64s, ranks: Ranks, vector: Float64s, rank: int | None) -> tuple[Float64s, Ranks]:
    if len(vector) > 1:
        ranks |= {rank}
    if min(len(factor), len(vector)) == 1 or len(factor) == len(vector):
        return factor * vector, ranks
    return factor, frozenset({None})


def parts_of(tree: Scaled | Total) -> tuple[Tree, ...]:
    return tree.parts if isinstance(tree, Total) else (tree.below,)


def node_of(tree: Scaled | Total) -> ir.Node:
    return tree.node if isinstance(tree, Total) else tree.link.node


def inner(tree: Tree) -> Iterator[Scaled | Total]:
    """The sums and maps of the tree, from its root."""
    if isinstance(tree, Scaled | Total):
        yield tree
        for part in parts_of(tree):
            yield from inner(part)


def ends(tree: Tree) -> Iterator[Leaf | Constant]:
    if isinstance(tree, Leaf | Constant):
        yield tree
    else:
        for part in parts_of(tree):
            yield from ends(part)


def totals(tree: Tree) -> Iterator[Total]:
    """The sums of the tree, from its root."""
    return (part for part in inner(tree) if isinstance(part, Total))
