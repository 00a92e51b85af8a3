"""Shifts of one bundle: linear equations, solved as they come, with the freedom to take the last ones back.

Unknowns are the places' shifts, one float64 a strand. An equation `sum c_i b_i = k` determines one more of them (its
pivot), holds already, or contradicts. What stays undetermined is 0. Knows no graph.

Sums are kept in the widest float there is (80 bits on x86): where a scale of 1e-8 meets one of 1e14, a shift is the
small difference of large ones, and half a unit in the last place of those would be blown up to be seen.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.fold.affine import Float64s

Wide = NDArray[np.longdouble]
Coefficient = Wide | Float64s | float
_NOTHING = 1e-13  # a coefficient this small beside those it came from is a rounding error
_SAME = 1e-14  # of the largest number that is summed up, which was rounded to 1e-16; what is let pass is an error
_PIVOT = 1e-6  # a pivot smaller than this beside the largest coefficient would blow errors up
_LEFT = 1 / 16  # of what a coefficient was made from: where less is left, two maps are nearly alike


class _Form(NamedTuple):
    """`sum of terms + constant`, over undetermined places; `size`: the largest number that went into the constant."""

    terms: dict[int, Coefficient]
    constant: Wide
    size: Wide


class Shifts:
    """Equations over places 0, 1, ... for each of `width` strands.

    `degree`: in how many relations each place stands. The pivot is the one in the fewest: in a residual stream that is
    what a block adds, `f_k = x_(k+1) - x_k`, and no equation grows with the depth of the network.
    """

    def __init__(self, width: int, degree: Sequence[int] | None = None) -> None:
        self._width = width
        self._degree = degree
        self._forms: dict[int, _Form] = {}
        self._users: dict[int, set[int]] = {}  # place -> determined places whose form mentions it
        self._undo: list[tuple[int, _Form | None]] = []
        zeros = np.zeros(width, dtype=np.longdouble)
        self._nothing = _Form({}, zeros, zeros)

    def equation(self, terms: Iterable[tuple[int, Coefficient]], constant: Coefficient = 0.0) -> bool:
        """Let `sum c b = constant`; False, and nothing said, where that contradicts, or cannot be solved safely."""
        form, _ = self._substituted(terms, self._nothing.constant - constant)
        return self._hold(form, ())

    def wish(self, terms: Iterable[tuple[int, Coefficient]], constant: Coefficient = 0.0) -> bool:
        """`equation`, but where a small difference of coefficients would have to be the pivot: a shift would come out
        that is many times what it was made from, only to be taken away again elsewhere, and digits with it."""
        form, made_of = self._substituted(terms, self._nothing.constant - constant)
        left = form.terms
        small = (p for p, size in made_of.items() if p in left and np.any(_magnitude(left[p]) < _LEFT * size))
        return self._hold(form, [*small] if form.constant.any() else ())

    def _hold(self, form: _Form, spared: Collection[int]) -> bool:
        """Let the form be 0, with a pivot that is not `spared`."""
        if not np.isfinite(form.constant).all():
            return False
        if not form.terms:
            return bool((np.abs(form.constant) <= _SAME * form.size).all())
        pivot = self._pivot(form, spared)
        if pivot is None:
            return False
        scale = -1.0 / form.terms[pivot]
        others: dict[int, Coefficient] = {place: c * scale for place, c in form.terms.items() if place != pivot}
        self._determine(pivot, _Form(others, form.constant * scale, form.size * _magnitude(scale)))
        return True

    def zero(self, place: int) -> bool:
        """Let `b = 0`: the equation that is said most often, and mostly of a place that no other speaks of yet."""
        form = self._forms.get(place)
        if form is None:
            self._determine(place, self._nothing)
            return True
        return form is self._nothing or self.equation([(place, 1.0)])

    def vanish(self, places: Iterable[int]) -> None:
        """Let these be 0, and all that they were made from: a way out that no homogeneous equation contradicts."""
        for place in places:
            form = self._forms.get(place)
            for free in [place] if form is None else list(form.terms):
                held = self.zero(free)
                assert held, f"place {free} is undetermined"

    def mark(self) -> int:
        return len(self._undo)

    def back_to(self, mark: int) -> None:
        """Take back all that was said since `mark`."""
        while len(self._undo) > mark:
            self._put(*self._undo.pop())

    def solution(self, places: int) -> Float64s:
        """[places, width]; undetermined places are 0."""
        found = np.zeros((places, self._width))
        for place, form in self._forms.items():
            found[place] = form.constant.astype(np.float64)
        return found

    def _substituted(
        self, terms: Iterable[tuple[int, Coefficient]], constant: Wide
    ) -> tuple[_Form, dict[int, Coefficient]]:
        """And of coefficients that several numbers were summed up to, what their sizes sum up to."""
        total: dict[int, Coefficient] = {}
        grown: dict[int, Coefficient] = {}
        size = np.abs(constant)
        for place, c in terms:
            form = self._forms.get(place)
            if form is None:
                _add(total, grown, place, c)
                continue
            if form is self._nothing:
                continue
            for free, inner in form.terms.items():
                _add(total, grown, free, c * inner)
            constant = constant + c * form.constant
            size = np.maximum(size, _magnitude(c) * form.size)
        for place, made_of in grown.items():
            if not np.any(_magnitude(total[place]) > _NOTHING * made_of):
                del total[place]
        return _Form(total, constant, size), grown

    def _pivot(self, form: _Form, spared: Collection[int]) -> int | None:
        """The place in the fewest relations whose coefficient is large enough in every strand."""
        numbers = {place: abs(c) for place, c in form.terms.items() if isinstance(c, float)}
        if len(numbers) == len(form.terms):  # the same in every strand, as most are
            fit = [place for place, size in numbers.items() if size > _PIVOT * max(numbers.values())]
        else:
            sizes = {place: np.abs(c) for place, c in form.terms.items()}
            largest = functools.reduce(np.maximum, sizes.values())
            fit = [place for place, size in sizes.items() if np.all(size > _PIVOT * largest)]
        if spared:
            fit = [place for place in fit if place not in spared]
        if len(fit) == 1:
            return fit[0]
        degree = self._degree
        return min(
            fit,
            key=lambda p: (0 if degree is None else degree[p], len(self._users.get(p, ())), p),
            default=None,
        )

    def _determine(self, place: int, solved: _Form) -> None:
        for user in list(self._users.get(place, ())):
            mine = self._forms[user]
            self._set(user, _without(mine, place) if solved is self._nothing else _joined(mine, place, solved))
        self._set(place, solved)

    def _set(self, place: int, form: _Form) -> None:
        self._undo.append((place, self._forms.get(place)))
        self._put(place, form)

    def _put(self, place: int, form: _Form | None) -> None:
        old = self._forms.pop(place, None)
        for free in old.terms if old is not None else ():
            self._users[free].discard(place)
        if form is not None:
            self._forms[place] = form
            for free in form.terms:
                self._users.setdefault(free, set()).add(place)


def _magnitude(c: Coefficient) -> Coefficient:
    return abs(c) if isinstance(c, float) else np.abs(c)


def _add(total: dict[int, Coefficient], grown: dict[int, Coefficient], place: int, c: Coefficient) -> None:
    mine = total.get(place)
    if mine is not None:
        grown[place] = grown.get(place, _magnitude(mine)) + _magnitude(c)
        total[place] = mine + c
    elif c != 0 if isinstance(c, float) else c.any():
        total[place] = c


def _without(form: _Form, place: int) -> _Form:
    """`form` where `place` is 0."""
    return _Form({other: c for other, c in form.terms.items() if other != place}, form.constant, form.size)


def _joined(form: _Form, pivot: int, solved: _Form) -> _Form:
    """`form` with `pivot` replaced by what it was solved to."""
    c = form.terms[pivot]
    terms: dict[int, Coefficient] = {place: own for place, own in form.terms.items() if place != pivot}
    for place, inner in solved.terms.items():
        added = terms.get(place, 0.0) + c * inner
        if (np.abs(added) > _NOTHING * (np.abs(terms.get(place, 0.0)) + np.abs(c * inner))).any():
            terms[place] = added
        else:
            terms.pop(place, None)
    return _Form(terms, form.constant + c * solved.constant, np.maximum(form.size, np.abs(c) * solved.size))
