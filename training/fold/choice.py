"""Which solution a profile wants: policies tried, ill-conditioned shifts left where they are, prices paid."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from training.fold.conditioning import ill_conditioned
from training.fold.explain import Explainer
from training.fold.known import Known
from training.fold.laws import Clamp
from training.fold.problem import Problem
from training.fold.profiles import PRICES, Profile
from training.fold.solve import Fate, Policy, Solution, solve

_WAYS_OUT = {
    Fate.FOLDED: "--profile generic folds it",
    Fate.ADD: "--profile generic leaves one Add",
    Fate.MUL: "--profile generic leaves one Mul",
}


@dataclass(frozen=True, eq=False)
class Chosen:
    """`reasons`: tag -> why it stayed, where that is not the algebra's doing; `ways_out`: what would help."""

    solution: Solution
    reasons: dict[int, str]
    ways_out: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """`without`: tags of lifts that must stay."""

    problem: Problem
    profile: Profile
    known: Known
    without: frozenset[int]

    def best(self) -> Chosen:
        prices = PRICES[self.profile]
        order = self._order()
        left = frozenset(tag for tag in order if prices.is_better_left(self.problem.lift(tag).node))
        upright, predicted = self._guarded(Policy(order, clamps=False, without=self.without | left))
        if prices.clamps:
            return Chosen(*self._generic(upright))
        reasons = dict(predicted)
        chosen = upright if prices.reduces else self._whole(upright, reasons)
        if chosen.count(Fate.FOLDED) or not chosen.count(Fate.KEPT, Fate.ADD, Fate.MUL):
            return Chosen(chosen, reasons)  # what folds brings another pass, which tells of the rest again
        free, _ = self._generic(upright, frozenset(self.problem.tags(Clamp)))  # its fates alone: spare no clamp
        ways_out = {tag: _WAYS_OUT[free.fate[tag]] for tag in order if _is_less(free.fate[tag], chosen.fate[tag])}
        vetoes = {tag: f"{prices.veto(self._rank(tag))} on {self.profile}" for tag in ways_out}
        return Chosen(chosen, reasons | vetoes, ways_out)

    def _rank(self, tag: int) -> int | None:
        """Of a BatchNormalization's tensor, where it is known; None for any other map."""
        node = self.problem.lift(tag).node
        dims = self.known.dims(node.outputs[0]) if node.op_type == "BatchNormalization" else None
        return None if dims is None else len(dims)

    def _generic(self, upright: Solution, moved: frozenset[int] = frozenset()) -> tuple[Solution, dict[int, str]]:
        """What algebra permits, and what was predicted. What folds in `upright`, without clamps, comes first.

        `moved`: as in Policy."""
        order = sorted(self._order(), key=lambda tag: upright.fate[tag] is not Fate.FOLDED)
        return self._guarded(Policy(tuple(order), clamps=True, without=self.without, moved=moved))

    def _whole(self, solution: Solution, reasons: dict[int, str]) -> Solution:
        """The solution in which what would only be reduced stays as it is. `reasons`: what stood in its way."""
        while reduced := [tag for tag in self.problem.lifts if self._is_reduced(solution, tag)]:
            explainer = Explainer(solution)
            reasons |= {tag: explainer.why(tag) for tag in reduced if tag not in reasons}
            policy = solution.policy
            policy = replace(policy, without=policy.without | set(reduced), reduces_to_mul=False)
            solution = solve(self.problem, policy)
        return solution

    def _is_reduced(self, solution: Solution, tag: int) -> bool:
        return solution.fate[tag] in (Fate.ADD, Fate.MUL)

    def _order(self) -> tuple[int, ...]:
        """BatchNormalization before what else can be lifted; as the graph lists them."""
        return tuple(
            sorted(self.problem.lifts, key=lambda tag: self.problem.lift(tag).node.op_type != "BatchNormalization")
        )

    def _guarded(self, policy: Policy) -> tuple[Solution, dict[int, str]]:
        """The solution for `policy`, better orders tried, without lifts whose shift would cost digits."""
        predicted: dict[int, str] = {}
        solution = self._reordered(solve(self.problem, policy))
        while bad := {t: why for t, why in ill_conditioned(solution, self.known).items() if t not in predicted}:
            predicted |= bad
            # Whole: an Add or Mul that is left of it would carry no statistics, and fold in the next pass.
            policy = replace(solution.policy, without=solution.policy.without | frozenset(bad))
            solution = solve(self.problem, policy)
        return solution, predicted

    def _reordered(self, solution: Solution) -> Solution:
        """Once more with what was only reduced at the end of the queue, if that serves more of the others."""
        if not solution.count(Fate.ADD) or not solution.count(Fate.KEPT, Fate.MUL):
            return solution
        order = sorted(solution.policy.order, key=lambda tag: solution.fate[tag] is Fate.ADD)
        other = solve(self.problem, replace(solution.policy, order=tuple(order)))
        return other if other.count(Fate.FOLDED) > solution.count(Fate.FOLDED) else solution


def _is_less(fate: Fate, other: Fate) -> bool:
    """Is less left of a lift of this fate?"""
    return other is not Fate.FOLDED and fate is not Fate.KEPT and (fate is Fate.FOLDED or other is Fate.KEPT)
