"""A branch: a chain of linear nodes from a tensor up to one operand of a sum, as one operator, where it is one.

A chain goes on as long as each tensor on it has one reader. Knows no sums, edits nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from training.fold.affine import Affine
from training.fold.branches.terms import Layout, Link, Map, Operator, Reader
from training.fold.branches.window import Frame, Window, diagonal, followed, identity
from training.fold.graph import number_readers

_MAX_LINKS = 24  # of one chain; a chain is read from each of its links, so that this bounds a square
_MOST_SERVANTS = 256  # nodes between a tensor's shape and the parameters made from it; some thirty are usual


@dataclass(frozen=True, eq=False)
class Term:
    """`links` applied to `x`, the last one first; `frame` is None where they are maps alone (or none at all)."""

    x: ir.Value
    links: tuple[Link, ...]
    frame: Frame | None
    macs: int  # an output pixel, without the maps on a tensor whose channels nobody has counted yet
    early_maps: int  # how many those are

    @property
    def operators(self) -> tuple[Operator, ...]:
        return tuple(link for link in self.links if isinstance(link, Operator))

    @property
    def has_layer(self) -> bool:
        """Does it hold a weight of its own?"""
        return any(not link.is_pool for link in self.operators)

    @property
    def width(self) -> int:
        """Of maps alone: the channels their vectors have, 1 where they have one number for all."""
        return max((link.width for link in self.links if isinstance(link, Map)), default=1)

    def cost(self, frame: Frame) -> int:
        """Multiply-adds an output pixel, where it is read as an operator on `frame`. An identity counts as a map."""
        if self.frame is not None:
            return self.macs
        return max(1, self.early_maps) * frame.inputs

    def window(self, frame: Frame, layout: Layout) -> Window:
        """Its numbers; maps alone become diagonal on the channels of `frame`."""
        links = list(reversed(self.links))
        before = _maps_first(links)
        window = _composed(before)
        rest = links[len(before) :]
        if not rest:
            delta = identity(frame.inputs, len(frame.axes), grouped=layout is Layout.CONVOLUTION)
            return delta if window is None else delta.mapped(window)
        first = rest[0]
        assert isinstance(first, Operator)
        result = first.window() if window is None else first.window().fed(window)
        for link in rest[1:]:
            result = result.mapped(link.affine) if isinstance(link, Map) else _stacked(result, link)
        return result

    def or_diagonal(self, frame: Frame, layout: Layout) -> Frame | None:
        """Its own frame; for maps alone the diagonal one that could be added to `frame`."""
        if self.frame is not None:
            return self.frame
        if frame.inputs != frame.outputs or self.width not in (1, frame.inputs):
            return None
        return diagonal(frame.inputs, len(frame.axes), grouped=layout is Layout.CONVOLUTION)


def terms(value: ir.Value, reader: ir.Node, read: Reader) -> Iterator[Term]:
    """Every way to see `value`, an operand of `reader`, as an operator: on itself, on what it is made from, ..."""
    links = chain(value, reader, read)
    for length in range(len(links) + 1):
        term = composed(value if length == 0 else links[length - 1].x, links[:length])
        if term is not None:
            yield term


def chain(value: ir.Value, reader: ir.Node, read: Reader) -> tuple[Link, ...]:
    """The links that make `value`, the nearest first."""
    links: list[Link] = []
    while len(links) < _MAX_LINKS and is_only_for(value, reader):
        reader = value.producer()  # type: ignore[assignment]  # is_only_for has seen it
        link = read.link(reader)
        if link is None or reader.outputs[0] is not value:
            break
        links.append(link)
        value = link.x
    return tuple(links)


def is_only_for(value: ir.Value, reader: ir.Node) -> bool:
    """Is `value` computed in `reader`'s graph and read there once, by it?

    Nodes that ask for its shape alone do not count where what they make of it goes to `reader` too, as the parameters
    of some exporters' BatchNormalization do: they vanish together.
    """
    producer = value.producer()
    if producer is None or producer.graph is not reader.graph or value.is_graph_output():
        return False
    readers = number_readers(value)
    if readers != [reader]:
        return False
    return _serve([node for node, _ in value.uses()], reader)


def _serve(nodes: list[ir.Node], reader: ir.Node) -> bool:
    """Does everything that is made of what these give end in `reader`? They may share what they make: each counts once.

    No where there is more of it than exporters write.
    """
    pending = [node for node in nodes if node is not reader]
    seen = {reader, *pending}
    while pending:
        node = pending.pop()
        if len(seen) > _MOST_SERVANTS or any(output.is_graph_output() for output in node.outputs):
            return False
        onward = {use.node for output in node.outputs for use in output.uses()} - seen
        seen |= onward
        pending += onward
    return True


def composed(x: ir.Value, links: tuple[Link, ...]) -> Term | None:
    """What the links come to, on `x`, the last one first; None where padding or channels forbid to see them as one."""
    frame: Frame | None = None
    biased, macs, early = False, 0, 0
    for link in reversed(links):
        if isinstance(link, Map):
            biased = biased or link.has_shift
            if frame is None:
                early += link.counts
            elif link.width not in (1, frame.outputs):
                return None
            else:
                macs += link.counts * frame.outputs
        elif frame is None:
            frame = link.frame
            if biased and not frame.is_unpadded:
                return None
            biased, macs = biased or link.has_bias, frame.macs + early * frame.inputs * frame.pixels
        else:
            whole = followed(frame, link.frame, bias=biased)
            if whole is None:
                return None
            frame, macs = whole, macs * link.frame.pixels + link.frame.macs
            biased = biased or link.has_bias
    first = _maps_first(list(reversed(links)))
    if frame is not None and any(link.stretches or link.width not in (1, frame.inputs) for link in first):
        return None
    return Term(x, links, frame, macs, early)


def _maps_first(upwards: list[Link]) -> list[Map]:
    """The maps before the first operator."""
    maps: list[Map] = []
    for link in upwards:
        if not isinstance(link, Map):
            break
        maps.append(link)
    return maps


def _composed(maps: list[Map]) -> Affine | None:
    total: Affine | None = None
    for link in maps:
        total = link.affine if total is None else _after(link.affine, total)
    return total


def _after(outer: Affine, inner: Affine) -> Affine:
    """As Affine.after, of which one may be one number for all channels."""
    width = max(len(part) for a in (outer, inner) for part in (a.scale, a.center, a.offset))
    wide = [Affine(*(np.broadcast_to(part, width) for part in (a.scale, a.center, a.offset))) for a in (outer, inner)]
    return wide[0].after(wide[1])


def _stacked(first: Window, link: Operator) -> Window:
    second = link.window()
    frame = followed(first.frame, second.frame, bias=bool(np.any(first.bias)))
    assert frame is not None
    return second.after(first, frame)


def largest(parts: list[Term]) -> Operator:
    """Of all layers in these, the one with the most multiply-adds: it gives the result its name and its type."""
    layers = [operator for part in parts for operator in part.operators if not operator.is_pool]
    return max(layers, key=lambda operator: operator.frame.macs)
