"""From a fresh module to an ONNX graph worth folding: statistics as training leaves them, and both kinds of export.

A fresh network has gamma 1, beta 0, mean 0 and variance 1: statistics under which nearly every wrong fold is right.
Knows torch and the exporters, no architecture, and nothing of folding.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from training.export import export

ROWS = 8  # of the batch that statistics are taken from
NEGATIVE = 0.1  # share of the gammas

BatchNorm = nn.modules.batchnorm._BatchNorm


def settle(module: nn.Module, shape: Sequence[int], rng: np.random.Generator, rows: int = ROWS) -> nn.Module:
    """Give `module` plausible scales and shifts, and the statistics of its own activations; return it in eval mode.

    |gamma| is uniform in 0.7 to 1.3, one in ten is negative, beta is 0.2 N(0, 1), slopes of PReLU are 0.05 to 0.4. The
    running statistics are those of one batch of noise, `rows` of `shape`, in one pass, so that every BatchNorm has seen
    what those before it really give.
    """
    norms = [part for part in module.modules() if isinstance(part, BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for part in module.modules():
        if isinstance(part, BatchNorm) and part.affine:
            size = part.num_features
            sign = np.where(rng.random(size) < NEGATIVE, -1.0, 1.0)
            _assign(part.weight, sign * rng.uniform(0.7, 1.3, size))
            _assign(part.bias, 0.2 * rng.normal(size=size))
        if isinstance(part, nn.PReLU):
            _assign(part.weight, rng.uniform(0.05, 0.4, part.num_parameters))
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average of all batches seen, which is the one
    with torch.no_grad():
        module.train()(torch.from_numpy(rng.normal(size=(rows, *shape)).astype(np.float32)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return module.eval()


def export_raw(module: nn.Module, shape: Sequence[int]) -> ir.Model:
    """As our own export writes it: unoptimised, the batch free."""
    return export(module, {"x": torch.zeros(2, *shape)}, ["y"])


def export_default(module: nn.Module, shape: Sequence[int]) -> ir.Model:
    """As a user's `torch.onnx.export(..., dynamo=True)` writes it: optimised by onnxscript, the batch free.

    It goes through its bytes, so that nothing of torch is left in it and it is what a file would be.
    """
    frozen = copy.deepcopy(module).requires_grad_(False)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch warns of its own deprecations
        program = torch.onnx.export(
            frozen,
            (torch.zeros(2, *shape),),
            input_names=["x"],
            output_names=["y"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # None only when the exporter is asked to write a file
    return ir.from_proto(ir.to_proto(program.model))


def batchnorms(model: ir.Model) -> int:
    """BatchNormalization nodes in `model`, subgraphs and functions included."""
    scopes = [model.graph, *model.functions.values()]
    return sum(node.op_type == "BatchNormalization" for scope in scopes for node in scope.all_nodes())


def widened(model: ir.Model) -> ir.Model:
    """The same graph in float64: every float32 number and every Cast to float32. What it computes is not rounded."""
    proto = ir.to_proto(model)
    graph = proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for tensor in graph.initializer:
        _widen(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.DOUBLE
    return ir.from_proto(proto)


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == onnx.TensorProto.FLOAT:
        numbers = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, tensor.name))


def _assign(parameter: torch.Tensor, numbers: np.ndarray) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(numbers))
