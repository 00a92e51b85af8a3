"""The vocabulary between operators and solver: what each operator allows about how its tensors are stored.

Every float tensor `v` may be stored under another channelwise affine map, its *gauge*: `v' = scale * v + shift`, one
pair of numbers an entry of some of its axes (its *port*), the same along all others. An operator's rule says which
gauges of its operands and outputs fit together; the solver finds gauges that obey every law and make as many lifted
maps as possible the identity. No rule knows another operator, and the solver knows no operator at all.
A law that claims too little costs a fold, one that claims too much makes a wrong one: in doubt, refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from training.fold.affine import Float64s

Index = NDArray[np.int64]


class Port(NamedTuple):
    """A tensor's place for a gauge: its entries along `axes`, in row-major order.

    `axes`: ascending, not negative; for a convolution's output (1,), for a Linear on [N, T, F] (2,). `reader` is set
    for a constant tensor only, whose every reader may have its own copy under its own gauge.
    """

    value: ir.Value
    axes: tuple[int, ...]
    reader: ir.Node | None = None


@dataclass(frozen=True, eq=False)
class Free:
    """Any gauge: the operator changes its constants to fit. `quiet`: rather not a shift, which costs a new bias."""

    port: Port
    quiet: bool = False


@dataclass(frozen=True, eq=False)
class Pinned:
    """No gauge but the identity; so is whatever a rule refuses. `index`: of these entries alone; None: of all of them.

    The same `index` is in the three laws below.
    """

    port: Port
    reason: str
    index: Index | None = None


@dataclass(frozen=True, eq=False)
class NoShift:
    """Any scale, no shift."""

    port: Port
    reason: str
    index: Index | None = None


@dataclass(frozen=True, eq=False)
class NoScale:
    """Any shift, no scale."""

    port: Port
    reason: str
    index: Index | None = None


@dataclass(frozen=True, eq=False)
class Positive:
    """Scales above zero only. `infinite`: some of the elements are infinities, which no shift moves."""

    port: Port
    reason: str
    infinite: bool = False
    index: Index | None = None


@dataclass(frozen=True, eq=False)
class Equal:
    """Scale and shift of `a[a_index[k]]` and `b[b_index[k]]` are equal, for every k. None: every entry, in order."""

    a: Port
    b: Port
    a_index: Index | None = None
    b_index: Index | None = None


@dataclass(frozen=True, eq=False)
class Term:
    """One summand: entry k of the sum reads entry `index[k]` (None: k) of `port`, times `factor`."""

    port: Port
    factor: float = 1.0
    index: Index | None = None


@dataclass(frozen=True, eq=False)
class Sum:
    """All scales are equal, and the shift of `out` is the sum of `factor * shift` over the terms.

    `holds_shift`: a constant of the operator takes whatever the shifts do not add up to, so that they are all free.
    """

    out: Port
    terms: tuple[Term, ...]
    holds_shift: bool = False


class Stays(Enum):
    """Under which gauges a clamp is still the operator it was."""

    UNMOVED = "the identity"  # Clip: its bounds are two numbers
    UNSHIFTED = "positive scales without shift"  # ReLU: its bounds are 0 and infinity
    UPRIGHT = "positive scales"  # Max, Min with a constant: the constant moves with the gauge


@dataclass(frozen=True, eq=False)
class Clamp:
    """`y` is `x` held between bounds: any gauge, the same on both, if the node may become a per-channel Max and Min.

    `bounds`: the lower and the upper one, each a number or one an entry of `x`; None where an entry has several.
    """

    x: Port
    y: Port
    node: ir.Node
    stays: Stays
    bounds: tuple[Float64s, Float64s] | None = None


@dataclass(frozen=True, eq=False)
class Lift:
    """`y = scale * x + shift`, entry by entry: a map that is gone where y is stored as x is.

    `holds_scale`, `holds_shift`: what the node can still do if it stays (a BatchNormalization both, a Mul the first, an
    Add the second). Where it cannot, that part of the gauges is tied as the map says.
    """

    x: Port
    y: Port
    scale: Float64s
    shift: Float64s
    node: ir.Node
    holds_scale: bool
    holds_shift: bool


Law = Free | Pinned | NoShift | NoScale | Positive | Equal | Sum | Clamp | Lift


def ports(law: Law) -> Iterator[Port]:
    """The ports that `law` speaks of."""
    match law:
        case Free() | Pinned() | NoShift() | NoScale() | Positive():
            yield law.port
        case Equal():
            yield law.a
            yield law.b
        case Sum():
            yield law.out
            yield from (term.port for term in law.terms)
        case Clamp() | Lift():
            yield law.x
            yield law.y


@dataclass(frozen=True, eq=False)
class Gauge:
    """`v' = scale * v + shift`: float64 vectors, one number an entry of `axes`, whose sizes are `sizes`.

    At the two ends of the scale: where it is 0, v' is the constant `shift`. Where it is infinite it is v that is a
    constant, `value`, and what is stored is anything finite: who reads v ignores it, `v = 0 v' + value`.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    scale: Float64s
    shift: Float64s
    value: Float64s | None = None  # 0 where the scale is finite; None where it is so everywhere

    @property
    def unread(self) -> NDArray[np.bool_]:
        """Where is v a constant that nobody reads?"""
        return np.isinf(self.scale)

    @property
    def offset(self) -> Float64s:
        """`b` of `v = v' / scale - b`: `shift / scale`, for scales not 0; of a constant that nobody reads, `-value`."""
        ratio = self.shift / self.scale
        return ratio if self.value is None else np.where(self.unread, -self.value, ratio)

    def spread(self, part: Float64s, rank: int) -> Float64s:
        """`part` (`scale`, `shift`, or a vector like them), shaped to broadcast against a rank-`rank` tensor."""
        shape = [1] * rank
        for axis, size in zip(self.axes, self.sizes, strict=True):
            shape[axis] = size
        return part.reshape(shape)


class Gauges(Protocol):
    """The solution, as a rewrite reads it."""

    def of(self, value: ir.Value | None, reader: ir.Node | None = None) -> Gauge | None:
        """The gauge of a tensor; of a constant, as `reader` reads it. None where it is stored as it was."""
