"""Linear windowed operators as algebra: when two of them add up to one, or follow one another as one, and as which.

A `Frame` is the shape of an operator (a convolution, a mean over a window, a Linear: no spatial axes), a `Window` its
numbers. Questions are asked of frames, so that nothing large is computed before it is known to pay. Pure NumPy,
float64; knows no graph. Every kernel is [out, in/group, taps..]; between operators zeros surround every tensor.

A tap at offset `o` reads `x[stride * p + o]` for output pixel p. A spatial axis of size n has
`floor((n + slack) / stride) + 1` pixels after the operator: slack is pads minus the kernel's extent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, prod

import numpy as np

from training.fold.affine import Affine, Float64s


@dataclass(frozen=True)
class Axis:
    """Along one spatial axis: `count` taps at offsets `start + step * j`; `slack` as in the file's head."""

    stride: int
    start: int  # minus the padding at the beginning
    step: int  # dilation; 1 where there is but one tap
    count: int
    slack: int

    @classmethod
    def of(cls, kernel: int, stride: int, dilation: int, pads: tuple[int, int]) -> Axis:
        slack = sum(pads) - dilation * (kernel - 1) - 1
        return cls(stride, -pads[0], dilation if kernel > 1 else 1, kernel, slack)

    @property
    def last(self) -> int:
        return self.start + self.step * (self.count - 1)

    @property
    def pads(self) -> tuple[int, int]:
        return -self.start, self.slack + 1 + self.last

    def size(self, n: int) -> int:
        return (n + self.slack) // self.stride + 1

    def taps(self, inside: Axis) -> slice:
        """Where these taps are among those of `inside`, whose taps include them."""
        first, every = (self.start - inside.start) // inside.step, self.step // inside.step if self.count > 1 else 1
        return slice(first, first + every * (self.count - 1) + 1, every)


POINT = Axis(stride=1, start=0, step=1, count=1, slack=-1)


@dataclass(frozen=True)
class Frame:
    """`inputs` to `outputs` channels in `group` blocks, over the taps of `axes`."""

    inputs: int
    outputs: int
    group: int
    axes: tuple[Axis, ...]

    @property
    def taps(self) -> tuple[int, ...]:
        return tuple(axis.count for axis in self.axes)

    @property
    def macs(self) -> int:
        """Multiply-adds an output pixel."""
        return self.outputs * (self.inputs // self.group) * prod(self.taps)

    @property
    def pixels(self) -> int:
        """Input pixels for each output pixel."""
        return prod(axis.stride for axis in self.axes)

    @property
    def is_unpadded(self) -> bool:
        return all(axis.pads == (0, 0) for axis in self.axes)

    @property
    def is_pointwise(self) -> bool:
        return all(axis.count == 1 and axis.pads == (0, 0) for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel."""
        return self.outputs, self.inputs // self.group, *self.taps


def diagonal(channels: int, rank: int, *, grouped: bool = True) -> Frame:
    """The frame of what maps each channel to itself; `rank` spatial axes. A Linear has no groups."""
    return Frame(channels, channels, channels if grouped else 1, (POINT,) * rank)


def added(a: Frame, b: Frame, sizes: tuple[int | None, ...]) -> Frame | None:
    """The frame of the sum of two operators on the same tensor, or None where they do not line up.

    (1) Same channels, same strides. (2) Same output size: by the same slack, so for any image; or, for an image of the
    known `sizes`, by coincidence. The offsets become the union of both, filled up to one even comb.
    """
    if (a.inputs, a.outputs, len(a.axes)) != (b.inputs, b.outputs, len(b.axes)):
        return None
    axes = []
    for p, q, size in zip(a.axes, b.axes, sizes, strict=True):
        same = p.slack == q.slack or (size is not None and p.size(size) == q.size(size))
        if p.stride != q.stride or not same:
            return None
        slack = next(s for s in sorted((p.slack, q.slack)) if s + 1 + max(p.last, q.last) >= 0)  # no negative pads
        axes.append(_comb(p.stride, slack, (p.start, p.last, q.start, q.last), (p, q)))
    return replace(a, group=gcd(a.group, b.group), axes=tuple(axes))


def followed(first: Frame, second: Frame, *, bias: bool) -> Frame | None:
    """The frame of `second` after `first`, or None where padding between the two is not what the one operator sees.

    Exact if (1) `second` is unpadded: every tensor element it reads was computed; or (2) `first` is pointwise and
    adds no `bias`: the zeros that `second` pads with are what `first` makes of the zeros around its input.
    """
    if first.outputs != second.inputs or len(first.axes) != len(second.axes):
        return None
    if not second.is_unpadded and (bias or not first.is_pointwise):
        return None
    axes = []
    for p, q in zip(first.axes, second.axes, strict=True):
        far = replace(q, step=p.stride * q.step)
        ends = (p.start + p.stride * q.start, p.last + p.stride * q.last)
        axes.append(_comb(p.stride * q.stride, p.slack + p.stride * (1 + q.slack), ends, (p, far)))
    return Frame(first.inputs, second.outputs, gcd(first.group, second.group), tuple(axes))


def _comb(stride: int, slack: int, ends: tuple[int, ...], parts: tuple[Axis, ...]) -> Axis:
    start, last = min(ends), max(ends)
    step = gcd(*(part.step for part in parts if part.count > 1), *(end - start for end in ends)) or 1
    count = (last - start) // step + 1
    return Axis(stride, start, step if count > 1 else 1, count, slack)


@dataclass(frozen=True, eq=False)
class Window:
    """`y = kernel * x + bias`: float64, `frame.shape` and [outputs]."""

    frame: Frame
    kernel: Float64s
    bias: Float64s

    def spread(self, frame: Frame) -> Float64s:
        """The kernel on the taps and in the blocks of a larger `frame`."""
        kernel = np.zeros(frame.shape)
        at = tuple(mine.taps(theirs) for mine, theirs in zip(self.frame.axes, frame.axes, strict=True))
        kernel[(slice(None), slice(None), *at)] = _regrouped(self.kernel, self.frame.group, frame.group)
        return kernel

    def mapped(self, affine: Affine) -> Window:
        """This operator, then a channelwise map."""
        scale = np.broadcast_to(affine.scale, self.frame.outputs).reshape(-1, *[1] * (self.kernel.ndim - 1))
        return Window(self.frame, self.kernel * scale, affine(self.bias, axis=0))

    def scaled(self, factor: Float64s) -> Window:
        """`factor`: one number an output channel, or one for all."""
        factor = np.broadcast_to(factor, self.frame.outputs)
        kernel = self.kernel * factor.reshape(-1, *[1] * (self.kernel.ndim - 1))
        return Window(self.frame, kernel, self.bias * factor)

    def fed(self, affine: Affine) -> Window:
        """A channelwise map, then this operator; `followed` has said that it may be."""
        group, inputs = self.frame.group, self.frame.inputs
        scale, shift = (np.broadcast_to(part, inputs).reshape(group, 1, -1) for part in (affine.scale, affine.shift))
        blocks = self.kernel.reshape(group, self.frame.outputs // group, inputs // group, -1)
        kernel = (blocks * scale[..., None]).reshape(self.kernel.shape)
        return Window(self.frame, kernel, self.bias + (blocks.sum(axis=3) * shift).sum(axis=2).reshape(-1))

    def after(self, first: Window, frame: Frame) -> Window:
        """`first`, then this operator, as one on `frame`, which is what `followed` says of the two."""
        group = frame.group
        mine, other = (_blocks(_regrouped(w.kernel, w.frame.group, group), group) for w in (self, first))
        total = np.zeros((group, frame.outputs // group, frame.inputs // group, *frame.taps))
        for far in np.ndindex(*self.frame.taps):
            product = np.einsum("gom,gmi...->goi...", mine[(..., *far)], other, optimize=True)
            at = tuple(
                replace(p, start=p.start + p.stride * (q.start + q.step * j)).taps(whole)
                for p, q, j, whole in zip(first.frame.axes, self.frame.axes, far, frame.axes, strict=True)
            )
            total[(slice(None), slice(None), slice(None), *at)] += product
        through = _blocks(self.kernel, self.frame.group).reshape(
            self.frame.group, self.frame.outputs // self.frame.group, self.frame.inputs // self.frame.group, -1
        )
        carried = np.einsum("gomk,gm->go", through, first.bias.reshape(self.frame.group, -1)).reshape(-1)
        return Window(frame, total.reshape(frame.shape), self.bias + carried)


def identity(channels: int, rank: int, *, grouped: bool = True) -> Window:
    """A delta kernel."""
    frame = diagonal(channels, rank, grouped=grouped)
    kernel = np.ones(channels) if grouped else np.eye(channels)
    return Window(frame, kernel.reshape(frame.shape), np.zeros(channels))


def mean(channels: int, axes: tuple[Axis, ...]) -> Window:
    """The mean over a window, padding counted in, channel by channel."""
    frame = Frame(channels, channels, channels, axes)
    return Window(frame, np.full(frame.shape, 1 / prod(frame.taps)), np.zeros(channels))


def total(windows: list[Window], frame: Frame) -> Window:
    """The sum of operators, all of which lie within `frame`."""
    kernel, bias = np.zeros(frame.shape), np.zeros(frame.outputs)
    for window in windows:
        kernel += window.spread(frame)
        bias = bias + window.bias
    return Window(frame, kernel, bias)


def _blocks(kernel: Float64s, group: int) -> Float64s:
    """[out, in/group, taps..] as [group, out/group, in/group, taps..]."""
    return kernel.reshape(group, kernel.shape[0] // group, *kernel.shape[1:])


def _regrouped(kernel: Float64s, group: int, fewer: int) -> Float64s:
    """The same operator in `fewer` blocks, a divisor of `group`: what lay outside a block is zero."""
    if group == fewer:
        return kernel
    outputs, inputs = kernel.shape[0] // group, kernel.shape[1]
    ratio = group // fewer
    wide = np.zeros((fewer, ratio, outputs, ratio, inputs, *kernel.shape[2:]))
    index = np.arange(ratio)
    wide[:, index, :, index] = kernel.reshape(fewer, ratio, outputs, inputs, *kernel.shape[2:]).swapaxes(0, 1)
    return wide.reshape(fewer * ratio * outputs, ratio * inputs, *kernel.shape[2:])
