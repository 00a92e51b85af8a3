"""Which normalisation a network has, and how: the flags that every family takes. Values only; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Norms:
    """norm: bn, none, frozen, renorm, sync, ghost:K, gn:G (or as many groups below G as divide the channels) or ln.
    eps, momentum: torch's; momentum None averages all batches alike. affine: gamma and beta are learned; bn_bias: beta
    is. conv_bias: of layers that a normalisation follows, which would subtract it again; others always have one.
    bn_order: post (layer, norm, activation) or pre (norm, activation, layer), where a family knows both.
    """

    norm: str = "bn"
    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: bool = True
    bn_bias: bool = True
    conv_bias: bool = False
    bn_order: Literal["post", "pre"] = "post"


DEFAULT = Norms()
