"""BatchNormalization with chosen numbers, in text and as constants; a graph's problem without the driver around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.training.fold.models import Array
from training.fold.driver import known_of
from training.fold.known import Known
from training.fold.operators import RULES
from training.fold.problem import Problem, pose
from training.fold.reach import Reach, Reached


def bn(name: str, x: str, y: str) -> str:
    """`y = name (x)` in ONNX text; its parameters are `numbers(name)`."""
    return f"[{name}] {y} = BatchNormalization <epsilon = 0.0> ({x}, {name}_g, {name}_b, {name}_m, {name}_v)"


def numbers(
    name: str,
    gamma: Sequence[float] = (1.5, 2.0, 0.5),
    beta: Sequence[float] = (0.5, -1.0, 2.0),
    mean: Sequence[float] = (0.1, 0.2, -0.3),
    variance: Sequence[float] | None = None,
    dtype: Any = np.float64,
) -> dict[str, Array]:
    """The four vectors of `bn(name, ...)`; variance 1 unless given, so that gamma is the scale."""
    parts = {"g": gamma, "b": beta, "m": mean, "v": variance or [1.0] * len(gamma)}
    return {f"{name}_{key}": np.array(part, dtype=dtype) for key, part in parts.items()}


def reached_from(model: ir.Model, starts: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[Reached, Known]:
    """All that is said of the outputs of the named nodes, stored along these axes."""
    reached = Reached()
    known = known_of(model, model.opset_imports[""], reached)
    walk = Reach(RULES, known, reached)
    nodes = {node.name: node for node in model.graph}
    for name, axes in starts:
        assert walk.start(nodes[name], nodes[name].outputs[0], axes) is None
    walk.run()
    return reached, known


def posed(model: ir.Model) -> tuple[Problem, Known]:
    """The problem that the BatchNormalization of the main graph pose."""
    starts = [(node.name or "", (1,)) for node in model.graph if node.op_type == "BatchNormalization"]
    reached, known = reached_from(model, starts)
    return pose(reached, known), known
