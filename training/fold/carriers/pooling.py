"""Pooling: windows over the spatial axes of [N, C, D1, ...]; a gauge along C passes, as far as padding lets it.

    mean(s x + t)  = s mean(x) + t         if every window divides by the number of real elements in it
    mean(s x)      = s mean(x)             always: padding counts as 0, and s 0 = 0
    max(s x + t)   = s max(x) + t          for s > 0; padding is -infinity, which s x + t leaves alone
    |s x|_p        = |s| |x|_p             for s > 0 that is s |x|_p

`_windows` alone knows the attributes: kernel, strides, dilations, pads, auto_pad, ceil_mode, in every opset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from training.fold.carriers.ends import ends, is_output
from training.fold.graph import describe
from training.fold.known import Known, Rule
from training.fold.laws import Equal, Law, NoShift, Port, Positive
from training.fold.refusal import Refusal

_CHANNELS = (1,)
_SAME = ("SAME_UPPER", "SAME_LOWER")


def _channel_ends(node: ir.Node, port: Port, known: Known) -> tuple[Port, Port] | Refusal:
    """Input and output along axis 1. Refused: along any other axis, where windows mix entries."""
    output = is_output(node, port)
    if isinstance(output, Refusal):
        return output
    if port.axes != _CHANNELS:
        return Refusal(f"{describe(node)} pools per channel, axis 1; '{port.value.name}' is stored along {port.axes}")
    return ends(node, _CHANNELS, _CHANNELS, known)


# --- windows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Windows:
    """How the windows lie along one spatial axis. `same`: the pads are the run time's, less than the extent in all."""

    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int
    same: bool
    ceil: bool

    @property
    def extent(self) -> int:
        return (self.kernel - 1) * self.dilation + 1

    @property
    def padded(self) -> bool:
        return self.same or self.begin != 0 or self.end != 0

    def overhangs(self, size: int | None) -> bool:
        """May a window reach beyond the padded input? Only under ceil_mode, where the stride leaves a remainder."""
        return self.ceil and (size is None or (size + self.begin + self.end - self.extent) % self.stride != 0)

    def may_miss(self, size: int | None) -> bool:
        """May a window meet no real element at all? True where that cannot be told.

        Windows without holes cannot if they start less than an extent before the data and, at the last start that
        any rounding permits, still before its end. Else all taps of all windows are looked at.
        """
        if not self.padded and not self.ceil:
            return False
        beyond = self.end + (self.stride - 1 if self.ceil else 0)
        if self.dilation == 1 and (self.same or (0 <= self.begin < self.extent and beyond < self.extent)):
            return False
        if size is None or self.same:
            return True
        steps = (size + self.begin + self.end - self.extent) / self.stride
        starts = np.arange((math.ceil(steps) if self.ceil else math.floor(steps)) + 1) * self.stride - self.begin
        taps = starts[:, np.newaxis] + np.arange(self.kernel) * self.dilation
        return not bool(((taps >= 0) & (taps < size)).any(axis=1).all())


def _windows(node: ir.Node) -> tuple[_Windows, ...] | Refusal:
    """One record a spatial axis. Absent attributes have their defaults: no pads, strides and dilations of 1."""
    kernel = node.attributes.get_ints("kernel_shape", ())
    count = len(kernel)
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID", *_SAME):
        return Refusal(f"{describe(node)} has auto_pad {auto!r}, expected NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    pads = node.attributes.get_ints("pads", (0,) * (2 * count)) if auto == "NOTSET" else (0,) * (2 * count)
    strides = node.attributes.get_ints("strides", (1,) * count)
    dilations = node.attributes.get_ints("dilations", (1,) * count)
    lengths = (len(pads), len(strides), len(dilations))
    if count == 0 or lengths != (2 * count, count, count) or min(*kernel, *strides, *dilations) < 1:
        return Refusal(
            f"{describe(node)} has kernel {list(kernel)}, pads {list(pads)}, strides {list(strides)} and dilations"
            f" {list(dilations)}, which do not fit together"
        )
    same, ceil = auto in _SAME, node.attributes.get_int("ceil_mode", 0) != 0
    return tuple(
        _Windows(kernel[i], strides[i], dilations[i], pads[i], pads[count + i], same, ceil) for i in range(count)
    )


def _spatial(node: ir.Node, x: Port, known: Known) -> tuple[tuple[_Windows, int | None], ...] | Refusal:
    """Each spatial axis' windows and its size, None where it is symbolic."""
    windows = _windows(node)
    if isinstance(windows, Refusal):
        return windows
    sizes = (known.dims(x.value) or ())[2:]
    if len(sizes) != len(windows):
        return Refusal(f"{describe(node)} has {len(windows)} kernel sizes for {len(sizes)} spatial axes")
    return tuple(zip(windows, sizes, strict=True))


# --- rules -------------------------------------------------------------------------------------------------------


def average_pool(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """AveragePool: one gauge on both ends; shifts where every window divides by the number of its real elements.

    1. `count_include_pad=0` (opset 7 on; before, the only way): the divisor is that number, in partial windows too.
    2. `count_include_pad=1`: the divisor counts padding, so no pads (auto_pad none or VALID) and, as implementations
       differ in what a window beyond the end divides by, no such window (ceil_mode on sizes that leave a remainder).
    3. No window lies wholly in padding: what 0/0 becomes is nobody's promise.
    Else the scale alone passes.
    """
    pair = _channel_ends(node, port, known)
    if isinstance(pair, Refusal):
        return pair
    x, y = pair
    spatial = _spatial(node, x, known)
    if isinstance(spatial, Refusal):
        return spatial
    same = Equal(x, y)
    if node.attributes.get_int("count_include_pad", 0) and any(w.padded or w.overhangs(size) for w, size in spatial):
        return same, NoShift(x, f"{describe(node)} counts padding as elements")
    if any(w.may_miss(size) for w, size in spatial):
        return same, NoShift(x, f"{describe(node)} may have windows without an element")
    return (same,)


def max_pool(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """MaxPool: positive scales, any shift.

    1. Indices (opset 8 on) are not read: which of two equal elements they name may change with rounding.
    2. No window lies wholly in padding, for some run times fill it with the lowest number and not with -infinity.
    """
    pair = _channel_ends(node, port, known)
    if isinstance(pair, Refusal):
        return pair
    x, y = pair
    read = [output for output in node.outputs[1:] if output.uses() or output.is_graph_output()]
    if read:
        return Refusal(f"'{read[0].name}', the indices of {describe(node)}, is read")
    spatial = _spatial(node, x, known)
    if isinstance(spatial, Refusal):
        return spatial
    if any(w.may_miss(size) for w, size in spatial):
        return Refusal(f"{describe(node)} may have windows without an element")
    return Equal(x, y), Positive(x, f"{describe(node)} is a maximum, which a negative scale makes a minimum")


def lp_pool(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """LpPool, GlobalLpPool: positive scales, no shift. (1) p > 0; the default is 2 in every opset."""
    pair = _channel_ends(node, port, known)
    if isinstance(pair, Refusal):
        return pair
    x, y = pair
    p = node.attributes.get("p")
    if p is not None and not float(p.value) > 0:
        return Refusal(f"{describe(node)} has p = {p.value}, expected a number above 0")
    why = f"{describe(node)} is a norm"
    return Equal(x, y), Positive(x, why), NoShift(x, why)


def global_average_pool(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """GlobalAveragePool: any gauge; there is no padding."""
    pair = _channel_ends(node, port, known)
    return pair if isinstance(pair, Refusal) else (Equal(*pair),)


def global_max_pool(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """GlobalMaxPool: positive scales, any shift."""
    pair = _channel_ends(node, port, known)
    if isinstance(pair, Refusal):
        return pair
    x, y = pair
    return Equal(x, y), Positive(x, f"{describe(node)} is a maximum, which a negative scale makes a minimum")


RULES: dict[str, Rule] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
}
