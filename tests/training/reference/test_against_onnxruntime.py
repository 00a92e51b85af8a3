"""What the operator pages leave open or onnx.reference gets wrong, as ONNX Runtime decides it (in float32)."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.training.reference.models import Array, feeds, one_node, ours

_random = np.random.default_rng(31)


def floats(*shape: int) -> Array:
    return _random.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


INT8 = np.array([[-128, 127], [5, -6], [0, 9]], dtype=np.int8)

CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    *[
        ("ConvTranspose", [floats(1, 2, 4, 4), floats(2, 3, 3, 3)], {"strides": [3, 2], "auto_pad": auto, **extra})
        for auto in ("NOTSET", "SAME_UPPER", "SAME_LOWER")
        for extra in ({"output_shape": [10, 8]}, {"output_shape": [11, 9]}, {}, {"output_padding": [2, 1]})
    ],
    *[
        (
            "AveragePool",
            [floats(1, 2, 7, 8)],
            {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 1, 1], "ceil_mode": c, "count_include_pad": p,
             "dilations": [d, 1], "opset": 19},
        )
        for c, p, d in product((0, 1), (0, 1), (1, 2))
    ],
    *[
        (
            "MaxPool",
            [floats(1, 2, 7, 8)],
            {"kernel_shape": [3, 2], "strides": [2, 3], "ceil_mode": c, "dilations": [d, 1]},
        )
        for c, d in product((0, 1), (1, 2))
    ],
    (
        "MaxPool",
        [floats(2, 2, 5, 4)],
        {"kernel_shape": [2, 3], "pads": [1, 1, 0, 1], "outputs": 2, "storage_order": 1},
    ),
    *[
        ("Conv", [floats(1, 2, size, 10), floats(4, 2, 3, 2)], {"auto_pad": auto, "strides": [2, 1]})
        for size in (8, 9)
        for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ],
    *[
        (
            "Resize",
            [floats(1, 2, 5, 4), None, np.array([1, 1, 2, 1.6], dtype=np.float32)],
            {"coordinate_transformation_mode": mapping, "mode": mode, "opset": 19},
        )
        for mapping in ("align_corners", "half_pixel", "half_pixel_symmetric", "asymmetric")
        for mode in ("nearest", "linear", "cubic")
    ],
    ("Upsample", [floats(1, 2, 3, 4), np.array([1, 1, 2, 3], dtype=np.float32)], {"opset": 9}),
    ("Upsample", [floats(1, 2, 3, 4), np.array([1, 1, 2, 3], dtype=np.float32)], {"opset": 9, "mode": "linear"}),
    ("Pad", [floats(3, 4, 5), ints(1, -1, 0, 2, 0, -3)], {}),
    ("Pad", [floats(3, 4, 5), ints(-1, 2, 0, 0, -1, 2)], {"mode": "edge"}),
    ("GatherElements", [floats(3, 4), np.array([[0, -1], [2, 1]])], {"axis": 0}),
    ("Scatter", [floats(3, 4), np.array([[0, 2], [1, 0]]), floats(2, 2)], {"opset": 9, "axis": 1}),
    *[
        ("DequantizeLinear", [INT8, *parameters], {"opset": opset, **where})
        for opset, parameters, where in (
            (10, [np.array(0.25, dtype=np.float32), np.array(3, dtype=np.int8)], {}),
            (13, [np.array(0.25, dtype=np.float32)], {}),
            (13, [np.array([0.5, 2.0, 3.0], dtype=np.float32), np.array([0, 1, -2], dtype=np.int8)], {"axis": 0}),
            (17, [np.array([0.5, 2.0], dtype=np.float32), np.array([0, 1], dtype=np.int8)], {}),
        )
    ],
    ("MeanVarianceNormalization", [floats(2, 3, 4, 5)], {"opset": 9}),
    ("MeanVarianceNormalization", [floats(2, 3, 4, 5)], {"axes": [1, 2, 3]}),
    ("GlobalLpPool", [floats(2, 3, 4, 5)], {"p": 2}),
    ("Softmax", [floats(2, 3, 4)], {"opset": 11}),
    ("LogSoftmax", [floats(2, 3, 4)], {"opset": 11, "axis": 2}),
    ("BatchNormalization", [floats(2, 3, 4, 5), floats(3), floats(3), floats(3), floats(3) ** 2], {"opset": 9}),
    ("BatchNormalization", [floats(2, 3), floats(3), floats(3), floats(3), floats(3) ** 2], {"opset": 7}),
    ("LSTM", [floats(5, 2, 3), floats(1, 16, 3), floats(1, 16, 4)], {"hidden_size": 4}),  # through the fallback
    ("GRU", [floats(5, 2, 3), floats(1, 12, 3), floats(1, 12, 4)], {"hidden_size": 4}),
]  # fmt: skip


def _id(case: Any) -> str:
    return f"{case[0]}-{','.join(f'{key}={value}' for key, value in case[2].items())}"


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_operator_agrees_with_onnx_runtime(case: tuple[str, list[Any], dict[str, Any]]) -> None:
    kind, inputs, attributes = case
    model = one_node(kind, inputs, **{"opset": 17, **attributes})
    model.ir_version = 8
    for index, output in enumerate(model.graph.output):
        output.type.tensor_type.elem_type = (1, 7)[index]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for found, expected in zip(ours(model, inputs), session.run(None, feeds(inputs)), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=3e-5, atol=3e-6)
