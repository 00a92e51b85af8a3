"""Scales of one bundle: a union-find whose links carry ratios, signs included.

Every place holds `A_i = ratio_i * A_root`, one float64 a strand. A tie `A_i = r A_j` joins two trees, or holds already,
or contradicts; what is said to be positive fixes its root's sign. A tree may be *dead*, all its scales 0, if nothing in
it is needed: whoever computes it then computes a constant. Statements can be taken back to a mark, so that a map that
turns out not to fit in another bundle leaves no trace here. Knows no graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from training.fold.affine import Float64s

_SAME = 1e-13  # relative; a path multiplies some hundred ratios of 1e-16 each; what is let pass is an error of the fold
Signs = NDArray[np.int8]


class Scales:
    """`places` unknowns for each of `width` strands; the place GROUND is stored as it is."""

    GROUND = -1

    def __init__(self, places: int, width: int) -> None:
        self._width = width
        # Most ratios are 1 and most signs not decided, or all positive: these three are told by `is`, without a look.
        self._one, self._undecided, self._positive = (
            np.ones(width),
            np.zeros(width, dtype=np.int8),
            np.ones(width, dtype=np.int8),
        )
        self._parent: dict[int, int] = {}
        self._ratio: dict[int, Float64s] = {}  # A_i = ratio * A_parent
        self._size: dict[int, int] = dict.fromkeys(range(places), 1) | {self.GROUND: 1 << 60}  # GROUND stays a root
        self._sign: dict[int, Signs] = {self.GROUND: self._positive}  # of a root; 0: undecided
        self._dead: set[int] = set()  # roots
        self._needs: Counter[int] = Counter({self.GROUND: 1})  # by root: how many want its numbers
        self._undo: list[Callable[[], None]] = []

    def find(self, place: int) -> tuple[int, Float64s]:
        """The root of `place`, and the ratio to it."""
        ratio, one = self._one, self._one
        while place in self._parent:
            step = self._ratio[place]
            if step is not one:
                ratio = step if ratio is one else ratio * step
            place = self._parent[place]
        return place, ratio

    def tie(self, i: int, j: int, ratio: Float64s | float | None = None) -> bool:
        """Let `A_i = ratio * A_j` (ratio finite, not 0; None: 1); False, and nothing said, where that contradicts."""
        root_i, to_i = self.find(i)
        root_j, to_j = self.find(j)
        one = self._one
        wanted = to_j if ratio is None else ratio * to_j  # A_root_i = wanted * A_root_j
        if to_i is not one:
            wanted = wanted / to_i
        if root_i == root_j:
            return wanted is one or root_i in self._dead or bool((np.abs(wanted - 1.0) <= _SAME).all())
        if self._size[root_i] > self._size[root_j]:
            root_i, root_j, wanted = root_j, root_i, one if wanted is one else 1.0 / wanted
        sign = self._merged_sign(root_j, self._turned(self._sign_of(root_i), wanted))
        dead = root_i in self._dead or root_j in self._dead
        if (
            sign is None
            or not (wanted is one or (np.isfinite(wanted).all() and wanted.all()))
            or (dead and (self._needs[root_i] or self._needs[root_j]))
        ):
            return False
        self._undo.append(partial(self._part, root_i, root_j, self._sign.get(root_j)))
        self._parent[root_i], self._ratio[root_i] = root_j, wanted
        self._size[root_j] += self._size[root_i]
        self._sign[root_j] = sign
        self._count(root_j, self._needs[root_i])
        if dead:
            self._bury(root_j)
        return True

    def kill(self, place: int) -> bool:
        """Let `A = 0`; False, and nothing said, where that is needed for more than a constant."""
        root = self.find(place)[0]
        if self._needs[root]:
            return False
        self._bury(root)
        return True

    def need(self, place: int) -> bool:
        """Let `A` be not 0; False, and nothing said, where that contradicts."""
        root = self.find(place)[0]
        if root in self._dead:
            return False
        self._count(root, 1)
        return True

    def release(self, place: int) -> bool:
        """Take back one `need` of this place; others stay. True."""
        self._count(self.find(place)[0], -1)
        return True

    def pin(self, place: int) -> bool:
        """Let `A = 1`."""
        return self.tie(place, self.GROUND)

    def positive(self, place: int) -> bool:
        """Let `A > 0`; False, and nothing said, where that contradicts."""
        root, ratio = self.find(place)
        sign = self._merged_sign(root, self._turned(self._positive, ratio))
        if sign is None:
            return False
        if sign is self._sign.get(root):
            return True
        self._undo.append(partial(self._put_sign, root, self._sign.get(root)))
        self._sign[root] = sign
        return True

    def settle(self) -> None:
        """What was said so far stays said: the mark 0 is here."""
        self._undo.clear()

    def mark(self) -> int:
        return len(self._undo)

    def back_to(self, mark: int) -> None:
        """Take back all that was said since `mark`."""
        while len(self._undo) > mark:
            self._undo.pop()()

    def solution(self, weights: Float64s) -> Float64s:
        """[places, width]: A of every place. A free tree is scaled so that its heaviest place has |A| = 1, or A = 1."""
        places = len(self._size) - 1
        found = [self.find(place) for place in range(places)]
        heaviest: dict[int, int] = {}
        for place, (root, _) in enumerate(found):
            if root not in heaviest or weights[place] > weights[heaviest[root]]:
                heaviest[root] = place
        factor = {root: self._factor(root, found[place][1]) for root, place in heaviest.items()}
        one = self._one
        rows = (ratio if (f := factor[root]) is one else f if ratio is one else ratio * f for root, ratio in found)
        return np.array(list(rows)).reshape(places, self._width)

    def _factor(self, root: int, ratio: Float64s) -> Float64s:
        if root == self.GROUND:
            return self._one
        if root in self._dead:
            return np.zeros(self._width)
        sign = self._sign_of(root)
        if ratio is self._one and (sign is self._undecided or sign is self._positive):
            return self._one
        return np.where(sign == 0, 1.0 / ratio, sign / np.abs(ratio))

    def _part(self, child: int, parent: int, sign: Signs | None) -> None:
        del self._parent[child], self._ratio[child]
        self._size[parent] -= self._size[child]
        self._put_sign(parent, sign)

    def _put_sign(self, root: int, sign: Signs | None) -> None:
        if sign is None:
            self._sign.pop(root, None)
        else:
            self._sign[root] = sign

    def _bury(self, root: int) -> None:
        if root not in self._dead:
            self._dead.add(root)
            self._undo.append(partial(self._dead.discard, root))

    def _count(self, root: int, more: int) -> None:
        """Of needs. They are taken back last in, first out, so that the root is the same then."""
        if more:
            self._needs[root] += more
            self._undo.append(partial(self._uncount, root, more))

    def _uncount(self, root: int, more: int) -> None:
        self._needs[root] -= more

    def _sign_of(self, root: int) -> Signs:
        return self._sign.get(root, self._undecided)

    def _turned(self, sign: Signs, ratio: Float64s) -> Signs:
        """The sign of `ratio` times what has this sign."""
        if ratio is self._one or sign is self._undecided:
            return sign
        return np.asarray(sign * np.sign(ratio), dtype=np.int8)

    def _merged_sign(self, root: int, other: Signs) -> Signs | None:
        mine = self._sign_of(root)
        if mine is other or other is self._undecided:
            return mine
        if mine is self._undecided:
            return other
        return None if (mine * other < 0).any() else np.where(mine != 0, mine, other).astype(np.int8)
