"""Numbers to judge folding by: onnx.reference, and per output element the size of what was summed up to get it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tests.training.fold.models import reload

Array = NDArray[Any]


class ConvTranspose(OpRun):
    """By its definition, one input pixel at a time: onnx.reference 1.23 cannot do groups."""

    def _run(self, X: Array, W: Array, B: Array | None = None, **attributes: Any) -> tuple[Array]:
        spatial = X.ndim - 2
        group = attributes["group"] or 1
        stride = attributes["strides"] or [1] * spatial
        dilation = attributes["dilations"] or [1] * spatial
        pads = attributes["pads"] or [0] * 2 * spatial
        extra = attributes["output_padding"] or [0] * spatial
        kernel = W.shape[2:]
        full = [stride[i] * (X.shape[2 + i] - 1) + dilation[i] * (kernel[i] - 1) + 1 + extra[i] for i in range(spatial)]
        y = np.zeros((X.shape[0], W.shape[1] * group, *full), dtype=X.dtype)
        per_in, per_out = X.shape[1] // group, W.shape[1]
        for g in range(group):
            ins, outs = slice(g * per_in, (g + 1) * per_in), slice(g * per_out, (g + 1) * per_out)
            for tap in np.ndindex(*kernel):
                at = tuple(
                    slice(dilation[i] * tap[i], dilation[i] * tap[i] + stride[i] * (X.shape[2 + i] - 1) + 1, stride[i])
                    for i in range(spatial)
                )
                y[(slice(None), outs, *at)] += np.einsum("nc...,co->no...", X[:, ins], W[(ins, slice(None), *tap)])
        crop = tuple(slice(pads[i], full[i] - pads[spatial + i]) for i in range(spatial))
        y = y[(slice(None), slice(None), *crop)]
        return (y if B is None else y + B.reshape(1, -1, *[1] * spatial),)


class Add(OpRun):
    """With `axis` of opsets 1 to 6: B's axes lie on A's from there on. onnx.reference knows only the newer kind."""

    def _run(self, A: Array, B: Array, **attributes: Any) -> tuple[Array]:
        axis = attributes.get("axis")
        return (A + (B if axis is None else B.reshape(B.shape + (1,) * (A.ndim - axis - B.ndim))),)


Add.op_domain = ConvTranspose.op_domain = ""


def evaluate(model: ir.Model, feeds: dict[str, Array]) -> list[Array]:
    """The outputs, in order."""
    return list(ReferenceEvaluator(ir.to_proto(model), new_ops=[Add, ConvTranspose]).run(None, feeds))


def feeds_for(model: ir.Model, rng: np.random.Generator) -> dict[str, Array]:
    """Normal noise in the declared shapes."""
    feeds = {}
    for value in model.graph.inputs:
        if not value.is_initializer():
            assert value.shape is not None and value.dtype is not None
            feeds[value.name or ""] = rng.normal(size=value.shape.numpy()).astype(value.dtype.numpy())
    return feeds


def magnitudes(model: ir.Model, feeds: dict[str, Array]) -> list[Array]:
    """Every constant and input by its absolute value, every mean by its negative: nothing cancels any more.

    For graphs of linear operators, BatchNormalization and ReLU over initializers. Rounding errors of any order of
    evaluation are at most a small multiple of this times the unit roundoff.
    """
    model = reload(model)
    means = {node.inputs[3] for node in model.graph.all_nodes() if node.op_type == "BatchNormalization"}
    variances = {node.inputs[4] for node in model.graph.all_nodes() if node.op_type == "BatchNormalization"}
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        if value in variances or value.dtype not in (ir.DataType.DOUBLE, ir.DataType.FLOAT):
            continue
        numbers = np.abs(value.const_value.numpy())
        value.const_value = ir.tensor(-numbers if value in means else numbers, name=value.name)
    return evaluate(model, {name: np.abs(array) for name, array in feeds.items()})


def assert_same_function(original: ir.Model, folded: ir.Model, seed: int = 0, tolerance: float = 1e-12) -> None:
    """Equal outputs on noise, on zeros and on ones, within `tolerance` of the summed magnitudes (float64 graphs)."""
    noise = feeds_for(original, np.random.default_rng(seed))
    assert [v.name for v in original.graph.inputs] == [v.name for v in folded.graph.inputs]
    for feeds in (noise, *({k: np.full_like(v, fill) for k, v in noise.items()} for fill in (0, 1))):
        expected, found = evaluate(original, feeds), evaluate(folded, feeds)
        for a, b, size in zip(expected, found, magnitudes(original, feeds), strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            assert np.isfinite(a).all()
            np.testing.assert_array_less(np.abs(a - b), tolerance * np.abs(size) + np.finfo(np.float64).tiny)
