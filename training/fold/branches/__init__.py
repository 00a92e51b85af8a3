"""Parallel linear branches of one tensor become one operator: RepVGG's blocks, on the raw graph, by algebra alone.

Convolution is linear in its kernel: branches that read the same tensor and are added up are one convolution whose
kernel is the sum of theirs, on the union of their taps; an identity is a delta kernel, a BatchNormalization a diagonal
one, and two operators in sequence are one where no padding comes between them. No architecture is known here, and
nothing is merged that would cost more multiply-adds than before.

window.py: the algebra; terms.py: what one node does; chains.py: a branch; sums.py: a sum of branches; clusters.py:
which of them join; regions.py, layers.py: the edits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from training.fold.branches.layers import Workshop
from training.fold.branches.regions import Change, Source, merge_region, merge_sequence
from training.fold.branches.sums import Total, is_sum, read_total, totals
from training.fold.branches.terms import Facts, Layout, Reader
from training.fold.edits import apply, new_names, sweep
from training.fold.graph import label

__all__ = ["Merged", "merge_branches"]


@dataclass(frozen=True)
class Merged:
    """`into`, a Conv, Gemm or MatMul, does the work of all that is `gone`: also of what `into` was before."""

    into: ir.Node
    gone: tuple[Source, ...]
    branches: int  # that were added up; 1 where operators followed one another

    @property
    def node(self) -> str:
        return label(self.into)

    @property
    def batchnorms(self) -> tuple[str, ...]:
        """Those that are gone, by the names they had."""
        return tuple(source.label for source in self.gone if source.is_batchnorm)

    @property
    def replaced(self) -> tuple[str, ...]:
        """Everything else that is gone, by the names it had."""
        return tuple(source.label for source in self.gone if not source.is_batchnorm)


@np.errstate(over="ignore", invalid="ignore")  # overflow is judged by its result, which is refused
def merge_branches(model: ir.Model, known: Facts) -> tuple[Merged, ...]:
    """Merge in place, in the graph and its subgraphs, until nothing more can be; one record for each result.

    Exact in float64, each weight rounded once. Graph inputs and outputs stay, so does every tensor's name that is left;
    weights that others share are copied. Where nothing can be merged the model is untouched, and a second run finds
    nothing. What cannot be read as a linear operator, or would not be finite in its storage type, is left as it is.
    """
    merging = _Merging(known, Workshop(new_names(model), known.shapes))
    for graph in list(model.graphs()):
        for node in graph:  # shapes are inferred now, on a sound graph, and not halfway through the edits
            for value in node.outputs:
                known.shapes.symbols(value)
    for graph in list(model.graphs()):
        while any([merging.sums(graph), merging.sequences(graph)]):
            pass
    edits = merging.shop.edits()
    if edits:
        apply(model, edits)
    return tuple(merging.records())


@dataclass(frozen=True, eq=False)
class _Record:
    gone: tuple[Source, ...] = ()
    branches: int = 1
    still_read: tuple[Source, ...] = ()
    """By others, for all that was known then: those others may go as well, once all is done."""

    def with_part(self, part: _Record) -> _Record:
        """One of the branches was a result itself."""
        return _Record(self.gone + part.gone, self.branches + part.branches - 1, self.still_read + part.still_read)


@dataclass(frozen=True, eq=False)
class _Merging:
    known: Facts
    shop: Workshop
    done: dict[ir.Node, _Record] = field(default_factory=dict)

    def sums(self, graph: ir.Graph) -> bool:
        """Inner sums first: what they become may be part of a branch of another."""
        progress = False
        for layout in Layout:
            read = Reader(self.known, layout, self.shop.exact)
            for node in [total.node for total in _outermost(graph, read)]:
                if node.graph is graph and is_sum(node, read):
                    progress |= self._note(merge_region(read_total(node, read), read, self.shop))
        return progress

    def sequences(self, graph: ir.Graph) -> bool:
        progress = False
        for layout in Layout:
            read = Reader(self.known, layout, self.shop.exact)
            for node in list(graph):
                if node.graph is graph:
                    change = merge_sequence(node, read, self.shop)
                    progress |= self._note([] if change is None else [change])
        return progress

    def records(self) -> Iterator[Merged]:
        for node, record in self.done.items():
            gone_since = tuple(source for source in record.still_read if source.node.graph is None)
            yield Merged(node, tuple(dict.fromkeys(record.gone + gone_since)), record.branches)

    def _note(self, changes: list[Change]) -> bool:
        """Sweep up, and write down who is gone; a result that has become part of another counts with that one."""
        sweep(self.shop.stale)
        self.shop.stale.clear()
        for change in changes:
            record = _Record(branches=change.branches)
            for source in change.sources:
                if self._is_gone(source, change):
                    before = self.done.pop(source.node, None)
                    record = record.with_part(before or self._alone(source))
                elif source.node not in self.done:
                    record = record.with_part(_Record(still_read=(source,)))
            self.done[change.node] = record
        return bool(changes)

    def _is_gone(self, source: Source, change: Change) -> bool:
        return source.node.graph is None or source.node is change.node or label(source.node) != source.label

    def _alone(self, source: Source) -> _Record:
        return _Record() if source.node in self.shop.fresh else _Record((source,))


def _outermost(graph: ir.Graph, read: Reader) -> list[Total]:
    """The sums that are part of no larger one, in graph order."""
    inner: set[ir.Node] = set()
    roots = []
    for node in reversed(graph):
        if node not in inner and is_sum(node, read):
            root = read_total(node, read)
            inner.update(each.node for each in totals(root))
            roots.append(root)
    return roots[::-1]
