"""Builders of small models for the folding tests: graphs in ONNX text, constants in NumPy, hostile statistics.

`build` joins the two; `acceptance_model` is the model of issue 2's acceptance; `with_batchnorm` puts a
BatchNormalization behind any operator.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]

TEXT_TYPES = {
    np.dtype(np.float64): "double",
    np.dtype(np.float32): "float",
    np.dtype(np.float16): "float16",
    np.dtype(ml_dtypes.bfloat16): "bfloat16",
}


def build(graph: str, opset: int = 17, ir_version: int = 8, functions: str = "", **constants: Array) -> ir.Model:
    """A model from ONNX text, `name (inputs) => (outputs) { nodes }`; `constants` become its initializers."""
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "own" : 1]>'
    proto = onnx.parser.parse_model(f"{head}\n{graph}\n{functions}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    return ir.from_proto(proto)


def reload(model: ir.Model) -> ir.Model:
    """As it would be after a trip through a file."""
    return ir.from_proto(onnx.ModelProto.FromString(ir.to_proto(model).SerializeToString()))


def serialized(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def constant(model: ir.Model, name: str) -> Array:
    """The numbers of an initializer of the main graph."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def statistics(rng: np.random.Generator, channels: int, dtype: Any = np.float64) -> dict[str, Array]:
    """Hostile statistics: variances over 18 decades, gammas negative, zero, tiny and large, means of 1e4 deviations.

    Keys g, b, m, v: scale, B, input_mean, input_var.
    """
    variance = 10.0 ** rng.uniform(-12, 6, channels)
    gamma = rng.choice([-1.0, 1.0, 0.0, 1e-8, -1e3], channels, p=[0.4, 0.4, 0.05, 0.05, 0.1])
    gamma = gamma * rng.uniform(0.5, 2, channels)
    mean = rng.normal(size=channels) * np.sqrt(variance) * 10.0 ** rng.uniform(-1, 4, channels)
    beta = rng.normal(size=channels)
    return {name: part.astype(dtype) for name, part in zip("gbmv", (gamma, beta, mean, variance), strict=True)}


def mild_statistics(rng: np.random.Generator, channels: int, dtype: Any = np.float64) -> dict[str, Array]:
    """Statistics as training leaves them: for half precision, where hostile ones overflow by themselves."""
    parts = (
        rng.choice([-1.0, 1.0], channels) * rng.uniform(0.5, 2, channels),
        rng.normal(size=channels),
        rng.normal(size=channels),
        rng.uniform(0.2, 2, channels),
    )
    return {name: part.astype(dtype) for name, part in zip("gbmv", parts, strict=True)}


def affine_of(stats: dict[str, Array], epsilon: float = 1e-5) -> tuple[Array, Array]:
    """The slope and the shift of those statistics, in float64, written down independently of the engine."""
    g, b, m, v = (stats[key].astype(np.float64) for key in "gbmv")
    slope = g / np.sqrt(v + float(np.float32(epsilon)))
    return slope, b - slope * m


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def acceptance_model(rng: np.random.Generator | None = None, dtype: Any = np.float32) -> ir.Model:
    """Issue 2's acceptance: four BatchNormalization, of which all but the third (`training_mode=1`) can be folded.

    bn1 behind ConvTranspose(groups=2), bn2 behind Gemm(alpha=0.5, beta=2), bn3 in training mode with three outputs in
    use, bn4 behind MatMul and Add. Inputs image [2, 4, 5, 6], rows [3, 6].
    """
    rng = rng or rng_of(2)
    kind = TEXT_TYPES[np.dtype(dtype)]
    graph = f"""
    acceptance ({kind}[2,4,5,6] image, {kind}[3,6] rows)
        => ({kind}[2,6,7,8] up, {kind}[3,7] dense, {kind}[3,7] train, {kind}[7] new_mean, {kind}[7] new_var,
            {kind}[3,5] head)
    {{
        [deconv] deconv_out = ConvTranspose <group = 2> (image, deconv_weight, deconv_bias)
        [bn1] up = BatchNormalization (deconv_out, bn1_g, bn1_b, bn1_m, bn1_v)
        [gemm] gemm_out = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (rows, gemm_weight, gemm_bias)
        [bn2] dense = BatchNormalization <epsilon = 0.001> (gemm_out, bn2_g, bn2_b, bn2_m, bn2_v)
        [gemm_t] gemm_t_out = Gemm <transB = 1> (rows, gemm_t_weight)
        [bn3] train, new_mean, new_var = BatchNormalization <training_mode = 1>
            (gemm_t_out, bn3_g, bn3_b, bn3_m, bn3_v)
        [matmul] matmul_out = MatMul (rows, matmul_weight)
        [bias] bias_out = Add (matmul_out, bias_k)
        [bn4] head = BatchNormalization (bias_out, bn4_g, bn4_b, bn4_m, bn4_v)
    }}"""
    draw = lambda *shape: rng.normal(size=shape).astype(dtype)  # noqa: E731
    constants = {
        "deconv_weight": draw(4, 3, 3, 3),
        "deconv_bias": draw(6),
        "gemm_weight": draw(7, 6),
        "gemm_bias": draw(7),
        "gemm_t_weight": draw(7, 6),
        "matmul_weight": draw(6, 5),
        "bias_k": draw(5),
    }
    for name, channels in (("bn1", 6), ("bn2", 7), ("bn3", 7), ("bn4", 5)):
        constants |= {f"{name}_{key}": part for key, part in mild_statistics(rng, channels, dtype).items()}
    return build(graph, **constants)
