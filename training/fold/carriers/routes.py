"""Operators that move entries and change none: from which entry of one tensor comes which entry of another.

    y[j] = x[i(j)]   =>   A_y[j] = A_x[i(j)],   B_y[j] = B_x[i(j)]       any A, any B

Such an operator is described by links: some axes of the source, some of the target, and which of their entries are the
same (flat, row-major over the link's own axes). Every axis is in exactly one link, so that entries of whole tensors
meet where they meet in every link. Two ports then read off their law: links that neither of them touches are left out,
those that are left are crossed. The law is the same whichever port asked. Knows no operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from training.fold.graph import describe
from training.fold.known import Known, Rule
from training.fold.laws import Equal, Index, Law, NoShift, Port
from training.fold.refusal import Refusal
from training.fold.shapes import Dims
from training.fold.zeros import holds_zeros

MAX_PAIRS = 1 << 22  # of entries in one law: 64 MiB of indices; a flattened feature map has about 2^15


Entries = Callable[[], Index]  # made when asked for: most axes of most operators matter to no port


@dataclass(frozen=True, eq=False)
class Link:
    """Entry `source_index()[k]` of the source's axes is entry `target_index()[k]` of the target's.

    None: all entries, in order. `proved` is False where it is only known that these axes belong together, not how.
    """

    source_axes: tuple[int, ...]
    target_axes: tuple[int, ...]
    source_index: Entries | None = None
    target_index: Entries | None = None
    proved: bool = True

    def reversed(self) -> Link:
        return Link(self.target_axes, self.source_axes, self.target_index, self.source_index, self.proved)


def same(pairs: Iterable[tuple[int, int]]) -> tuple[Link, ...]:
    """Axis i of the source is axis j of the target, entry by entry."""
    return tuple(Link((i,), (j,)) for i, j in pairs)


@dataclass(frozen=True, eq=False)
class Move:
    """A node with one operand that is moved, the first, into its first output; and what else it says."""

    node: ir.Node
    known: Known
    source: ir.Value
    target: ir.Value
    mine: Dims
    theirs: Dims

    def refuse(self, what: str) -> Refusal:
        return Refusal(f"{describe(self.node)} of '{self.source.name}' {shown(self.mine)} {what}")

    def integers(self, place: int, attribute: str = "") -> list[int] | None:
        """A list that is an operand, or in older opsets an attribute; None where it is absent or not constant."""
        return integers(self.node, place, attribute, self.known)

    def says(self, place: int, attribute: str = "") -> bool:
        return operand(self.node, place) is not None or attribute in self.node.attributes


def operand(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if place < len(node.inputs) else None


def integers(node: ir.Node, place: int, attribute: str, known: Known) -> list[int] | None:
    """As `Move.integers`."""
    value = operand(node, place)
    if value is not None:
        array = known.constant(value)
        return None if array is None else [int(number) for number in np.ravel(array)]
    return list(node.attributes.get_ints(attribute, ())) if attribute in node.attributes else None


class NoSuchAxis(Exception):
    """A node names an axis that its tensor lacks; `moves` turns it into a Refusal."""


def axis_of(number: int, rank: int) -> int:
    """Counted from the front. Raises NoSuchAxis."""
    if not -rank <= number < rank:
        raise NoSuchAxis(f"names axis {number} of a tensor of rank {rank}")
    return number % rank


@dataclass(frozen=True, eq=False)
class Route:
    """Where the entries of one operand go in one output."""

    source: ir.Value
    target: ir.Value
    links: tuple[Link, ...]

    def reversed(self) -> Route:
        return Route(self.target, self.source, tuple(link.reversed() for link in self.links))


def move_of(node: ir.Node, known: Known) -> Move | Refusal:
    source, target = operand(node, 0), node.outputs[0]
    if source is None:
        return Refusal(f"{describe(node)} lacks its operand")
    mine, theirs = known.dims(source), known.dims(target)
    if mine is None or theirs is None:
        return Refusal(f"the rank of '{(source if mine is None else target).name}' of {describe(node)} is not known")
    return Move(node, known, source, target, mine, theirs)


def moves(links_of: Callable[[Move], tuple[Link, ...] | Refusal]) -> Rule:
    """The rule of an operator that moves its first operand into its first output, along these links."""

    def routes(node: ir.Node, known: Known) -> Sequence[Route] | Refusal:
        move = move_of(node, known)
        if isinstance(move, Refusal):
            return move
        links = links_of(move)
        return links if isinstance(links, Refusal) else (Route(move.source, move.target, links),)

    return routed(routes)


def routed(
    routes_of: Callable[[ir.Node, Known], Sequence[Route] | Refusal],
    depend_on: Callable[[ir.Node, Known], Sequence[int]] | None = None,
) -> Rule:
    """The rule of an operator that moves entries along these routes; zeros may go where they like.

    `depend_on`: what the routes follow from beside the node's tensors, their sizes and what constant operands say.
    """

    def rule(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
        if holds_zeros(node.outputs[0], known):
            return zeros(node, port)
        try:
            # What a constant operand says, its tensor always says.
            here = (node, *node.inputs, *node.outputs, *(depend_on(node, known) if depend_on else ()))
            if here not in known.shapes.notes:
                known.shapes.notes[here] = routes_of(node, known)
            routes: Sequence[Route] | Refusal = known.shapes.notes[here]
            return laws_along(node, port, routes, known)
        except NoSuchAxis as error:
            return Refusal(f"{describe(node)} {error}")

    return rule


def zeros(node: ir.Node, port: Port) -> tuple[Law, ...]:
    """What a node says whose output holds nothing but zeros: nothing of what they are made from."""
    return (NoShift(port, f"{describe(node)} makes zeros"),) if port.value in node.outputs else ()


def laws_along(node: ir.Node, port: Port, routes: Sequence[Route] | Refusal, known: Known) -> tuple[Law, ...] | Refusal:
    """The laws between `port` and the other end of each route that begins or ends there."""
    if isinstance(routes, Refusal):
        return routes
    at_port = [route for route in routes if port.value in (route.source, route.target)]
    if not at_port:
        return Refusal(f"'{port.value.name}' tells {describe(node)} what to do, it is not what is moved")
    laws: list[Law] = []
    for route in at_port:
        law = _found_before(route, port, known) or _law(node, port, route, known)
        if isinstance(law, Refusal):
            return law
        known.shapes.notes[route] = law
        laws.append(law)
    return tuple(laws)


def _law(node: ir.Node, port: Port, route: Route, known: Known) -> Equal | Refusal:
    outward = route if route.source is port.value else route.reversed()
    there = _other_end(node, port, outward, known)
    return there if isinstance(there, Refusal) else _equal(node, port, there, outward.links, known)


def _found_before(route: Route, port: Port, known: Known) -> Equal | None:
    """The law of this route, which is the same from either end, where both ends lie as they lay when it was found."""
    law: Equal | None = known.shapes.notes.get(route)
    if law is None:
        return None
    mine, other = (law.a, law.b) if law.a.value is port.value else (law.b, law.a)
    return law if mine == port and known.axes_of(other.value) == other.axes else None


def _other_end(node: ir.Node, port: Port, route: Route, known: Known) -> Port | Refusal:
    """Where the gauge of the route's target lies: where it was put before, else on the axes that meet `port`'s.

    Axes of size 1 are left out, but for one. A gauge of a single number fits anywhere: where the neighbours want it.
    """
    here, there = known.dims(route.source), known.dims(route.target)
    if here is None or there is None:
        return Refusal(f"the rank of '{(route.source if here is None else route.target).name}' is not known")
    decided = known.axes_of(route.target)
    if decided is not None and known.constant(route.target) is None:
        return known.port(route.target, decided, node)
    wide = [axis for axis in port.axes if here[axis] != 1]
    touched = [link for link in route.links if set(link.source_axes) & set(wide or port.axes)]
    usable = [link for link in touched if _is_enumerable(link, here, there)]
    if wide and not usable:
        return Refusal(
            f"{describe(node)} regroups axis {port.axes} of '{port.value.name}' {shown(here)} into {shown(there)}, "
            "in a way that unknown sizes leave unproved"
        )
    axes = sorted(axis for link in usable for axis in link.target_axes)
    axes = [axis for axis in axes if there[axis] != 1] or axes[:1]
    if not wide or not axes:
        axes = _anywhere(route.target, there, axes, known)
    if not axes:
        return Refusal(f"{describe(node)}: '{route.target.name}' {shown(there)} has no axis of known size for a gauge")
    return known.place(route.target, tuple(axes), node)


def _anywhere(value: ir.Value, dims: Dims, axes: list[int], known: Known) -> list[int]:
    """Axes for a gauge of one number: the native ones, else those given, else the last of the shortest ones."""
    native = known.native_axes(value)
    if native and all(axis < len(dims) and dims[axis] is not None for axis in native):
        return list(native)
    static = [axis for axis in range(len(dims)) if dims[axis] is not None]
    return axes or sorted(static, key=lambda axis: (dims[axis] or 0, -axis))[:1]


def _equal(node: ir.Node, a: Port, b: Port, links: tuple[Link, ...], known: Known) -> Equal | Refusal:
    """The law between two ports: the cross product, over the links that one of them touches, of what meets there."""
    ends = _End(a, known.dims(a.value) or ()), _End(b, known.dims(b.value) or ())
    met: tuple[Index, Index] | None = None
    for link in links:
        if ends[0].wide.isdisjoint(link.source_axes) and ends[1].wide.isdisjoint(link.target_axes):
            continue  # it does not matter to them
        part = _meeting(link, *ends)
        if met is not None and not isinstance(part, Refusal) and len(part[0]) * len(met[0]) > MAX_PAIRS:
            part = Refusal(f"more than {MAX_PAIRS} pairs of entries meet")
        if isinstance(part, Refusal):
            where = f"'{a.value.name}' {shown(ends[0].dims)} along {a.axes}, '{b.value.name}' {shown(ends[1].dims)}"
            return Refusal(f"{describe(node)}: {where} along {b.axes}: {part.reason}")
        if met is not None:
            part = np.add.outer(met[0], part[0]).reshape(-1), np.add.outer(met[1], part[1]).reshape(-1)
        met = part
    a_index, b_index = met or (np.zeros(1, dtype=np.int64),) * 2
    if len(a_index) == ends[0].count == ends[1].count and (np.arange(len(a_index)) == (a_index, b_index)).all():
        return Equal(a, b)
    return Equal(a, b, a_index, b_index)


@dataclass(frozen=True, eq=False)
class _End:
    """A port, and how far apart its entries are along each of its axes."""

    port: Port
    dims: Dims

    @cached_property
    def wide(self) -> frozenset[int]:
        """The axes that it lies along with more than one entry."""
        return frozenset(axis for axis in self.port.axes if self.dims[axis] != 1)

    def size(self, axis: int) -> int:
        size = self.dims[axis]
        assert size is not None, "a port lies along known sizes only"
        return size

    @property
    def count(self) -> int:
        return math.prod(self.size(axis) for axis in self.port.axes)

    def touches(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Those of `axes` that the port lies along with more than one entry."""
        return tuple(axis for axis in axes if axis in self.wide)

    def stride(self, axis: int) -> int:
        return math.prod(self.size(later) for later in self.port.axes if later > axis)

    def offsets(self, axes: tuple[int, ...], flat: Index) -> Index:
        """What the entries `flat` of `axes` add to an entry's place in the port."""
        mine = self.touches(axes)
        if len(axes) == 1 and mine:
            return flat * self.stride(axes[0])
        places = np.zeros(len(flat), dtype=np.int64)
        if mine:
            along = np.unravel_index(flat, [self.size(axis) for axis in axes])
            for axis, coordinate in zip(axes, along, strict=True):
                places += coordinate * self.stride(axis) if axis in mine else 0
        return places


def coordinates(port: Port, dims: Dims) -> dict[int, Index]:
    """Where each entry of a port lies along each of its axes. `dims`: of its tensor, whose sizes there are known."""
    sizes = [dims[axis] or 0 for axis in port.axes]
    return dict(zip(port.axes, np.indices(sizes, dtype=np.int64).reshape(len(sizes), -1), strict=True))


def _meeting(link: Link, a: _End, b: _End) -> tuple[Index, Index] | Refusal:
    """Which places of the two ports meet in this link, which one of them touches.

    Where one port does not tell the link's entries apart, all entries of the other meet it.
    """
    mine, others = a.touches(link.source_axes), b.touches(link.target_axes)
    known = _is_enumerable(link, a.dims, b.dims)
    if mine and others and not known:
        return Refusal("sizes that are not known leave unproved how these meet")
    if not others and (link.source_index is None or not known):
        return _one_sided(a, mine)
    if not mine and (link.target_index is None or not known):
        turned = _one_sided(b, others)
        return turned if isinstance(turned, Refusal) else turned[::-1]
    pairs = _pairs(link, a.dims, b.dims)
    if isinstance(pairs, Refusal):
        return pairs
    places = a.offsets(link.source_axes, pairs[0]), b.offsets(link.target_axes, pairs[1])
    if mine == link.source_axes or others == link.target_axes:
        return places
    left, right = np.divmod(np.unique(places[0] * b.count + places[1]), b.count)  # the ports see fewer pairs than meet
    return left, right


def _one_sided(end: _End, axes: tuple[int, ...]) -> tuple[Index, Index] | Refusal:
    count = math.prod(end.size(axis) for axis in axes)
    if count > MAX_PAIRS:
        return Refusal(f"{count} entries meet, expected at most {MAX_PAIRS}")
    return end.offsets(axes, np.arange(count)), np.zeros(count, dtype=np.int64)


def _is_enumerable(link: Link, source: Dims, target: Dims) -> bool:
    sizes = [source[axis] for axis in link.source_axes] + [target[axis] for axis in link.target_axes]
    return link.proved and None not in sizes


def _pairs(link: Link, source: Dims, target: Dims) -> tuple[Index, Index] | Refusal:
    """The link's entries, flat over its own axes. Refused where the declared sizes contradict it."""
    counts = [math.prod(dims[axis] or 0 for axis in axes) for axes, dims in _sides(link, source, target)]
    if max(counts) > MAX_PAIRS:
        return Refusal(f"{max(counts)} entries meet, expected at most {MAX_PAIRS}")
    made = link.source_index, link.target_index
    found = [np.arange(count) if make is None else make() for count, make in zip(counts, made, strict=True)]
    for make, entries, count, (axes, _) in zip(made, found, counts, _sides(link, source, target), strict=True):
        if make is not None and len(entries) and not 0 <= entries.min() <= entries.max() < count:
            return Refusal(f"entries {entries.min()} to {entries.max()} of axes {axes} are meant, it has {count}")
    if len(found[0]) != len(found[1]):
        return Refusal(f"{len(found[0])} entries of axes {link.source_axes} meet {len(found[1])} of {link.target_axes}")
    return found[0], found[1]


def _sides(link: Link, source: Dims, target: Dims) -> tuple[tuple[tuple[int, ...], Dims], ...]:
    return (link.source_axes, source), (link.target_axes, target)


def shown(dims: Dims) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in dims) + "]"
