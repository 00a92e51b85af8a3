"""One sum, rewritten: its clusters become layers, what is left of the tree stays as it is, in place.

The root of the sum keeps its output, whatever it becomes, so that name, type and annotations stay with the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from training.fold.affine import Float64s
from training.fold.branches.chains import chain, composed, largest
from training.fold.branches.clusters import Cluster, clusters, fits
from training.fold.branches.layers import Layer, Workshop, layer
from training.fold.branches.sums import (
    Constant,
    Leaf,
    Place,
    Scaled,
    Total,
    Tree,
    ends,
    inner,
    node_of,
    parts_of,
    places,
)
from training.fold.branches.terms import Operator, Reader
from training.fold.branches.window import Window, total
from training.fold.graph import label
from training.fold.shape_rules import Sizes


@dataclass(frozen=True, eq=False)
class Source:
    """A node as it was before an edit."""

    node: ir.Node
    label: str
    is_batchnorm: bool

    @classmethod
    def of(cls, node: ir.Node) -> Source:
        return cls(node, label(node), node.op_type == "BatchNormalization")


@dataclass(frozen=True, eq=False)
class Change:
    """The node that holds the weight of a new layer, and what it was made from; some of that may still be there."""

    node: ir.Node
    sources: tuple[Source, ...]
    branches: int


@dataclass(frozen=True, eq=False)
class _Plan:
    """What becomes of each leaf. `slots`: the leaf in whose place a layer comes; the other layers join at the root."""

    root: Total
    gone: frozenset[Leaf]
    absorbed: frozenset[Constant]
    layers: tuple[Layer, ...]
    slots: dict[Leaf, Layer]

    @property
    def at_root(self) -> list[Layer]:
        return [new for new in self.layers if new not in self.slots.values()]

    def lives(self, tree: Tree) -> bool:
        match tree:
            case Leaf():
                return tree not in self.gone or tree in self.slots
            case Constant():
                return tree not in self.absorbed
            case Scaled(_, below):
                return self.lives(below)
            case Total():
                return any(self.lives(part) for part in tree.parts)

    def kept(self, tree: Tree) -> int:
        """Nodes of the tree that stay."""
        match tree:
            case Scaled(_, below):
                return 1 + self.kept(below) if self.lives(below) else 0
            case Total():
                live = [(part, sign) for part, sign in zip(tree.parts, tree.signs, strict=True) if self.lives(part)]
                joint = 1 if len(live) > 1 else sum(sign < 0 for _, sign in live)
                return joint + sum(self.kept(part) for part, _ in live)
        return 0


def merge_region(root: Total, read: Reader, shop: Workshop) -> list[Change]:
    """Merge what can be merged in the sum below `root`; no change: the graph is untouched."""
    stands = list(places(root, read))
    found = clusters(stands, read)
    plan = _plan(root, stands, found, read) if found else None
    if plan is None or not _pays(plan, found) or not _keeps_shapes(plan, read):
        return []
    sources = [[Source.of(link.node) for m in cluster.members for link in m.term.links] for cluster in found]
    sources[0] += [Source.of(node_of(tree)) for tree in inner(root)]
    made = _carry_out(plan, shop)
    return [
        Change(made[new], tuple(each), len(cluster.members))
        for cluster, new, each in zip(found, plan.layers, sources, strict=True)
    ]


def merge_sequence(node: ir.Node, read: Reader, shop: Workshop) -> Change | None:
    """The operators that lead to `node`, one after the other, become one in its place, if that costs no more."""
    top = read.link(node)
    if not isinstance(top, Operator):
        return None
    links = (top, *chain(top.x, node, read))
    for length in range(len(links), 1, -1):
        term = composed(links[length - 1].x, links[:length])
        if term is None or len(term.operators) < 2 or not isinstance(links[length - 1], Operator):
            continue
        if term.frame is None or term.frame.macs > term.macs or not term.has_layer:
            continue
        window = term.window(term.frame, read.layout)
        new = layer(term.x, window, largest([term]), read.layout, read.facts, node.outputs[0])
        if new is not None and new.size < length:
            sources = tuple(Source.of(link.node) for link in term.links)
            return Change(shop.install(new, node, node)[0], sources, branches=1)
    return None


# --- decisions ---------------------------------------------------------------------------------------------------


def _plan(root: Total, stands: list[Place], found: list[Cluster], read: Reader) -> _Plan | None:
    """The widest of the clusters takes the constants, as far as they fit it. None where a number is not finite."""
    gone = frozenset(member.leaf for cluster in found for member in cluster.members)
    widest = max(found, key=lambda cluster: cluster.frame.outputs)
    fitting = [place.end for place in stands if fits(place, widest.frame, read.layout)]
    rank = read.facts.shapes.rank(widest.members[0].leaf.value) or len(widest.frame.axes) + 1  # at least
    absorbed = frozenset(end for end in fitting if isinstance(end, Constant) and end.rank <= rank)
    plan = _Plan(root, gone, absorbed, (), {})
    constant = _left_over(plan, root, np.ones(1))
    windows = []
    for cluster in found:
        window = total(cluster.windows(read.layout), cluster.frame)
        if cluster is widest:
            window = Window(window.frame, window.kernel, window.bias + constant)
        windows.append(window)
    return _placed(plan, found, windows, read)


def _placed(plan: _Plan, found: list[Cluster], windows: list[Window], read: Reader) -> _Plan | None:
    """At the root where an operand of it became free; else in place of a leaf that only sums lie above."""
    root = plan.root
    free = len(root.parts) - sum(plan.lives(part) for part in root.parts)
    layers, slots = [], {}
    for cluster, window in zip(found, windows, strict=True):
        slot = None
        if free <= 0 and root.node.op_type != "Sum":
            slot = next((m for m in cluster.members if m.place.sums_only), None)
        free -= slot is None
        window = window if slot is None else window.scaled(slot.place.factor)
        model, leaf = largest([member.term for member in cluster.members]), cluster.members[0].leaf
        new = layer(cluster.x, window, model, read.layout, read.facts, leaf.value)
        if new is None:
            return None
        layers.append(new)
        if slot is not None:
            slots[slot.leaf] = new
    return _Plan(root, plan.gone, plan.absorbed, tuple(layers), slots)


def _left_over(plan: _Plan, tree: Tree, factor: Float64s) -> Float64s:
    """What the vanishing nodes add to the sum by themselves, times `factor`."""
    if not any(end in plan.gone or end in plan.absorbed for end in ends(tree)):
        return np.zeros(1)
    match tree:
        case Constant():
            return factor * tree.vector
        case Scaled(link, below):
            lost = _left_over(plan, below, np.ones(1))
            if plan.lives(below):
                return factor * link.affine.scale * lost
            return factor * (link.affine.scale * (lost - link.affine.center) + link.affine.offset)
        case Total():
            parts = zip(tree.parts, tree.signs, strict=True)
            return sum((_left_over(plan, part, factor * sign) for part, sign in parts), np.zeros(1))
    return np.zeros(1)


def _pays(plan: _Plan, found: list[Cluster]) -> bool:
    """Is the graph smaller after?"""
    before = sum(1 for _ in inner(plan.root)) + sum(
        len(member.term.links) for cluster in found for member in cluster.members
    )
    live = [part for part in plan.root.parts if plan.lives(part)]
    at_root = len(live) + len(plan.at_root)
    joints = 0 if at_root == 1 else 1 if plan.root.node.op_type == "Sum" else at_root - 1
    after = sum(plan.kept(part) for part in live) + sum(new.size for new in plan.layers) + joints
    return after < before


def _keeps_shapes(plan: _Plan, read: Reader) -> bool:
    """Has each tensor that stays inside the tree the shape it had, though branches below it are gone?

    It has if one of those that stay has it, by what is known of them.
    """
    symbols = read.facts.shapes.symbols
    for part in plan.root.parts:
        for tree in inner(part):
            below = list(ends(tree))
            live = [end for end in below if plan.lives(end)]
            if plan.kept(tree) == sum(plan.kept(each) for each in parts_of(tree)) or len(live) == len(below):
                continue  # its node goes, or nothing below it does
            whole = symbols(node_of(tree).outputs[0])
            if whole is not None and not any(_covers(symbols(end.value), whole) for end in live):
                return False
    return True


def _covers(sizes: Sizes | None, whole: Sizes) -> bool:
    """Does a tensor of these sizes have those, as far as anybody claims to know them?"""
    if sizes is None or len(sizes) != len(whole):
        return False
    return all(w is None or w == size for size, w in zip(sizes, whole, strict=True))


# --- edits -------------------------------------------------------------------------------------------------------


def _carry_out(plan: _Plan, shop: Workshop) -> dict[Layer, ir.Node]:
    """The node that holds each layer's weight."""
    made: dict[Layer, ir.Node] = {}
    root = plan.root.node
    operands = [
        (value, sign)
        for part, sign in zip(plan.root.parts, plan.root.signs, strict=True)
        if (value := _emitted(plan, part, shop, made)) is not None
    ]
    at_root = plan.at_root
    if not operands and len(at_root) == 1:
        made[at_root[0]], _ = shop.install(at_root[0], root, root)
        return made
    for new in at_root:
        made[new], value = shop.install(new, None, root)
        operands.append((value, 1.0))
    while len(operands) > 2 and root.op_type != "Sum":
        a, b = operands[:2]
        same = shop.shapes.symbols(a[0]) == shop.shapes.symbols(b[0])
        joint = shop.become(None, *_joint(a, b, "Add"), root, like=a[0] if same else None)
        operands[:2] = [(joint.outputs[0], 1.0)]
    if len(operands) == 2:
        shop.become(root, *_joint(operands[0], operands[1], root.op_type), root)
    else:
        shop.read(root, [value for value, _ in operands])
    return made


def _joint(a: tuple[ir.Value, float], b: tuple[ir.Value, float], op_type: str) -> tuple[str, list[ir.Value]]:
    """Operator and operands of the sum of two, of which at most one is to be subtracted."""
    if a[1] < 0:
        return "Sub", [b[0], a[0]]
    if b[1] < 0:
        return "Sub", [a[0], b[0]]
    return ("Sum" if op_type == "Sum" else "Add"), [a[0], b[0]]


def _emitted(plan: _Plan, tree: Tree, shop: Workshop, made: dict[Layer, ir.Node]) -> ir.Value | None:
    """The value that holds what is left of `tree`; None where nothing is."""
    if not plan.lives(tree):
        return None
    match tree:
        case Leaf():
            if tree not in plan.slots:
                return tree.value
            made[plan.slots[tree]], result = shop.install(plan.slots[tree], None, tree.reader)
            return result
        case Constant():
            return tree.value
        case Scaled(link, below):
            value = _emitted(plan, below, shop, made)
            if value is not link.x:
                shop.read(link.node, [value if operand is link.x else operand for operand in link.node.inputs])
            return link.node.outputs[0]
        case Total():
            return _emitted_sum(plan, tree, shop, made)


def _emitted_sum(plan: _Plan, tree: Total, shop: Workshop, made: dict[Layer, ir.Node]) -> ir.Value | None:
    node = tree.node
    values = [_emitted(plan, part, shop, made) for part in tree.parts]
    live = [(value, sign) for value, sign in zip(values, tree.signs, strict=True) if value is not None]
    if len(live) > 1:
        if values != list(node.inputs):
            shop.read(node, [value for value, _ in live])
        return node.outputs[0]
    value, sign = live[0]
    if sign > 0:
        return value
    return shop.become(node, "Neg", [value], node).outputs[0]
