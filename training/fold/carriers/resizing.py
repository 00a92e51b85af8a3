"""Resampling: weighted sums of neighbours along some axes; a gauge along axes that are not resampled passes.

    sum_i w_i (s x_i + t) = s sum_i w_i x_i + t      where the weights of each point sum to one
    sum_i w_i (s x_i)     = s sum_i w_i x_i          always, padding of 0 included

Nearest, linear and cubic weights sum to one, at the border too: outside positions repeat the border, or are left out
and the rest renormalised. They do not where a position outside reads a fixed value.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from training.fold.carriers.ends import Axes, ends, is_output
from training.fold.graph import describe
from training.fold.known import Known, Rule
from training.fold.laws import Equal, Law, NoShift, Port
from training.fold.refusal import Refusal

_MODES = ("nearest", "linear", "cubic")
_COORDINATES = frozenset(
    {"half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn"}
)
_WHOLE_NEAREST = ("floor", "round_prefer_floor")  # of x + 0.5 these give x
_CHANNELS = (1,)


def resize(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """Resize, Upsample: any gauge along axes whose points stay where they are.

    1. Mode nearest, linear (bilinear in opset 1) or cubic; the coordinates are not cropped (`tf_crop_and_resize` reads
       `extrapolation_value` outside).
    2. Along each axis of the gauge the scale is 1: by `scales` exactly (3 x 1.1 is 3 points too, but others), by
       `sizes` as many points as there were, or by `axes` (opset 18 on) not among the resized ones.
    3. A scale of 1 leaves points in place under all coordinates but `tf_half_pixel_for_nn`, which moves them by a half:
       there the mode is nearest and rounds down.
    """
    output = is_output(node, port)
    if isinstance(output, Refusal):
        return output
    refused = _refuse_interpolation(node) or _refuse_axes(node, port.axes, known)
    if refused is not None:
        return refused
    pair = ends(node, port.axes, port.axes, known)
    return pair if isinstance(pair, Refusal) else (Equal(*pair),)


def _refuse_interpolation(node: ir.Node) -> Refusal | None:
    """Conditions 1 and 3."""
    mode = node.attributes.get_string("mode", "nearest")
    coordinates = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if mode not in _MODES and (node.op_type, mode) != ("Upsample", "bilinear"):
        return Refusal(f"{describe(node)} has mode {mode!r}, expected {', '.join(_MODES)}")
    if coordinates not in _COORDINATES:
        return Refusal(f"{describe(node)} has coordinates {coordinates!r}, whose weights may not sum to one")
    rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    if coordinates == "tf_half_pixel_for_nn" and (mode != "nearest" or rounding not in _WHOLE_NEAREST):
        return Refusal(f"{describe(node)} moves every axis by half a point ({coordinates!r}, {mode!r}, {rounding!r})")
    return None


def _refuse_axes(node: ir.Node, axes: Axes, known: Known) -> Refusal | None:
    """Condition 2: is each of `axes` left as it is?"""
    x = node.inputs[0]
    dims = None if x is None else known.dims(x)
    if dims is None or max(axes) >= len(dims):
        return Refusal(f"the rank of what {describe(node)} resizes is not known, or too small")
    resized = node.attributes.get_ints("axes", tuple(range(len(dims))))
    places = [axis % len(dims) for axis in resized]
    touched = [axis for axis in axes if axis in places]
    if not touched:
        return None
    scales = _scales(node, known)
    if isinstance(scales, Refusal):
        return scales
    if scales is not None:
        if len(scales) != len(places):
            return Refusal(f"{describe(node)} has {len(scales)} scales for {len(places)} axes")
        moved = [axis for axis in touched if scales[places.index(axis)] != 1]
    elif node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return Refusal(f"{describe(node)} changes its sizes to keep an aspect ratio, along axis {touched} too")
    else:
        out = known.dims(node.outputs[0]) or ()
        moved = [axis for axis in touched if len(out) != len(dims) or dims[axis] is None or out[axis] != dims[axis]]
    if moved:
        return Refusal(f"{describe(node)} resizes axis {moved}, along which the gauge lies")
    return None


def _scales(node: ir.Node, known: Known) -> tuple[float, ...] | Refusal | None:
    """The scales, wherever the opset has them; None where `sizes` decide, which the shape of the output tells.

    Upsample: attributes `height_scale`, `width_scale` (1), `scales` (7), operand 1 (9). Resize: operand 1 (10), operand
    2, or `sizes` as operand 3 (11 on), the other of them absent or empty.
    """
    if node.op_type == "Upsample" and known.opset < 7:
        height, width = (node.attributes.get_float(name, 0.0) for name in ("height_scale", "width_scale"))
        return (1.0, 1.0, height, width)
    if node.op_type == "Upsample" and known.opset < 9:
        return tuple(node.attributes.get_floats("scales", ()))
    operands = (*node.inputs, None, None, None)
    if node.op_type == "Upsample" or known.opset < 11:
        scales, sizes = operands[1], None
    else:
        scales, sizes = operands[2], operands[3]
    numbers = known.constant(scales)
    if sizes is not None and (scales is None or (numbers is not None and numbers.size == 0)):
        return None
    if numbers is None or sizes is not None:
        return Refusal(f"the scales of {describe(node)} are not constant, or it has sizes too")
    return tuple(np.asarray(numbers, dtype=np.float64).reshape(-1).tolist())


def grid_sample(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """GridSample: its image X under any gauge along axis 1; without shift where points outside read zeros.

    1. `padding_mode` border or reflection for shifts; zeros, the default, takes them away from points outside.
    """
    output = is_output(node, port)
    if isinstance(output, Refusal):
        return output
    if port.axes != _CHANNELS:
        return Refusal(f"{describe(node)} samples per channel, axis 1; '{port.value.name}' is stored along {port.axes}")
    padding = node.attributes.get_string("padding_mode", "zeros")
    if padding not in ("zeros", "border", "reflection"):
        return Refusal(f"{describe(node)} has padding_mode {padding!r}, expected zeros, border or reflection")
    pair = ends(node, _CHANNELS, _CHANNELS, known)
    if isinstance(pair, Refusal):
        return pair
    x, y = pair
    if padding != "zeros":
        return (Equal(x, y),)
    return Equal(x, y), NoShift(x, f"{describe(node)} reads zeros outside '{x.value.name}'")


RULES: dict[str, Rule] = {"GridSample": grid_sample, "Resize": resize, "Upsample": resize}
