"""What a graph computes from constants alone is stored instead: for graphs that folding changed anyway.

Exporters slice and join an LSTM's weights, expand zeros, transpose a Linear's weight in the graph. A run time that does
not look through them, or not through large ones, computes them again in every run: the raw export of an LSTM is some
ten percent slower for it (`make bench-fold`, crnn). The parameters of a BatchNormalization that is kept lose their
Expand and CastLike in the same way.

A file must not grow for that. What shares a constant is taken together, and stored only where it is no more than the
constants that go, or small. So a weight that is read as it is and transposed stays one weight, half precision behind a
Cast stays half, and quantised constants (DequantizeLinear) stay what they are: quantised.

Floating-point arithmetic is rounded once, as in constants.py. Knows no BatchNormalization.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from training.fold.constants import Constants
from training.fold.edits import SetOperand, apply
from training.fold.graph import is_standard
from training.fold.refusal import Refusal
from training.fold.shapes import Shapes

_SMALL_BYTES = 4 << 10  # stored whatever it costs: names and headers are as large
_TINY_BYTES = 256  # axes, sizes and scalars, which half of the graph shares: they tie nothing together
_LARGEST_BYTES = 64 << 20  # of one tensor: above, the memory for a second copy is worth more than the node


def precompute(model: ir.Model) -> bool:
    """Store every tensor that is computed from constants and read by what is not, within the limits above.

    Was there any?
    """
    constants = Constants(Shapes(model))
    computed = _computed(model, constants)
    edits = []
    for value in computed.stored():
        array = constants.of(value)
        assert not isinstance(array, Refusal)
        readers = [use for use in value.uses() if use.node not in computed]
        edits += [SetOperand(use.node, use.idx, array, value, role="constant") for use in readers]
    apply(model, edits)
    return bool(edits)


@dataclass(frozen=True, eq=False)
class _Computed:
    """Nodes whose outputs are always the same, in graph order; each with the constants that it is made from, but for
    tiny ones."""

    constants: Constants
    made_from: dict[ir.Node, frozenset[ir.Value]]

    def __contains__(self, node: ir.Node) -> bool:
        return node in self.made_from

    def is_for_others(self, value: ir.Value) -> bool:
        return not all(use.node in self for use in value.uses())

    def bytes_of(self, value: ir.Value) -> int:
        return _bytes(value, self.constants)

    def stored(self) -> Iterator[ir.Value]:
        """What is small, and, of what hangs together by its constants, what is no more than the constants that go."""
        groups = _groups(set(self.made_from.values()))
        large: dict[frozenset[ir.Value], list[ir.Value]] = {}
        for value, sources in ((value, made) for node, made in self.made_from.items() for value in node.outputs):
            if value.is_graph_output() or not self.is_for_others(value):
                continue
            if self.bytes_of(value) <= _SMALL_BYTES:
                yield value
            elif sources:
                large.setdefault(groups[sources], []).append(value)
        for group, values in large.items():
            sizes = [self.bytes_of(value) for value in values]
            if max(sizes) <= _LARGEST_BYTES and sum(sizes) <= sum(map(self.bytes_of, group - self._needed)):
                yield from values

    @cached_property
    def _needed(self) -> frozenset[ir.Value]:
        """Constants that stay whatever is stored: others read them, or a graph output is computed from them."""
        outputs = (
            sources for node, sources in self.made_from.items() if any(v.is_graph_output() for v in node.outputs)
        )
        sources = frozenset().union(*self.made_from.values())
        read = (value for value in sources if value.is_graph_output() or self.is_for_others(value))
        return frozenset(read).union(*outputs)


def _computed(model: ir.Model, constants: Constants) -> _Computed:
    made_from: dict[ir.Node, frozenset[ir.Value]] = {}
    quantised: set[ir.Value | None] = set()  # or computed from what is
    for node in model.graph.all_nodes():
        if is_standard(node, "DequantizeLinear") or not quantised.isdisjoint(node.inputs):
            quantised.update(node.outputs)
        elif not is_standard(node, "Constant") and _are_constant(node, constants):
            made_from[node] = frozenset(_sources(node, made_from, constants))
    return _Computed(constants, made_from)


def _are_constant(node: ir.Node, constants: Constants) -> bool:
    """All outputs, but for those that are not asked for."""
    return all(constants.holds(output) for output in node.outputs if output.name or output.uses())


def _sources(
    node: ir.Node, made_from: Mapping[ir.Node, frozenset[ir.Value]], constants: Constants
) -> Iterator[ir.Value]:
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None and producer in made_from:
            yield from made_from[producer]
        elif value is not None and constants.holds(value) and _bytes(value, constants) > _TINY_BYTES:
            yield value


def _groups(sets: Iterable[frozenset[ir.Value]]) -> dict[frozenset[ir.Value], frozenset[ir.Value]]:
    """For each set the union of all that hang together with it."""
    group_of: dict[ir.Value, frozenset[ir.Value]] = {}
    for some in sets:
        union = some.union(*(group_of[value] for value in some if value in group_of))
        group_of.update(dict.fromkeys(union, union))
    return {some: group_of[next(iter(some))] for some in sets if some}


def _bytes(value: ir.Value, constants: Constants) -> int:
    stored = value.const_value
    if stored is not None:
        return stored.nbytes
    array = constants.of(value)
    return 0 if isinstance(array, Refusal) else array.nbytes
