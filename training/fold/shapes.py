"""Ranks, dimensions and element types of a model's tensors: as declared, else as inferred once, on a copy.

A tensor that folding leaves in the graph keeps its shape and type, so what is learned here stays true while the graph
is edited. The model itself is never annotated. Inference stays lenient: what it cannot prove is unknown, not an error.
"""

from __future__ import annotations

from functools import cached_property

import onnx
import onnx_ir as ir

Dims = tuple[int | None, ...]
_LARGE_BYTES = 1024  # tensors above this are shown to inference by their shape only


class Shapes:
    """What is known of `model`'s tensors."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    def dims(self, value: ir.Value) -> Dims | None:
        """One entry an axis, None where the size is not a number; None altogether where the rank is unknown."""
        shape = value.shape if value.shape is not None else self._inferred_value(value).shape
        return None if shape is None else tuple(d if isinstance(d, int) else None for d in shape)

    def rank(self, value: ir.Value) -> int | None:
        dims = self.dims(value)
        return None if dims is None else len(dims)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        return value.dtype if value.dtype is not None else self._inferred_value(value).dtype

    def _inferred_value(self, value: ir.Value) -> ir.Value:
        return self._inferred.get(value, value)

    @cached_property
    def _inferred(self) -> dict[ir.Value, ir.Value]:
        """Each node output of the model, and its annotated twin."""
        twin = _annotated_copy(self._model)
        if twin is None:
            return {}
        pairs = zip(self._model.graph.all_nodes(), twin.graph.all_nodes(), strict=True)
        return {mine: theirs for a, b in pairs for mine, theirs in zip(a.outputs, b.outputs, strict=False)}


def _annotated_copy(model: ir.Model) -> ir.Model | None:
    copy = model.clone()
    for name, value in list(copy.graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > _LARGE_BYTES:
            del copy.graph.initializers[name]
            if not value.is_graph_input():
                copy.graph.inputs.append(value)
    try:
        annotated: ir.Model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(copy), data_prop=True))
    except (onnx.shape_inference.InferenceError, ValueError):  # an operator or a size that ONNX cannot judge
        return None
    return annotated
