"""Reshape and Flatten: which axes they split and join, proved from sizes.

Both keep row-major order and the number of entries. So leading axes whose products are equal hold the same entries,
and so do trailing ones; a product is equal as a number, or as a symbolic size that both sides have (a `0` in the shape
copies it). What no such proof reaches hangs together as a whole, and is of use only if all its sizes are known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from training.fold.carriers.routes import Link, Move, moves, shown
from training.fold.refusal import Refusal


@dataclass(frozen=True)
class _As:
    """A size without number or name: that of the source's axis `axis`."""

    axis: int


Size = int | str | _As | None  # a number, a name, a copy, unknown


def _reshape(m: Move) -> tuple[Link, ...] | Refusal:
    symbols = m.known.shapes.symbols(m.source) or ()
    mine: list[Size] = [_As(axis) if size in (None, "") else size for axis, size in enumerate(symbols)]
    theirs = _target_sizes(m, mine)
    links = theirs if isinstance(theirs, Refusal) else regrouped(mine, theirs)
    return m.refuse(links.reason) if isinstance(links, Refusal) else links


def _target_sizes(m: Move, mine: list[Size]) -> list[Size] | Refusal:
    """The output's sizes: as the shape says (an attribute before opset 5), filled up with what else is known."""
    declared = list(m.known.shapes.symbols(m.target) or ())
    shape = m.integers(1, "shape")
    if shape is None:
        return [*declared]
    if len(shape) != len(declared):
        return Refusal(f"has a shape of {len(shape)} entries and an output of rank {len(declared)}")
    keeps_zero = bool(m.node.attributes.get_int("allowzero", 0))
    sizes: list[Size] = []
    for place, number in enumerate(shape):
        copies = number == 0 and not keeps_zero
        if copies and place >= len(mine):
            return Refusal(f"copies axis {place}, which its operand lacks")
        sizes.append(mine[place] if copies else None if number == -1 else number)
    for place, (size, other) in enumerate(zip(sizes, declared, strict=True)):
        if size is None:
            sizes[place] = other
        elif isinstance(size, int) and isinstance(other, int) and size != other:
            return Refusal(f"makes axis {place} of size {size}, declared is {other}")
    return sizes


def _flatten(m: Move) -> tuple[Link, ...] | Refusal:
    """To a matrix, cut before `axis`, which may be the rank."""
    rank = len(m.mine)
    cut = m.node.attributes.get_int("axis", 1)
    cut = cut + rank if cut < 0 else cut
    if not 0 <= cut <= rank or len(m.theirs) != 2:
        return m.refuse(f"is cut before axis {cut} into {shown(m.theirs)}, expected a matrix")
    return Link(tuple(range(cut)), (0,)), Link(tuple(range(cut, rank)), (1,))


reshape = moves(_reshape)
flatten = moves(_flatten)


def regrouped(source: Sequence[Size], target: Sequence[Size]) -> tuple[Link, ...] | Refusal:
    """The links of a Reshape, as fine as the sizes prove: row-major order is kept, and so is the number of entries.

    Leading axes whose products are equal hold the same entries, and so do trailing ones: a number divides off, or a
    size that is the same by definition. What is left in the middle is one link.
    """
    if 0 in (*source, *target):
        return Refusal("has, or makes, an axis of size 0")
    lead = _matched(source, target)
    i, j = lead[-1][1] if lead else (0, 0)
    rest = len(source) - i, len(target) - j
    tail = _matched(source[i:][::-1], target[j:][::-1]) if rest[0] and rest[1] else []
    back_i, back_j = tail[-1][1] if tail else (0, 0)
    groups = [(range(a[0], b[0]), range(a[1], b[1])) for a, b in lead]
    groups += [
        (range(len(source) - b[0], len(source) - a[0]), range(len(target) - b[1], len(target) - a[1])) for a, b in tail
    ]
    links = [Link(tuple(mine), tuple(theirs)) for mine, theirs in groups]
    middle = range(i, len(source) - back_i), range(j, len(target) - back_j)
    if middle[0] or middle[1]:
        sizes = [source[axis] for axis in middle[0]], [target[axis] for axis in middle[1]]
        counts = [math.prod(s for s in side if isinstance(s, int)) for side in sizes]
        exact = all(isinstance(size, int) for side in sizes for size in side)
        if exact and counts[0] != counts[1]:
            return Refusal(f"would make {counts[1]} entries of {counts[0]}")
        links.append(Link(tuple(middle[0]), tuple(middle[1])))
    return tuple(links)


_Corner = tuple[int, int]


def _matched(source: Sequence[Size], target: Sequence[Size]) -> list[tuple[_Corner, _Corner]]:
    """From the front: the smallest runs of axes with equal products, as (begin, end) in both; stops at the unproved."""
    runs: list[tuple[_Corner, _Corner]] = []
    i = j = 0
    while i < len(source) and j < len(target):
        begin, mine, theirs = (i, j), source[i], target[j]
        i, j = i + 1, j + 1
        while mine != theirs:
            if not isinstance(mine, int) or not isinstance(theirs, int):
                return runs
            if mine < theirs and i < len(source):
                more, i = source[i], i + 1
                mine = mine * more if isinstance(more, int) else None
            elif mine > theirs and j < len(target):
                more, j = target[j], j + 1
                theirs = theirs * more if isinstance(more, int) else None
            else:
                return runs
        if mine is None:
            return runs
        runs.append((begin, (i, j)))
    return runs
