"""Operators that move, select, make or describe elements without arithmetic, and Cast.

What became an input in a later opset (axes, shape, pads, starts, split) is taken from the attribute in an older one, at
https://onnx.ai/onnx/operators/. All work on any type.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from training.reference.op import Array, Op, OperatorFunction, Result, widen


def _ints(op: Op, name: str, given: Array | None, default: tuple[int, ...] | None = None) -> list[int] | None:
    """A list of integers from the input if there is one, else from the attribute."""
    values = op.get(name, default) if given is None else given.ravel()
    return None if values is None else [int(value) for value in values]


def cast(op: Op, x: Array) -> Array:
    """Between floating-point types the identity (the graph is evaluated as if all were exact); to integers, truncated.

    ONNX leaves out-of-range and NaN conversions to integers undefined.
    """
    target = op.get("to")
    if isinstance(target, str):  # opset 1 named the type
        target = ir.DataType[target]
    dtype = widen(np.empty(0, dtype=ir.DataType(target).numpy())).dtype
    if x.dtype.kind in "OSU" or dtype.kind in "OSU":
        raise NotImplementedError("strings")
    with np.errstate(invalid="ignore"):
        return x.astype(dtype)


def constant(op: Op) -> Array:
    """Whichever attribute holds the value, in its storage type: the evaluator widens it, as it does an initializer."""
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints", "value_string", "value_strings"):
        if name in op.attributes:
            value = op.attributes[name]
            if name.startswith("value_int"):
                return np.asarray(value, dtype=np.int64)
            if name.startswith("value_float"):
                return np.asarray(value, dtype=np.float32)
            return np.asarray(value)
    raise NotImplementedError("a sparse value")


def constant_of_shape(op: Op, shape: Array) -> Array:
    """Default value: one float32 zero."""
    value = op.get("value", np.zeros(1))
    return np.full(tuple(shape.tolist()), value.item(), dtype=value.dtype)


def reshape(op: Op, x: Array, shape: Array | None = None) -> Array:
    """0 copies the input's size at that place unless `allowzero`; one -1 is inferred."""
    wanted = _ints(op, "shape", shape) or []
    if not op.get("allowzero", 0):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return x.reshape(wanted)


def squeeze(op: Op, x: Array, axes: Array | None = None) -> Array:
    """Without axes, every axis of size one."""
    wanted = _ints(op, "axes", axes)
    return np.squeeze(x, axis=None if wanted is None else tuple(wanted))


def unsqueeze(op: Op, x: Array, axes: Array | None = None) -> Array:
    """Axes count in the output's rank."""
    return np.expand_dims(x, tuple(_ints(op, "axes", axes) or ()))


def flatten(op: Op, x: Array) -> Array:
    """To a matrix, cut before `axis`."""
    axis = op.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1) if x.size else _flatten_empty(x, axis)


def _flatten_empty(x: Array, axis: int) -> Array:
    return x.reshape(int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))


def shape(op: Op, x: Array) -> Array:
    """Optionally a slice of the shape (opset 15)."""
    return np.array(x.shape[op.get("start", 0) : op.get("end", None)], dtype=np.int64)


def slice_(
    op: Op,
    x: Array,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    """Python's slicing rules per axis; a huge end means "to the end", in either direction."""
    first, last = _ints(op, "starts", starts) or [], _ints(op, "ends", ends) or []
    which = _ints(op, "axes", axes) or list(range(len(first)))
    stride = [1] * len(first) if steps is None else [int(step) for step in steps.ravel()]
    cut: list[slice] = [slice(None)] * x.ndim
    for axis, start, end, step in zip(which, first, last, stride, strict=True):
        size = x.shape[axis]
        # Backwards, an end below -size means "past the first element", which Python spells None, and a start below
        # -size is the first element, where Python has none.
        stop = None if step < 0 and end < -size else end
        cut[axis] = slice(max(start, -size), stop, step)
    return x[tuple(cut)]


def split(op: Op, x: Array, sizes: Array | None = None) -> Result:
    """Sizes from `split`, else equal parts, of which the last may be smaller (opset 18)."""
    axis = op.get("axis", 0)
    given = _ints(op, "split", sizes)
    if given is None:
        parts = len(op.outputs)
        each = -(-x.shape[axis] // parts)
        given = [min(each, x.shape[axis] - i * each) for i in range(parts)]
    return tuple(np.split(x, np.cumsum(given)[:-1], axis=axis))


def pad(op: Op, x: Array, pads: Array | None = None, value: Array | None = None, axes: Array | None = None) -> Array:
    """constant, reflect, edge or wrap; a negative pad crops (and does so before the rest grows)."""
    amounts = _ints(op, "pads", pads, op.get("paddings")) or []  # opset 1 wrote "paddings"
    which = [axis % x.ndim for axis in (_ints(op, "axes", axes) or range(x.ndim))]
    half = len(amounts) // 2
    widths, crop = [(0, 0)] * x.ndim, [slice(None)] * x.ndim
    for axis, low, high in zip(which, amounts[:half], amounts[half:], strict=True):
        crop[axis] = slice(max(-low, 0), x.shape[axis] - max(-high, 0))
        widths[axis] = (max(low, 0), max(high, 0))
    mode = op.get("mode", "constant")
    if mode == "constant":
        fill = op.get("value", 0.0) if value is None else value.item()
        return np.pad(x[tuple(crop)], widths, constant_values=fill)
    return np.pad(x[tuple(crop)], widths, mode=mode)


def expand(_: Op, x: Array, shape: Array) -> Array:
    """Broadcasting in both directions: a 1 in `shape` keeps the input's size."""
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.tolist())))


def tile(op: Op, x: Array, repeats: Array, axis: Array | None = None) -> Array:
    """One number an axis; version 1 had a number of tiles and the one axis for it."""
    if op.opset >= 6:
        return np.tile(x, repeats.tolist())
    if axis is None:
        raise ValueError("Tile of version 1 lacks its operand 'axis'")
    return np.concatenate([x] * int(repeats.item()), axis=int(axis.item()))


def gather_elements(op: Op, x: Array, indices: Array) -> Array:
    """Indices have the output's shape, which along other axes may be smaller than the data's."""
    axis = op.get("axis", 0) % x.ndim
    x = x[tuple(slice(None) if i == axis else slice(size) for i, size in enumerate(indices.shape))]
    return np.take_along_axis(x, np.where(indices < 0, indices + x.shape[axis], indices), axis=axis)


def gather(op: Op, x: Array, indices: Array) -> Array:
    """`np.take`, which counts negative indices from the end and refuses those out of range."""
    return np.take(x, indices, axis=op.get("axis", 0))


def depth_to_space(op: Op, x: Array) -> Array:
    """DCR splits the channels block first, CRD channel first."""
    n, c, h, w = x.shape
    block = op.get("blocksize")
    if op.get("mode", "DCR") == "DCR":
        y = x.reshape(n, block, block, c // block**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // block**2, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(op: Op, x: Array) -> Array:
    """The inverse of DCR."""
    n, c, h, w = x.shape
    block = op.get("blocksize")
    y = x.reshape(n, c, h // block, block, w // block, block).transpose(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * block**2, h // block, w // block)


def _transposed(op: Op, x: Array) -> Array:
    return x.transpose(op.get("perm", tuple(range(x.ndim))[::-1]))


def scatter(op: Op, x: Array, indices: Array, updates: Array) -> Array:
    """ScatterElements before it was called so (opset 9 and 10): no reduction; a negative index counts from the end."""
    y, axis = x.copy(), op.get("axis", 0)
    places = list(np.indices(indices.shape))
    places[axis] = np.where(indices < 0, indices + x.shape[axis], indices)
    y[tuple(places)] = updates
    return y


def _range(_: Op, start: Array, limit: Array, delta: Array) -> Array:
    return np.arange(start.item(), limit.item(), delta.item()).astype(start.dtype)


_identity: Callable[..., Array] = lambda _, x: x  # noqa: E731  a row of the table below, used twice

SHAPING: dict[str, OperatorFunction] = {
    "Identity": _identity,
    "Cast": cast,
    "CastLike": lambda _, x, like: x.astype(like.dtype),
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Shape": shape,
    "Size": lambda _, x: np.array(x.size, dtype=np.int64),
    "Range": _range,
    "Reshape": reshape,
    "Transpose": _transposed,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Flatten": flatten,
    "Concat": lambda op, *xs: np.concatenate(xs, axis=op.get("axis", 1)),  # the default is opset 1's
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "GatherElements": gather_elements,
    "Scatter": scatter,
    "Pad": pad,
    "Expand": expand,
    "Tile": tile,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "SequenceAt": lambda _, parts, index: parts[int(index)],
}
