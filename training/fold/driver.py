"""From a graph to a folded graph: reach, pose, solve, rewrite, until nothing more folds. Knows no operator's algebra.

    branches merge -> reach (who says what?) -> pose (variables) -> choose (gauges) -> plan (edits) -> report

One pass solves the whole graph. Another follows as long as one changed something: what a map blocked that is gone now,
such as the axis along which a tensor may be stored, gets its turn, and a folded graph is one that stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir

from training.fold.batchnorm import read_batchnorm
from training.fold.branches import Merged, merge_branches
from training.fold.choice import Choice
from training.fold.constants import Constants
from training.fold.edits import bypass_identities
from training.fold.errors import FoldError
from training.fold.flatten import flatten_linears
from training.fold.graph import is_standard, label, number_readers
from training.fold.known import Known
from training.fold.laws import Pinned
from training.fold.lift import is_map, seeds
from training.fold.linear import native_axes
from training.fold.operators import RULES
from training.fold.plan import Plan
from training.fold.precompute import precompute
from training.fold.problem import pose
from training.fold.profiles import Profile
from training.fold.reach import Reach, Reached
from training.fold.refusal import Refusal
from training.fold.report import AffineOutcome, BatchNormOutcome, FoldReport, Verdict
from training.fold.shapes import Shapes
from training.fold.solve import Fate

_MOST_PASSES = 32
_MOST_ATTEMPTS = 64  # solutions tried when rewrites overflow their types; then nothing is folded


@dataclass(frozen=True)
class _Told:
    """What became of one map, but for its name."""

    verdict: Verdict
    into: tuple[str, ...] = ()
    into_ops: tuple[str, ...] = ()
    reason: str = ""
    way_out: str = ""
    clamped: bool = False


def fold_in_place(model: ir.Model, profile: Profile = Profile.ORT_CPU) -> FoldReport:
    """Fold `model`, in its subgraphs too, and say what became of each BatchNormalization.

    Raises FoldError where the model does not say which operators it uses.
    """
    opset = model.opset_imports.get("") or model.opset_imports.get("ai.onnx")
    if opset is None:
        raise FoldError("the model does not say which version of ONNX's operators it uses (opset_import)")
    book = _Book(model)
    bypass_identities(model)
    changed = False
    for _ in range(_MOST_PASSES):
        known = known_of(model, opset)
        if not any(_is_batchnorm(node) or is_map(node, known) for node in model.graph.all_nodes()):
            break
        merged = book.enter_merged(merge_branches(model, known))
        known = known_of(model, opset) if merged else known
        flattened = flatten_linears(model, known)
        told = _Pass(model, opset, profile, Shapes(model) if flattened else known.shapes).run()
        if not (book.enter(told) or merged or flattened):
            break
        changed = True
    if changed:
        precompute(model)
    return book.report(model, profile)


@dataclass
class _Book:
    """What became of every map, over all passes: a node is followed through them, whatever it turns into."""

    model: ir.Model
    told: dict[ir.Node, _Told] = field(default_factory=dict)
    branches_merged: int = 0

    def __post_init__(self) -> None:
        self.nodes_before = _node_count(self.model)
        # Of all nodes, in graph order: name and operator as they were.
        self.order = {node: (label(node), node.op_type) for node in self.model.graph.all_nodes()}

    def enter(self, told: dict[ir.Node, _Told]) -> bool:
        """Take a pass's outcomes; did it change anything?"""
        for node, outcome in told.items():
            before = self.told.get(node)
            if before is not None and before.verdict is Verdict.REDUCED and outcome.verdict is Verdict.KEPT:
                continue  # what was left of it stays
            if node in self.order:
                self.told[node] = outcome
        return any(outcome.verdict is not Verdict.KEPT for outcome in told.values())

    def enter_merged(self, merged: tuple[Merged, ...]) -> bool:
        """Branches that became one operator, and the BatchNormalization among them; is there any?"""
        for one in merged:
            self.branches_merged += max(one.branches - 1, 1)
            for name in one.batchnorms:
                self.told[self._gone(name)] = _Told(Verdict.FOLDED, (one.node,))
        return bool(merged)

    def _gone(self, name: str) -> ir.Node:
        """The BatchNormalization of this name that is in no graph any more; names need not be unique."""
        nodes = [node for node, known in self.order.items() if known == (name, "BatchNormalization")]
        told = [node for node in nodes if node in self.told and self.told[node].verdict is Verdict.FOLDED]
        return next(node for node in nodes if node.graph is None and node not in told)

    def report(self, model: ir.Model, profile: Profile) -> FoldReport:
        batchnorms, affines = list(_inside_functions(model)), []
        for node, (name, kind) in self.order.items():
            told = self.told.get(node)
            if told is None:
                continue
            if kind == "BatchNormalization":
                batchnorms.append(BatchNormOutcome(name, **vars(told)))
            else:
                affines.append(AffineOutcome(name, kind=kind, **vars(told)))
        after, merged = _node_count(model), self.branches_merged
        return FoldReport(tuple(batchnorms), self.nodes_before, after, tuple(affines), merged, profile.value)


@dataclass
class _Pass:
    """The whole graph once."""

    model: ir.Model
    opset: int
    profile: Profile
    shapes: Shapes
    reached: Reached = field(default_factory=Reached)
    refused: dict[ir.Node, str] = field(default_factory=dict)

    def run(self) -> dict[ir.Node, _Told]:
        self._reach()
        maps = [node for node in self.model.graph.all_nodes() if _is_batchnorm(node)]
        plan = self._plan()
        plan.find_holders()
        plan.carry_out(self.model)
        told = {node: self._told(node, plan) for node in plan.tag_of}
        return told | {
            node: _Told(Verdict.KEPT, reason=self._why_unreached(node)) for node in maps if node not in plan.tag_of
        }

    @cached_property
    def known(self) -> Known:
        return known_of(self.model, self.opset, self.reached, self.shapes)

    def _reach(self) -> None:
        """BatchNormalization first: where a tensor could be stored along this axis or that, theirs counts."""
        walk = Reach(RULES, self.known, self.reached)
        nodes = [node for node in self.model.graph.all_nodes() if is_standard(node)]
        for node in nodes:
            if _is_batchnorm(node):
                record = read_batchnorm(node, self.opset, self.known.constants)
                no = record if isinstance(record, Refusal) else walk.start(node, node.outputs[0], (1,))
                if no is not None:
                    self.refused[node] = no.reason
        walk.run()
        for node in nodes:
            axes = None if _is_batchnorm(node) else seeds(node, self.known)
            if axes is not None:
                walk.start(node, node.outputs[0], axes)
        walk.run()

    def _plan(self) -> Plan:
        """The best solution whose rewrites all work out."""
        problem = pose(self.reached, self.known)
        without: frozenset[int] = frozenset()
        reasons: dict[int, str] = {}
        for attempt in range(_MOST_ATTEMPTS + 1):
            if attempt == _MOST_ATTEMPTS:
                without = frozenset(problem.lifts)
            chosen = Choice(problem, self.profile, self.known, without).best()
            plan = Plan(chosen.solution, chosen.reasons | reasons, self.known)
            failed = plan.draw_up()
            if failed is None:
                break
            reasons |= failed
            without |= set(failed)
        return plan

    def _told(self, node: ir.Node, plan: Plan) -> _Told:
        tag = plan.tag_of[node]
        fate, reason, way_out = plan.solution.fate[tag], plan.reason(tag), plan.way_out(tag)
        if fate is Fate.KEPT:
            return _Told(Verdict.KEPT, reason=reason, way_out=way_out)
        holders = plan.holders[node]
        into, into_ops = tuple(label(one) for one in holders), tuple(one.op_type for one in holders)
        if fate is Fate.FOLDED:
            return _Told(Verdict.FOLDED, into, into_ops, clamped=node in plan.clamped)
        return _Told(Verdict.REDUCED, into, into_ops, reason, way_out)

    def _why_unreached(self, node: ir.Node) -> str:
        if node in self.refused:
            return self.refused[node]
        for statement in self.reached.statements:
            if statement.node is node and isinstance(statement.law, Pinned):
                return statement.law.reason
        return "its input is not a floating-point tensor of known channels"


def known_of(model: ir.Model, opset: int, reached: Reached | None = None, shapes: Shapes | None = None) -> Known:
    """What rules may ask about `model`, given what was reached so far."""
    shapes, reached = shapes or Shapes(model), reached or Reached()
    known: Known
    known = Known(shapes, Constants(shapes), opset, reached.axes_of, lambda value: _native(value, known))
    return known


def _native(value: ir.Value, known: Known) -> tuple[int, ...] | None:
    """Where the operator that computes a tensor, else one that reads it, could hold a gauge."""
    producer = value.producer()
    for node in ([producer] if producer is not None else []) + number_readers(value):
        axes = native_axes(node, value, known)
        if axes is not None:
            return axes
    return None


def _is_batchnorm(node: ir.Node) -> bool:
    return is_standard(node, "BatchNormalization")


def _inside_functions(model: ir.Model) -> Iterator[BatchNormOutcome]:
    for function in model.functions.values():
        for node in filter(_is_batchnorm, function.all_nodes()):
            where = f"it is inside local function '{function.name}' of domain '{function.domain}'"
            yield BatchNormOutcome(label(node), Verdict.KEPT, (), f"{where}, which cannot be inlined")


def _node_count(model: ir.Model) -> int:
    """Nodes of the graph and its subgraphs."""
    return sum(1 for _ in model.graph.all_nodes())
