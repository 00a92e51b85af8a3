"""The table from operator to NumPy function: what the evaluator can do by itself. Default domain only."""

from __future__ import annotations

from training.reference.convolution import CONVOLUTION
from training.reference.elementwise import ELEMENTWISE
from training.reference.linear import LINEAR, ROW_BY_ROW
from training.reference.op import OperatorFunction
from training.reference.pooling import POOLING
from training.reference.quantization import QUANTIZATION
from training.reference.recurrent import RECURRENT
from training.reference.reductions import REDUCTIONS
from training.reference.resizing import RESIZING
from training.reference.shaping import SHAPING

__all__ = ["OPERATORS", "ROW_BY_ROW"]

OPERATORS: dict[str, OperatorFunction] = {
    **CONVOLUTION,
    **LINEAR,
    **POOLING,
    **ELEMENTWISE,
    **QUANTIZATION,
    **RECURRENT,
    **REDUCTIONS,
    **RESIZING,
    **SHAPING,
}
