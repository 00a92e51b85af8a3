"""Tensors that hold nothing but zeros, whatever their size: `A 0 + 0 = 0`, they are stored under any scale as they are.

What has a known size is a constant like others; this is about those whose size a caller decides, such as what exporters
write for the margin that a temporal shift leaves. Knows which operators make and move zeros, nothing of gauges.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from training.fold.graph import is_standard
from training.fold.known import Known

_MOVES = frozenset(
    {"Cast", "CastLike", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose"}
    | {"Unsqueeze"}
)


def holds_zeros(value: ir.Value, known: Known) -> bool:
    """Is every element zero? Answers are kept in `known.notes`, also for what the value is made of."""
    answers: dict[ir.Value, bool] = known.notes.setdefault(holds_zeros, {})
    if value in answers:
        return answers[value]
    waiting = [value]
    while waiting and value not in answers:
        parts = _made_of(waiting[-1], known)
        answer = all(answers.get(part, True) for part in parts) if isinstance(parts, Sequence) else parts
        fresh = next((part for part in parts if part not in answers), None) if isinstance(parts, Sequence) else None
        if answer and fresh is not None:
            waiting.append(fresh)
        else:
            answers[waiting.pop()] = answer
    return answers[value]


def _made_of(value: ir.Value, known: Known) -> bool | Sequence[ir.Value]:
    """The answer, or the tensors that it depends on: it is zeros if all of them are."""
    numbers, node = known.constant(value), value.producer()
    if numbers is not None:
        return not np.any(numbers)
    if node is None or not is_standard(node):
        return False
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is None or not (fill.is_ref() or np.any(fill.as_tensor().numpy()))
    if node.op_type != "Concat" and node.op_type not in _MOVES:
        return False
    operands = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return [operand for operand in operands if operand is not None]
