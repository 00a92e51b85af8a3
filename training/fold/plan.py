"""A solution as edits of the graph: which node changes how, and who holds what afterwards. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from training.fold import linear
from training.fold.constants import way_out_of
from training.fold.edits import Edit, SetOperand, apply, bypass, sweep
from training.fold.explain import Explainer
from training.fold.graph import number_readers
from training.fold.known import Known
from training.fold.laws import Clamp, Gauge, Index, Lift, Sum, ports
from training.fold.lift import keep, reduce
from training.fold.operators import REWRITES
from training.fold.problem import Problem
from training.fold.reach import Key
from training.fold.refusal import Refusal
from training.fold.solve import Fate, Solution
from training.fold.weights import FLOAT_DTYPES, round_once, widen

_FARTHEST = 128  # tensors looked at for the nodes that hold a lift; farther ones are not named


@dataclass
class Plan:
    """A solution as edits of the graph. Implements `Gauges` for the rewrites."""

    solution: Solution
    reasons: dict[int, str]
    known: Known
    ways_out: dict[int, str] = field(default_factory=dict)
    edits: dict[ir.Node, tuple[Edit, ...]] = field(default_factory=dict)
    removed: list[Lift] = field(default_factory=list)
    clamped: set[ir.Node] = field(default_factory=set)
    holders: dict[ir.Node, tuple[ir.Node, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._gauges: dict[Key, Gauge | None] = {
            key: self.solution.gauge(port) for key, port in self.solution.problem.reached.ports.items()
        }
        self.tag_of = {self.solution.problem.lift(tag).node: tag for tag in self.solution.problem.lifts}
        self._explainer = Explainer(self.solution)
        self._find_clamped()

    def of(self, value: ir.Value | None, reader: ir.Node | None = None) -> Gauge | None:
        return None if value is None else self._gauges.get((value, reader))

    def draw_up(self) -> dict[int, str] | None:
        """Make all edits; where some cannot be made, the tags of the lifts to do without, and why."""
        failed: dict[int, str] = {}
        for node in self._touched():
            edits = self._edits_of(node)
            if isinstance(edits, Refusal):
                failed.setdefault(self._culprit(node), edits.reason)
            elif edits:
                self.edits[node] = edits
        return failed or None

    def _touched(self) -> Iterator[ir.Node]:
        """Nodes next to a tensor that is stored differently, and all lifts."""
        nodes: dict[ir.Node, None] = {}
        for (value, reader), gauge in self._gauges.items():
            if gauge is None:
                continue
            if reader is not None:
                nodes[reader] = None
                continue
            producer = value.producer()
            if producer is not None:
                nodes[producer] = None
            nodes.update(dict.fromkeys(number_readers(value)))
        nodes.update(dict.fromkeys(self.tag_of))
        for node in list(nodes):  # an Add behind a MatMul holds what that cannot
            if linear.unheld_shift(node, self, self.known) is not None:
                nodes.update(dict.fromkeys(number_readers(node.outputs[0])))
        yield from nodes

    def _edits_of(self, node: ir.Node) -> tuple[Edit, ...] | Refusal:
        tag = self.tag_of.get(node)
        constants = self._constants(node)
        if isinstance(constants, Refusal):
            return constants
        if tag is None:
            own = REWRITES[node.op_type](node, self, self.known) if node.op_type in REWRITES else ()
            return own if isinstance(own, Refusal) else (*constants, *own)
        law, fate = self.solution.problem.lift(tag), self.solution.fate[tag]
        if fate is Fate.FOLDED:
            self.removed.append(law)
            return constants
        left = keep(law, self, self.known) if fate is Fate.KEPT else reduce(law, fate.value, self, self.known)
        return left if isinstance(left, Refusal) else (*constants, *left)

    def _constants(self, node: ir.Node) -> tuple[Edit, ...] | Refusal:
        """Constant operands with a port of their own: `K' = A K + B`."""
        edits: list[Edit] = []
        for index, value in enumerate(node.inputs):
            gauge = None if value is None else self.of(value, node)
            if value is None or gauge is None:
                continue
            array = self.known.constant(value)
            assert array is not None and array.dtype in FLOAT_DTYPES
            rank = array.ndim
            moved = gauge.spread(gauge.scale, rank) * widen(array) + gauge.spread(gauge.shift, rank)
            rounded = round_once(moved, array.dtype)
            if not np.isfinite(rounded).all():
                return Refusal(f"constant '{value.name}' would not be finite in {array.dtype}")
            edits.append(SetOperand(node, index, rounded, value, role="constant"))
        return tuple(edits)

    def _culprit(self, node: ir.Node) -> int:
        """The lift to blame for numbers that do not fit: of those folded that share a bundle with the node, or a tensor
        that is not read, the most extreme."""
        problem, solution = self.solution.problem, self.solution
        mine = {value for value in (*node.inputs, *node.outputs) if value is not None}
        classes = [problem.classes(port) for (value, _), port in problem.reached.ports.items() if value in mine]
        wanted = np.unique(np.concatenate(classes))
        bundles = {n for n, b in enumerate(problem.bundles) if np.isin(b.classes, wanted).any()}
        groups = np.setdiff1d(problem.unread[wanted], [-1])
        candidates = [
            tag
            for tag in problem.lifts
            if solution.fate[tag] is not Fate.KEPT
            and (
                any(n in bundles for n, _ in problem.by_tag.get(tag, ()))
                or np.isin(problem.unread[problem.classes(problem.lift(tag).y)], groups).any()
            )
        ]
        return max(candidates, key=lambda tag: _extremity(problem.lift(tag)))

    def _find_clamped(self) -> None:
        """Which BatchNormalization each moved clamp served: the one before it, else the one behind it, else the nearest
        one through sums."""
        problem, waiting = self.solution.problem, set(self.solution.moved)
        clamp_at = self._clamps(waiting)
        waiting -= self._served(clamp_at, "y")
        waiting -= self._served(clamp_at := self._clamps(waiting), "x")
        sums = [law for law in (problem.law(tag) for tag in problem.tags(Sum)) if isinstance(law, Sum)]
        while waiting and (reached := _through_sums(clamp_at, sums, problem)) is not None:
            waiting -= self._served(clamp_at := reached, "y") | self._served(reached, "x")

    def _clamps(self, tags: set[int]) -> Index:
        """Which of these clamps each class is next to; -1 for none."""
        problem = self.solution.problem
        clamp_at = np.full(len(problem.weight), -1)
        for tag in tags:
            law = problem.law(tag)
            assert isinstance(law, Clamp)
            clamp_at[problem.classes(law.x)] = tag
        return clamp_at

    def _served(self, clamp_at: Index, side: Literal["x", "y"]) -> set[int]:
        """The clamps that are next to a lift that folded, which so is a clamped one."""
        found: set[int] = set()
        for tag, fate in self.solution.fate.items():
            lift = self.solution.problem.lift(tag)
            port = lift.x if side == "x" else lift.y
            served = (
                set(clamp_at[self.solution.problem.classes(port)].tolist()) - {-1} if fate is Fate.FOLDED else set()
            )
            if served:
                self.clamped.add(lift.node)
                found |= served
        return found

    def find_holders(self) -> None:
        """For each lift that went, the nodes that hold it now; before the graph is edited, while ways lead there."""
        for node, tag in self.tag_of.items():
            law, fate = self.solution.problem.lift(tag), self.solution.fate[tag]
            if fate is not Fate.KEPT:
                left = [] if fate is Fate.FOLDED else [node]
                upstream = reversed(self._nearest(law.x.value, up=True))
                near = [*upstream, *left, *self._nearest(law.y.value, up=False)]
                self.holders[node] = tuple(dict.fromkeys(near))

    def _nearest(self, start: ir.Value, *, up: bool) -> list[ir.Node]:
        """The edited nodes that are the fewest steps upstream or downstream, over tensors stored differently.

        An Add or a clamp holds a part, and what it reads or gives is stored differently too: the way goes on behind it,
        to the next operator with weights.
        """
        found: dict[ir.Node, None] = {}
        level, seen, weights_met = [start], {start}, False
        while level and not weights_met and len(seen) < _FARTHEST:
            level = [value for value in level if self.of(value) is not None]
            producers = [node for value in level if (node := value.producer()) is not None]
            nodes = producers if up else [node for value in level for node in number_readers(value)]
            edited = [node for node in nodes if node in self.edits]
            found.update(dict.fromkeys(edited))
            weights_met = any(node.op_type in linear.RULES for node in edited)
            onward = [value for node in nodes for value in (node.inputs if up else node.outputs)]
            level = list(dict.fromkeys(value for value in onward if value is not None and value not in seen))
            seen.update(level)
        return list(found)

    def reason(self, tag: int) -> str:
        if self.solution.fate[tag] is Fate.FOLDED:
            return ""
        return self.reasons.get(tag) or self._explainer.why(tag)

    def way_out(self, tag: int) -> str:
        return self.ways_out.get(tag) or way_out_of(self.reason(tag))

    def carry_out(self, model: ir.Model) -> None:
        """Apply the edits, then take out what became the identity."""
        places = [(law, list(law.node.inputs).index(law.x.value)) for law in self.removed]
        keeps_name = {
            law.node: self.of(law.y.value) is not None and self.of(law.x.value) is None for law in self.removed
        }
        apply(model, [edit for edits in self.edits.values() for edit in edits])
        for law, place in places:
            sweep(bypass(law.node, place, keeps_name=keeps_name[law.node]))


def _through_sums(clamp_at: Index, sums: Sequence[Sum], problem: Problem) -> Index | None:
    """One sum further, entry by entry; None where that leads nowhere new."""
    further = clamp_at.copy()
    for law in sums:
        places = [problem.classes(port) for port in ports(law)]
        clamps = [clamp for classes in places for clamp in clamp_at[classes].tolist() if clamp >= 0]
        for classes in places if clamps else ():
            further[classes] = np.where(further[classes] < 0, clamps[0], further[classes])
    return None if np.array_equal(further, clamp_at) else further


def _extremity(law: Lift) -> float:
    with np.errstate(divide="ignore"):
        exponents = np.abs(np.log2(np.abs(law.scale)))
    return float(np.max(exponents[np.isfinite(exponents)], initial=0.0))
