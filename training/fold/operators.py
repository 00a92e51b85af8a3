"""The tables: every operator that says something about gauges, and every one that can be rewritten for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from training.fold import lift, linear
from training.fold.carriers import activations, gates, junctions, pooling, reductions, resizing, shaping
from training.fold.edits import Edit
from training.fold.known import Known, Rule
from training.fold.laws import Gauges
from training.fold.refusal import Refusal

Rewrite = Callable[[ir.Node, Gauges, Known], tuple[Edit, ...] | Refusal]

RULES: Mapping[str, Rule] = {
    **shaping.RULES,
    **pooling.RULES,
    **reductions.RULES,
    **resizing.RULES,
    **activations.RULES,
    **gates.RULES,
    **junctions.RULES,
    **linear.RULES,
    **lift.RULES,
}

REWRITES: Mapping[str, Rewrite] = {**activations.REWRITES, **linear.REWRITES, **lift.REWRITES}
