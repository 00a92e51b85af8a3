"""The laws of a graph as relations between numbered variables, in bundles: what the solver works on.

Translates ports to variables and back. Solves nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.fold.affine import Float64s
from training.fold.bundles import Bundle, Instance, Relation, bundle, unite
from training.fold.known import Known
from training.fold.laws import Clamp, Equal, Free, Index, Law, Lift, Port, Sum, ports
from training.fold.reach import Key, Reached, Statement
from training.fold.steady import steady, unread


@dataclass(frozen=True, eq=False)
class Problem:
    """`by_tag[t]`: where statement t holds, as (bundle number, instance)."""

    reached: Reached
    sizes: dict[Key, tuple[int, ...]]
    first: dict[Key, int]  # of each port's variables
    class_of: Index  # [variables]
    bundles: Sequence[Bundle]
    by_tag: dict[int, list[tuple[int, Instance]]]
    lifts: tuple[int, ...]  # tags
    weight: Index  # [classes]: how many variables are in each
    steady: Float64s  # [variables]: the number that one holds whatever is fed, or NaN
    unread: Index  # [classes]: the group of classes that nobody has to read, or -1; no bundle speaks of these
    notes: dict[Hashable, Any] = field(default_factory=dict)  # what a solver found out, for the next attempt

    def law(self, tag: int) -> Law:
        return self.reached.statements[tag].law

    def lift(self, tag: int) -> Lift:
        law = self.law(tag)
        assert isinstance(law, Lift)
        return law

    def classes(self, port: Port, index: Index | None = None) -> Index:
        """The class of each entry, or of those that `index` names."""
        mine = self.class_of[self._variables(port)]
        return mine if index is None else mine[index]

    def numbers(self, port: Port) -> Float64s:
        """What each entry holds whatever is fed, or NaN."""
        return self.steady[self._variables(port)]

    def _variables(self, port: Port) -> slice:
        start = self.first[port.value, port.reader]
        return slice(start, start + prod(self.sizes[port.value, port.reader]))

    @cached_property
    def statements_at(self) -> dict[Key, list[tuple[int, Statement]]]:
        """Which statements, with their tags, speak of which tensor."""
        at: dict[Key, list[tuple[int, Statement]]] = {}
        for tag, statement in enumerate(self.reached.statements):
            for port in ports(statement.law):
                at.setdefault((port.value, port.reader), []).append((tag, statement))
        return at

    def tags(self, kind: type[Law]) -> list[int]:
        return [tag for tag, s in enumerate(self.reached.statements) if isinstance(s.law, kind)]


@dataclass
class _Variables:
    first: dict[Key, int] = field(default_factory=dict)
    sizes: dict[Key, tuple[int, ...]] = field(default_factory=dict)
    total: int = 0

    def add(self, key: Key, sizes: tuple[int, ...]) -> None:
        self.first[key], self.sizes[key] = self.total, sizes
        self.total += prod(sizes)

    def of(self, port: Port, index: Index | None = None) -> Index:
        key = (port.value, port.reader)
        start = self.first[key]
        return np.arange(start, start + prod(self.sizes[key])) if index is None else start + index


def pose(reached: Reached, known: Known) -> Problem:
    """All that was reached, as a problem."""
    variables = _Variables()
    for key, port in reached.ports.items():
        dims = known.dims(port.value) or ()
        variables.add(key, tuple(dims[axis] or 0 for axis in port.axes))
    class_of = unite(variables.total, list(_equalities(reached.statements, variables)))
    lifts = tuple(tag for tag, s in enumerate(reached.statements) if isinstance(s.law, Lift))
    numbers = steady(reached.statements, variables.total, variables.of)
    ignored = unread(reached.statements, numbers, class_of, variables.of)
    is_ignored = ignored >= 0
    relations = [
        relation
        for tag, statement in enumerate(reached.statements)
        for relation in _relations(tag, statement, variables, class_of, is_ignored)
    ]
    classes = int(class_of.max()) + 1 if variables.total else 0
    bundles = bundle(classes, relations)
    by_tag: dict[int, list[tuple[int, Instance]]] = {}
    for number, one in enumerate(bundles):
        for instance in one.instances:
            by_tag.setdefault(instance.tag, []).append((number, instance))
    weight = np.bincount(class_of, minlength=classes)
    place = variables.first, class_of
    return Problem(reached, variables.sizes, *place, bundles, by_tag, lifts, weight, numbers, ignored)


def _equalities(statements: Sequence[Statement], variables: _Variables) -> Iterator[tuple[Index, Index]]:
    for statement in statements:
        match statement.law:
            case Equal() as law:
                yield variables.of(law.a, law.a_index), variables.of(law.b, law.b_index)
            case Clamp() as law:
                yield variables.of(law.x), variables.of(law.y)


def _relations(
    tag: int, statement: Statement, variables: _Variables, class_of: Index, ignored: NDArray[np.bool_]
) -> Iterator[Relation]:
    """On classes that somebody reads. A law on one port speaks once of each class; a lift speaks of its dead channels
    apart."""
    law = statement.law
    match law:
        case Equal():
            return
        case Sum():
            out = variables.of(law.out)
            slots = [class_of[out], *(class_of[variables.of(term.port, term.index)] for term in law.terms)]
            entries = np.flatnonzero(~ignored[slots[0]])  # none or all of a sum's classes are
            if entries.size:
                yield Relation(tag, tuple(slot[entries] for slot in slots), entries)
        case Lift():
            x, y = class_of[variables.of(law.x)], class_of[variables.of(law.y)]
            for dead in (False, True):  # y is ignored wherever x is
                entries = np.flatnonzero(((law.scale == 0) == dead) & ~ignored[y])
                if entries.size:
                    yield Relation(tag, (x[entries], y[entries]), entries, dead)
        case Free() if not law.quiet and not statement.is_demand:
            return
        case _:
            index = None if isinstance(law, Clamp | Free) else law.index
            classes = class_of[variables.of(law.x if isinstance(law, Clamp) else law.port, index)]
            if (classes[1:] > classes[:-1]).all():  # as most are: a tenth of the time
                distinct, entries = classes, np.arange(len(classes))
            else:
                distinct, entries = np.unique(classes, return_index=True)
            read = ~ignored[distinct]
            if read.any():
                yield Relation(tag, (distinct[read],), entries[read])
