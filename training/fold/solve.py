"""Finds gauges that obey every law and make as many lifted maps as possible the identity.

First the scales, by weighted union-find, then, with these known, the shifts, by linear elimination. What must hold is
said first; then lift after lift is tried, and stays said where no bundle contradicts. For scales alone that greedy
order is optimal in number: sets of lifts without a contradiction are the forests of a graph (a graphic matroid), if
ratios around a cycle never agree by chance. What is only preferred (a ReLU that stays a ReLU, a convolution without
bias that stays without) comes last, or first for a `Policy` that forbids the alternative. Knows no operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from training.fold.affine import Float64s
from training.fold.bundles import Bundle, Instance
from training.fold.laws import Clamp, Free, Gauge, Lift, NoScale, NoShift, Pinned, Port, Positive, Stays, Sum
from training.fold.problem import Problem
from training.fold.reach import Statement
from training.fold.scales import Scales
from training.fold.shifts import Shifts


class Fate(Enum):
    """What becomes of a lift. `ADD`, `MUL`: only that much of it is left."""

    FOLDED = "folded"
    ADD = "Add"
    MUL = "Mul"
    KEPT = "kept"


@dataclass(frozen=True)
class Policy:
    """`order`: lift tags, the most wanted first. `clamps`: may a ReLU become a per-channel clamp?

    `moved`: clamps that change anyway, so that nothing is arranged to spare them. `without`: lifts that must stay;
    `reduces_to_mul`: whether a Mul is better than a lift that stays.
    """

    order: tuple[int, ...]
    clamps: bool
    without: frozenset[int] = frozenset()
    reduces_to_mul: bool = True
    moved: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Solution:
    """`scale`, `shift`: of each class. `fate`: of each lift, by tag. `moved`: clamps that must change, by tag.

    `unread`: classes that nobody reads any more; their scale and shift say nothing.
    """

    problem: Problem
    policy: Policy
    scale: Float64s
    shift: Float64s
    fate: dict[int, Fate]
    moved: frozenset[int]
    unread: NDArray[np.bool_]

    def gauge(self, port: Port) -> Gauge | None:
        """None where the port is stored as it was."""
        classes, sizes = self.problem.classes(port), self.problem.sizes[port.value, port.reader]
        scale, shift, unread = self.scale[classes], self.shift[classes], self.unread[classes]
        if unread.any():
            value = np.where(unread, self.problem.numbers(port), 0.0)
            return Gauge(port.axes, sizes, np.where(unread, np.inf, scale), np.where(unread, 0.0, shift), value)
        if (scale == 1.0).all() and not shift.any():
            return None
        return Gauge(port.axes, sizes, scale, shift)

    def count(self, *fates: Fate) -> int:
        return sum(fate in fates for fate in self.fate.values())


def solve(problem: Problem, policy: Policy) -> Solution:
    """The solution for `policy`; lifts that turn out to need a shift which they cannot hold are put out one by one."""
    while True:
        attempt = _Attempt(problem, policy)
        solution = attempt.run()
        if attempt.unholdable:
            policy = replace(policy, without=policy.without | attempt.unholdable)
        elif solution.moved <= policy.moved:
            return solution
        else:
            policy = replace(policy, moved=policy.moved | solution.moved)


@dataclass
class _Attempt:
    problem: Problem
    policy: Policy
    scales: list[Scales] = field(init=False)
    shifts: list[Shifts] = field(init=False)
    A: list[Float64s] = field(init=False)  # per bundle [places, width]
    unholdable: set[int] = field(default_factory=set)
    fate: dict[int, Fate] = field(init=False)

    def __post_init__(self) -> None:
        bundles = self.problem.bundles
        self.scales = _held_scales(self.problem, self.policy.clamps)
        self.shifts = [Shifts(b.width, _degrees(b)) for b in bundles]
        self.fate = dict.fromkeys(self.problem.lifts, Fate.KEPT)

    def run(self) -> Solution:
        self._solve_scales()
        self.A = [s.solution(self._weights(n)) for n, s in enumerate(self.scales)]
        self._solve_shifts()
        scale, shift = self._spread()
        moved = frozenset(tag for tag in self.problem.tags(Clamp) if self._is_moved(tag, scale, shift))
        return Solution(self.problem, self.policy, scale, shift, self.fate, moved, self._unread())

    # Scales.

    def _solve_scales(self) -> None:
        wanted = [t for t in self.policy.order if t not in self.policy.without and self.problem.lift(t).holds_scale]
        self._fold_scales([tag for tag in wanted if not self._has_dead(tag)])
        dead = [tag for tag in wanted if self._has_dead(tag)]
        while dead and len(dead) > len(left := self._fold_scales(dead)):  # what folds may leave a tensor to another
            dead = left
        if self.policy.clamps:
            for tag in self._spared():
                self._each_scale(tag, self._prefer_scale)

    def _fold_scales(self, tags: Sequence[int]) -> list[int]:
        """One after the other; those that contradict what was said are handed back."""
        left = []
        for tag in tags:
            if self._each_scale(tag, self._fold_scale):
                self.fate[tag] = Fate.ADD  # until its shift is folded too
            else:
                left.append(tag)
        return left

    def _fold_scale(self, scales: Scales, instance: Instance) -> bool:
        """`y' = x'`: `A_x = s A_y`."""
        x, y = instance.places
        if instance.dead:
            return scales.kill(x)
        return scales.release(x) and scales.tie(x, y, self.problem.lift(instance.tag).scale[instance.entries])

    def _has_dead(self, tag: int) -> bool:
        return any(instance.dead for _, instance in self.problem.by_tag.get(tag, ()))

    def _prefer_scale(self, scales: Scales, instance: Instance) -> bool:
        return _prefer_scale(scales, instance, self._clamp(instance.tag))

    def _weights(self, number: int) -> Float64s:
        classes = self.problem.bundles[number].classes
        return np.asarray(self.problem.weight[classes[:, 0]], dtype=np.float64)

    # Shifts.

    def _solve_shifts(self) -> None:
        for number, instances in enumerate(_said_of_shifts(self.problem)):
            for instance in instances:
                if not self._say_shift(number, instance):  # too small a pivot; what must hold holds for zeros too
                    self.shifts[number].vanish(instance.places)
        for tag in sorted(self.policy.order, key=lambda tag: self.problem.lift(tag).holds_shift):
            self._fold_shift(tag)  # a Mul whose scale is gone has no choice
        if self.policy.reduces_to_mul:
            for tag in self.policy.order:
                if self.fate[tag] is Fate.KEPT and self._is_whole(tag) and self._each_shift(tag, self._to_mul):
                    self.fate[tag] = Fate.MUL
        unshifted = [tag for tag in self._spared() if self._clamp(tag).stays is not Stays.UPRIGHT]
        for tag in (*unshifted, *self.problem.tags(Free)):  # what is only preferred
            self._each_shift(tag, self._to_zero)

    def _say_shift(self, number: int, instance: Instance) -> bool:
        law, places, shifts = self.problem.law(instance.tag), instance.places, self.shifts[number]
        match law:
            case Pinned() | NoShift():
                return shifts.zero(places[0])
            case Sum() if not law.holds_shift:
                terms = [(place, -term.factor) for place, term in zip(places[1:], law.terms, strict=True)]
                return shifts.equation([(places[0], 1.0), *terms])
            case Clamp() if not self.policy.clamps and law.stays is not Stays.UPRIGHT:
                return shifts.zero(places[0])
            case Lift() if self.fate[instance.tag] is Fate.KEPT and not law.holds_shift:
                return self._to_mul(number, instance)
            case _:
                return True

    def _fold_shift(self, tag: int) -> None:
        law = self.problem.lift(tag)
        if (law.holds_scale and self.fate[tag] is Fate.KEPT) or tag in self.policy.without:
            return
        if self._each_shift(tag, self._to_identity):
            self.fate[tag] = Fate.FOLDED
        elif not law.holds_shift:
            self.unholdable.add(tag)
        elif not law.holds_scale:
            self.fate[tag] = Fate.KEPT  # an Add that stays

    def _to_identity(self, number: int, instance: Instance) -> bool:
        """`y' = x'`: `b_x = A_y t + b_y`."""
        law = self.problem.lift(instance.tag)
        x, y = instance.places
        constant = self.A[number][y].astype(np.longdouble) * law.shift[instance.entries]
        return self.shifts[number].wish([(x, 1.0), (y, -1.0)], constant)

    def _to_mul(self, number: int, instance: Instance) -> bool:
        """`y' = m x'`, `m = A_y s / A_x`: `b_y - m b_x = - A_y t`. Of a dead channel stored as `b_x`, m is 1."""
        law = self.problem.lift(instance.tag)
        x, y = instance.places
        A_x, A_y = (self.A[number][place].astype(np.longdouble) for place in (x, y))
        m = np.divide(A_y * law.scale[instance.entries], A_x, out=np.ones_like(A_x), where=A_x != 0)
        say = self.shifts[number].wish if law.holds_shift else self.shifts[number].equation
        return say([(y, 1.0), (x, -m)], -A_y * law.shift[instance.entries])

    def _to_zero(self, number: int, instance: Instance) -> bool:
        return self.shifts[number].zero(instance.places[0])

    def _is_whole(self, tag: int) -> bool:
        """Is it a map that a Mul would be less than?"""
        law = self.problem.lift(tag)
        return law.holds_scale and law.holds_shift and tag not in self.policy.without

    def _each_scale(self, tag: int, say: Callable[[Scales, Instance], bool]) -> bool:
        return _everywhere(self.problem.by_tag.get(tag, ()), self.scales, lambda n, i: say(self.scales[n], i))

    def _each_shift(self, tag: int, say: Callable[[int, Instance], bool]) -> bool:
        return _everywhere(self.problem.by_tag.get(tag, ()), self.shifts, say)

    def _spared(self) -> list[int]:
        """Clamps that would rather stay what they are."""
        return [tag for tag in self.problem.tags(Clamp) if tag not in self.policy.moved]

    def _clamp(self, tag: int) -> Clamp:
        law = self.problem.law(tag)
        assert isinstance(law, Clamp)
        return law

    # Results.

    def _spread(self) -> tuple[Float64s, Float64s]:
        count = len(self.problem.weight)
        scale, shift = np.ones(count), np.zeros(count)
        for number, bundle in enumerate(self.problem.bundles):
            scale[bundle.classes] = self.A[number]
            shift[bundle.classes] = self.shifts[number].solution(bundle.places)
        for statement in self.problem.reached.statements:  # exactly, not but for a rounding error
            law = statement.law
            if isinstance(law, Pinned | NoShift):
                shift[self.problem.classes(law.port, law.index)] = 0.0
            if isinstance(law, Pinned | NoScale):
                scale[self.problem.classes(law.port, law.index)] = 1.0
        return scale, shift

    def _unread(self) -> NDArray[np.bool_]:
        """Classes that need not be read, next to a lift that is not what it was: nothing changes for its own sake."""
        problem = self.problem
        lifts = [problem.lift(tag) for tag, fate in self.fate.items() if fate is not Fate.KEPT]
        touched = [problem.unread[problem.classes(port)] for law in lifts for port in (law.x, law.y)]
        return (problem.unread >= 0) & np.isin(problem.unread, np.concatenate([*touched, np.zeros(0, dtype=np.int64)]))

    def _is_moved(self, tag: int, scale: Float64s, shift: Float64s) -> bool:
        law = self._clamp(tag)
        classes = self.problem.classes(law.x)
        if law.stays is Stays.UPRIGHT:
            return bool((scale[classes] < 0).any())
        if law.stays is Stays.UNSHIFTED:
            return bool((scale[classes] < 0).any() or shift[classes].any())
        return bool((scale[classes] != 1).any() or shift[classes].any())


def _held_scales(problem: Problem, clamps: bool) -> list[Scales]:
    """Of each bundle: what must hold of its scales, before anything is wished for.

    The same for every policy that agrees on `clamps`, so it is said once: a later attempt gets the same objects back,
    and whatever an earlier one said of them is taken back.
    """
    held: list[Scales] | None = problem.notes.get((_held_scales, clamps))
    if held is None:
        held = problem.notes[_held_scales, clamps] = [Scales(bundle.places, bundle.width) for bundle in problem.bundles]
        for scales, bundle in zip(held, problem.bundles, strict=True):
            for instance in bundle.instances:
                said = _say_scale(scales, instance, problem.reached.statements[instance.tag], clamps)
                assert said, f"laws contradict each other: {problem.law(instance.tag)}"
            scales.settle()
    for scales in held:
        scales.back_to(0)
    return held


def _say_scale(scales: Scales, instance: Instance, statement: Statement, clamps: bool) -> bool:
    law, places = statement.law, instance.places
    match law:
        case Sum():
            return all(scales.tie(places[0], place) for place in places[1:])
        case Pinned() | NoScale():
            return scales.pin(places[0])
        case Positive():
            return scales.positive(places[0])
        case Free() | NoShift() if statement.is_demand:
            return scales.need(places[0])
        case Lift() if not law.holds_scale:
            return scales.tie(*places)
        case Lift() if not instance.dead:
            return scales.need(places[0])  # until it is folded
        case Clamp() if not clamps:
            return _prefer_scale(scales, instance, law)
        case _:
            return True


def _said_of_shifts(problem: Problem) -> list[list[Instance]]:
    """Of each bundle: the instances that `_say_shift` may have a word for; the shortest first, as what is 0 makes no
    sum longer."""
    said: list[list[Instance]] | None = problem.notes.get(_said_of_shifts)
    if said is None:
        silent = {
            tag
            for tag, statement in enumerate(problem.reached.statements)
            if isinstance(statement.law, Free | NoScale | Positive)
            or (isinstance(statement.law, Lift) and statement.law.holds_shift)
        }
        said = problem.notes[_said_of_shifts] = [
            sorted((one for one in bundle.instances if one.tag not in silent), key=lambda one: len(one.places))
            for bundle in problem.bundles
        ]
    return said


def _prefer_scale(scales: Scales, instance: Instance, clamp: Clamp) -> bool:
    unmoved = clamp.stays is Stays.UNMOVED
    return scales.pin(instance.places[0]) if unmoved else scales.positive(instance.places[0])


def _degrees(bundle: Bundle) -> list[int]:
    degree = [0] * bundle.places
    for instance in bundle.instances:
        for place in instance.places:
            degree[place] += 1
    return degree


def _everywhere(
    places: Sequence[tuple[int, Instance]],
    parts: Sequence[Scales] | Sequence[Shifts],
    say: Callable[[int, Instance], bool],
) -> bool:
    """Say it in every bundle where the law holds, or in none."""
    marks = {number: parts[number].mark() for number, _ in places}
    if all(say(number, instance) for number, instance in places):
        return True
    for number, mark in marks.items():
        parts[number].back_to(mark)
    return False
