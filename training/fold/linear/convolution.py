"""Conv and ConvTranspose, any number of spatial axes, any group: channels are axis 1 at both ends.

A shift of the output is in the bias, wherever the window lies. A shift of the input is a constant that every window
sees alike only where no window reads the padding, whose zeros do not move with the input.
"""

from __future__ import annotations

import math
from functools import partial

import onnx_ir as ir

from training.fold.affine import Affine, Float64s
from training.fold.graph import describe
from training.fold.known import Known
from training.fold.linear.layer import Bias, End, Layer, read_operand, read_weight, set_bias
from training.fold.refusal import Refusal
from training.fold.shapes import Dims


def conv(node: ir.Node, known: Known) -> Layer | Refusal:
    """Conv: W [O, I/group, k..], b [O].

    (1) W is constant, floating, of rank 3 or more, and group divides O. (2) b is absent, or constant of shape [O];
    else the output keeps its gauge and the input its shift. (3) The input has a shift only where no window can read
    padding: `_reads_padding`.
    """
    return _convolution(node, known, transposed=False)


def conv_transpose(node: ir.Node, known: Known) -> Layer | Refusal:
    """ConvTranspose: W [I, O/group, k..], b [O].

    (1), (2) as for Conv, with group dividing I. (3) The input has a shift only where each output position sees every
    input channel through exactly one tap, and all see the same: kernel 1, stride 1, nothing cut off and nothing added.
    The region that output_padding adds holds only bias, which is transformed with the rest.
    """
    return _convolution(node, known, transposed=True)


def _convolution(node: ir.Node, known: Known, *, transposed: bool) -> Layer | Refusal:
    weight = read_weight(node, 1, known)
    if isinstance(weight, Refusal):
        return weight
    group, shape, x = node.attributes.get_int("group", 1), weight.shape, node.inputs[0]
    if len(shape) < 3 or group < 1 or shape[0] % group:
        return Refusal(f"weight '{weight.value.name}' of {describe(node)} has shape {list(shape)} with group={group}")
    if x is None:
        return Refusal(f"{describe(node)} lacks its operand 0")
    inputs, outputs = (shape[0], shape[1] * group) if transposed else (shape[1] * group, shape[0])
    matrix = partial(_transposed_matrix if transposed else _matrix, group=group)
    output_axis = (1 if group == 1 else None) if transposed else 0
    keeps = _stamps_unevenly(node, shape[2:]) if transposed else _reads_padding(node, known.dims(x), shape[2:])
    ends = End(x, 1, inputs), End(node.outputs[0], 1, outputs)
    return Layer(node, *ends, weight, matrix, output_axis, _bias(node, outputs, known), x_keeps_its_shift=keeps)


def _matrix(weight: Float64s, group: int) -> Float64s:
    return weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)


def _transposed_matrix(weight: Float64s, group: int) -> Float64s:
    return weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1).swapaxes(1, 2)


def _bias(node: ir.Node, outputs: int, known: Known) -> Bias | Refusal:
    operand = read_operand(node, 2, "bias", known)
    if isinstance(operand, Refusal):
        return operand
    if operand is not None and operand.shape != (outputs,):
        found = list(operand.shape)
        return Refusal(f"bias '{operand.value.name}' of {describe(node)} has shape {found}, expected [{outputs}]")
    return Bias(operand, (outputs,), _along_channels, set_bias(node, 2))


def _along_channels(bias: Float64s, affine: Affine) -> Float64s:
    return affine(bias, axis=0)


def _reads_padding(node: ir.Node, dims: Dims | None, kernel: tuple[int, ...]) -> str:
    """Why a window may read padding; empty where none can: axis by axis, its pads are 0 or no window reaches them."""
    rank = len(kernel)
    strides, dilations, pads = _numbers(node, "strides", rank), _numbers(node, "dilations", rank), _pads(node, rank)
    sizes = (None,) * rank if dims is None or len(dims) != rank + 2 else dims[2:]
    if strides is None or dilations is None or pads is None:
        return f"the attributes of {describe(node)} do not fit its {rank} spatial axes"
    for size, k, s, d, begin, end in zip(sizes, kernel, strides, dilations, pads[:rank], pads[rank:], strict=True):
        span = (k - 1) * d + 1
        if not _is_inside(size, span, s, (begin, end), node.attributes.get_string("auto_pad", "NOTSET")):
            return f"{describe(node)} pads '{node.inputs[0] and node.inputs[0].name}' with zeros"
    return ""


def _is_inside(size: int | None, span: int, stride: int, pads: tuple[int, int], auto_pad: str) -> bool:
    """Does every window of `span` positions lie within the axis? Of a size that is not known: proved for all sizes."""
    if auto_pad == "VALID":
        return True
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        # ceil(size / stride) windows; the last one begins below `size`, so that with one tap it never leaves.
        return span == 1 or (size is not None and (math.ceil(size / stride) - 1) * stride + span <= size)
    begin, end = pads
    if auto_pad not in ("NOTSET", "") or begin != 0 or end < 0:
        return False
    last = None if size is None else (size + end - span) // stride * stride  # where the last window begins
    return end == 0 or (size is not None and last is not None and last + span <= size)


def _stamps_unevenly(node: ir.Node, kernel: tuple[int, ...]) -> str:
    """Why output positions may see different taps; empty where all see the only one."""
    rank = len(kernel)
    plain = (
        all(size == 1 for size in (*kernel, *(_numbers(node, "strides", rank) or (0,))))
        and not any(_pads(node, rank) or (0,))
        and not any(_numbers(node, "output_padding", rank, default=0) or (1,))
        and "output_shape" not in node.attributes
    )
    return (
        "" if plain else f"the windows of {describe(node)} overlap, or leave gaps: a shift is not the same everywhere"
    )


def _pads(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    return _numbers(node, "pads", 2 * rank, default=0)


def _numbers(node: ir.Node, name: str, count: int, default: int = 1) -> tuple[int, ...] | None:
    """An attribute with an entry an axis; None where it has another number of entries."""
    numbers = tuple(node.attributes.get_ints(name, (default,) * count))
    return numbers if len(numbers) == count else None
