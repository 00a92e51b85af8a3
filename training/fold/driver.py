"""Folds every BatchNormalization it can, to a fixpoint. Knows no rule, no arithmetic and no operator but that one.

A BatchNormalization goes when the sink that computes its input can store its output under the map instead. Decisions
come first: each sink is remembered with the composition of all maps it took, and its constants are computed from the
original ones. The constants are written once, at the end: a chain of two BatchNormalization rounds once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from training.fold.affine import Affine
from training.fold.batchnorm import read_batchnorm
from training.fold.constants import Constants
from training.fold.edits import Edit, apply, remove_identity, sweep
from training.fold.errors import FoldError
from training.fold.graph import describe, is_standard, label
from training.fold.refusal import Refusal
from training.fold.report import BatchNormOutcome, FoldReport, Verdict
from training.fold.shapes import Shapes
from training.fold.sinks import Known, Sink, sink_of


def fold_in_place(model: ir.Model) -> FoldReport:
    """Fold `model`, in its subgraphs too, and say what became of each BatchNormalization.

    In a local function a BatchNormalization is kept: its body is shared by its callers.
    """
    nodes_before = _node_count(model)
    folding = _Folding(model)
    nodes = [node for node in model.graph.all_nodes() if is_standard(node, "BatchNormalization")]
    folding.run(nodes)
    outcomes = [folding.outcome(node) for node in nodes] + list(_inside_functions(model))
    return FoldReport(tuple(outcomes), nodes_before, _node_count(model))


@dataclass
class _Stored:
    """A sink, the map its output is stored under so far, and the edits that would do it."""

    affine: Affine
    edits: tuple[Edit, ...]


@dataclass
class _Folding:
    model: ir.Model
    stored: dict[ir.Node, _Stored] = field(default_factory=dict)
    names: dict[ir.Node, str] = field(default_factory=dict)
    sinks: dict[ir.Node, tuple[ir.Node, ...]] = field(default_factory=dict)  # of a BatchNormalization, in graph order
    reasons: dict[ir.Node, str] = field(default_factory=dict)
    added: dict[ir.Node, ir.Node] = field(default_factory=dict)

    def run(self, nodes: list[ir.Node]) -> None:
        self.names = {node: label(node) for node in nodes}
        opset = self.model.opset_imports.get("") or self.model.opset_imports.get("ai.onnx")
        if opset is None:
            raise FoldError("the model does not say which version of ONNX's operators it uses (opset_import)")
        shapes = Shapes(self.model)
        known = Known(shapes, Constants(shapes), opset)
        waiting, progress = nodes, True
        while progress:  # a second round serves graphs whose nodes are not listed in order
            still = [node for node in waiting if not self._fold(node, known)]
            waiting, progress = still, len(still) < len(waiting)
        self.added = apply(self.model, [edit for stored in self.stored.values() for edit in stored.edits])

    def outcome(self, node: ir.Node) -> BatchNormOutcome:
        sinks = self.sinks.get(node)
        if sinks is None:
            return BatchNormOutcome(self.names[node], Verdict.KEPT, (), self.reasons[node])
        into = tuple(label(sink) for sink in sinks)
        direct = sinks[-1]  # the one that took the shift; those behind it took the scale alone
        if direct in self.added:
            into += (label(self.added[direct]),)
            return BatchNormOutcome(self.names[node], Verdict.REDUCED, into, f"{describe(direct)} holds no bias")
        return BatchNormOutcome(self.names[node], Verdict.FOLDED, into, "")

    def _fold(self, node: ir.Node, known: Known) -> bool:
        batchnorm = read_batchnorm(node, known.opset, known.constants)
        if isinstance(batchnorm, Refusal):
            return self._keep(node, batchnorm)
        sink = sink_of(batchnorm.x, node, known)
        if isinstance(sink, Refusal):
            return self._keep(node, sink)
        demands = list(_demands(sink, batchnorm.affine))
        stored = self._store(demands)
        if isinstance(stored, Refusal):
            return self._keep(node, stored)
        self.stored.update(stored)
        self.sinks[node] = tuple(sink.node for sink, _ in reversed(demands))
        sweep(remove_identity(node))
        return True

    def _store(self, demands: list[tuple[Sink, Affine]]) -> dict[ir.Node, _Stored] | Refusal:
        """All demanded maps on top of those taken before, or the first sink's reason why not."""
        stored = {}
        for sink, affine in demands:
            if sink.channels != affine.channels:
                return Refusal(
                    f"{describe(sink.node)} has {sink.channels} channels, the BatchNormalization {affine.channels}"
                )
            before = self.stored.get(sink.node)
            total = affine if before is None else affine.after(before.affine)
            edits = sink.edits(total)
            if isinstance(edits, Refusal):
                return edits
            stored[sink.node] = _Stored(total, edits)
        return stored

    def _keep(self, node: ir.Node, refusal: Refusal) -> bool:
        self.reasons[node] = refusal.reason
        return False


def _demands(sink: Sink, affine: Affine) -> Iterator[tuple[Sink, Affine]]:
    """The sink takes the map; a sink behind it, which feeds an Add, takes the scale alone."""
    yield sink, affine
    while sink.inner is not None:
        sink = sink.inner
        affine = Affine.scaling(affine.scale)
        yield sink, affine


def _inside_functions(model: ir.Model) -> Iterator[BatchNormOutcome]:
    for function in model.functions.values():
        for node in function.all_nodes():
            if is_standard(node, "BatchNormalization"):
                where = f"local function '{function.name}' of domain '{function.domain}'"
                yield BatchNormOutcome(
                    label(node), Verdict.KEPT, (), f"it is inside {where}, whose callers share it: inline it first"
                )


def _node_count(model: ir.Model) -> int:
    """Nodes of the graph and its subgraphs."""
    return sum(1 for _ in model.graph.all_nodes())
