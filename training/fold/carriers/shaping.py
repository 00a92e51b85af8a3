"""Operators that move, repeat, select or retype entries: a gauge passes along an index map, whatever its sign.

An operator says here which axes of its two ends hold the same entries; routes.py makes the law of that. Reshape and
Flatten are in regroup.py, Pad, which adds something of its own, in padding.py.
Operands that say where and how many must be constant; what is not understood of an operator's versions is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from training.fold.carriers.padding import pad
from training.fold.carriers.regroup import flatten, reshape
from training.fold.carriers.routes import (
    Link,
    Move,
    Route,
    axis_of,
    coordinates,
    integers,
    moves,
    operand,
    routed,
    same,
    shown,
    zeros,
)
from training.fold.graph import describe
from training.fold.known import Known, Rule
from training.fold.laws import Index, Law, NoShift, Port, ports
from training.fold.refusal import Refusal
from training.fold.shapes import Dims
from training.fold.zeros import holds_zeros

_Links = tuple[Link, ...]
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


# Entry by entry


def _identity(m: Move) -> _Links | Refusal:
    if len(m.mine) != len(m.theirs):
        return m.refuse(f"has an output of rank {len(m.theirs)}")
    return same((axis, axis) for axis in range(len(m.mine)))


def _dropout(m: Move) -> _Links | Refusal:
    """At inference the identity. Opsets 1 and 6 train unless `is_test`, 7 and 10 never, 12 on if an operand says so."""
    flag = operand(m.node, 2)
    if m.known.opset < 7:
        trains = not m.node.attributes.get_int("is_test", 0)
    else:
        constant = m.known.constant(flag)
        trains = flag is not None and (constant is None or bool(np.any(constant)))
    if trains:
        return m.refuse("may drop at random (training mode), expected inference")
    if any(output.uses() or output.is_graph_output() for output in m.node.outputs[1:]):
        return m.refuse("has a mask that is read")
    return _identity(m)


def _cast(m: Move) -> _Links | Refusal:
    kinds = [m.known.shapes.dtype(value) for value in (m.source, m.target)]
    if not _FLOATS.issuperset(kinds):
        types = " to ".join("an unknown type" if kind is None else kind.name for kind in kinds)
        return m.refuse(f"casts {types}, expected {', '.join(sorted(kind.name for kind in _FLOATS))}")
    return _identity(m)


def _cast_like(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """Its second operand only gives a type: no law."""
    if port.value is operand(node, 1) and port.value is not operand(node, 0):
        return ()
    return moves(_cast)(node, port, known)


# Axes that move, appear and vanish


def _transpose(m: Move) -> _Links | Refusal:
    axes = list(range(len(m.mine)))
    perm = list(m.node.attributes.get_ints("perm", tuple(axes[::-1])))
    if sorted(perm) != axes or len(m.theirs) != len(axes):
        return m.refuse(f"is permuted by {perm} into {shown(m.theirs)}")
    return same((i, j) for j, i in enumerate(perm))


def _squeeze(m: Move) -> _Links | Refusal:
    """Opset 13 on has an operand. Without axes, all of size 1 go."""
    rank = len(m.mine)
    if m.says(1, "axes"):
        given = m.integers(1, "axes")
        if given is None:
            return m.refuse("has axes that are not constant")
        gone = {axis_of(axis, rank) for axis in given}
    elif None in m.mine:
        return m.refuse("loses all axes of size 1, and not all sizes are known")
    else:
        gone = {axis for axis, size in enumerate(m.mine) if size == 1}
    stay = [axis for axis in range(rank) if axis not in gone]
    if len(stay) != len(m.theirs):
        return m.refuse(f"keeps axes {stay}, its output has rank {len(m.theirs)}")
    return same((i, j) for j, i in enumerate(stay)) + tuple(Link((axis,), ()) for axis in sorted(gone))


def _unsqueeze(m: Move) -> _Links | Refusal:
    """Axes count in the output. Opset 13 on has an operand."""
    given = m.integers(1, "axes")
    if given is None:
        return m.refuse("has axes that are not constant")
    new = {axis_of(axis, len(m.theirs)) for axis in given}
    old = [axis for axis in range(len(m.theirs)) if axis not in new]
    if len(old) != len(m.mine):
        return m.refuse(f"lies on axes {old} of its output {shown(m.theirs)}")
    return same(enumerate(old)) + tuple(Link((), (axis,)) for axis in sorted(new))


# Parts and wholes


def _slice(m: Move) -> _Links | Refusal:
    """Attributes before opset 10, operands after. Axes that are not cut need no constant bounds."""
    starts, ends = m.integers(1, "starts"), m.integers(2, "ends")
    count = None if starts is None else len(starts)
    axes = m.integers(3, "axes") if m.says(3, "axes") or count is None else list(range(count))
    if axes is None or len(m.mine) != len(m.theirs):
        return m.refuse("is cut along axes that are not constant")
    axes = [axis_of(axis, len(m.mine)) for axis in axes]
    steps = m.integers(4) if m.says(4) else [1] * len(axes)
    if len(set(axes)) < len(axes):
        return m.refuse(f"is cut twice along one of the axes {axes}")
    links = {axis: Link((axis,), (axis,), proved=axis not in axes) for axis in range(len(m.mine))}
    if starts is not None and ends is not None and steps is not None:
        if not len(axes) == len(starts) == len(ends) == len(steps) or 0 in steps:
            return m.refuse(f"is cut along axes {axes} from {starts} to {ends} by {steps}")
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            links[axis] = _cut(axis, m.mine[axis], slice(start, end, step))
    return tuple(links.values())


def _cut(axis: int, size: int | None, part: slice) -> Link:
    if size is None:
        return Link((axis,), (axis,), proved=False)
    return Link((axis,), (axis,), lambda: np.arange(size)[part])


def _split(node: ir.Node, known: Known) -> Sequence[Route] | Refusal:
    source = operand(node, 0)
    dims = None if source is None else known.dims(source)
    if source is None or dims is None:
        return Refusal(f"the rank of the operand of {describe(node)} is not known")
    axis = axis_of(node.attributes.get_int("axis", 0), len(dims))
    sizes = _part_sizes(node, dims[axis], known)
    if isinstance(sizes, Refusal):
        return sizes
    others = same((i, i) for i in range(len(dims)) if i != axis)
    bounds = None if sizes is None else [sum(sizes[:place]) for place in range(len(sizes) + 1)]
    return [
        Route(source, output, (*others, _part(axis, bounds, place)))
        for place, output in enumerate(node.outputs)
        if output.name
    ]


def _part(axis: int, bounds: list[int] | None, place: int) -> Link:
    if bounds is None:
        return Link((axis,), (axis,), proved=False)
    begin, end = bounds[place], bounds[place + 1]
    return Link((axis,), (axis,), lambda: np.arange(begin, end))


def _part_sizes(node: ir.Node, size: int | None, known: Known) -> list[int] | Refusal | None:
    """As given (an attribute, or operand 1 in opsets 1 and 13 on); else equal, of which from 18 on the last is less."""
    parts = len(node.outputs)
    if operand(node, 1) is not None or "split" in node.attributes:
        sizes = integers(node, 1, "split", known)
        if sizes is not None and (len(sizes) != parts or size not in (None, sum(sizes))):
            return Refusal(f"{describe(node)} splits {size} entries into {parts} parts of sizes {sizes}")
        return sizes
    if size is None:
        return None
    if node.attributes.get_int("num_outputs", parts) != parts or (size % parts and known.opset < 18):
        return Refusal(f"{describe(node)} splits {size} entries into {parts} parts of no known sizes")
    each = -(-size // parts)
    return [min(each, max(size - place * each, 0)) for place in range(parts)]


def _concat(node: ir.Node, known: Known) -> Sequence[Route] | Refusal:
    """Each operand becomes a part of the output. Before opset 4 along axis 1, unless told otherwise."""
    whole = known.dims(node.outputs[0])
    if whole is None or ("axis" not in node.attributes and known.opset >= 4):
        return Refusal(f"the rank or the axis of {describe(node)} is not known")
    axis = axis_of(node.attributes.get_int("axis", 1), len(whole))
    others = same((i, i) for i in range(len(whole)) if i != axis)
    routes: list[Route] = []
    for part, (begin, size) in zip(node.inputs, _places(node, axis, whole[axis], known), strict=True):
        if part is not None and _are_zeros(part, known):
            continue
        dims = None if part is None else known.dims(part)
        if part is None or dims is None or len(dims) != len(whole):
            return Refusal(f"an operand of {describe(node)} is not known to have rank {len(whole)}")
        routes.append(Route(part, node.outputs[0], (*others, _piece(axis, begin, size))))
    return routes


def _places(node: ir.Node, axis: int, whole: int | None, known: Known) -> list[tuple[int | None, int | None]]:
    """Where each operand of a Concat begins, and its size; one size that is not known is what the others leave."""
    dims = [None if part is None else known.dims(part) for part in node.inputs]
    sizes = [part[axis] if part is not None and axis < len(part) else None for part in dims]
    if whole is not None and sizes.count(None) == 1:
        sizes[sizes.index(None)] = whole - sum(size or 0 for size in sizes)
    before = [sizes[:place] for place in range(len(sizes))]
    return [
        (None if None in some else sum(n or 0 for n in some), size) for some, size in zip(before, sizes, strict=True)
    ]


def _are_zeros(part: ir.Value, known: Known) -> bool:
    """Zeros whose size a caller decides; others are constants, which may be stored under any gauge."""
    return known.constant(part) is None and holds_zeros(part, known)


_join = routed(_concat, depend_on=lambda node, known: _gaps(node, known))


def _concatenated(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """Parts that are nothing but zeros take no shift where they come to lie, and are stored as they like."""
    gaps = _gaps(node, known)
    if gaps and port.value in [node.inputs[place] for place in gaps]:
        return ()
    laws = _join(node, port, known)
    if isinstance(laws, Refusal) or not gaps:
        return laws
    out = next(end for law in laws for end in ports(law) if end.value is node.outputs[0])
    index = _within(node, gaps, out, known)
    if isinstance(index, Refusal):
        return index
    return (*laws, NoShift(out, f"{describe(node)} puts zeros into '{out.value.name}'", index))


def _gaps(node: ir.Node, known: Known) -> list[int]:
    """Which operands are nothing but zeros; asked for from each of them."""
    note = (_gaps, node)
    if note not in known.notes:
        parts = enumerate(node.inputs)
        known.notes[note] = [place for place, part in parts if part is not None and _are_zeros(part, known)]
    gaps: list[int] = known.notes[note]
    return gaps


def _within(node: ir.Node, gaps: Sequence[int], out: Port, known: Known) -> Index | Refusal | None:
    """The entries of a Concat's output that come from these operands; None where all have elements of theirs."""
    dims = known.dims(out.value) or ()
    axis = axis_of(node.attributes.get_int("axis", 1), len(dims))
    if axis not in out.axes:
        return None
    at, places = coordinates(out, dims)[axis], _places(node, axis, dims[axis], known)
    found = np.zeros(len(at), dtype=np.bool_)
    for gap in gaps:
        begin, size = places[gap]
        if begin is None or size is None:
            return Refusal(f"where the zeros of {describe(node)} begin and end along axis {axis} is not known")
        found |= (at >= begin) & (at < begin + size)
    return np.flatnonzero(found)


def _constant_of_shape(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """Zeros; another number would have to become another one."""
    if holds_zeros(node.outputs[0], known):
        return zeros(node, port)
    return Refusal(f"{describe(node)} fills '{port.value.name}' with a number that is not 0")


def _piece(axis: int, begin: int | None, size: int | None) -> Link:
    if begin is None or size is None:
        return Link((axis,), (axis,), proved=False)
    return Link((axis,), (axis,), None, lambda: np.arange(begin, begin + size))


def _gather(m: Move) -> _Links | Refusal:
    """The axis becomes the axes of the indices. Along other axes these need not be constant."""
    axis = axis_of(m.node.attributes.get_int("axis", 0), len(m.mine))
    indices = operand(m.node, 1)
    dims = None if indices is None else m.known.dims(indices)
    rank = len(m.theirs) - len(m.mine) + 1
    if indices is None or dims is None or len(dims) != rank:
        return m.refuse(f"is read at indices that are not known to have rank {rank}")
    link = _picked(m, axis, tuple(range(axis, axis + rank)), m.integers(1))
    if isinstance(link, Refusal):
        return link
    before, after = range(axis), range(axis + 1, len(m.mine))
    return (*same((i, i) for i in before), link, *same((i, i + rank - 1) for i in after))


def _picked(m: Move, axis: int, made: tuple[int, ...], places: list[int] | None) -> Link | Refusal:
    size = m.mine[axis]
    if size is None or places is None:
        return Link((axis,), made, proved=False)
    if any(not -size <= place < size for place in places):
        return m.refuse(f"is read at {min(places)} to {max(places)} of {size} entries of axis {axis}")
    return Link((axis,), made, lambda: np.array(places, dtype=np.int64) % size)


# Repetition


def _expand(m: Move) -> _Links | Refusal:
    """Axes of size 1 are repeated, leading ones are new."""
    lead = len(m.theirs) - len(m.mine)
    if lead < 0:
        return m.refuse(f"has an output of rank {len(m.theirs)}")
    links = [_repeated((), axis, m.theirs[axis]) for axis in range(lead)]
    for axis, size in enumerate(m.mine):
        if size == 1:
            links.append(_repeated((axis,), axis + lead, m.theirs[axis + lead]))
        else:
            links.append(Link((axis,), (axis + lead,), proved=size is not None))  # an unknown size may be 1
    return tuple(links)


def _repeated(axes: tuple[int, ...], axis: int, size: int | None) -> Link:
    return Link(axes, (axis,), lambda: np.zeros(size or 0, dtype=np.int64), proved=size is not None)


def _tile(m: Move) -> _Links | Refusal:
    """Repeats of every axis; before opset 6 the number of tiles and one axis instead."""
    rank, repeats = len(m.mine), m.integers(1)
    if m.known.opset < 6:
        axes = m.integers(2)
        if repeats is None or axes is None or not len(repeats) == len(axes) == 1:
            return m.refuse("is tiled along an axis, or as often, as is not constant")
        tiled = axis_of(axes[0], rank)
        repeats = [repeats[0] if axis == tiled else 1 for axis in range(rank)]
    if repeats is None or not len(repeats) == rank == len(m.theirs):
        return m.refuse("is repeated as often as is not constant, or not once an axis")
    return tuple(_tiled(axis, m.mine[axis], times) for axis, times in enumerate(repeats))


def _tiled(axis: int, size: int | None, times: int) -> Link:
    if times == 1 or size is None:
        return Link((axis,), (axis,), proved=times == 1)
    return Link((axis,), (axis,), lambda: np.arange(size * max(times, 0)) % size)


# Blocks


def _depth_to_space(m: Move) -> _Links | Refusal:
    return _blocks(m, m.mine, m.node.attributes.get_string("mode", "DCR"))


def _space_to_depth(m: Move) -> _Links | Refusal:
    links = _blocks(m, m.theirs, "DCR")
    return links if isinstance(links, Refusal) else tuple(link.reversed() for link in links)


def _blocks(m: Move, deep: Dims, mode: str) -> _Links | Refusal:
    """From the deep end to the wide one. Its channels hold the places of a block before the channel (DCR) or after it.

    A gauge along batch or channels needs no known image size; along others it is refused.
    """
    places = m.node.attributes.get_int("blocksize", 0) ** 2
    if len(deep) != 4 or deep[1] is None or places < 1 or deep[1] % places or mode not in ("DCR", "CRD"):
        return m.refuse(f"moves blocks of {places} places in mode '{mode}' between {shown(deep)} and an image")
    count = deep[1]
    channels = count // places
    of_wide = (lambda: np.arange(count) % channels) if mode == "DCR" else (lambda: np.arange(count) // places)
    return Link((0,), (0,)), Link((1,), (1,), lambda: np.arange(count), of_wide), Link((2, 3), (2, 3), proved=False)


RULES: dict[str, Rule] = {
    "Cast": moves(_cast),
    "CastLike": _cast_like,
    "Concat": _concatenated,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": moves(_depth_to_space),
    "Dropout": moves(_dropout),
    "Expand": moves(_expand),
    "Flatten": flatten,
    "Gather": moves(_gather),
    "Identity": moves(_identity),
    "Pad": pad,
    "Reshape": reshape,
    "Slice": moves(_slice),
    "SpaceToDepth": moves(_space_to_depth),
    "Split": routed(_split),
    "Squeeze": moves(_squeeze),
    "Tile": moves(_tile),
    "Transpose": moves(_transpose),
    "Unsqueeze": moves(_unsqueeze),
}
