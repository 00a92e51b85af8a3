"""Is this constant one of the original's? By content, and with as little reading of large weights as possible.

Most constants of a folded graph are the very tensors of the original; of the others, nearly all differ in their first
bytes from each of those. Only where neither decides are all bytes compared. Knows tensors, nothing of proofs.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from training.reference.op import Array

_HEAD = 64  # bytes at both ends that are compared first
_BLOCK = 1 << 16  # bytes; a smaller tensor may be one that lives for a moment only

_Head = tuple[str, int, bytes, bytes]


class Recurring:
    """Constants by content: of type and numbers, not of the shape, so that a reshaped constant is still the same."""

    def __init__(self, tensors: Iterable[ir.TensorProtocol]) -> None:
        self._by_head: dict[_Head, list[ir.TensorProtocol]] = {}
        self._known: dict[int, tuple[ir.TensorProtocol, bool]] = {}  # which keeps a tensor alive as long as its id
        for tensor in tensors:
            if id(tensor) not in self._known:
                self._known[id(tensor)] = tensor, True
                self._by_head.setdefault(_head(tensor.numpy()), []).append(tensor)

    def has(self, tensor: ir.TensorProtocol) -> bool:
        """Is there one of its type with just its bytes?"""
        if id(tensor) in self._known:
            return self._known[id(tensor)][1]
        array = tensor.numpy()
        found = any(_same(array, other.numpy()) for other in self._by_head.get(_head(array), ()))
        if array.nbytes > _BLOCK:
            self._known[id(tensor)] = tensor, found
        return found


def _head(array: Array) -> _Head:
    if array.dtype.kind in "OSU":
        return str(array.dtype), array.size, repr(array.tolist()).encode(), b""
    flat = array.reshape(-1)
    some = max(_HEAD // max(array.itemsize, 1), 1)
    return str(array.dtype), array.size, flat[:some].tobytes(), flat[-some:].tobytes()


def _same(a: Array, b: Array) -> bool:
    """Of two arrays with the same head: are all bytes equal?"""
    if a.dtype.kind in "OSU":
        return True
    one, other, some = a.reshape(-1), b.reshape(-1), _BLOCK // max(a.itemsize, 1)
    return all(
        one[start : start + some].tobytes() == other[start : start + some].tobytes()
        for start in range(0, one.size, some)
    )
