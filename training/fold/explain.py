"""Why a lift stayed: the nearest statement on either side that stood in its way. Reads a solution, decides nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.fold.graph import describe
from training.fold.laws import Clamp, Equal, Lift, NoScale, NoShift, Pinned, Port, Positive, Stays, Sum, ports
from training.fold.problem import Problem
from training.fold.reach import Statement
from training.fold.solve import Fate, Solution


def explain(solution: Solution, tag: int) -> str:
    """One clause that names operators and tensors. For a lift that is not folded."""
    view = _View(solution)
    law = solution.problem.lift(tag)
    if solution.fate[tag] is Fate.ADD or not law.holds_scale:
        return view.shift(tag, law)
    return view.scale(tag, law)


@dataclass(frozen=True)
class _View:
    """The answers, of one solution."""

    solution: Solution

    @property
    def problem(self) -> Problem:
        return self.solution.problem

    def scale(self, tag: int, law: Lift) -> str:
        before, after = (self._nearest(port, tag, self._holds_scale) for port in (law.x, law.y))
        if before and after and (law.scale[law.scale != 0] != 1).any():
            return f"its scale can go neither way: {_joined(before, after)}"
        dead = self._dead(tag, law)
        if dead:
            return dead
        if before and after:
            return f"its scale can go neither way: {_joined(before, after)}"
        if (law.scale < 0).any():
            upright = _joined(*(self._nearest(port, tag, self._holds_sign) for port in (law.x, law.y)))
            if upright:
                return f"its scale is negative in channel {int((law.scale < 0).argmax())}: {upright}"
        other = self._nearest(law.x, tag, self._folded_other) or self._nearest(law.y, tag, self._folded_other)
        found = [part for part in (before or after, f"the scale that is left serves {other}" if other else "") if part]
        return "; ".join(found) or "its scale contradicts those already folded"

    def _dead(self, tag: int, law: Lift) -> str:
        """Of a channel with scale 0: who wants its input, so that this cannot be a constant, and who its output."""
        channels = [int(i.entries[0]) for _, i in self.problem.by_tag.get(tag, ()) if i.dead]
        before, after = self._nearest(law.x, tag, self._reads), self._nearest(law.y, tag, self._reads_constant)
        if not (channels and before and after):
            return ""
        return f"its scale is 0 in channel {min(channels)}: {_joined(before, after)}"

    def shift(self, tag: int, law: Lift) -> str:
        before, after = (self._nearest(port, tag, self._holds_shift) for port in (law.x, law.y))
        found = _joined(before, after)
        return f"its shift can go neither way: {found}" if found else "its shift contradicts those already folded"

    def _nearest(self, start: Port, tag: int, answer: object) -> str:
        """The first statement, by steps from `start`, that `answer` has words for; not through the lift itself."""
        assert callable(answer)
        seen, queue = {(start.value, start.reader)}, deque([(start.value, start.reader)])
        while queue:
            key = queue.popleft()
            for other, statement in self.problem.statements_at.get(key, ()):
                if other == tag:
                    continue
                words = answer(other, statement)
                if words:
                    return str(words)
                for port in self._through(other, statement):
                    if (port.value, port.reader) not in seen:
                        seen.add((port.value, port.reader))
                        queue.append((port.value, port.reader))
        return ""

    def _through(self, tag: int, statement: Statement) -> Iterator[Port]:
        law = statement.law
        if isinstance(law, Equal | Sum | Clamp) or (isinstance(law, Lift) and self.solution.fate[tag] is Fate.FOLDED):
            yield from ports(law)

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


def _joined(before: str, after: str) -> str:
    """What either side says, once where both meet the same: a Concat's output is behind a map and behind its input."""
    return "; ".join(dict.fromkeys(part for part in (before, after) if part))
