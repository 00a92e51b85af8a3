"""Which branches become one operator: those on the same tensor that line up, as far as it costs no multiply-add more.

Decides on frames alone; computes no kernel, edits nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import onnx_ir as ir

from training.fold.branches.chains import Term, terms
from training.fold.branches.sums import Leaf, Place
from training.fold.branches.terms import Layout, Reader
from training.fold.branches.window import Frame, Window, added


@dataclass(frozen=True, eq=False)
class Member:
    leaf: Leaf
    place: Place
    term: Term


@dataclass(frozen=True, eq=False)
class Cluster:
    """Branches that become one operator on `x`."""

    x: ir.Value
    frame: Frame
    macs: int  # of the cheapest way known to compute them
    members: tuple[Member, ...]

    @property
    def has_layer(self) -> bool:
        return any(member.term.has_layer for member in self.members)

    def windows(self, layout: Layout) -> list[Window]:
        return [m.term.window(self.frame, layout).scaled(m.place.factor) for m in self.members]


def clusters(places: Sequence[Place], read: Reader) -> list[Cluster]:
    """The clusters of a sum's leaves; a leaf is in at most one.

    Tensors that most branches start from go first. Within one tensor's branches, any two that line up join where the
    operator of both costs no more than the two, dearest first: depthwise branches join their identity, and stay apart
    from a dense branch, which they would make as large as the window they look at.
    """
    by_tensor: dict[ir.Value, list[Member]] = {}
    for place in places:
        leaf = place.end
        if isinstance(leaf, Leaf):
            for term in terms(leaf.value, leaf.reader, read):
                by_tensor.setdefault(term.x, []).append(Member(leaf, place, term))
    found: list[Cluster] = []
    used: set[Leaf] = set()
    for x in sorted(by_tensor, key=lambda x: -len(by_tensor[x])):
        members = [member for member in by_tensor[x] if member.leaf not in used]
        for cluster in _joined(x, _alone(x, members, read.layout), read):
            if len(cluster.members) > 1:
                found.append(cluster)
                used.update(member.leaf for member in cluster.members)
    return found


def _alone(x: ir.Value, members: list[Member], layout: Layout) -> list[Cluster]:
    """One cluster a member. Maps alone take the channels and axes of an operator that they could be added to."""
    frames = [member.term.frame for member in members if member.term.frame is not None]
    square = next((frame for frame in frames if frame.inputs == frame.outputs), None)
    single = []
    for member in members:
        frame = member.term.frame if square is None else member.term.or_diagonal(square, layout)
        if frame is not None and fits(member.place, frame, layout):
            single.append(Cluster(x, frame, member.term.cost(frame), (member,)))
    return single


def fits(place: Place, frame: Frame, layout: Layout) -> bool:
    """Do the factors of what stands there neither stretch such a branch nor lie along another of its axes?"""
    if len(place.factor) not in (1, frame.outputs) or None in place.ranks:
        return False
    return layout is Layout.LINEAR or place.ranks <= {len(frame.axes) + 2}


def _joined(x: ir.Value, parts: list[Cluster], read: Reader) -> list[Cluster]:
    parts = sorted(parts, key=lambda part: -part.macs)
    while True:
        both = next((c for pair in combinations(parts, 2) if (c := _pair(x, *pair, read)) is not None), None)
        if both is None:
            return parts
        gone = {member.leaf for member in both.members}
        parts = [both, *(part for part in parts if part.members[0].leaf not in gone)]


def _pair(x: ir.Value, a: Cluster, b: Cluster, read: Reader) -> Cluster | None:
    if not (a.has_layer or b.has_layer):  # means and maps alone are better left what they are
        return None
    frame = added(a.frame, b.frame, read.sizes(x, len(a.frame.axes)))
    if frame is None or frame.macs > a.macs + b.macs:
        return None
    return Cluster(x, frame, frame.macs, (*a.members, *b.members))
