"""What stands between a front and a body: the kind of tensor that one gives and the other takes. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Features:
    """What a front gives its body, without the rows.

    image: float32 (channels, height, width). clip: float32 (channels, frames, height, width). row: float32 (features,).
    tokens: int64 (length,), numbers below `vocabulary`; 0 is padding.
    """

    kind: Literal["image", "clip", "row", "tokens"]
    shape: tuple[int, ...]
    vocabulary: int = 0
