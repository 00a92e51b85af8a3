"""Judges the laws of one node by what they mean: re-encode its tensors, run it, see its outputs re-encoded.

    known = known_of(model)                                              # rules may ask this about the model
    asked = assert_laws_hold(model, "Concat", "y", (1,), rules=RULES)    # from output `y`, gauged along axis 1
    asked.axes["a"] == (1,); asked.scales == 3; asked.free("a")          # where the gauges lie, how free they are
    reason = refusal(model, "Reshape", "x", (1,), rules=RULES)           # the rule must refuse; its reason

`assert_laws_hold` asks the node's rule from the given port, then from every port that its laws mention, as the engine
does, and draws gauges `v' = A v + B` that satisfy all these laws together: entries that laws tie get the same numbers,
everything else its own (A of both signs, B of any size). A port that the rule refuses, and a tensor that no law
mentions, keeps A = 1, B = 0. It then runs the node twice in float64, on random operands and on the encoded ones
(constants that a law speaks of are encoded too, as the driver would), and compares the second result with the encoded
first. Nothing here knows what an operator means; training.reference does.
Ports that need the node to be rewritten (Lift, or Free on a computed tensor) are not for this oracle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from training.fold.constants import Constants
from training.fold.known import Known
from training.fold.laws import (
    Clamp,
    Equal,
    Free,
    Gauge,
    Law,
    NoShift,
    Pinned,
    Port,
    Positive,
    Stays,
    Sum,
    ports,
)
from training.fold.refusal import Refusal
from training.fold.shapes import Shapes
from training.reference import evaluate

Array = NDArray[Any]
Axes = tuple[int, ...]
Rules = Mapping[str, Any]
Entry = tuple[ir.Value, int]


@dataclass
class Asked:
    """What the rule said, from every port it can be reached by. Values go by their names."""

    laws: list[Law] = field(default_factory=list)
    axes: dict[str, Axes] = field(default_factory=dict)  # where each tensor's gauge lies
    pinned: dict[str, str] = field(default_factory=dict)  # refused on the way, and why
    scales: int = 0  # independent scales: classes of entries that must share one (pinned ones do not count)
    shifts: int = 0  # independent shifts
    moved: dict[str, NDArray[np.bool_]] = field(default_factory=dict)  # per tensor: which entries have a free scale

    def free(self, name: str) -> bool:
        """May every entry of this tensor's gauge have a scale other than 1?"""
        return bool(self.moved[name].all())

    def tied(self, kind: type) -> bool:
        """Is a law of this kind (NoShift, Positive, ...) among them?"""
        return any(isinstance(law, kind) for law in self.laws)


def known_of(
    model: ir.Model, axes_of: Mapping[str, Axes] | None = None, native_axes: Mapping[str, Axes] | None = None
) -> Known:
    """What rules may ask, for a model on its own. `axes_of`, `native_axes`: by value name, None for all others."""
    decided, native = dict(axes_of or {}), dict(native_axes or {})
    shapes = Shapes(model)
    return Known(
        shapes,
        Constants(shapes),
        model.opset_imports.get("", 1),
        lambda value: decided.get(value.name or ""),
        lambda value: native.get(value.name or ""),
    )


def node_of(model: ir.Model, op_name: str) -> ir.Node:
    """The only node of the main graph with this name or operator type."""
    (node,) = [node for node in model.graph if op_name in (node.name, node.op_type)]
    return node


def ask(
    model: ir.Model,
    op_name: str,
    value_name: str,
    axes: Axes,
    *,
    rules: Rules,
    axes_of: Mapping[str, Axes] | None = None,
    native_axes: Mapping[str, Axes] | None = None,
) -> tuple[Law, ...] | Refusal:
    """One question, one answer."""
    node, known = node_of(model, op_name), known_of(model, axes_of, native_axes)
    value = next(v for v in (*node.inputs, *node.outputs) if v is not None and v.name == value_name)
    port = Port(value, axes, node if known.constant(value) is not None else None)
    return rules[node.op_type](node, port, known)  # type: ignore[no-any-return]


def refusal(model: ir.Model, op_name: str, value_name: str, axes: Axes, **how: Any) -> str:
    """The reason why the rule refuses; fails if it does not. Arguments as for `ask`."""
    answer = ask(model, op_name, value_name, axes, **how)
    assert isinstance(answer, Refusal), f"not refused: {answer}"
    return answer.reason


def assert_laws_hold(
    model: ir.Model,
    op_name: str,
    value_name: str,
    axes: Axes,
    *,
    rules: Rules,
    axes_of: Mapping[str, Axes] | None = None,
    native_axes: Mapping[str, Axes] | None = None,
    feeds: Mapping[str, Array] | None = None,
    sizes: Mapping[str, int] | None = None,
    draws: int = 4,
    may_be_pinned: bool = False,
) -> Asked:
    """The node commutes with every gauge that its laws allow, to 1e-12 of its largest output.

    Args:
        model: Holds the node; its operands are graph inputs or constants of the model. Any float type.
        op_name: The node's name, or its type if it is the only one of it.
        value_name, axes: The port that the rule is asked from first: an operand or output of the node.
        rules: The table under test.
        axes_of: Gauges that were placed before, by value name.
        native_axes: What `Known.native_axes` answers, by value name.
        feeds: Operands that may not be random (conditions, gates); others are normal noise.
        sizes: Of symbolic dimensions, by name; 2 for the others.
        draws: How many random gauges; the first has positive scales, the others both signs where allowed.
        may_be_pinned: Else at least one entry of the asked port must be free: a law that pins all proves nothing.
    """
    node = node_of(model, op_name)
    asked, known = _closure(model, node, value_name, axes, rules, dict(axes_of or {}), native_axes)
    rng = np.random.default_rng(len(asked.laws))
    solution = Solution(asked, known)
    assert may_be_pinned or asked.moved[value_name].any(), f"the laws pin '{value_name}': {asked.pinned}"
    for draw in range(draws):
        gauges = solution.draw(rng, negative=draw > 0)
        operands = _operands(node, known, rng, dict(feeds or {}), dict(sizes or {}))
        plain = run_node(model, node, operands)
        encoded = run_node(model, node, {v: encode(v, array, gauges) for v, array in operands.items()})
        for output, array in plain.items():
            expected, got = encode(output, array, gauges), encoded[output]
            assert got.shape == expected.shape
            if array.dtype.kind != "f":
                np.testing.assert_array_equal(got, expected, err_msg=f"'{output.name}' changed")
                continue
            finite = expected[np.isfinite(expected)]
            tolerance = 1e-12 * max(1.0, float(np.abs(finite).max(initial=0.0)))
            np.testing.assert_allclose(
                got, expected, rtol=0, atol=tolerance, err_msg=f"'{output.name}' under {gauges.get(output)}"
            )
    return asked


def _closure(
    model: ir.Model,
    node: ir.Node,
    value_name: str,
    axes: Axes,
    rules: Rules,
    decided: dict[str, Axes],
    native_axes: Mapping[str, Axes] | None,
) -> tuple[Asked, Known]:
    """Ask from the port, and from all ports that answers mention. The first answer must not be a refusal."""
    known = known_of(model, None, native_axes)
    known = Known(known.shapes, known.constants, known.opset, lambda v: decided.get(v.name or ""), known.native_axes)
    value = next(v for v in (*node.inputs, *node.outputs) if v is not None and v.name == value_name)
    first = Port(value, axes, node if known.constant(value) is not None else None)
    asked, waiting, seen = Asked(), [first], {value}
    decided[value_name] = axes
    asked.axes[value_name] = axes
    while waiting:
        port = waiting.pop(0)
        answer = rules[node.op_type](node, port, known)
        if isinstance(answer, Refusal):
            assert port is not first, f"refused: {answer.reason}"
            asked.pinned[port.value.name or ""] = answer.reason
            asked.laws.append(Pinned(port, answer.reason))
            continue
        asked.laws.extend(answer)
        for other in (port for law in answer for port in ports(law)):
            name = other.value.name or ""
            assert other.axes == tuple(sorted(other.axes)) and asked.axes.get(name, other.axes) == other.axes
            assert (other.reader is node) == (known.constant(other.value) is not None), f"reader of '{name}'"
            if other.value not in seen:
                seen.add(other.value)
                asked.axes[name] = other.axes
                if other.reader is None:
                    decided[name] = other.axes
                waiting.append(other)
    return asked, known


class Solution:
    """All gauges that satisfy the laws: classes of entries that share scale and shift, and sums among the shifts."""

    def __init__(self, asked: Asked, known: Known) -> None:
        self.sizes: dict[ir.Value, tuple[int, ...]] = {}
        self.axes: dict[ir.Value, Axes] = {}
        self.scale_root: dict[Entry, Entry] = {}
        self.shift_root: dict[Entry, Entry] = {}
        self.sums: list[dict[Entry, float]] = []  # of shifts, each zero
        pinned: set[Entry] = set()
        unshifted: set[Entry] = set()
        positive: set[Entry] = set()
        for port in (port for law in asked.laws for port in ports(law)):
            dims = known.dims(port.value)
            assert dims is not None
            self.axes[port.value] = port.axes
            self.sizes[port.value] = tuple(int(dims[axis]) for axis in port.axes)  # type: ignore[arg-type]
            for entry in self.entries(port):
                self.scale_root.setdefault(entry, entry)
                self.shift_root.setdefault(entry, entry)
        for law in asked.laws:
            match law:
                case Equal():
                    self.equal(law.a, law.b, law.a_index, law.b_index, shifts=True)
                case Sum():
                    self.sum(law)
                case Pinned(port):
                    pinned |= set(self.indexed(port, law.index))
                case NoShift(port):
                    unshifted |= set(self.indexed(port, law.index))
                case Positive(port):
                    positive |= set(self.indexed(port, law.index))
                case Clamp():
                    self.equal(law.x, law.y, None, None, shifts=True)
                    pinned |= set(self.entries(law.x)) if law.stays is Stays.UNMOVED else set()
                    unshifted |= set(self.entries(law.x)) if law.stays is Stays.UNSHIFTED else set()
                    positive |= set(self.entries(law.x))
                case Free(port) if port.reader is not None:
                    pass
                case _:
                    raise AssertionError(f"{law} needs a rewrite: not for this oracle")
        self.one = {_root(self.scale_root, entry) for entry in pinned}
        self.zero = {_root(self.shift_root, entry) for entry in pinned | unshifted}
        self.positive = {_root(self.scale_root, entry) for entry in positive}
        self.classes = sorted({_root(self.shift_root, e) for e in self.shift_root} - self.zero, key=_by_name)
        self.constrain()
        asked.scales = len({_root(self.scale_root, entry) for entry in self.scale_root} - self.one)
        asked.shifts = len(self.classes) - int(np.linalg.matrix_rank(self.matrix)) if self.classes else 0
        for value in self.axes:
            roots = [_root(self.scale_root, (value, i)) for i in range(self.count(value))]
            asked.moved[value.name or ""] = np.array([root not in self.one for root in roots], dtype=np.bool_)

    def count(self, value: ir.Value) -> int:
        return int(np.prod(self.sizes[value], dtype=np.int64))

    def entries(self, port: Port) -> list[Entry]:
        return [(port.value, i) for i in range(self.count(port.value))]

    def indexed(self, port: Port, index: Array | None) -> list[Entry]:
        entries = self.entries(port)
        return entries if index is None else [entries[i] for i in index]

    def equal(self, a: Port, b: Port, a_index: Array | None, b_index: Array | None, shifts: bool) -> None:
        for left, right in zip(self.indexed(a, a_index), self.indexed(b, b_index), strict=True):
            self.scale_root[_root(self.scale_root, left)] = _root(self.scale_root, right)
            if shifts:
                self.shift_root[_root(self.shift_root, left)] = _root(self.shift_root, right)

    def sum(self, law: Sum) -> None:
        rows: list[dict[Entry, float]] = [{entry: -1.0} for entry in self.entries(law.out)]
        for term in law.terms:
            self.equal(law.out, term.port, None, term.index, shifts=False)
            for row, entry in zip(rows, self.indexed(term.port, term.index), strict=True):
                row[entry] = row.get(entry, 0.0) + term.factor
        self.sums.extend(rows)

    def constrain(self) -> None:
        """The sums as a matrix over the classes of shifts."""
        place = {root: i for i, root in enumerate(self.classes)}
        self.matrix = np.zeros((max(len(self.sums), 1), len(self.classes)))
        for row, terms in enumerate(self.sums):
            for entry, factor in terms.items():
                root = _root(self.shift_root, entry)
                if root in place:
                    self.matrix[row, place[root]] += factor

    def draw(self, rng: np.random.Generator, negative: bool) -> dict[ir.Value, Gauge]:
        scales: dict[Entry, float] = {}
        for entry in self.scale_root:
            root = _root(self.scale_root, entry)
            flip = negative and root not in self.positive and rng.random() < 0.5
            scales.setdefault(root, 1.0 if root in self.one else rng.uniform(0.5, 2.0) * (-1 if flip else 1))
        free = rng.normal(size=len(self.classes)) * 3
        if self.sums and self.classes:
            free = free - np.linalg.pinv(self.matrix) @ (self.matrix @ free)
        shifts = dict(zip(self.classes, free, strict=True)) | dict.fromkeys(self.zero, 0.0)
        return {
            value: Gauge(
                self.axes[value],
                self.sizes[value],
                np.array([scales[_root(self.scale_root, (value, i))] for i in range(self.count(value))]),
                np.array([shifts[_root(self.shift_root, (value, i))] for i in range(self.count(value))]),
            )
            for value in self.axes
        }


def _root(parents: dict[Entry, Entry], entry: Entry) -> Entry:
    while parents[entry] != entry:
        parents[entry] = parents[parents[entry]]
        entry = parents[entry]
    return entry


def _by_name(entry: Entry) -> tuple[str, int]:
    return (entry[0].name or "", entry[1])


def encode(value: ir.Value, array: Array, gauges: dict[ir.Value, Gauge]) -> Array:
    gauge = gauges.get(value)
    if gauge is None:
        return array
    return gauge.spread(gauge.scale, array.ndim) * array + gauge.spread(gauge.shift, array.ndim)


def _operands(
    node: ir.Node, known: Known, rng: np.random.Generator, feeds: dict[str, Array], sizes: dict[str, int]
) -> dict[ir.Value, Array]:
    arrays: dict[ir.Value, Array] = {}
    for value in (value for value in node.inputs if value is not None):
        constant = known.constant(value)
        if constant is not None:
            kind = known.shapes.dtype(value)
            arrays[value] = constant.astype(np.float64) if kind and kind.is_floating_point() else constant
        elif value.name in feeds:
            arrays[value] = feeds[value.name]
        else:
            assert value.shape is not None, f"the rank of '{value.name}' is not declared"
            shape = [d if isinstance(d, int) else sizes.get(d.value or "", 2) for d in value.shape]
            is_bool = value.dtype == ir.DataType.BOOL
            arrays[value] = rng.random(shape) < 0.5 if is_bool else rng.normal(size=shape)
    return arrays


def run_node(model: ir.Model, node: ir.Node, operands: dict[ir.Value, Array]) -> dict[ir.Value, Array]:
    """The node alone, in float64: its named outputs."""
    inputs = {value: ir.Value(name=f"in_{i}") for i, value in enumerate(operands)}
    twin = ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else inputs[value] for value in node.inputs],
        list(node.attributes.values()),
        outputs=[ir.Value(name=f"out_{i}" if output.name else "") for i, output in enumerate(node.outputs)],
        name=node.name,
    )
    named = [output for output in twin.outputs if output.name]
    graph = ir.Graph(list(inputs.values()), named, nodes=[twin], opset_imports=model.opset_imports)
    results = evaluate(
        ir.Model(graph, ir_version=model.ir_version or 8),
        {inputs[value].name or "": array for value, array in operands.items()},
    )
    return {mine: results[its.name] for mine, its in zip(node.outputs, twin.outputs, strict=True) if its.name}
