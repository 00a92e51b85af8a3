"""Every version of the operators that folding moves maps through: an old node gives what its newest form gives.

The newest forms are compared with onnx.reference and torch in the files beside this one. What an old version cannot say
in a newer one is compared with NumPy here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.training.reference.models import Array, one_node, ours
from training.reference.table import OPERATORS

_random = np.random.default_rng(30)


def reals(*shape: int) -> Array:
    return _random.standard_normal(shape)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


X = reals(2, 6, 5, 4)
CUBE = reals(4, 4, 4, 4)  # all sizes alike: a wrong axis does not show as a wrong shape
ROWS = reals(3, 4)
POSITIVE = np.abs(X) + 0.1
VECTOR = POSITIVE[0, :, 0, 0]
KERNEL, KERNEL_T = reals(4, 3, 2, 3), reals(6, 2, 2, 3)
SCALES = np.array([1.0, 1.0, 1.6, 0.75])

Form = tuple[int, list[Any], dict[str, Any]]


def form(opset: int, *inputs: Any, **attributes: Any) -> Form:
    return opset, list(inputs), attributes


REDUCTIONS = [name for name in sorted(OPERATORS) if name.startswith("Reduce")]

# operator -> its forms, oldest first, which all compute the same
SAME: list[tuple[str, list[Form]]] = [
    # broadcasting was unidirectional and asked for before opset 7
    *[
        (op, [
            form(1, X, POSITIVE[0, :, 0, 0], broadcast=1, axis=1),
            form(6, X, POSITIVE[0, :, 0, 0], broadcast=1, axis=-3),
            form(7, X, POSITIVE[0, :, :1, :1]),
            form(14, X, POSITIVE[0, :, :1, :1])])
        for op in ("Add", "Sub", "Mul", "Div")
    ],
    *[
        (op, [form(1, X, X[0, 0], broadcast=1), form(6, X, X[0, 0], broadcast=1), form(7, X, X[0, 0])])
        for op in ("Add", "Sub", "Mul", "Div")
    ],
    *[
        (op, [form(v, X, -X, X * X) for v in (1, 6, 8, 13)])
        for op in ("Max", "Min", "Sum", "Mean")
    ],
    *[(op, [form(v, X[0]) for v in (1, 6, 13)]) for op in ("Abs", "Exp", "Neg", "Sigmoid", "Tanh", "Floor", "Ceil")],
    ("Relu", [form(v, X) for v in (1, 6, 13, 14)]),
    ("LeakyRelu", [form(v, X, alpha=0.3) for v in (1, 6, 16)]),
    ("LeakyRelu", [form(v, X) for v in (1, 6, 16)]),
    ("Elu", [form(v, X, alpha=0.3) for v in (1, 6, 22)]),
    ("HardSigmoid", [form(v, X, alpha=0.3, beta=0.4) for v in (1, 6, 22)]),
    ("PRelu", [
        form(1, X, VECTOR), form(6, X, VECTOR), form(7, X, VECTOR.reshape(6, 1, 1)),
        form(9, X, VECTOR.reshape(6, 1, 1)), form(16, X, VECTOR.reshape(1, 6, 1, 1))]),
    ("PRelu", [form(1, X, np.array([0.3])), form(6, X, np.array([0.3])), form(7, X, np.array([0.3]))]),
    ("Clip", [
        form(1, X, min=-0.5, max=0.25), form(6, X, min=-0.5, max=0.25),
        *[form(v, X, np.array(-0.5), np.array(0.25)) for v in (11, 12, 13)]]),
    ("Clip", [form(6, X, max=0.25), form(11, X, None, np.array(0.25)), form(13, X, None, np.array(0.25))]),
    ("Clip", [form(6, X, min=-0.5), form(11, X, np.array(-0.5)), form(13, X, np.array(-0.5), None)]),
    ("Dropout", [
        form(1, X, is_test=1), form(6, X, is_test=1, ratio=0.25), form(7, X), form(10, X, ratio=0.9),
        form(12, X), form(13, X, np.array(0.5)), form(22, X, np.array(0.5), np.array(False))]),
    ("Identity", [form(v, X) for v in (1, 13, 14, 16, 19, 21)]),
    ("Cast", [form(1, X, to="FLOAT"), form(6, X, to=1), form(9, X, to=1), form(13, X, to=1), form(19, X, to=1)]),
    ("Cast", [form(1, X, to="INT32"), form(6, X, to=6), form(19, X, to=6)]),
    ("CastLike", [form(v, X, ints(1)) for v in (15, 19, 21)]),
    ("Where", [form(v, X > 0, X, -X) for v in (9, 16)]),
    ("Softmax", [form(1, X, axis=3), form(11, X, axis=-1), form(13, X)]),
    ("Gemm", [
        form(1, ROWS, ROWS.T, ROWS[0, :3], broadcast=1, alpha=0.5),
        form(6, ROWS, ROWS.T, ROWS[0, :3], broadcast=1, alpha=0.5),
        form(7, ROWS, ROWS.T, ROWS[0, :3], alpha=0.5), form(13, ROWS, ROWS, ROWS[0, :3], alpha=0.5, transB=1)]),
    ("Gemm", [form(7, ROWS, ROWS.T, np.zeros(1)), form(11, ROWS, ROWS.T), form(13, ROWS, ROWS.T)]),
    ("Reshape", [form(1, X, shape=[0, -1, 4]), form(5, X, ints(0, -1, 4)), form(14, X, ints(2, 30, 4), allowzero=1)]),
    ("Flatten", [form(1, X, axis=2), form(9, X, axis=2), form(11, X, axis=-2), form(13, X, axis=2)]),
    ("Transpose", [form(1, X, perm=[0, 2, 3, 1]), form(13, X, perm=[0, 2, 3, 1])]),
    ("Squeeze", [form(1, X[:1, :, :1], axes=[0, 2]), form(11, X[:1, :, :1], axes=[-4, 2]),
        form(13, X[:1, :, :1], ints(0, 2))]),
    ("Unsqueeze", [form(1, X, axes=[0, 3]), form(11, X, axes=[-6, 3]), form(13, X, ints(0, 3)),
        form(21, X, ints(3, 0))]),
    ("Concat", [form(1, X, X), form(4, X, X, axis=1), form(11, X, X, axis=-3), form(13, X, X, axis=1)]),
    ("Split", [
        form(1, X, ints(4, 2), axis=1, outputs=2), form(2, X, split=[4, 2], axis=1, outputs=2),
        form(11, X, split=[4, 2], axis=-3, outputs=2),
        form(13, X, ints(4, 2), axis=1, outputs=2), form(18, X, ints(4, 2), axis=1, outputs=2)]),
    ("Split", [
        form(2, X, axis=1, outputs=3), form(11, X, axis=1, outputs=3), form(13, X, axis=1, outputs=3),
        form(18, X, axis=1, num_outputs=3, outputs=3), form(18, X, ints(2, 2, 2), axis=1, outputs=3)]),
    ("Slice", [
        form(1, X, starts=[1, -3], ends=[1000, -1], axes=[1, 2]), form(10, X, ints(1, -3), ints(1000, -1), ints(1, 2)),
        form(11, X, ints(1, -3), ints(1000, -1), ints(-3, -2)), form(13, X, ints(1, -3), ints(1000, -1), ints(1, 2),
        ints(1, 1))]),
    ("Slice", [form(1, X, starts=[0, 1], ends=[1, 3]), form(10, X, ints(0, 1), ints(1, 3)), form(13, X, ints(0, 1),
        ints(1, 3))]),
    ("Gather", [form(1, X, ints(3, 0), axis=1), form(11, X, ints(-3, 0), axis=-3), form(13, X, ints(3, 0), axis=1)]),
    ("Tile", [form(1, X, np.array(3), np.array(1)), form(6, X, ints(1, 3, 1, 1)), form(13, X, ints(1, 3, 1, 1))]),
    ("Expand", [form(8, X[:, :, :1], ints(3, 1)), form(13, X[:, :, :1], ints(2, 6, 3, 4))]),
    ("DepthToSpace", [form(1, CUBE, blocksize=2), form(11, CUBE, blocksize=2, mode="DCR"),
        form(13, CUBE, blocksize=2)]),
    ("SpaceToDepth", [form(1, CUBE, blocksize=2), form(13, CUBE, blocksize=2)]),
    *[
        ("Pad", [
            form(1, X, paddings=[0, 0, 1, 2, 0, 0, 3, 0], mode=mode),
            form(2, X, pads=[0, 0, 1, 2, 0, 0, 3, 0], mode=mode),
            *[form(v, X, ints(0, 0, 1, 2, 0, 0, 3, 0), mode=mode) for v in (11, 13, 18, 19)],
            form(18, X, ints(1, 2, 3, 0), None, ints(2, -1), mode=mode)])
        for mode in ("constant", "reflect", "edge")
    ],
    ("Pad", [form(19, X, ints(0, 0, 1, 2, 0, 0, 3, 0), mode="wrap"), form(21, X, ints(2, 1, 0, 3), None, ints(3, 2),
        mode="wrap")]),
    ("Pad", [
        form(2, X, pads=[0, -1, 1, 0, 1, 0, 0, -2], value=2.5),
        *[form(v, X, ints(0, -1, 1, 0, 1, 0, 0, -2), np.array(2.5)) for v in (11, 13, 19)]]),
    ("TopK", [
        form(1, X, k=2, axis=1, outputs=2), form(10, X, ints(2), axis=1, outputs=2), form(11, X, ints(2),
        axis=-3, outputs=2),
        form(24, X, ints(2), axis=1, largest=1, sorted=1, outputs=2)]),
    *[
        (op, [
            form(1, POSITIVE, axes=[1, 3]), form(11, POSITIVE, axes=[-3, -1]),
            *([form(13, POSITIVE, ints(1, 3))] if op == "ReduceSum" else [form(13, POSITIVE, axes=[1, 3])]),
            form(18, POSITIVE, ints(1, 3)), form(18, POSITIVE, ints(-1, 1))])
        for op in REDUCTIONS
    ],
    *[(op, [form(1, POSITIVE, keepdims=0), form(13, POSITIVE, keepdims=0),
        form(18, POSITIVE, keepdims=0)]) for op in REDUCTIONS],
    ("AveragePool", [
        form(v, X, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]) for v in (1, 7, 10, 11, 19, 22)]),
    ("AveragePool", [
        form(v, X, kernel_shape=[3, 2], pads=[1, 0, 1, 1], count_include_pad=1) for v in (7, 10, 11, 19, 22)]),
    ("AveragePool", [form(v, X, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1) for v in (10, 11, 19, 22)]),
    ("AveragePool", [form(v, X, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER") for v in (1, 7, 10, 11,
        19)]),
    ("MaxPool", [form(v, X, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]) for v in (1, 8, 10, 11, 12, 22)]),
    ("MaxPool", [form(v, X, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1) for v in (10, 11, 12, 22)]),
    ("MaxPool", [form(v, X, kernel_shape=[2, 2], dilations=[2, 1], outputs=2) for v in (10, 11, 12, 22)]),
    ("LpPool", [form(1, X, kernel_shape=[2, 2], p=3.0),
        *[form(v, X, kernel_shape=[2, 2], p=3) for v in (2, 11, 18, 22)]]),
    ("GlobalLpPool", [form(1, X, p=3.0), form(2, X, p=3), form(22, X, p=3)]),
    ("Upsample", [
        form(1, X, height_scale=2.0, width_scale=3.0), form(7, X, scales=[1.0, 1.0, 2.0, 3.0]),
        form(9, X, np.array([1.0, 1.0, 2.0, 3.0]))]),
    ("Upsample", [
        form(1, X, height_scale=2.0, width_scale=1.5, mode="bilinear"),
        form(7, X, scales=[1.0, 1.0, 2.0, 1.5], mode="linear"),
        form(9, X, np.array([1.0, 1.0, 2.0, 1.5]), mode="linear")]),
    *[
        ("Resize", [
            form(10, X, SCALES, mode=mode),
            *[form(v, X, None, SCALES, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor")
              for v in (11, 13, 18, 19)],
            form(18, X, None, SCALES[2:], axes=[2, 3], mode=mode, coordinate_transformation_mode="asymmetric",
            nearest_mode="floor")])
        for mode in ("nearest", "linear")
    ],
    *[
        ("Resize", [
            *[form(v, X, np.zeros(0), np.array([1.0, 1.0, 1.6, 0.75]), mode=mode) for v in (11, 13, 18, 19)],
            form(13, X, None, None, ints(2, 6, 8, 3), mode=mode)])
        for mode in ("nearest", "linear", "cubic")
    ],
    ("Conv", [form(v, X, KERNEL, group=2, pads=[1, 0, 1, 1], strides=[1, 2]) for v in (1, 11, 22)]),
    ("ConvTranspose", [form(v, X, KERNEL_T, group=2, pads=[1, 0, 1, 1], strides=[1, 2]) for v in (1, 11, 22)]),
    ("BatchNormalization", [
        *[form(v, X, VECTOR, VECTOR, VECTOR, VECTOR, is_test=1) for v in (1, 6)],
        *[form(v, X, VECTOR, VECTOR, VECTOR, VECTOR) for v in (7, 9, 14, 15)]]),
    ("DequantizeLinear", [
        form(v, np.array([[-3, 5]], np.int8), np.array(0.5), np.array(2, np.int8)) for v in (10, 13, 19, 21, 23)]),
    ("DequantizeLinear", [
        form(v, np.array([[-3, 5], [7, 9]], np.int8), np.array([0.5, 0.25]), axis=0) for v in (13, 19, 21, 23)]),
    ("Einsum", [form(12, ROWS, ROWS, equation="ij,kj->ik")]),
]  # fmt: skip


def _id(case: tuple[str, list[Form]]) -> str:
    kind, forms = case
    attributes = {name: value for _, _, given in forms for name, value in given.items() if name != "outputs"}
    return (
        f"{kind}-{','.join(str(opset) for opset, _, _ in forms)}-{','.join(f'{k}={v}' for k, v in attributes.items())}"
    )


@pytest.mark.parametrize("case", SAME, ids=_id)
def test_versions_that_say_the_same_compute_the_same(case: tuple[str, list[Form]]) -> None:
    kind, forms = case
    answers = [ours(one_node(kind, inputs, opset=opset, **attributes), inputs) for opset, inputs, attributes in forms]
    for answer in answers:
        assert len(answer) == len(answers[-1])
        for found, wanted in zip(answer, answers[-1], strict=True):
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)


def test_the_versions_are_of_operators_that_have_a_row() -> None:
    """A node that goes to onnx.reference would be compared with itself."""
    assert {kind for kind, _ in SAME} <= set(OPERATORS)


def test_what_only_the_first_slice_backwards_could_mean() -> None:
    """A start before the first element is the first element, in either direction."""
    x = np.arange(5.0)
    inputs = [x, ints(-100), ints(-100), ints(0), ints(-1)]

    assert ours(one_node("Slice", inputs, opset=13), inputs)[0].tolist() == [0.0]


@pytest.mark.parametrize("opset", [19, 22])
@pytest.mark.parametrize("with_pads", [0, 1])
def test_dilated_averages_are_those_of_the_pixels_a_window_has(opset: int, with_pads: int) -> None:
    """torch has none: window by window, in plain Python."""
    x = reals(1, 2, 7, 6)
    model = one_node(
        "AveragePool", [x], opset=opset, kernel_shape=[2, 3], dilations=[3, 2], pads=[1, 0, 1, 2],
        strides=[2, 1], count_include_pad=with_pads,
    )  # fmt: skip
    grown = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 2)))
    real = np.pad(np.ones_like(x), ((0, 0), (0, 0), (1, 1), (0, 2)), constant_values=float(with_pads))
    expected = np.empty((1, 2, 3, 4))
    for row, column in np.ndindex(3, 4):
        window = (..., slice(2 * row, 2 * row + 4, 3), slice(column, column + 5, 2))
        expected[..., row, column] = grown[window].sum((-1, -2)) / real[window].sum((-1, -2))

    np.testing.assert_allclose(ours(model, [x])[0], expected, rtol=1e-14)
