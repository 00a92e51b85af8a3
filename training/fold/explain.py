"""Why a lift stayed: the nearest statement on either side that stood in its way. Reads a solution, decides nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from training.fold.graph import describe
from training.fold.laws import Clamp, Equal, Lift, NoScale, NoShift, Pinned, Port, Positive, Stays, Sum, ports
from training.fold.problem import Problem
from training.fold.reach import Key, Statement
from training.fold.solve import Fate, Solution

_Answer = Callable[[int, Statement], str]


@dataclass(frozen=True, eq=False)
class Explainer:
    """The answers, of one solution. What holds which tensor is found for all tensors at once, when first asked."""

    solution: Solution

    def why(self, tag: int) -> str:
        """One clause that names operators and tensors. For a lift that is not folded."""
        law = self.problem.lift(tag)
        if self.solution.fate[tag] is Fate.ADD or not law.holds_scale:
            return self._shift(law)
        return self._scale(tag, law)

    @property
    def problem(self) -> Problem:
        return self.solution.problem

    def _scale(self, tag: int, law: Lift) -> str:
        before, after = (self._scale_holders.get(_key(port), "") for port in (law.x, law.y))
        if before and after and (law.scale[law.scale != 0] != 1).any():
            return f"its scale can go neither way: {_joined(before, after)}"
        dead = self._dead(tag, law)
        if dead:
            return dead
        if before and after:
            return f"its scale can go neither way: {_joined(before, after)}"
        if (law.scale < 0).any():
            upright = _joined(*(self._sign_holders.get(_key(port), "") for port in (law.x, law.y)))
            if upright:
                return f"its scale is negative in channel {int((law.scale < 0).argmax())}: {upright}"
        other = self._nearest(law.x, tag, self._folded_other) or self._nearest(law.y, tag, self._folded_other)
        found = [part for part in (before or after, f"the scale that is left serves {other}" if other else "") if part]
        return "; ".join(found) or "its scale contradicts those already folded"

    def _dead(self, tag: int, law: Lift) -> str:
        """Of a channel with scale 0: who wants its input, so that this cannot be a constant, and who its output."""
        channels = [int(i.entries[0]) for _, i in self.problem.by_tag.get(tag, ()) if i.dead]
        if not channels:
            return ""
        before, after = self._nearest(law.x, tag, self._reads), self._nearest(law.y, tag, self._reads_constant)
        return f"its scale is 0 in channel {min(channels)}: {_joined(before, after)}" if before and after else ""

    def _shift(self, law: Lift) -> str:
        before, after = (self._shift_holders.get(_key(port), "") for port in (law.x, law.y))
        found = _joined(before, after)
        return f"its shift can go neither way: {found}" if found else "its shift contradicts those already folded"

    # The way there: through laws that hand a gauge on.

    @cached_property
    def _next(self) -> dict[Key, dict[Key, None]]:
        """Which tensors a gauge goes on to, from each."""
        found: dict[Key, dict[Key, None]] = {}
        for tag, statement in enumerate(self.problem.reached.statements):
            law = statement.law
            if isinstance(law, Equal | Sum | Clamp) or (isinstance(law, Lift) and self._is_folded(tag)):
                keys = dict.fromkeys(map(_key, ports(law)))
                for key in keys:
                    found.setdefault(key, {}).update(keys)
        return found

    def _is_folded(self, tag: int) -> bool:
        return self.solution.fate[tag] is Fate.FOLDED

    def _nearest(self, start: Port, tag: int, answer: _Answer) -> str:
        """The first statement, by steps from `start`, that `answer` has words for; not the lift itself."""
        seen, queue = {_key(start)}, deque([_key(start)])
        while queue:
            key = queue.popleft()
            for other, statement in self.problem.statements_at.get(key, ()):
                words = answer(other, statement) if other != tag and not _is_partial(statement) else ""
                if words:
                    return words
            fresh = [onward for onward in self._next.get(key, ()) if onward not in seen]
            seen.update(fresh)
            queue.extend(fresh)
        return ""

    def _everywhere(self, answer: _Answer) -> dict[Key, str]:
        """The words of the nearest statement that has some, for every tensor from which one can be met.

        What is said of some entries only speaks where nothing is met that is said of all.
        """
        found: dict[Key, str] = {}
        for partial in (False, True):
            queue: deque[Key] = deque()
            for key, statements in self.problem.statements_at.items():
                said = (answer(tag, statement) for tag, statement in statements if _is_partial(statement) == partial)
                words = "" if key in found else next(filter(None, said), "")
                if words:
                    found[key] = words
                    queue.append(key)
            while queue:
                key = queue.popleft()
                for onward in self._next.get(key, ()):
                    if onward not in found:
                        found[onward] = found[key]
                        queue.append(onward)
        return found

    # Who has a say; a lift never does in these three.

    @cached_property
    def _scale_holders(self) -> dict[Key, str]:
        return self._everywhere(self._holds_scale)

    @cached_property
    def _sign_holders(self) -> dict[Key, str]:
        return self._everywhere(self._holds_sign)

    @cached_property
    def _shift_holders(self) -> dict[Key, str]:
        return self._everywhere(self._holds_shift)

    def _holds_scale(self, _: int, statement: Statement) -> str:
        law = statement.law
        if isinstance(law, Pinned | NoScale):
            return law.reason
        return self._stays(law, (Stays.UNMOVED,))

    def _reads(self, tag: int, statement: Statement) -> str:
        law = statement.law
        if isinstance(law, Pinned | NoScale):
            return law.reason
        stays = isinstance(law, Lift) and law.holds_scale and self.solution.fate[tag] is Fate.KEPT
        if (stays or statement.is_demand) and statement.node is not None:
            return f"{describe(statement.node)} reads '{next(ports(law)).value.name}'"
        return ""

    def _reads_constant(self, _: int, statement: Statement) -> str:
        """Who cannot be told beforehand what a tensor holds, where it holds one number?"""
        law = statement.law
        if isinstance(law, Pinned | NoScale | NoShift) or (isinstance(law, Positive) and law.infinite):
            return law.reason
        if isinstance(law, Sum) and statement.node is not None and np.isnan(self.problem.numbers(law.out)).all():
            return f"{describe(statement.node)} adds what is no constant"
        return ""

    def _holds_sign(self, _: int, statement: Statement) -> str:
        law = statement.law
        if isinstance(law, Positive | Pinned | NoScale):
            return law.reason
        return self._stays(law, tuple(Stays))

    def _holds_shift(self, _: int, statement: Statement) -> str:
        law = statement.law
        if isinstance(law, Pinned | NoShift):
            return law.reason
        return self._stays(law, (Stays.UNMOVED, Stays.UNSHIFTED))

    def _stays(self, law: object, kinds: tuple[Stays, ...]) -> str:
        if not self.solution.policy.clamps and isinstance(law, Clamp) and law.stays in kinds:
            return f"{describe(law.node)} stays what it is under {law.stays.value} only"
        return ""

    def _folded_other(self, tag: int, statement: Statement) -> str:
        law = statement.law
        folded = isinstance(law, Lift) and self.solution.fate[tag] is not Fate.KEPT
        return describe(law.node) if folded and isinstance(law, Lift) else ""


def _key(port: Port) -> Key:
    return port.value, port.reader


def _is_partial(statement: Statement) -> bool:
    law = statement.law
    return isinstance(law, Pinned | NoShift | NoScale | Positive) and law.index is not None


def _joined(before: str, after: str) -> str:
    """What either side says, once where both meet the same: a Concat's output is behind a map and behind its input."""
    return "; ".join(dict.fromkeys(part for part in (before, after) if part))
