"""Every operator of the table gives what onnx.reference gives, on float64 inputs, at opsets old and new."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from onnx import defs
from onnx.reference.ops import load_op

from tests.training.reference.models import Array, one_node, ours, theirs
from training.reference.table import OPERATORS

_random = np.random.default_rng(20)


def reals(*shape: int) -> Array:
    return _random.standard_normal(shape)


def positive(*shape: int) -> Array:
    return _random.uniform(0.1, 3.0, shape)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


X = reals(2, 6, 5, 4)  # all sizes distinct
CUBE = reals(4, 4, 4, 4)  # all sizes alike: a wrong axis does not show as a wrong shape
BOOLS = np.array([[True, False, True], [False, False, True]])

BYTES = np.array([[-128, -1, 0, 127], [5, -6, 7, 9], [10, 11, -12, 13]], dtype=np.int8)

Case = tuple[str, list[Any], dict[str, Any]]

CASES: list[Case] = [
    # arithmetic and comparisons
    *[(op, [reals(2, 3, 4), reals(3, 1)], {}) for op in ("Add", "Sub", "Mul", "Div")],
    *[(op, [reals(4, 4), reals(4)], {}) for op in ("Add", "Sub", "Mul", "Div")],
    ("Div", [ints(7, -7, 7, -7, 6), ints(2, 2, -2, -2, 3)], {}),
    ("Pow", [positive(3, 4), reals(4)], {}),
    ("Pow", [reals(3, 4), np.array(2.0)], {}),
    ("Pow", [ints(2, 3, 4), ints(3, 2, 1)], {}),
    *[(op, [reals(2, 3), reals(3), reals(2, 1)], {}) for op in ("Sum", "Min", "Max", "Mean")],
    *[(op, [reals(2, 3), reals(3)], {}) for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")],
    ("Equal", [ints(1, 2, 3), ints(1, 5, 3)], {}),
    *[(op, [BOOLS, BOOLS[::-1].copy()], {}) for op in ("And", "Or", "Xor")],
    ("Not", [BOOLS], {}),
    ("Where", [BOOLS, reals(2, 3), reals(3)], {}),
    *[(op, [reals(3, 5) * 3], {}) for op in ("Neg", "Abs", "Sign", "Exp", "Floor", "Ceil", "Sin", "Cos")],
    *[(op, [reals(3, 5) * 3], {}) for op in ("Tanh", "Erf")],
    ("Round", [np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.49, 2.51])], {}),
    *[(op, [positive(3, 5)], {}) for op in ("Sqrt", "Log", "Reciprocal")],
    ("Sqrt", [reals(3, 5)], {}),
    # activations, with the default and with another attribute
    *[
        (op, [reals(2, 3, 4) * 4], {})
        for op in ("Relu", "LeakyRelu", "Sigmoid", "Softplus", "Softsign", "HardSigmoid", "HardSwish", "Mish", "Elu",
                   "Selu", "Celu", "ThresholdedRelu", "Gelu", "Softmax", "LogSoftmax")
    ],
    ("Swish", [reals(2, 3)], {"alpha": 1.5, "opset": 24}),
    ("Sigmoid", [np.array([-800.0, 0.0, 800.0])], {}),
    ("LeakyRelu", [reals(2, 3)], {"alpha": 0.3}),
    ("HardSigmoid", [reals(2, 3)], {"alpha": 0.25, "beta": 0.4}),
    ("Elu", [reals(2, 3)], {"alpha": 0.7}),
    ("Selu", [reals(2, 3)], {"alpha": 1.5, "gamma": 1.2}),
    ("Celu", [reals(2, 3)], {"alpha": 0.7}),
    ("Gelu", [reals(2, 3)], {"approximate": "tanh"}),
    ("PRelu", [reals(2, 3, 4), positive(3, 1)], {}),
    ("Clip", [reals(3, 4), np.array(-0.5), np.array(0.5)], {}),
    ("Clip", [reals(3, 4), None, np.array(0.5)], {}),
    ("Clip", [reals(3, 4), np.array(-0.5)], {}),
    ("Clip", [reals(3, 4)], {"opset": 6, "min": -0.25, "max": 0.5}),
    ("Softmax", [reals(2, 3, 4)], {"axis": 1}),
    ("Softmax", [np.array([[1e3, 1e3 + 1, -1e3]])], {}),
    ("LogSoftmax", [reals(2, 3, 4)], {"axis": 0}),
    ("Dropout", [reals(2, 3)], {}),
    # linear
    ("MatMul", [reals(3, 4), reals(4, 5)], {}),
    ("MatMul", [reals(2, 1, 3, 4), reals(5, 4, 2)], {}),
    ("MatMul", [reals(4), reals(4, 5)], {}),
    ("Gemm", [reals(3, 4), reals(4, 5)], {}),
    ("Gemm", [reals(4, 3), reals(5, 4), reals(5)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", [reals(3, 3), reals(3, 3), reals(3, 1)], {"transA": 1, "beta": 0.25}),
    ("Gemm", [reals(3, 4), reals(4, 5), reals(3, 5)], {"opset": 7}),
    ("Einsum", [reals(2, 3, 4), reals(4, 5)], {"equation": "b i k, k j -> b i j"}),
    ("BatchNormalization", [X, reals(6), reals(6), reals(6), positive(6)], {}),
    ("BatchNormalization", [CUBE, reals(4), reals(4), reals(4), positive(4)], {"epsilon": 1e-3}),
    ("BatchNormalization", [reals(3, 5), reals(5), reals(5), reals(5), positive(5)], {}),
    (
        "BatchNormalization",
        [X, reals(6), reals(6), reals(6), positive(6)],
        {"training_mode": 1, "momentum": 0.8, "outputs": 3},
    ),
    ("InstanceNormalization", [X, reals(6), reals(6)], {"epsilon": 1e-3}),
    ("GroupNormalization", [X, reals(6), reals(6)], {"num_groups": 3, "opset": 21}),
    ("LayerNormalization", [X, reals(4), reals(4)], {}),
    ("LayerNormalization", [X, reals(5, 4)], {"axis": 2, "outputs": 3}),
    # convolution; the properties over all hyper-parameters are in test_convolution.py
    ("Conv", [reals(2, 4, 7, 6), reals(6, 2, 3, 2), reals(6)], {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1]}),
    ("Conv", [reals(2, 3, 9, 9), reals(4, 3, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", [reals(2, 3, 8, 8), reals(4, 3, 3, 3)], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("Conv", [reals(2, 3, 9), reals(4, 3, 4)], {"auto_pad": "VALID", "dilations": [2]}),
    ("ConvTranspose", [reals(1, 4, 5, 3), reals(4, 3, 3, 2), reals(3)], {"strides": [2, 3], "pads": [1, 0, 0, 1]}),
    # pools
    ("MaxPool", [X], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
    ("MaxPool", [X], {"kernel_shape": [2, 2], "dilations": [2, 1]}),
    ("MaxPool", [reals(1, 2, 7, 7)], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", [reals(2, 3, 9)], {"kernel_shape": [3], "auto_pad": "SAME_UPPER", "strides": [2]}),
    ("MaxPool", [reals(2, 3, 6, 5)], {"kernel_shape": [2, 2], "strides": [2, 1], "outputs": 2}),
    ("AveragePool", [X], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
    ("AveragePool", [X], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1}),
    ("AveragePool", [reals(1, 2, 7, 7)], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("LpPool", [X], {"kernel_shape": [2, 2], "p": 3}),
    ("GlobalAveragePool", [X], {}),
    ("GlobalMaxPool", [X], {}),
    # reductions
    *[
        (op, [positive(2, 3, 4), ints(0, 2)], {"keepdims": keep, "opset": 18})
        for keep in (0, 1)
        for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
                   "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")
    ],
    ("ReduceMean", [X], {"opset": 13, "axes": [2, 3]}),
    ("ReduceSum", [X], {"opset": 11, "axes": [-1], "keepdims": 0}),
    ("ReduceSum", [X], {}),
    ("ReduceSum", [X, np.array([], dtype=np.int64)], {"noop_with_empty_axes": 1}),
    ("ArgMax", [reals(3, 4, 5)], {"axis": 1}),
    ("ArgMax", [np.array([[1.0, 3.0, 3.0]])], {"axis": -1, "keepdims": 0, "select_last_index": 1}),
    ("ArgMin", [reals(3, 4)], {"axis": 0, "keepdims": 0}),
    ("TopK", [reals(3, 5), ints(2)], {"outputs": 2}),
    ("TopK", [reals(3, 5), ints(2)], {"axis": 0, "largest": 0, "outputs": 2}),
    ("CumSum", [reals(3, 5), np.array(1)], {"exclusive": 1, "reverse": 1}),
    # shapes
    ("Identity", [X], {}),
    ("Cast", [reals(3) * 10], {"to": 7}),
    ("Cast", [BOOLS], {"to": 11}),
    ("Cast", [reals(3)], {"to": 9}),
    ("CastLike", [reals(3) * 10, ints(1)], {}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("Shape", [X], {}),
    ("Shape", [X], {"start": 1, "end": -1}),
    ("Size", [X], {}),
    ("Range", [np.array(1.0), np.array(7.0), np.array(2.0)], {}),
    ("Reshape", [X, ints(0, -1, 2)], {}),
    ("Reshape", [reals(0, 3), ints(3, 0)], {"allowzero": 1}),
    ("Transpose", [X], {}),
    ("Transpose", [X], {"perm": [0, 2, 3, 1]}),
    ("Squeeze", [reals(1, 3, 1), ints(0)], {}),
    ("Squeeze", [reals(1, 3, 1)], {}),
    ("Squeeze", [reals(1, 3, 1)], {"opset": 11, "axes": [2]}),
    ("Unsqueeze", [reals(3, 4), ints(0, -1)], {}),
    ("Unsqueeze", [reals(3, 4)], {"opset": 11, "axes": [1]}),
    ("Flatten", [X], {}),
    ("Flatten", [X], {"axis": -1}),
    ("Flatten", [X], {"axis": 0}),
    ("Concat", [reals(2, 3), reals(2, 1), reals(2, 2)], {"axis": 1}),
    ("Split", [reals(2, 7), ints(3, 4)], {"axis": 1, "outputs": 2}),
    ("Split", [reals(7, 2)], {"num_outputs": 3, "outputs": 3}),
    ("Split", [reals(6, 2)], {"opset": 11, "split": [4, 2], "outputs": 2}),
    ("Slice", [X, ints(1, -3), ints(1000, -1), ints(1, 2)], {}),
    ("Slice", [X, ints(-1), ints(-1000), ints(3), ints(-2)], {}),
    ("Slice", [X, ints(4), ints(0), ints(1), ints(-1)], {}),
    ("Slice", [X], {"opset": 9, "starts": [0, 1], "ends": [1, 3], "axes": [0, 2]}),
    ("Gather", [X, np.array([[0, -1], [2, 1]])], {"axis": 1}),
    ("Gather", [X, np.array(3)], {"axis": 2}),
    ("GatherElements", [reals(3, 2), np.array([[0, -1], [2, 1]])], {"axis": 0}),
    ("Pad", [X, ints(0, 0, 1, 2, 0, 0, 3, 0), np.array(1.5)], {}),
    ("Pad", [X, ints(1, 3, 2, 0), None, ints(3, 2)], {}),
    ("Pad", [X, ints(0, 0, 2, 1, 0, 0, 1, 3)], {"mode": "reflect"}),
    ("Pad", [X, ints(0, 0, 2, 1, 0, 0, 1, 3)], {"mode": "edge"}),
    ("Pad", [X, ints(0, 0, 2, 1, 0, 0, 1, 3)], {"mode": "wrap"}),
    ("Pad", [reals(2, 3)], {"opset": 2, "pads": [0, 1, 2, 0], "value": 3.0}),
    ("Expand", [reals(3, 1), ints(2, 1, 4)], {}),
    ("Tile", [reals(2, 3), ints(2, 3)], {}),
    ("DepthToSpace", [reals(1, 8, 2, 3)], {"blocksize": 2}),
    ("DepthToSpace", [reals(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [reals(1, 2, 4, 6)], {"blocksize": 2}),
    # resize: each coordinate mapping with each interpolation, up and down
    *[
        (
            "Resize",
            [reals(1, 2, 5, 4), None, np.array(scales)],
            {"coordinate_transformation_mode": mapping, "mode": mode},
        )
        for mapping in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
        for mode in ("nearest", "linear", "cubic")
        for scales in ([1.0, 1.0, 2.0, 1.5], [1.0, 1.0, 0.6, 0.5])
    ],
    *[
        ("Resize", [reals(1, 1, 6, 5), None, None, ints(1, 1, 9, 4)], {"nearest_mode": nearest})
        for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ],
    ("Resize", [reals(1, 1, 6, 5), None, None, ints(9, 4)], {"mode": "cubic", "exclude_outside": 1, "axes": [2, 3]}),
    ("Resize", [reals(1, 1, 6, 5), None, None, ints(1, 1, 3, 4)], {"mode": "linear", "antialias": 1}),
    # quantization; onnx.reference knows these versions only
    ("DequantizeLinear", [BYTES, np.array(0.25)], {"opset": 19}),
    ("DequantizeLinear", [BYTES, np.array(0.25), np.array(3, dtype=np.int8)], {"opset": 19}),
    ("DequantizeLinear", [BYTES, positive(4), BYTES[0]], {"opset": 19, "axis": -1}),
    ("DequantizeLinear", [BYTES, positive(3, 2), BYTES[:, :2]], {"opset": 21, "axis": 1, "block_size": 2}),
    ("QuantizeLinear", [reals(3, 4) * 9, np.array(0.05)], {"opset": 19}),
    ("QuantizeLinear", [reals(3, 4) * 9, np.array(0.05), np.array(-7, dtype=np.int8)], {"opset": 19}),
    ("QuantizeLinear", [reals(3, 4), positive(3), np.arange(3, dtype=np.uint8)], {"opset": 19, "axis": 0}),
    ("QuantizeLinear", [np.array([0.5, 1.5, 2.5, -0.5, 1e9, -1e9]), np.array(1.0)], {"opset": 19}),
]  # fmt: skip


# onnx.reference computes these, or parts of them, in float32; test_against_torch.py compares them in float64.
ROUNDED_BY_ONNX_REFERENCE = {
    "Erf", "Gelu", "HardSigmoid", "HardSwish", "Selu", "Mish", "Resize", "GroupNormalization",
}  # fmt: skip


def _id(case: Case) -> str:
    kind, inputs, attributes = case
    shapes = "-".join("none" if a is None else "x".join(map(str, a.shape)) or "scalar" for a in inputs)
    return f"{kind}-{shapes}-{','.join(f'{k}={v}' for k, v in attributes.items())}"


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_operator_agrees_with_onnx_reference(case: Case) -> None:
    kind, inputs, attributes = case
    model = one_node(kind, inputs, **attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx.reference's own
        expected = theirs(model, inputs)
    for found, wanted in zip(ours(model, inputs), expected, strict=True):
        wanted = np.asarray(wanted)
        assert found.shape == wanted.shape
        assert found.dtype.kind == wanted.dtype.kind
        tolerance = 1e-5 if kind in ROUNDED_BY_ONNX_REFERENCE or wanted.dtype == np.float32 else 1e-10
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


def test_every_operator_of_the_table_is_compared_with_another_implementation() -> None:
    # in test_evaluator.py and two of the others
    elsewhere = {
        "Constant",
        "GRU",
        "GlobalLpPool",
        "GridSample",
        "LSTM",
        "MeanVarianceNormalization",
        "RNN",
        "Scatter",
        "SequenceAt",
        "Upsample",
    }
    assert set(OPERATORS) - {kind for kind, _, _ in CASES} == elsewhere


def test_every_version_of_every_operator_has_a_row_or_a_way_out() -> None:
    """From opset 7 on: the first with a BatchNormalization that torch and ONNX Runtime still write and read."""
    lost = set()
    for schema in defs.get_all_schemas_with_history():
        known = schema.name in OPERATORS or schema.name in ("If", "Loop", "Scan")
        if schema.domain or schema.deprecated or schema.since_version < 7 or known:
            continue
        try:
            load_op("", schema.name, schema.since_version)
        except Exception:  # whatever onnx.reference raises when it has none
            lost.add(schema.name)
    assert lost == {"Multinomial", "MaxRoiPool"}  # random; and a layer that only Faster R-CNN of 2015 has
