"""Makes a graph foldable without changing what it computes: calls of local functions become the nodes they stand for,
and biases of zeros that no run time would take go.

Calls only where a BatchNormalization is behind one, and then all: what is next to it may be in another function. What
cannot be inlined faithfully stays a call; the report then says that the BatchNormalization is inside a function. A
model with neither comes back as it is, to the byte.
Everything else that differs between exporters (operand or attribute, old flags, chains of constants) is the affair of
whoever reads a node. Knows no arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from training.fold.constants import Constants
from training.fold.edits import sweep
from training.fold.files import copy_model
from training.fold.graph import is_standard
from training.fold.refusal import Refusal
from training.fold.shapes import Shapes

_BIAS = 2  # the operand of Conv and ConvTranspose


def normalise(model: ir.Model) -> ir.Model:
    """`model`, or a copy of it: `repaired`, and with all calls inlined where one leads to a BatchNormalization.

    Not inlined, so that `model` is returned: (1) functions that call themselves; (2) of another version of a domain
    than the model; (3) with a graph as parameter; (4) whose output is one of their own inputs. Inputs and outputs of
    the graph keep names, types and shapes; all names are unique in the model.
    """
    return repaired(_inlined(model))


def repaired(model: ir.Model) -> ir.Model:
    """`model`, or a copy of it in which no Conv or ConvTranspose has a constant of zeros for a bias of a wrong shape.

    torch's exporter writes such ones, of shape [channels, kernel rank - 1], for Conv3d(bias=False) (2.13, with
    optimize=False). No run time takes them, though what is meant is plain: no bias. One of the right shape stays, and
    so does whatever holds another number.
    """
    if not _unfit_biases(model):
        return model
    copy = copy_model(model)
    for node in _unfit_biases(copy):
        bias = node.inputs[_BIAS]
        node.resize_inputs(_BIAS)
        sweep([bias] if bias is not None else [])
    return copy


def _unfit_biases(model: ir.Model) -> list[ir.Node]:
    """The nodes that have one."""
    constants = Constants(Shapes(model))
    return [node for node in model.graph.all_nodes() if _is_unfit(node, constants)]


def _is_unfit(node: ir.Node, constants: Constants) -> bool:
    if not (is_standard(node, "Conv") or is_standard(node, "ConvTranspose")) or len(node.inputs) <= _BIAS:
        return False
    weight, bias = node.inputs[1:3]
    if weight is None or weight.shape is None or len(weight.shape) < 2 or bias is None:
        return False
    groups = node.attributes.get_int("group", 1)
    channels = weight.shape[0] if node.op_type == "Conv" else weight.shape[1]
    if not isinstance(channels, int) or not constants.holds(bias):
        return False
    array = constants.of(bias)
    if isinstance(array, Refusal):
        return False
    return array.shape != (channels * (1 if node.op_type == "Conv" else groups),) and not array.any()


def _inlined(model: ir.Model) -> ir.Model:
    if not any(is_standard(node, "BatchNormalization") for node in _called(model)):
        return model
    if any(_hands_through(function) for function in model.functions.values()):
        return model
    inlined = copy_model(model)
    before = set(_values(inlined))
    outputs = _signature(inlined.graph)
    try:
        InlinePass()(inlined)
    except (ir.passes.PassError, ir.passes.InvariantError, ValueError):
        return model
    if _signature(inlined.graph) != outputs:
        return model
    _make_unique(inlined, before)
    return inlined


def _called(model: ir.Model) -> Iterator[ir.Node]:
    """Nodes of the functions that the graph calls, directly or not."""
    waiting: list[Iterable[ir.Node]] = [model.graph.all_nodes()]
    seen: set[ir.Function] = set()
    while waiting:
        for node in waiting.pop():
            function = model.functions.get(node.op_identifier())
            if function is not None and function not in seen:
                seen.add(function)
                waiting.append(function.all_nodes())
                yield from function.all_nodes()


def _hands_through(function: ir.Function) -> bool:
    return any(output.producer() is None for output in function.outputs)


def _signature(graph: ir.Graph) -> list[tuple[str | None, ir.TypeProtocol | None, ir.Shape | None]]:
    return [(value.name, value.type, value.shape) for value in (*graph.inputs, *graph.outputs)]


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Everything that has a name in the graph and its subgraphs, once each."""
    for graph in model.graphs():
        yield from graph.inputs
        yield from (value for value in graph.initializers.values() if not value.is_graph_input())
        for node in graph:
            yield from node.outputs


def _make_unique(model: ir.Model, before: set[ir.Value]) -> None:
    """onnx-ir looks for names that are free in the graph that it inlines into, but not in those inside its nodes."""
    values = list(_values(model))
    keep = [value for value in values if value in before or value.is_graph_output()]
    taken = {value.name for value in keep}
    kept = set(keep)
    for value in values:
        if value in kept or not value.name:
            continue
        name, count = value.name, 1
        while value.name in taken:
            count += 1
            value.name = f"{name}_{count}"
        taken.add(value.name)
