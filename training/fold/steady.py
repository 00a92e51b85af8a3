"""Entries that hold one number whatever is fed, and which of them nobody has to read.

A map whose scale is 0 puts out its shift: `y = 0 x + t`. Who can be told `t` beforehand, as a linear operator whose
weight becomes 0 there and whose bias takes `W t`, needs no y at all, and it does not matter what is stored in its
place: x may be a graph input, or be read by many. So does everything that is made of y alone.

That a number passes an operator follows from what its laws claim of gauges. They say `f(A v + B) = A f(v) + B` for the
entries of v that they tie to an entry of f, whatever the other operands are; every such f is continuous, so that with
A -> 0 it makes of B in all of these entries B. A law that forbids shifts claims that of B = 0 alone, a Sum claims that
`f(B1, B2, ..)` is the sum of `factor * B`, and a law about infinities claims nothing of what else is in the entry.

Works on numbered variables; knows laws, no operator. In doubt an entry holds no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from training.fold.affine import Float64s
from training.fold.bundles import unite
from training.fold.graph import number_readers
from training.fold.laws import Clamp, Equal, Index, Law, Lift, NoScale, NoShift, Pinned, Port, Positive, Sum, ports
from training.fold.reach import Statement

Of = Callable[[Port, "Index | None"], Index]
"""The variables of a port, or of those of its entries that an index names."""


def steady(statements: Sequence[Statement], count: int, of: Of) -> Float64s:
    """[count]: the number that each variable holds whatever is fed; NaN where there is none, or none is known."""
    said: dict[ir.Node, list[Law]] = {}
    for statement in statements:
        if statement.node is not None:
            said.setdefault(statement.node, []).append(statement.law)
    numbers = np.full(count, np.nan)
    waiting = dict.fromkeys(n for n, laws in said.items() if any(isinstance(law, Lift) and _kills(law) for law in laws))
    while waiting:
        node = next(iter(waiting))
        del waiting[node]
        for port in _outputs(node, said[node]):
            mine = of(port, None)
            found = _Node(said[node], node, numbers, of).puts_out(port)
            fresh = np.isnan(numbers[mine]) & ~np.isnan(found)
            if fresh.any():
                numbers[mine] = np.where(fresh, found, numbers[mine])
                waiting |= dict.fromkeys(reader for reader in number_readers(port.value) if reader in said)
    return numbers


def unread(statements: Sequence[Statement], numbers: Float64s, class_of: Index, of: Of) -> Index:
    """[classes]: in which group of classes each is that nobody has to read, all of them or none; -1 for the others.

    (1) All variables of the class hold a number. (2) No law wants the tensor at its own scale, or without a shift where
    the number is not 0, or has infinities in it. (3) So it is for all classes that a Sum or a living entry of a lift
    ties to it: `y = s x + t` is stored as x is, or read where x is. (4) No dead entry of a lift makes of it what has to
    be read: to let that lift vanish, x itself has to hold the number.
    """
    classes = int(class_of.max()) + 1 if len(class_of) else 0
    if np.isnan(numbers).all():
        return np.full(classes, -1)
    barred = np.zeros(classes, dtype=bool)
    barred[class_of[np.isnan(numbers)]] = True
    ties: list[tuple[Index, Index]] = []
    dead: list[tuple[Index, Index]] = []
    for law in (statement.law for statement in statements):
        match law:
            case Pinned() | NoScale() | Positive(infinite=True):
                barred[class_of[of(law.port, law.index)]] = True
            case NoShift():
                mine = of(law.port, law.index)
                barred[class_of[mine[numbers[mine] != 0]]] = True
            case Sum():
                out = class_of[of(law.out, None)]
                ties += [(out, class_of[of(term.port, term.index)]) for term in law.terms]
            case Lift():
                x, y, killed = class_of[of(law.x, None)], class_of[of(law.y, None)], law.scale == 0
                ties.append((x[~killed], y[~killed]))
                dead.append((x[killed], y[killed]))
    group = unite(classes, ties)
    bad = np.zeros(classes, dtype=bool)
    bad[group[barred]] = True
    while True:
        before = np.count_nonzero(bad)
        for x, y in dead:
            bad[group[x[bad[group[y]]]]] = True
        if np.count_nonzero(bad) == before:
            return np.where(bad[group], -1, group)


def _kills(law: Lift) -> bool:
    return not law.scale.all()


def _outputs(node: ir.Node, laws: Sequence[Law]) -> Iterator[Port]:
    found = {port.value: port for law in laws for port in ports(law) if port.value.producer() is node}
    yield from found.values()


@dataclass(frozen=True, eq=False)
class _Node:
    """One node, what it says, and what is known of its operands."""

    laws: Sequence[Law]
    node: ir.Node
    numbers: Float64s
    of: Of

    def puts_out(self, port: Port) -> Float64s:
        """The numbers that this output of the node holds; NaN where none is known."""
        about = [law for law in self.laws if any(one.value is port.value for one in ports(law))]
        found, mine = self._made(port, about), self.of(port, None)
        for law in about:
            if isinstance(law, Pinned | NoScale) or (isinstance(law, Positive) and law.infinite):
                found[np.isin(mine, self.of(law.port, law.index))] = np.nan
        return found

    def _made(self, port: Port, about: Sequence[Law]) -> Float64s:
        match [law for law in about if isinstance(law, Lift | Clamp | Sum | Equal)]:
            case [Lift() as law]:
                return np.where(law.scale == 0, law.shift, law.scale * self._of(law.x) + law.shift)
            case [Clamp(bounds=(lower, upper)) as law]:
                return np.asarray(np.minimum(np.maximum(self._of(law.x), lower), upper))
            case [Sum(holds_shift=False) as law]:
                terms = [term.factor * self._of(term.port, term.index) for term in law.terms]
                return np.asarray(np.sum(terms, axis=0), dtype=np.float64)
            case [Equal(), *_] as laws if all(isinstance(law, Equal) for law in laws):
                return self._passed_on(port)
        return np.full(len(self.of(port, None)), np.nan)

    def _of(self, port: Port, index: Index | None = None) -> Float64s:
        """What a law may say of a port's entries: where the node forbids it a shift, only that they are 0."""
        entries = self.of(port, index)
        return self._passing(entries, self.numbers[entries])

    def _passing(self, entries: Index, numbers: Float64s) -> Float64s:
        """`numbers`, without those that are not 0 of entries that the node forbids a shift."""
        forbidden = [self.of(law.port, law.index) for law in self.laws if isinstance(law, NoShift)]
        stays = np.isin(entries, np.concatenate(forbidden)) & (numbers != 0) if forbidden else False
        return np.where(stays, np.nan, numbers)

    def _passed_on(self, port: Port) -> Float64s:
        """Entries hold what all entries hold that the node ties to them, directly or by way of others."""
        pairs = [law for law in self.laws if isinstance(law, Equal)]
        ends = [(self.of(law.a, law.a_index), self.of(law.b, law.b_index)) for law in pairs]
        members = np.unique(np.concatenate([side for end in ends for side in end]))
        group = unite(len(members), [(np.searchsorted(members, a), np.searchsorted(members, b)) for a, b in ends])
        made = np.isin(members, np.concatenate([self.of(one, None) for one in _outputs(self.node, self.laws)]))
        known = self._passing(members, self.numbers[members])
        told, unknown = ~made & ~np.isnan(known), ~made & np.isnan(known)
        low, high = np.full(len(members), np.inf), np.full(len(members), -np.inf)
        np.minimum.at(low, group[told], known[told])
        np.maximum.at(high, group[told], known[told])
        held = np.where(low == high, low, np.nan)
        held[group[unknown]] = np.nan
        mine = self.of(port, None)
        place = np.searchsorted(members, mine) % len(members)
        return self._passing(mine, np.where(members[place] == mine, held[group[place]], np.nan))
