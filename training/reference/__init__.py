"""A float64 evaluator of ONNX graphs in NumPy: the oracle that every folded graph is compared with.

ONNX Runtime's CPU provider has no double Conv, torch is not part of the `fold` extra, and onnx.reference loops over
pixels in Python; this one runs a ResNet-18 in a few seconds. One NumPy function per operator (`table`), one walker
(`evaluator`), and onnx.reference for what has no row (`fallback`). It is an oracle because all arithmetic is done in
float64, about nine digits beyond the float32 graphs it judges, and because its tests compare it with two others.
"""

from training.reference.evaluator import (
    Effort,
    ReadConstant,
    Steering,
    evaluate,
    evaluate_all,
    has_reference,
    widened,
)
from training.reference.fallback import RANDOM, unsupported
from training.reference.op import EvaluationFailed, FloatFormat, UnsupportedOperator, float_format, is_float, widen

__all__ = [
    "RANDOM",
    "Effort",
    "EvaluationFailed",
    "FloatFormat",
    "ReadConstant",
    "Steering",
    "UnsupportedOperator",
    "evaluate",
    "evaluate_all",
    "float_format",
    "has_reference",
    "is_float",
    "unsupported",
    "widen",
    "widened",
]
