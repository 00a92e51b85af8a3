"""Which numbers does a tensor always hold? Initializers, Constant nodes, and chains of operators over them.

Exporters write a vector of zeros as Constant -> CastLike -> Expand(Shape(..)), a Linear's weight as a Transpose, and a
frozen BatchNormalization as Add, Sqrt, Reciprocal, Mul, Reshape over its statistics: all these are seen through.
Anything that a caller of the model can override (an initializer that is also a graph input) or that needs data is
refused with the node's name.

Floating-point arithmetic is done in float64 and rounded once, at the end, to the tensor's own type: the float64
evaluation that folding is proved against does the same, and every rounding less is an error less in the weights.

Answers, refusals too, are remembered for as long as the object lives: edit the graph when all is asked.
Knows no BatchNormalization, edits nothing; what the operators do is in constant_operators.py and, of those without a
function there, in constant_reference.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import onnx_ir as ir

from training.fold import constant_reference as reference
from training.fold.affine import Array, Float64s
from training.fold.constant_operators import EVALUATORS, MOVES, NotConstant, Numbers, Reader, numbers_of, refused
from training.fold.graph import describe, is_standard
from training.fold.refusal import Refusal
from training.fold.shapes import Shapes
from training.fold.weights import widen

_REMEMBERED_BYTES = 256 << 20  # of arrays in all; what does not fit is read again when asked for again
_REREAD_BYTES = 1 << 20  # an initializer above this is not remembered: to look at it again costs little
_MOST_BY_REFERENCE = 1 << 22  # elements that onnx.reference reads in all: a second or two
# What answers with integers or bools decides at steps, but for some; and so do:
_STEPS = frozenset(
    {*("Ceil", "Floor", "Hardmax", "Mod", "OneHot", "Range", "Round", "Shrink", "Sign", "ThresholdedRelu", "TopK")}
)
_SORTS = frozenset({"ArgMax", "ArgMin", "Hardmax", "TopK"})
_LOOKS_AT_NO_ORDER = frozenset({"EyeLike", "IsInf", "IsNaN"})
_DEFAULT = "a graph input with a default that a caller may override"
_WAY_OUT = "take it off the graph's inputs (from IR version 4 on), so that it is a constant"


class Constants:
    """Answers for one model. Arrays are views where possible: never write into them."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._known: dict[ir.Value, Numbers | Refusal] = {}
        self._rounded: dict[ir.Value, Array] = {}
        self._on_the_way: dict[ir.Value, Numbers] = {}  # that are not remembered, until the question is answered
        self._room = _REMEMBERED_BYTES
        self._spent = 0
        self.notes: dict[Hashable, Any] = {}  # what others made of constants, for the next time that they ask

    def of(self, value: ir.Value) -> Array | Refusal:
        """The value's numbers in its own dtype, or why they are not constant ("'w' is computed by Relu 'r'")."""
        if value in self._rounded:
            return self._rounded[value]
        numbers = self._answer(value)
        if isinstance(numbers, Refusal) or numbers.array.dtype == numbers.dtype:
            return numbers if isinstance(numbers, Refusal) else numbers.array
        array = numbers.rounded()
        if self._has_room_for(array):
            self._rounded[value] = array
        return array

    def exact(self, value: ir.Value) -> Float64s | Refusal:
        """The value's numbers in float64: as `of`, but without the rounding that ends a chain of arithmetic."""
        numbers = self._answer(value)
        return numbers if isinstance(numbers, Refusal) else widen(numbers.array)

    def holds(self, value: ir.Value) -> bool:
        """Is the value constant? As `of` answers, but large initializers are not read for it."""
        if value.is_initializer() and not value.is_graph_input() and value.const_value is not None:
            return value.const_value.dtype != ir.DataType.STRING
        return not isinstance(self._answer(value), Refusal)

    def _answer(self, value: ir.Value) -> Numbers | Refusal:
        if value in self._known:
            return self._known[value]
        try:
            if not value.is_initializer():
                self._attend(value)
            return self._known[value] if value in self._known else self._read(value)
        except NotConstant as no:
            return Refusal(str(no))
        finally:
            self._on_the_way.clear()

    def _attend(self, value: ir.Value) -> None:
        """Answer for what `value` is computed from, the first first: asked for the last of a long chain of sums, a
        recursion would go back along the chain, and again for the one before it."""
        waiting, seen = [value], {value}
        while waiting:
            node = waiting[-1].producer()
            operands = () if node is None or self._why_not(node) else node.inputs
            fresh = [v for v in operands if v is not None and _is_computed(v) and not (v in seen or v in self._known)]
            if fresh:
                seen.update(fresh)
                waiting += fresh
                continue
            with suppress(NotConstant):
                self._read(waiting.pop())

    def _read(self, value: ir.Value) -> Numbers:
        known = self._known.get(value) or self._on_the_way.get(value)
        if isinstance(known, Numbers):
            return known
        if isinstance(known, Refusal):
            raise NotConstant(known.reason)
        try:
            numbers = self._find(value)
        except NotConstant as no:
            self._known[value] = Refusal(str(no))
            raise
        small = numbers.array.nbytes <= _REREAD_BYTES or not value.is_initializer()
        if small and self._has_room_for(numbers.array):
            self._known[value] = numbers
        elif small:
            self._on_the_way[value] = numbers  # else each reader would compute the whole chain again
        return numbers

    def _find(self, value: ir.Value) -> Numbers:
        if value.is_graph_input():
            raise NotConstant(f"'{value.name}' is {_DEFAULT if value.is_initializer() else 'a graph input'}")
        if value.is_initializer():
            return Numbers.stored(numbers_of(value.const_value, value.name))
        node = value.producer()
        if node is None:
            raise NotConstant(f"'{value.name}' is not computed in this graph")
        if self._why_not(node):
            raise NotConstant(f"'{value.name}' is computed by {describe(node)}")
        evaluate = _evaluator(node)
        if evaluate is None:
            return self._by_reference(node, value)
        parts: list[Numbers] = []

        def read(operand: ir.Value) -> Numbers:
            parts.append(self._operand(node, operand))
            return parts[-1]

        try:
            with np.errstate(all="ignore"):  # infinities are what the run time gets too; folding then refuses them
                numbers = evaluate(Reader(node, self._shapes, read))
            _refuse_steps(node, parts, [numbers])
            return numbers.made_of(parts)
        except (
            ValueError,
            LookupError,
            TypeError,
            ArithmeticError,
        ) as error:  # operands that do not fit together: the node is at fault
            why = " ".join(str(error).split())
            raise NotConstant(f"'{value.name}' is computed by {describe(node)}, which fails: {why}") from error

    def _why_not(self, node: ir.Node) -> str:
        """Why the node computes nothing that can be told here, whatever its operands; empty where it may."""
        return "" if _evaluator(node) is not None else reference.why_not(node, self._shapes.opset)

    def _by_reference(self, node: ir.Node, value: ir.Value) -> Numbers:
        """All outputs at once, each remembered."""
        opset = self._shapes.opset
        try:
            operands = [None if operand is None else self._read(operand) for operand in node.inputs]
        except NotConstant as no:
            raise NotConstant(f"'{value.name}' is computed by {describe(node)}") from no
        parts = [part for part in operands if part is not None]
        if self._spent > _MOST_BY_REFERENCE:
            raise NotConstant(f"'{value.name}' is computed by {describe(node)}, as too much else is")
        assert opset is not None, "_why_not asked for it"
        answers = reference.evaluate(node, operands, opset)
        self._spent += sum(part.array.size for part in parts)
        _refuse_steps(node, parts, [numbers for numbers in answers if numbers is not None])
        pairs = zip(node.outputs, answers, strict=True)
        found = {output: numbers.made_of(parts) for output, numbers in pairs if numbers is not None}
        for output, numbers in found.items():
            if output is not value and output not in self._known and self._has_room_for(numbers.array):
                self._known[output] = numbers
        if value not in found:
            raise NotConstant(f"'{value.name}' is an output of {describe(node)} that is not asked for")
        return found[value]

    def _operand(self, node: ir.Node, operand: ir.Value) -> Numbers:
        """What only moves numbers passes its operand's reason on; of what computes, the node itself is the reason."""
        try:
            return self._read(operand)
        except NotConstant as no:
            if node.op_type in MOVES:
                raise
            text = f"'{node.outputs[0].name}' is computed by {describe(node)} from '{operand.name}'"
            raise NotConstant(text) from no

    def _has_room_for(self, array: Array) -> bool:
        """Keeping a view keeps what it is a view of."""
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if owner.nbytes > self._room:
            return False
        self._room -= owner.nbytes
        return True


def _evaluator(node: ir.Node) -> Callable[[Reader], Numbers] | None:
    return EVALUATORS.get(node.op_type) if is_standard(node) else None


def _refuse_steps(node: ir.Node, parts: Sequence[Numbers], results: Sequence[Numbers]) -> None:
    """Where a number decides between two answers, a run time decides by what it rounded, here and earlier in the chain.

    NaN is sorted as each run time likes.
    """
    floats = [part for part in parts if part.is_float]
    if not floats or (node.op_type not in _STEPS and all(result.is_float for result in results)):
        return
    if node.op_type in _LOOKS_AT_NO_ORDER:
        return
    if not all(part.exact for part in floats):
        raise refused(node, "which rounding may decide")
    if node.op_type in _SORTS and any(np.isnan(widen(part.array)).any() for part in floats):
        raise NotConstant(f"'{node.outputs[0].name}' is computed by {describe(node)} from what is no number")


def _is_computed(value: ir.Value) -> bool:
    return value.producer() is not None


def way_out_of(reason: str) -> str:
    """What a model's author can do about a refusal's reason, or the clauses around it; empty where nothing is known."""
    return _WAY_OUT if _DEFAULT in reason else ""
