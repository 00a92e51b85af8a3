"""What pays where. A profile says which rewrites are worth making; algebra alone decides which are allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import onnx_ir as ir


class Profile(StrEnum):
    """`GENERIC`: as few BatchNormalization as algebra permits. The others: what is known not to be slower there."""

    GENERIC = "generic"
    ORT_CPU = "ort-cpu"
    ORT_CUDA = "ort-cuda"


@dataclass(frozen=True)
class Prices:
    """`clamps`: may a ReLU or Clip become a per-channel Max and Min? `reduces`: is one Add or Mul better than a BN?

    `measured`: what either is beside a BatchNormalization, by the rank of its tensor. `carries_adds`: does an Add cost
    nothing where it reads a BatchNormalization of a ReLU?
    """

    clamps: bool
    reduces: bool
    measured: Mapping[int, str] = field(default_factory=dict)
    carries_adds: bool = False

    def is_better_left(self, node: ir.Node) -> bool:
        """Is this BatchNormalization, with what stands around it, faster than without it?"""
        if not self.carries_adds or node.op_type != "BatchNormalization":
            return False
        before = _producer(node)
        behind = [use.node.op_type for use in node.outputs[0].uses()]
        # As measured: the ReLU is a convolution's.
        return _op_type(before) == "Relu" and _op_type(_producer(before)) == "Conv" and behind == ["Add"]

    def veto(self, rank: int | None) -> str:
        """Why a BatchNormalization on a tensor of this rank stays, no more than was measured. None: it is none."""
        return _UNMEASURED if rank is None else self.measured.get(rank, _UNMEASURED)


def _producer(node: ir.Node | None) -> ir.Node | None:
    """Of a node's first input."""
    value = node.inputs[0] if node is not None and node.inputs else None
    return value.producer() if value is not None else None


def _op_type(node: ir.Node | None) -> str:
    return node.op_type if node is not None else ""


_UNMEASURED = "not measured to be faster"

# Measured on ONNX Runtime 1.31, CPU, one thread, residual blocks of 64 and 256 channels: a rank-4 BatchNormalization
# with its ReLU is one depthwise convolution in the blocked layout. Beside it an Add costs the block 1 to 3 % and a Max,
# or Max and Min, 2 to 4 %, because they leave that layout; a Mul costs the same. At ranks 2 and 3 all are within 3 % of
# each other, or slower than the BatchNormalization. So nothing here is better than it but to be rid of it. CUDA has not
# been measured, and is treated alike.
# The depthwise convolution also takes along an Add behind it, which alone would be a pass over memory of its own: in
# ConvMixer, whose blocks hold ReLU, BatchNormalization, Add, the file without these 32 of 65 is 2 % slower.
_ON_CPU = {2: "not faster", 3: "not faster", 4: "slower"}
PRICES = {
    Profile.GENERIC: Prices(clamps=True, reduces=True),
    Profile.ORT_CPU: Prices(clamps=False, reduces=False, measured=_ON_CPU, carries_adds=True),
    Profile.ORT_CUDA: Prices(clamps=False, reduces=False),
}
