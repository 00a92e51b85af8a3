"""How much a node's evaluation costs, in multiply-adds: for deciding beforehand what a proof can afford.

Knows the operators that are products of matrices; of all others, that they touch each element of their output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from training.reference.op import Array, Op

_PER_ELEMENT = 16  # multiply-adds that a processor does in a product while it touches one element of a tensor

Count = Callable[[Op, Array, Array, Array], int]
"""From a node's first two operands and its output to the number of multiply-adds."""

_PRODUCTS: Mapping[str, Count] = {
    "Conv": lambda _, _x, w, y: y.size * w.size // len(w),
    "ConvTranspose": lambda _, x, w, _y: x.size * w.size // len(w),
    "MatMul": lambda _, a, _b, y: y.size * a.shape[-1],
    "Gemm": lambda op, a, _b, y: y.size * a.shape[0 if op.get("transA", 0) else 1],
}


def multiply_adds(op: Op, inputs: Sequence[Array | None], outputs: Sequence[Array | None]) -> int:
    """Of the node `op` with these operands and results."""
    elements = sum(_size(array) for array in outputs)
    count = _PRODUCTS.get(op.kind)
    if count is None or not elements:
        return _PER_ELEMENT * elements
    x, w, y = inputs[0], inputs[1], outputs[0]
    assert x is not None
    assert w is not None
    assert y is not None
    return _PER_ELEMENT * elements + count(op, x, w, y)


def _size(array: Array | Sequence[Array] | None) -> int:
    """Of a tensor, or of a sequence of tensors."""
    if array is None:
        return 0
    return sum(_size(part) for part in array) if isinstance(array, list) else getattr(array, "size", 1)
