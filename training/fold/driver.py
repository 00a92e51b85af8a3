"""From a graph to a folded graph: reach, pose, solve, rewrite, until nothing more folds. Knows no operator's algebra.

    sequences open, then
    branches merge -> Reshapes move -> reach (who says what?) -> pose (variables) -> choose (gauges) -> plan (edits)
    until nothing more folds; then, where asked for, tensors widen; last, constant chains are computed and stored

One pass solves the whole graph. Another follows as long as one changed something: what a map blocked that is gone now,
such as the axis along which a tensor may be stored, gets its turn, and a folded graph is one that stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import onnx_ir as ir

from training.fold.batchnorm import read_batchnorm
from training.fold.branches import Merged, merge_branches
from training.fold.choice import Choice
from training.fold.constants import Constants, way_out_of
from training.fold.edits import bypass_identities
from training.fold.errors import FoldError
from training.fold.flatten import flatten_linears
from training.fold.graph import is_standard, label, number_readers
from training.fold.inference import tensors_of
from training.fold.known import Known
from training.fold.laws import Pinned
from training.fold.lift import is_map, seeds
from training.fold.linear import native_axes
from training.fold.nearest import nearest_axes
from training.fold.notes import forget_stale_sizes
from training.fold.operators import RULES
from training.fold.plan import Plan
from training.fold.precompute import precompute
from training.fold.problem import pose
from training.fold.profiles import Profile
from training.fold.reach import Reach, Reached
from training.fold.refusal import Refusal
from training.fold.report import AffineOutcome, BatchNormOutcome, FoldReport, MergedBranches, Verdict
from training.fold.sequences import unpack_sequences
from training.fold.shapes import Shapes
from training.fold.solve import Fate
from training.fold.widen import Widening

_MOST_PASSES = 32
_MOST_ATTEMPTS = 64  # solutions tried when rewrites overflow their types; then nothing is folded


@dataclass(frozen=True)
class _Told:
    """What became of one map, but for its name. `into`: the nodes that held it when it went, whatever these became."""

    verdict: Verdict
    into: tuple[ir.Node, ...] = ()
    reason: str = ""
    way_out: str = ""
    clamped: bool = False
    widened: bool = False


def fold_in_place(model: ir.Model, profile: Profile = Profile.ORT_CPU, widen: bool = False) -> FoldReport:
    """Fold `model`, in its subgraphs too, and say what became of each BatchNormalization.

    `widen`: give tensors one more channel where that takes out what is left. Raises FoldError where the model does not
    say which operators it uses.
    """
    opset = model.opset_imports.get("") or model.opset_imports.get("ai.onnx")
    if opset is None:
        raise FoldError("the model does not say which version of ONNX's operators it uses (opset_import)")
    book = _Book(model)
    forget_stale_sizes(model)
    bypass_identities(model)
    while unpack_sequences(model, known_of(model, opset)):
        pass  # a Split tells the sizes of its pieces, which may be cut again
    changed, shapes = False, Shapes(model)
    for _ in range(_MOST_PASSES):
        known = known_of(model, opset, shapes=shapes)
        maps = {node for node in model.graph.all_nodes() if _is_batchnorm(node) or is_map(node, known)}
        if maps:
            merged = book.enter_merged(merge_branches(model, known), maps)
            known = known_of(model, opset) if merged else known
            flattened = flatten_linears(model, known)
            known = known_of(model, opset) if flattened else known
            told = _Pass(model, profile, known).run()
            if book.enter(told) or merged or flattened:
                changed, shapes = True, known.shapes if known.shapes.covers(model) else Shapes(model)
                continue
            if book.enter_widening(Widening(book.left(), known), widen):
                changed, shapes = True, Shapes(model)
                continue
        if not (changed and precompute(model)):
            break
        shapes = Shapes(model)  # what is stored now may say more of sizes than the chain that it was
    return book.report(model, profile)


@dataclass
class _Book:
    """What became of every map, over all passes: a node is followed through them, whatever it turns into.

    Names are asked for when all is done: a node without one goes by its output, which changes as others vanish.
    """

    model: ir.Model
    told: dict[ir.Node, _Told] = field(default_factory=dict)
    not_widened: dict[ir.Node, str] = field(default_factory=dict)  # why, where that was asked for
    branches_merged: int = 0
    merges: dict[ir.Node, int] = field(default_factory=dict)  # branches, by the node that they became
    heirs: dict[ir.Node, ir.Node] = field(default_factory=dict)  # of merged nodes: those that they became

    def __post_init__(self) -> None:
        self.nodes_before, self.bytes_before = _node_count(self.model), _constant_bytes(self.model)
        # Of all nodes, in graph order: name and operator as they were.
        self.order = {node: (label(node), node.op_type) for node in self.model.graph.all_nodes()}

    def enter(self, told: dict[ir.Node, _Told]) -> bool:
        """Take a pass's outcomes; did it change anything?"""
        for node, outcome in told.items():
            before = self.told.get(node)
            if before is not None and before.verdict is Verdict.REDUCED and outcome.verdict is Verdict.KEPT:
                continue  # what was left of it stays
            self.told[node] = outcome
        return any(outcome.verdict is not Verdict.KEPT for outcome in told.values())

    def enter_merged(self, merged: tuple[Merged, ...], maps: set[ir.Node]) -> bool:
        """Branches that became one operator, and what was among `maps` of them; is there any?"""
        for one in merged:
            gone = [source.node for source in one.gone]
            self.branches_merged += max(one.branches - 1, 1)
            self.merges[one.into] = one.branches + sum(self.merges.pop(node, 1) - 1 for node in gone)
            self.heirs |= {node: one.into for node in gone if node is not one.into}
            for node in gone:
                before = self.told.get(node)
                if before is not None or node in maps:
                    self.told[node] = _Told(Verdict.FOLDED, (*(before.into if before else ()), one.into))
        return bool(merged)

    def left(self) -> list[ir.Node]:
        """The maps of which something is left, in graph order."""
        found = ((node, self.told.get(node)) for node in self.order)
        return [node for node, told in found if told and told.verdict is not Verdict.FOLDED and node.graph is not None]

    def enter_widening(self, widening: Widening, wanted: bool) -> bool:
        """Widen, if that is wanted, else tell of it as a way out; did it change anything?"""
        if not wanted:
            for node in widening.maps:
                self.told[node] = replace(self.told[node], way_out=_or_widen(self.told[node].way_out))
            return False
        done = widening.carry_out(self.model)
        places = {node: place for place, node in enumerate(self.order)}
        for node, holders in done.items():
            told = self.told[node]
            held = (one for one in dict.fromkeys((*told.into, *holders)) if one is not node)
            into = sorted(held, key=lambda one: places.get(one, 0))
            self.told[node] = _Told(Verdict.FOLDED, tuple(into), clamped=told.clamped, widened=True)
        if not done:  # else those that are left are looked at once more
            self.not_widened = widening.reasons
        return bool(done)

    def report(self, model: ir.Model, profile: Profile) -> FoldReport:
        there = set(model.graph.all_nodes())
        batchnorms, affines = list(_inside_functions(model)), []
        for node, (name, kind) in self.order.items():
            if node not in self.told:
                continue
            outcome = self._outcome(node, there)
            if kind == "BatchNormalization":
                batchnorms.append(BatchNormOutcome(name, **outcome))
            else:
                affines.append(AffineOutcome(name, kind=kind, **outcome))
        merges = (
            MergedBranches(label(holder), holder.op_type, branches)
            for node, branches in self.merges.items()
            for holder in self._holders([node], there)
        )
        return FoldReport(
            tuple(batchnorms),
            nodes_before=self.nodes_before,
            nodes_after=_node_count(model),
            affines=tuple(affines),
            branches_merged=self.branches_merged,
            profile=profile.value,
            constant_bytes_before=self.bytes_before,
            constant_bytes_after=_constant_bytes(model),
            merges=tuple(merges),
        )

    def _outcome(self, node: ir.Node, there: set[ir.Node]) -> dict[str, Any]:
        """What an outcome says beside the map's name and kind. A map that nobody reads any more is gone too."""
        told = self.told[node] if node in there else replace(self.told[node], verdict=Verdict.FOLDED)
        holders = self._holders(told.into, there)
        said = vars(told) | {"into": tuple(map(label, holders)), "into_ops": tuple(one.op_type for one in holders)}
        if node in self.not_widened:
            said["reason"] += f"; not widened: {self.not_widened[node]}"
        return said | ({"reason": "", "way_out": ""} if told.verdict is Verdict.FOLDED else {})

    def _holders(self, nodes: Iterable[ir.Node], there: set[ir.Node]) -> list[ir.Node]:
        """Who does now what `nodes` did: for one that is not `there` any more what it was merged or folded into."""
        found: dict[ir.Node, None] = {}
        seen: set[ir.Node] = set()
        waiting = list(nodes)[::-1]
        while waiting:
            node = waiting.pop()
            if node in there:
                found[node] = None
            elif node not in seen:
                seen.add(node)
                heir, told = self.heirs.get(node), self.told.get(node)
                waiting += [heir] if heir is not None else told.into[::-1] if told is not None else []
        return list(found)


@dataclass
class _Pass:
    """The whole graph once."""

    model: ir.Model
    profile: Profile
    before: Known  # of this same graph, before anything is reached
    reached: Reached = field(default_factory=Reached)
    refused: dict[ir.Node, str] = field(default_factory=dict)

    def run(self) -> dict[ir.Node, _Told]:
        self._reach()
        maps = [node for node in self.model.graph.all_nodes() if _is_batchnorm(node)]
        plan = self._plan()
        plan.find_holders()
        plan.carry_out(self.model)
        told = {node: self._told(node, plan) for node in plan.tag_of}
        unreached = ((node, self._why_unreached(node)) for node in maps if node not in plan.tag_of)
        return told | {node: _Told(Verdict.KEPT, reason=why, way_out=way_out_of(why)) for node, why in unreached}

    @cached_property
    def known(self) -> Known:
        return _known(self.before.shapes, self.before.constants, self.before.opset, self.reached)

    def _reach(self) -> None:
        """BatchNormalization first: where a tensor could be stored along this axis or that, theirs counts."""
        walk = Reach(RULES, self.known, self.reached)
        nodes = [node for node in self.model.graph.all_nodes() if is_standard(node)]
        for node in nodes:
            if _is_batchnorm(node):
                record = read_batchnorm(node, self.known.opset, self.known.constants)
                no = record if isinstance(record, Refusal) else walk.start(node, node.outputs[0], (1,))
                if no is not None:
                    self.refused[node] = no.reason
        walk.run()
        self._reach_maps(walk, [node for node in nodes if not _is_batchnorm(node)])

    def _reach_maps(self, walk: Reach, nodes: list[ir.Node]) -> None:
        """Last those of one number next to no operator that tells along which axis: the nearest ones do."""
        maps = {node: axes for node in nodes if (axes := seeds(node, self.known)) is not None}
        for node, axes in maps.items():
            if axes:
                walk.start(node, node.outputs[0], axes)
        walk.run()
        lost = [node for node, axes in maps.items() if not axes and self.reached.axes_of(node.outputs[0]) is None]
        near = nearest_axes(RULES, self.known, self.reached, nodes) if lost else self.reached.axes_of
        for node in lost:
            found = near(node.outputs[0])
            if found is not None:
                walk.start(node, node.outputs[0], found)
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
            plan = Plan(chosen.solution, chosen.reasons | reasons, self.known, chosen.ways_out)
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
        if fate is Fate.FOLDED:
            return _Told(Verdict.FOLDED, plan.holders[node], clamped=node in plan.clamped)
        return _Told(Verdict.REDUCED, plan.holders[node], reason, way_out)

    def _why_unreached(self, node: ir.Node) -> str:
        if node in self.refused:
            return self.refused[node]
        for statement in self.reached.statements:
            if statement.node is node and isinstance(statement.law, Pinned):
                return statement.law.reason
        return "its input is not a floating-point tensor of known channels"


def known_of(model: ir.Model, opset: int, reached: Reached | None = None, shapes: Shapes | None = None) -> Known:
    """What rules may ask about `model`, given what was reached so far."""
    shapes = shapes or Shapes(model)
    return _known(shapes, Constants(shapes), opset, reached or Reached())


def _known(shapes: Shapes, constants: Constants, opset: int, reached: Reached) -> Known:
    known: Known
    known = Known(shapes, constants, opset, reached.axes_of, lambda value: _native(value, known))
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


def _or_widen(way_out: str) -> str:
    """The way out that is there already, or widening, where that would leave something of the map."""
    return way_out if way_out.endswith("folds it") else "--widen folds it, with one channel more"


def _node_count(model: ir.Model) -> int:
    """Nodes of the graph and its subgraphs."""
    return sum(1 for _ in model.graph.all_nodes())


def _constant_bytes(model: ir.Model) -> int:
    """Of initializers and Constant nodes, in subgraphs too."""
    return sum(tensor.nbytes for tensor in tensors_of(model) if tensor.dtype != ir.DataType.STRING)
