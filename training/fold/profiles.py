"""What pays where. A profile says which rewrites are worth making; algebra alone decides which are allowed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Profile(StrEnum):
    """`GENERIC`: as few BatchNormalization as algebra permits. The others: what is not slower there."""

    GENERIC = "generic"
    ORT_CPU = "ort-cpu"
    ORT_CUDA = "ort-cuda"


@dataclass(frozen=True)
class Prices:
    """`clamps`: may a ReLU or Clip become a per-channel Max and Min? `reduces`: is one Add or Mul better than a BN?"""

    clamps: bool
    reduces: bool


# Measured on ONNX Runtime 1.31, CPU, one thread, residual blocks of 64 and 256 channels: a rank-4 BatchNormalization
# with its ReLU is one depthwise convolution in the blocked layout. Beside it an Add costs the block 1 to 3 % and a Max,
# or Max and Min, 2 to 4 %, because they leave that layout; a Mul costs the same. At ranks 2 and 3 all are within 3 % of
# each other, or slower than the BatchNormalization. So nothing here is better than it but to be rid of it. CUDA has not
# been measured, and is treated alike.
PRICES = {
    Profile.GENERIC: Prices(clamps=True, reduces=True),
    Profile.ORT_CPU: Prices(clamps=False, reduces=False),
    Profile.ORT_CUDA: Prices(clamps=False, reduces=False),
}
