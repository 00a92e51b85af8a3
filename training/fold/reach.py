"""Which tensors could be stored under a gauge, and what their operators say about it: from every lift outwards.

Starts at each map that could be lifted and asks the rule of each operator that touches a tensor reached so far, until
nothing new is reached. What no rule answers for is pinned, with the reason. Edits nothing, solves nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from training.fold.graph import describe, is_standard, number_readers
from training.fold.known import Known, Rule
from training.fold.laws import Clamp, Equal, Free, Law, Lift, NoScale, NoShift, Pinned, Port, Sum, ports
from training.fold.refusal import Refusal

Key = tuple[ir.Value, ir.Node | None]  # a tensor, or a constant as one node reads it

_FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


@dataclass(frozen=True, eq=False)
class Statement:
    """A law and who says it: `node` is None for what holds by a tensor's place in the graph."""

    law: Law
    node: ir.Node | None

    @property
    def is_demand(self) -> bool:
        """Does it speak of a tensor that `node` reads, rather than of one it computes?"""
        law = self.law
        if self.node is None or not isinstance(law, Free | NoShift | NoScale):
            return False
        return law.port.value.producer() is not self.node


@dataclass
class Reached:
    """Ports in the order they were reached; statements likewise. One lift and one clamp a node."""

    ports: dict[Key, Port] = field(default_factory=dict)
    statements: list[Statement] = field(default_factory=list)

    def axes_of(self, value: ir.Value) -> tuple[int, ...] | None:
        port = self.ports.get((value, None))
        return None if port is None else port.axes

    @property
    def lifts(self) -> list[Lift]:
        return [s.law for s in self.statements if isinstance(s.law, Lift)]


@dataclass
class Reach:
    """One walk. `rules`: by operator type, for the default domain."""

    rules: Mapping[str, Rule]
    known: Known
    reached: Reached
    _queue: deque[Port] = field(default_factory=deque)
    _answered: set[tuple[ir.Node, ir.Value]] = field(default_factory=set)
    _once: set[ir.Node | Equal] = field(default_factory=set)  # nodes whose lift, clamp or sum is stated; laws that are

    def start(self, node: ir.Node, value: ir.Value, axes: tuple[int, ...]) -> Refusal | None:
        """Begin at `value`, which `node` maps along `axes`; a Refusal where it has no port there."""
        port = self.known.port(value, axes, node)
        if isinstance(port, Refusal):
            return port
        self._register(port)
        return None

    def run(self) -> None:
        while self._queue:
            self._visit(self._queue.popleft())

    def _visit(self, port: Port) -> None:
        value = port.value
        if port.reader is not None:  # a constant: free, and nobody else reads this copy
            if len(port.reader.outputs) > 1 and (port.reader, value) not in self._answered:
                self._ask(port.reader, port)  # who was asked about one output speaks of the others too
            return
        producer, readers = value.producer(), dict.fromkeys(number_readers(value))
        reason = _place(value, producer, readers, self.known)
        if reason:
            self._state(Pinned(port, reason), None)
        for node in ([producer] if producer is not None else []) + list(readers):
            if (node, value) not in self._answered and (producer is None or node.graph is producer.graph):
                self._ask(node, port)

    def _ask(self, node: ir.Node, port: Port) -> None:
        rule = self.rules.get(node.op_type) if is_standard(node) else None
        if rule is None:
            self._state(Pinned(port, f"{describe(node)} takes '{port.value.name}' only as it is"), node)
            return
        laws = rule(node, port, self.known)
        if isinstance(laws, Refusal):
            self._state(Pinned(port, laws.reason), node)
            return
        if self._clashes(laws):
            why = f"{describe(node)} wants one tensor along two axes"
            self._state(Pinned(port, why), node)
            return
        self._answered.update((node, value) for value in _spoken_for(node, port, laws))
        for law in laws:
            self._state(law, node)

    def _clashes(self, laws: tuple[Law, ...]) -> bool:
        """Does a tensor have two ports along different axes, as in MatMul(x, x)?"""
        axes: dict[tuple[ir.Value, ir.Node | None], tuple[int, ...]] = {}
        for law in laws:
            for port in ports(law):
                key = (port.value, port.reader)
                present = self.reached.ports.get(key)
                if axes.setdefault(key, port.axes if present is None else present.axes) != port.axes:
                    return True
        return False

    def _state(self, law: Law, node: ir.Node | None) -> None:
        for port in ports(law):
            self._register(port)
        if isinstance(law, Lift | Clamp | Sum | Equal) and node is not None:  # said from each of its tensors
            said = law if isinstance(law, Equal) else node  # a node has many of these
            if said in self._once:
                return
            self._once.add(said)
        self.reached.statements.append(Statement(law, node))

    def _register(self, port: Port) -> None:
        key = (port.value, port.reader)
        present = self.reached.ports.get(key)
        if present is None:
            self.reached.ports[key] = port
            self._queue.append(port)
        elif present.axes != port.axes:
            raise AssertionError(f"'{port.value.name}' was reached along {present.axes} and {port.axes}")


def _spoken_for(node: ir.Node, port: Port, laws: tuple[Law, ...]) -> Iterable[ir.Value]:
    """The tensors that `node` need not be asked about: beside the port's own all that it touches, where what it said is
    the same from each of them and leaves none out. A Concat would be asked once for each tensor that it joins."""
    if all(isinstance(law, Equal | Sum | Clamp) for law in laws):
        told = {told.value for law in laws for told in ports(law)}
        if told.issuperset(value for value in (*node.inputs, *node.outputs) if value is not None):
            return told
    return (port.value,)


def _place(value: ir.Value, producer: ir.Node | None, readers: Iterable[ir.Node], known: Known) -> str:
    """Why a tensor's place in the model fixes what it holds; empty where it does not."""
    if value.is_graph_output():
        return f"'{value.name}' is a graph output"
    if producer is None:
        return f"'{value.name}' is a graph input" if value.is_graph_input() else f"'{value.name}' has no producer"
    for node in readers:
        if node.graph is not producer.graph:
            return f"'{value.name}' is read inside a subgraph, by {describe(node)}"
    if known.shapes.dtype(value) not in _FLOATS:
        return f"'{value.name}' is not a floating-point tensor"
    return ""
