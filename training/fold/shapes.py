"""Ranks, dimensions and element types of a model's tensors: as declared, else as inferred once, on a copy.

A tensor that folding leaves in the graph keeps its shape and type, so what is learned here stays true while the graph
is edited. The model itself is never annotated. Inference stays lenient: what it cannot prove is unknown, not an error;
where ONNX's says nothing, the rules of shape_rules.py say what is obvious.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import cached_property
from typing import Any

import onnx_ir as ir

from training.fold.graph import is_standard
from training.fold.inference import Learned, infer
from training.fold.refusal import Refusal
from training.fold.shape_rules import KEEPS_THE_TYPE, RULES, Sizes

Dims = tuple[int | None, ...]
_MOST_AXES = 64  # elements of a constant that says axes or sizes
_MADE_UP = "unk__"  # begins the names that ONNX's inference gives to sizes that it does not know


class Shapes:
    """What is known of `model`'s tensors."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._sizes: dict[ir.Value, Sizes | None] = {}
        self._dims: dict[ir.Value, Dims | None] = {}
        self.notes: dict[Hashable, Any] = {}  # what others made of sizes, for the next time that they ask

    @property
    def opset(self) -> int | None:
        """The version of ONNX's operators that the model uses."""
        return self._model.opset_imports.get("") or self._model.opset_imports.get("ai.onnx")

    def symbols(self, value: ir.Value) -> Sizes | None:
        """One entry an axis: an int, the name of a symbolic size, or None; None altogether where the rank is unknown.

        Axes with the same name have the same size, whatever that will be.
        """
        if value not in self._sizes:
            declared = _declared(value)
            if declared is None or None in declared:
                learned = self._learned.get(value)
                declared = _joined(declared, learned.sizes if learned else None)
            self._sizes[value] = declared
        return self._sizes[value]

    def dims(self, value: ir.Value) -> Dims | None:
        """As `symbols`, with None where the size is not a number."""
        if value not in self._dims:
            sizes = self.symbols(value)
            self._dims[value] = None if sizes is None else tuple(n if isinstance(n, int) else None for n in sizes)
        return self._dims[value]

    def rank(self, value: ir.Value) -> int | None:
        sizes = self.symbols(value)
        return None if sizes is None else len(sizes)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        if value.dtype is not None:
            return value.dtype
        learned = self._learned.get(value)
        return None if learned is None else learned.dtype

    def covers(self, model: ir.Model) -> bool:
        """Is all that can be known of `model`'s tensors known, though the graph was edited since?"""
        values = (value for node in model.graph.all_nodes() for value in node.outputs)
        return all(value in self._learned or (value.shape is not None and value.dtype is not None) for value in values)

    @cached_property
    def _learned(self) -> dict[ir.Value, Learned]:
        learned = dict(infer(self._model, self._model))
        _put_in_numbers(self._model, learned)
        _complete(self._model, learned)
        if any(_is_open(value, learned) for node in self._model.graph for value in node.outputs):
            learned |= {value: more for value, more in self._with_axes(learned) if _is_open(value, learned)}
            _complete(self._model, learned)
        return learned

    def _with_axes(self, learned: dict[ir.Value, Learned]) -> Iterator[tuple[ir.Value, Learned]]:
        """A second look: an operator whose axes or sizes come through a chain of constants leaves ONNX's inference
        helpless, and everything behind it too. So the chains are replaced by what they give."""
        from training.fold.constants import Constants  # which asks this file for sizes

        so_far = Shapes(self._model)
        so_far.__dict__["_learned"] = learned
        constants, twin = Constants(so_far), self._model.clone()
        found = False
        for node, copy in zip(self._model.graph, list(twin.graph), strict=True):
            for value, its_copy in zip(node.outputs, copy.outputs, strict=True):
                if node.op_type == "Constant" or so_far.dtype(value) is not ir.DataType.INT64:
                    continue
                array = constants.of(value)
                if isinstance(array, Refusal) or array.size > _MOST_AXES or not value.name:
                    continue
                name = f"{value.name}__known"
                known = ir.Value(name=name, const_value=ir.tensor(array, name=name))
                twin.graph.register_initializer(known)
                its_copy.replace_all_uses_with(known)
                found = True
        return infer(self._model, twin) if found else iter(())


def _declared(value: ir.Value) -> Sizes | None:
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value for size in value.shape)


def _joined(declared: Sizes | None, inferred: Sizes | None) -> Sizes | None:
    """What is declared goes first; of the rest, what inference knows."""
    if declared is None or inferred is None or len(declared) != len(inferred):
        return inferred if declared is None else declared
    return tuple(other if size is None else size for size, other in zip(declared, inferred, strict=True))


def _is_open(value: ir.Value, learned: dict[ir.Value, Learned]) -> bool:
    """Is its rank not known, or a size only by a name that inference made up?"""
    known = learned.get(value)
    if value.shape is not None:
        return False
    return known is None or known.sizes is None or any(str(size).startswith(_MADE_UP) for size in known.sizes)


def _put_in_numbers(model: ir.Model, learned: dict[ir.Value, Learned]) -> None:
    """A BatchNormalization has as many channels as parameters, whatever name inference made up for that size.

    Not one inside a branch, which may never be reached.
    """
    numbers: dict[int | str | None, set[int]] = {}
    for node in model.graph:
        if not is_standard(node, "BatchNormalization") or len(node.inputs) < 2:
            continue
        x, scale = (None if value is None else _sizes_of(value, learned) for value in node.inputs[:2])
        if x and scale and len(x) > 1 and len(scale) == 1 and isinstance(x[1], str) and isinstance(scale[0], int):
            numbers.setdefault(x[1], set()).add(scale[0])
    certain: dict[int | str | None, int] = {name: min(found) for name, found in numbers.items() if len(found) == 1}
    for value, one in learned.items() if certain else ():
        if one.sizes is not None:
            learned[value] = Learned(tuple(certain.get(size, size) for size in one.sizes), one.dtype)


def _sizes_of(value: ir.Value, learned: dict[ir.Value, Learned]) -> Sizes | None:
    found = learned.get(value)
    return _joined(_declared(value), found.sizes if found else None)


def _complete(model: ir.Model, learned: dict[ir.Value, Learned]) -> None:
    """Where the rank or type of a node's output is still unknown: the obvious, in graph order."""

    def sizes_of(value: ir.Value | None) -> Sizes | None:
        return None if value is None else _sizes_of(value, learned)

    def dtype_of(value: ir.Value | None) -> ir.DataType | None:
        if value is None or value.dtype is not None:
            return None if value is None else value.dtype
        return learned[value].dtype if value in learned else None

    for node in model.graph.all_nodes():
        rule = RULES.get(node.op_type) if is_standard(node) else None
        if rule is None or not node.inputs or not node.outputs:
            continue
        output = node.outputs[0]
        sizes, dtype = sizes_of(output), dtype_of(output)
        if sizes is None:
            sizes = rule(node, [sizes_of(value) for value in node.inputs])
        if dtype is None and node.op_type in KEEPS_THE_TYPE:
            dtype = dtype_of(node.inputs[0])
        learned[output] = Learned(sizes, dtype)
