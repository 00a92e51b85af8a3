"""Arithmetic, comparisons and activations: functions of one element, or of elements that broadcast.

Defaults come from each operator's page, https://onnx.ai/onnx/operators/. Attributes of type float are float32 values in
the file (an alpha of 0.2 is 0.20000000298); they arrive widened, and so does a default, through `f32`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from training.reference.op import Array, Op, OperatorFunction, Result, Unforeseeable


def f32(value: float) -> float:
    """A default as an ONNX file would store it: rounded to float32, then widened."""
    return float(np.float32(value))


def _binary(function: Callable[[Array, Array], Array]) -> OperatorFunction:
    return lambda op, a, b: function(a, _legacy_aligned(op, a, b))


def _legacy_aligned(op: Op, a: Array, b: Array) -> Array:
    """Before opset 7, with `broadcast`, B matched a run of A's axes that starts at `axis` (default: the last ones)."""
    if op.opset >= 7 or not op.get("broadcast", 0) or "axis" not in op.attributes:
        return b
    after = a.ndim - op.get("axis") % a.ndim - b.ndim
    return b.reshape(*b.shape, *(1,) * after)


def _divide(a: Array, b: Array) -> Array:
    """Integer division truncates towards zero (Div page), unlike NumPy's floor."""
    if a.dtype.kind not in "iu":
        return np.true_divide(a, b)
    quotient = np.floor_divide(a, b)
    return np.asarray(quotient + ((quotient < 0) & (quotient * b != a)))


def _folded(function: Callable[[Array, Array], Array]) -> OperatorFunction:
    return lambda _, *xs: functools.reduce(function, xs)


def clip(op: Op, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """Bounds are attributes before opset 11, inputs after; if min > max the page says max wins, as in NumPy."""
    low = op.get("min", None) if low is None else low
    high = op.get("max", None) if high is None else high
    y = x if low is None else np.maximum(x, low)
    return y if high is None else np.minimum(y, high)


def prelu(op: Op, x: Array, slope: Array) -> Array:
    """Slope broadcasts to X; before opset 7 a vector meant the channel axis."""
    if op.opset < 7 and slope.ndim == 1 and slope.size > 1:
        slope = slope.reshape(-1, *(1,) * (x.ndim - 2))
    return np.where(x < 0, slope * x, x)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow for large negative x."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


_erf_one_by_one = np.frompyfunc(math.erf, 1, 1)


def erf(x: Array) -> Array:
    """NumPy has no erf; the standard library's is correct to an ulp, and called once an element."""
    return np.asarray(_erf_one_by_one(x), dtype=np.float64).reshape(x.shape)


def gelu(op: Op, x: Array) -> Array:
    """Exact (erf), or with `approximate="tanh"`."""
    if op.get("approximate", "none") == "tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


def elu(op: Op, x: Array) -> Array:
    """`alpha * (exp(x) - 1)` below zero."""
    return np.where(x < 0, op.get("alpha", 1.0) * np.expm1(np.minimum(x, 0.0)), x)


def selu(op: Op, x: Array) -> Array:
    """Defaults of version 6 on, which the page gives to float32."""
    alpha, gamma = op.get("alpha", f32(1.67326319217681884765625)), op.get("gamma", f32(1.05070102214813232421875))
    return np.asarray(gamma * np.where(x < 0, alpha * np.expm1(np.minimum(x, 0.0)), x))


def _over_axis(op: Op, x: Array, function: Callable[[Array, int], Array]) -> Array:
    """Softmax family: before opset 13 everything from `axis` (default 1) on was one flattened axis."""
    if op.opset >= 13:
        return function(x, op.get("axis", -1))
    axis = op.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return function(x.reshape(math.prod(x.shape[:axis]), -1), -1).reshape(x.shape)


def _softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def _log_softmax(x: Array, axis: int) -> Array:
    shifted = x - x.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


def dropout(op: Op, x: Array, ratio: Array | None = None, training: Array | None = None) -> Result:
    """The identity at inference. In training mode it draws random numbers, which no oracle can foresee."""
    in_training = training is not None and bool(training) if op.opset >= 7 else not op.get("is_test", 0)
    rate = float(ratio) if ratio is not None else op.get("ratio", 0.5)
    if in_training and rate > 0:
        raise Unforeseeable("in training mode its result is random, so that there is nothing to compare with")
    return x, np.ones(x.shape, dtype=bool)


def _unary(function: Callable[[Array], Array]) -> OperatorFunction:
    return lambda _, x: function(x)


def _log1p_exp(x: Array) -> Array:
    return np.logaddexp(x, 0.0)


ELEMENTWISE: dict[str, OperatorFunction] = {
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _binary(_divide),
    # The result has the type of the base; a negative integer exponent is not defined for integers.
    "Pow": lambda op, a, b: np.power(a.astype(np.float64), _legacy_aligned(op, a, b)).astype(a.dtype),
    "Sum": _folded(np.add),
    "Min": _folded(np.minimum),
    "Max": _folded(np.maximum),
    "Mean": lambda _, *xs: functools.reduce(np.add, xs) / len(xs),
    "Equal": _binary(np.equal),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "And": _binary(np.logical_and),
    "Or": _binary(np.logical_or),
    "Xor": _binary(np.logical_xor),
    "Not": _unary(np.logical_not),
    "Where": lambda _, condition, a, b: np.where(condition, a, b),
    "Neg": _unary(np.negative),
    "Abs": _unary(np.abs),
    "Sign": _unary(np.sign),
    "Exp": _unary(np.exp),
    "Log": _unary(np.log),
    "Sqrt": _unary(np.sqrt),
    "Reciprocal": _unary(np.reciprocal),
    "Floor": _unary(np.floor),
    "Ceil": _unary(np.ceil),
    "Round": _unary(np.rint),  # halves to even, as the page says
    "Sin": _unary(np.sin),
    "Cos": _unary(np.cos),
    "Tanh": _unary(np.tanh),
    "Erf": _unary(erf),
    "Sigmoid": _unary(sigmoid),
    "Softplus": _unary(_log1p_exp),
    "Softsign": _unary(lambda x: x / (1.0 + np.abs(x))),
    "Mish": _unary(lambda x: x * np.tanh(_log1p_exp(x))),
    "Swish": lambda op, x: x * sigmoid(op.get("alpha", 1.0) * x),
    "Relu": _unary(lambda x: np.maximum(x, 0)),
    "LeakyRelu": lambda op, x: np.where(x < 0, op.get("alpha", f32(0.01)) * x, x),
    "ThresholdedRelu": lambda op, x: np.where(x > op.get("alpha", 1.0), x, 0.0),
    "PRelu": prelu,
    "Elu": elu,
    "Selu": selu,
    "Celu": lambda op, x: np.maximum(x, 0) + op.get("alpha", 1.0) * np.expm1(np.minimum(x, 0) / op.get("alpha", 1.0)),
    "Clip": clip,
    "HardSigmoid": lambda op, x: np.clip(op.get("alpha", f32(0.2)) * x + op.get("beta", 0.5), 0.0, 1.0),
    "HardSwish": _unary(lambda x: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0)),
    "Gelu": gelu,
    "Softmax": lambda op, x: _over_axis(op, x, _softmax),
    "LogSoftmax": lambda op, x: _over_axis(op, x, _log_softmax),
    "Dropout": dropout,
}
