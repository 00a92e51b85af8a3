"""Where an operand of an elementwise operator lies against its output. Opset 7 on: NumPy's rules; before, `axis`.

Knows shapes and ports, no operator's meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import onnx_ir as ir

from training.fold.affine import Float64s
from training.fold.graph import describe
from training.fold.known import Known
from training.fold.laws import Index, Port
from training.fold.refusal import Refusal

MOST_GROWN = 1 << 16  # elements that a constant may come to have, where it was one number for many entries


def output_axes(node: ir.Node, port: Port, known: Known) -> tuple[int, ...] | Refusal:
    """The axes of the output on which `port`, an operand's or the output's own, lies."""
    out, mine = known.dims(node.outputs[0]), known.dims(port.value)
    if out is None or mine is None:
        return Refusal(f"the rank of an operand of {describe(node)} is not known")
    return tuple(axis + len(out) - len(mine) for axis in port.axes)


def operand_port(
    node: ir.Node, value: ir.Value | None, axes: tuple[int, ...], known: Known
) -> tuple[Port, Index | None] | Refusal:
    """The port of an operand that meets the output's `axes`, and which of its entries each output entry reads.

    Refused: an operand without one of these axes, unless the output's other operands cover it (nobody can tell then).
    """
    out = known.dims(node.outputs[0])
    mine = None if value is None else known.dims(value)
    if out is None or mine is None or value is None:
        return Refusal(f"the rank of an operand of {describe(node)} is not known")
    own = tuple(axis - (len(out) - len(mine)) for axis in axes)
    if min(own) < 0:
        return Refusal(f"'{value.name}' of {describe(node)} lacks axis {axes} of its output")
    port = known.port(value, own, node)
    if isinstance(port, Refusal):
        return port
    sizes, full = [mine[axis] for axis in own], [out[axis] for axis in axes]
    if sizes == full:
        return port, None
    if any(size is None for size in full) or any(a not in (1, b) for a, b in zip(sizes, full, strict=True)):
        return Refusal(f"'{value.name}' of {describe(node)} does not broadcast to its output along axis {axes}")
    entries = np.arange(int(np.prod(np.array(sizes, dtype=np.int64)))).reshape([size or 1 for size in sizes])
    return port, np.broadcast_to(entries, [size or 1 for size in full]).reshape(-1)


def aligned(constant: Float64s, tensor: ir.Value, known: Known) -> Float64s | Refusal:
    """`constant` with as many axes as `tensor`, against which it broadcasts without enlarging it."""
    dims = known.dims(tensor)
    if dims is None or constant.ndim > len(dims):
        return Refusal(f"a constant of shape {list(constant.shape)} enlarges '{tensor.name}', or its rank is not known")
    full = constant.reshape((1,) * (len(dims) - constant.ndim) + constant.shape)
    if any(size not in (1, dim) for size, dim in zip(full.shape, dims, strict=True)):
        return Refusal(f"a constant of shape {list(constant.shape)} is not proved to fit '{tensor.name}' {list(dims)}")
    return full


def outgrows(shape: tuple[int, ...], entries: Mapping[int, int]) -> bool:
    """Has a constant of `shape` too many elements once it has `entries` of its own along these axes?

    Never one that has them, nor what is one number an entry. Any other constant that comes between gauges grows by
    them: a bias of rows under a gauge of columns is a matrix.
    """
    full = tuple(entries.get(axis, size) for axis, size in enumerate(shape))
    return full != shape and prod(full) > max(MOST_GROWN, prod(entries.values()))


def along(constant: Float64s, port: Port, known: Known) -> Float64s | None:
    """A constant of the tensor's rank as a vector over the port's entries; None where it differs within an entry."""
    if any(size != 1 and axis not in port.axes for axis, size in enumerate(constant.shape)):
        return None
    dims = known.dims(port.value) or ()
    sizes = [dims[axis] or 1 if axis in port.axes else 1 for axis in range(len(dims))]
    return np.broadcast_to(constant, sizes).reshape(-1)
