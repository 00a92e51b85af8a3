"""torch module to unoptimised ONNX graph, in memory. The only door to `torch.onnx`.

Promises: the graph computes what the module computes in eval mode, for any number of rows; its BatchNorm nodes are all
there (folding them is `training.fold`'s work, and the exporter's own optimiser would begin it); and it says nothing
about the machine it was made on. Knows no file format and no data set.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnx_ir as ir
import torch
from torch import nn

from training.errors import UserError

BATCH_AXIS_NAME = "batch"


class ExportRefused(UserError):
    """The module is not in a state that inference may be exported from; the text names the submodule."""


def export(module: nn.Module, examples: Mapping[str, torch.Tensor], outputs: Sequence[str]) -> ir.Model:
    """Export `module`, which stays untouched: a frozen deep copy is traced.

    examples: input name -> an example tensor, in the order of `forward`'s arguments, with at least two rows along axis
    0; that axis becomes the free dimension "batch", all others are fixed. outputs: names, in the order of what
    `forward` returns. Raises ExportRefused.
    """
    refuse_unless_frozen(module)
    too_few = [name for name, example in examples.items() if example.ndim == 0 or len(example) < 2]
    if too_few:
        # torch.export makes a dimension of size 0 or 1 a constant: the graph would then take one row only.
        raise ExportRefused(f"example {too_few[0]!r} needs at least two rows along axis 0 to show that it is the batch")
    frozen = copy.deepcopy(module).cpu().requires_grad_(False)
    batch = torch.export.Dim(BATCH_AXIS_NAME)
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            frozen,
            tuple(examples.values()),
            input_names=list(examples),
            output_names=list(outputs),
            dynamic_shapes=tuple({0: batch} for _ in examples),
            dynamo=True,
            optimize=False,  # with True, onnxscript folds some of the BatchNorms, unproven and unreported
            verbose=False,
        )
    assert program is not None  # None only when the exporter is asked to write a file
    return _detached(program.model)


def refuse_unless_frozen(module: nn.Module) -> None:
    """Raise ExportRefused, naming the submodule, unless everything in `module` is what inference needs.

    The exporter would not complain: it writes a BatchNorm in training mode as if it were in eval mode, and one without
    running statistics as an average over whatever batch a client happens to send.
    """
    for name, part in module.named_modules():
        described = f"module {name or '(the whole network)'!r} ({type(part).__name__})"
        if part.training:
            raise ExportRefused(f"{described} is in training mode; call .eval() on the network before exporting it")
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (
            part.running_mean is None or part.running_var is None
        ):
            raise ExportRefused(
                f"{described} has no running statistics (track_running_stats=False), so its answer for one row would "
                f"depend on the rows it shares a batch with; train it with running statistics"
            )


def _detached(model: ir.Model) -> ir.Model:
    """Strip what the exporter knows about its origin (stack traces, paths, class names); let go of torch's memory."""
    model.metadata_props.clear()
    model.doc_string = None
    scopes: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for scope in scopes:
        for graph in (scope, *scope.subgraphs()):  # the bodies of If, Loop and Scan included
            graph.metadata_props.clear()
            graph.doc_string = None
            for node in graph:
                _forget_origin(node, *node.outputs)
            _forget_origin(*graph.inputs)
            if isinstance(graph, ir.Graph):
                _forget_origin(*graph.initializers.values())
                _own_tensors(graph)
    return model


def _own_tensors(graph: ir.Graph) -> None:
    for value in graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None  # the exporter writes no initializer without a value
        value.const_value = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=value.name)


def _forget_origin(*things: ir.Node | ir.Value) -> None:
    for thing in things:
        thing.metadata_props.clear()
        thing.meta.clear()
        thing.doc_string = None


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence three things the user cannot act on, and nothing else.

    torchvision's absence is logged once for each of its operators, although the module uses none of them. torch's own
    deep copies of tree specifications trip over torch's own deprecation of LeafSpec (2.13). And inputs that share the
    batch dimension, as they must, are told that its name "batch" gives way to the name "batch".
    """
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", f"# The axis name: {BATCH_AXIS_NAME} will not be used", UserWarning)
            yield
    finally:
        registration.setLevel(level)
