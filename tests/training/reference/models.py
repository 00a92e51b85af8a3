"""Small graphs for the evaluator's tests: one node around given arrays, and the three evaluations of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from training.reference import evaluate

Array = NDArray[Any]


def one_node(
    kind: str, inputs: Sequence[Array | None], *, opset: int = 20, outputs: int = 1, **attributes: Any
) -> onnx.ModelProto:
    """`kind` applied to graph inputs x0, x1, ...; None is an omitted optional input. Outputs are y0, y1, ..."""
    names = ["" if array is None else f"x{i}" for i, array in enumerate(inputs)]
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, inputs, strict=True)
        if array is not None
    ]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(kind, names, results, name="the_node", **attributes)
    graph = helper.make_graph([node], "g", infos, [helper.make_empty_tensor_value_info(name) for name in results])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def feeds(inputs: Sequence[Array | None]) -> dict[str, Array]:
    return {f"x{i}": array for i, array in enumerate(inputs) if array is not None}


def ours(model: onnx.ModelProto, inputs: Sequence[Array | None]) -> list[Array]:
    return list(evaluate(ir.serde.deserialize_model(model), feeds(inputs)).values())


def theirs(model: onnx.ModelProto, inputs: Sequence[Array | None]) -> list[Array]:
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model).run(None, feeds(inputs)))
