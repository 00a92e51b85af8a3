"""What the proof's tests make their graphs of: nodes and weights by hand, BatchNormalizations mild and hostile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


def model(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, list[Any]],
    outputs: Mapping[str, list[Any] | None],
    weights: Mapping[str, Array],
    *,
    dtype: Any = np.float32,
    opset: int = 17,
    output_dtype: Any = None,
) -> ir.Model:
    """Inputs, outputs and float weights are of type `dtype`; integer weights stay."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    out_kind = kind if output_dtype is None else helper.np_dtype_to_tensor_dtype(np.dtype(output_dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, out_kind, shape) for name, shape in outputs.items()],
        [
            numpy_helper.from_array(array.astype(dtype) if array.dtype.kind == "f" else array, name)
            for name, array in weights.items()
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return ir.serde.deserialize_model(proto)


@dataclass(frozen=True)
class Statistics:
    """A BatchNormalization's parameters, and the scale and shift they come to."""

    gamma: Array
    beta: Array
    mean: Array
    var: Array
    epsilon: float = 1e-5

    @classmethod
    def plausible(cls, channels: int, seed: int = 0) -> Statistics:
        """Signs of both kinds, means that are not zero, variances that are not one. All exact in float16."""
        r = np.random.default_rng(seed)
        sign = np.where(np.arange(channels) % 3 == 1, -1.0, 1.0)
        draws = (sign * r.uniform(0.5, 1.5, channels), r.normal(0, 1, channels), r.normal(0, 1, channels))
        return cls(*(d.astype(np.float16).astype(float) for d in (*draws, r.uniform(0.3, 2, channels))))

    @classmethod
    def hostile(cls, channels: int, seed: int = 0) -> Statistics:
        """Variances from 1e-12 to 1e6, gammas tiny, huge, zero and negative, means up to 1e4 standard deviations."""
        r = np.random.default_rng(seed)
        var = 10.0 ** r.uniform(-12, 6, channels)
        gamma = r.choice([-1.5, 0.0, 1e-8, 1.0, 300.0], channels)
        mean = np.sqrt(var) * 10.0 ** r.uniform(0, 4, channels) * r.choice([-1.0, 1.0], channels)
        draws = (gamma, r.normal(0, 1, channels), mean, var)
        return cls(*(d.astype(np.float32).astype(float) for d in draws))

    @property
    def scale(self) -> Array:
        return self.gamma / np.sqrt(self.var + float(np.float32(self.epsilon)))

    @property
    def shift(self) -> Array:
        return self.beta - self.mean * self.scale

    def weights(self, prefix: str = "") -> dict[str, Array]:
        return {prefix + name: getattr(self, name) for name in ("gamma", "beta", "mean", "var")}


def batch_norm(x: str, y: str, epsilon: float = 1e-5, prefix: str = "") -> onnx.NodeProto:
    names = [prefix + name for name in ("gamma", "beta", "mean", "var")]
    return helper.make_node("BatchNormalization", [x, *names], [y], name=f"bn_{y}", epsilon=epsilon)


def random(seed: int, *shape: int) -> Array:
    """Exact in float16, so that the same numbers serve every type."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float16).astype(float)
