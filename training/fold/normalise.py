"""Makes a graph foldable without changing what it computes: calls of local functions become the nodes they stand for.

Only where a BatchNormalization is behind a call, and then all calls: what is next to it may be in another function. A
model without one comes back as it is, to the byte. What cannot be inlined faithfully stays a call; the report then
says that the BatchNormalization is inside a function.
Everything else that differs between exporters (operand or attribute, old flags, chains of constants) is the affair of
whoever reads a node. Knows no arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from training.fold.graph import is_standard


def normalise(model: ir.Model) -> ir.Model:
    """`model`, or a copy of it with all calls inlined, where one of them leads to a BatchNormalization.

    Not inlined, so that `model` is returned: (1) functions that call themselves; (2) of another version of a domain
    than the model; (3) with a graph as parameter; (4) whose output is one of their own inputs. Inputs and outputs of
    the graph keep names, types and shapes; all names are unique in the model.
    """
    if not any(is_standard(node, "BatchNormalization") for node in _called(model)):
        return model
    if any(_hands_through(function) for function in model.functions.values()):
        return model
    inlined = model.clone()
    inlined.meta.update(model.meta)
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
