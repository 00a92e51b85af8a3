"""Conv and ConvTranspose, any number of spatial axes, any group: channels are axis 1 at both ends.

A shift of the output is in the bias, wherever the window lies. A shift of the input is a constant that every window
sees alike only where no window reads the padding, whose zeros do not move with the input. What is transposed has
stamps for windows: output positions see the input through different taps, whose sums have to agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial, reduce

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from training.fold.affine import Affine, Float64s
from training.fold.graph import describe
from training.fold.known import Known
from training.fold.linear.layer import Bias, End, Layer, Operand, read_operand, read_weight, set_bias
from training.fold.linear.quantised import QuantisedWeight
from training.fold.refusal import Refusal
from training.fold.shapes import Dims
from training.fold.weights import widen

Stamp = NDArray[np.bool_]

_MOST_REACH = 64  # positions that one element stamps along an axis, or that are cut off; more are not looked at
_SAME = 2.0**-48  # of the taps' magnitudes: sums in float64 that differ by less were meant to be one


def conv(node: ir.Node, known: Known) -> Layer | Refusal:
    """Conv: W [O, I/group, k..], b [O].

    (1) W is constant, floating, of rank 3 or more, and group divides O. (2) b is absent, or constant of shape [O];
    else the output keeps its gauge and the input its shift. (3) The input has a shift only where no window can read
    padding: `_reads_padding`.
    """
    return _convolution(node, known, transposed=False)


def conv_transpose(node: ir.Node, known: Known) -> Layer | Refusal:
    """ConvTranspose: W [I, O/group, k..], b [O].

    (1), (2) as for Conv, with group dividing I. (3) The input has a shift only where every output position, those at
    the border too, sees each input channel through taps of the same sum: `_stamps`. The region that output_padding
    adds holds only bias, which is transformed with the rest.
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
    ends = End(x, (1,), (inputs,)), End(node.outputs[0], (1,), (outputs,))
    layer = Layer(node, *ends, weight, matrix, output_axis, _bias(node, outputs, known))
    if not transposed:
        return replace(layer, x_keeps_its_shift=_reads_padding(node, known.dims(x), shape[2:]))
    seen = _stamps(node, known.dims(x), weight)
    if seen is None:
        why = f"the windows of {describe(node)} overlap, or leave gaps: a shift is not the same everywhere"
        return replace(layer, x_keeps_its_shift=why)
    return layer if seen.all() else replace(layer, seen=seen)


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


def _stamps(node: ir.Node, dims: Dims | None, weight: Operand | QuantisedWeight) -> Stamp | None:
    """The taps [taps] of one output position, where all positions see taps of the same sum; None where they do not.

    Axis by axis, which sets of taps are there; a position sees one set of each axis. Of a size that is not known: the
    sets of all sizes.
    """
    kernel = weight.shape[2:]
    rank = len(kernel)
    strides, dilations, pads = _numbers(node, "strides", rank), _numbers(node, "dilations", rank), _pads(node, rank)
    extra = _numbers(node, "output_padding", rank, default=0)
    if strides is None or dilations is None or pads is None or extra is None or "output_shape" in node.attributes:
        return None
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET"
    if auto_pad != "NOTSET":
        # SAME gives `stride` positions an element, which takes no padding where that is what an element stamps.
        cut = [(k - 1) * d + 1 - s + more for k, s, d, more in zip(kernel, strides, dilations, extra, strict=True)]
        if auto_pad != "VALID" and any(cut):
            return None
        pads = (0,) * (2 * rank)
    sizes = (None,) * rank if dims is None or len(dims) != rank + 2 else dims[2:]
    along = zip(sizes, kernel, strides, dilations, pads[:rank], pads[rank:], extra, strict=True)
    sets = [_tap_sets(*axis) for axis in along]
    return None if any(len(one) == 0 for one in sets) else _of_one_sum(sets, weight)


@lru_cache(maxsize=1024)
def _tap_sets(size: int | None, kernel: int, stride: int, dilation: int, begin: int, end: int, extra: int) -> Stamp:
    """[sets, kernel]: through which taps the positions along one axis see the input; no sets where that is not proved.

    Element i stamps tap k on position `i * stride + k * dilation`, of which `begin` and `end` are cut off. From a
    certain size on an axis has no other sets than a shorter one: its borders no longer meet.
    """
    reach = (kernel - 1) * dilation
    if min(stride, dilation) < 1 or min(begin, end, extra) < 0 or max(reach, begin, end, extra, stride) > _MOST_REACH:
        return np.zeros((0, kernel), dtype=np.bool_)
    enough = (reach + begin + end) // stride + 4
    found = []
    for elements in range(1, enough + 1) if size is None else [min(size, enough)]:
        last = (elements - 1) * stride
        origin = np.arange(begin, last + reach + 1 + extra - end)[:, None] - np.arange(kernel) * dilation
        found.append((origin % stride == 0) & (origin >= 0) & (origin <= last))
    return np.unique(np.concatenate(found), axis=0)


def _of_one_sum(sets: Sequence[Stamp], weight: Operand | QuantisedWeight) -> Stamp | None:
    """The first set of each axis, crossed, if all others have the same sums; one channel is asked before all are."""
    seen: Stamp = reduce(np.multiply.outer, [one[0] for one in sets]).reshape(-1)
    if all(len(one) == 1 for one in sets):
        return seen
    if isinstance(weight, Operand) and not _sums_agree(sets, widen(weight.array[:1, :1])):
        return None
    return seen if _sums_agree(sets, weight.exact()) else None


def _sums_agree(sets: Sequence[Stamp], weight: Float64s) -> bool:
    """Of W [.., .., k..], for each pair of channels, over one set of taps of each axis."""
    total, size = weight, np.abs(weight)
    for one in sets:
        total, size = (np.tensordot(each, one.T.astype(np.float64), axes=(2, 0)) for each in (total, size))
    total, size = (each.reshape(*weight.shape[:2], -1) for each in (total, size))
    return bool((np.abs(total - total[..., :1]) <= _SAME * size.max(axis=2, keepdims=True)).all())


def _pads(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    return _numbers(node, "pads", 2 * rank, default=0)


def _numbers(node: ir.Node, name: str, count: int, default: int = 1) -> tuple[int, ...] | None:
    """An attribute with an entry an axis; None where it has another number of entries."""
    numbers = tuple(node.attributes.get_ints(name, (default,) * count))
    return numbers if len(numbers) == count else None
