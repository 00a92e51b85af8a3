"""Which solution a profile wants: policies tried, ill-conditioned shifts left where they are, prices paid."""

from __future__ import annotations

from dataclasses import dataclass, replace

from training.fold.conditioning import ill_conditioned
from training.fold.explain import explain
from training.fold.known import Known
from training.fold.problem import Problem
from training.fold.profiles import PRICES, Profile
from training.fold.solve import Fate, Policy, Solution, solve


@dataclass(frozen=True, eq=False)
class Chosen:
    solution: Solution
    reasons: dict[int, str]  # tag -> why it stayed, where that is not the algebra's doing


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
        upright, predicted = self._guarded(Policy(order, clamps=False, without=self.without))
        if prices.clamps:
            first = tuple(tag for tag in order if upright.fate[tag] is Fate.FOLDED)
            rest = tuple(tag for tag in order if upright.fate[tag] is not Fate.FOLDED)
            solution, predicted = self._guarded(Policy(first + rest, clamps=True, without=self.without))
            return Chosen(solution, predicted)
        reasons = dict(predicted)
        left = [tag for tag in order if upright.fate[tag] is not Fate.FOLDED]
        if left:
            free, _ = self._guarded(Policy(order, clamps=True, without=self.without))
            reasons |= {tag: f"slower on {self.profile}" for tag in left if free.fate[tag] is Fate.FOLDED}
        if not prices.reduces:
            upright = self._whole(upright, reasons)
        return Chosen(upright, reasons)

    def _whole(self, solution: Solution, reasons: dict[int, str]) -> Solution:
        """The solution in which what would only be reduced stays as it is. Its reason is that of the reduction."""
        while reduced := [tag for tag in self.problem.lifts if self._is_reduced(solution, tag)]:
            reasons |= {tag: explain(solution, tag) for tag in reduced if tag not in reasons}
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
