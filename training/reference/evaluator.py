"""Walks a graph node by node in float64 and drops each tensor after its last use.

Knows graphs, scopes, local functions and control flow; what an operator computes is in `table`. Constants are widened
one at a time, when first used, so that the weights are never all in memory as float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from training.reference.fallback import by_onnx_reference
from training.reference.op import Array, EvaluationFailed, Op, widen
from training.reference.table import OPERATORS

ReadConstant = Callable[[Array], Array]
"""From a constant as it is stored to the array the graph computes with; `widen`, or `widen` with a perturbation."""


@dataclass(frozen=True, slots=True)
class Steering:
    """Which way an evaluation goes, and where it has been.

    `branch` sends every If to `then_branch` (True) or `else_branch` (False) whatever its condition; None leaves the
    choice to the condition. `ran` gathers each node that was computed, over all evaluations it is given to.
    """

    branch: bool | None = None
    ran: set[ir.Node] = field(default_factory=set)


def evaluate(
    model: ir.Model, inputs: Mapping[str, Array], *, read: ReadConstant = widen, steering: Steering | None = None
) -> dict[str, Array]:
    """The graph's outputs by name: float64 where the graph has a floating-point type, otherwise as typed.

    Args:
        model: Any opset; it is not changed.
        inputs: One array for each graph input (float inputs of any width; exact values are kept). An input that has an
            initializer of the same name may be left out.
        read: Applied to each initializer and Constant, in its storage dtype; must return a widened array.
        steering: Forces the branch of each If, and is told which nodes ran.

    Raises:
        UnsupportedOperator: A node that neither the table nor onnx.reference knows.
        EvaluationFailed: A missing or unknown input, or a node whose inputs do not fit.
    """
    run = _Run(model, read, steering or Steering())
    run.bind(inputs)
    with np.errstate(all="ignore"):  # infinities and NaN are results like any other; the caller compares them
        run.block(model.graph, model.opset_imports)
        return {value.name or "": run.array(value) for value in model.graph.outputs}


class _Run:
    """One evaluation. `arrays` maps each live value to its array; subgraphs capture a value by the same key."""

    def __init__(self, model: ir.Model, read: ReadConstant, steering: Steering) -> None:
        self.model = model
        self.read = read
        self.steering = steering
        self.arrays: dict[ir.Value, Array] = {}
        self.absent: set[ir.Value] = set()  # inputs of a function that this call omits

    def bind(self, inputs: Mapping[str, Array]) -> None:
        """Check the names and widen the graph's inputs."""
        by_name = {value.name or "": value for value in self.model.graph.inputs}
        if unknown := sorted(set(inputs) - set(by_name)):
            raise EvaluationFailed(f"the graph has no input {unknown[0]!r}; it has {sorted(by_name)}")
        for name, value in by_name.items():
            if name in inputs:
                array = widen(np.asarray(inputs[name]))
                is_real = value.dtype is not None and value.dtype.is_floating_point()
                self.arrays[value] = array.astype(np.float64) if is_real and array.dtype.kind in "iub" else array
            elif value.const_value is None:
                raise EvaluationFailed(f"no array is given for the graph's input {name!r}")

    def array(self, value: ir.Value) -> Array:
        """The array of a computed value or, read now, of a constant."""
        if value not in self.arrays:
            if value.const_value is None:
                raise EvaluationFailed(f"value {value.name!r} is used before any node computes it")
            self.arrays[value] = self.read(value.const_value.numpy())
        return self.arrays[value]

    def block(
        self, nodes: ir.Graph | ir.Function, opsets: Mapping[str, int], parameters: Mapping[str, ir.Attr] | None = None
    ) -> None:
        """Run a graph or a function body whose inputs are bound. `parameters` are a function call's attributes."""
        ends = _last_uses(nodes)
        for index, node in enumerate(nodes):
            self.node(node, opsets, parameters or {})
            for value in ends.get(index, ()):
                self.arrays.pop(value, None)

    def node(self, node: ir.Node, opsets: Mapping[str, int], parameters: Mapping[str, ir.Attr]) -> None:
        """Compute one node's outputs."""
        self.steering.ran.add(node)
        function = self.model.functions.get(node.op_identifier())
        inputs = [None if value is None or value in self.absent else self.array(value) for value in node.inputs]
        attributes = _resolved(node, parameters)
        if function is not None:
            results: Sequence[Array | None] = self.call(function, inputs, attributes)
        elif node.op_type in _CONTROL_FLOW and node.domain == "":
            results = _CONTROL_FLOW[node.op_type](self, attributes, inputs, opsets, parameters)
        else:
            results = self.operator(node, _op(node, attributes, opsets), inputs)
        for value, result in zip(node.outputs, results, strict=False):
            if value.name and result is not None:
                self.arrays[value] = result

    def operator(self, node: ir.Node, op: Op, inputs: list[Array | None]) -> Sequence[Array | None]:
        """By the table, or by onnx.reference."""
        known = OPERATORS.get(node.op_type) if node.domain == "" else None
        while inputs and inputs[-1] is None:  # trailing omitted inputs: let defaults speak
            inputs.pop()
        try:
            result = by_onnx_reference(node, op, inputs) if known is None else known(op, *inputs)
        except NotImplementedError:  # a row that does not cover this variant
            result = by_onnx_reference(node, op, inputs)
        except (ValueError, IndexError, TypeError, KeyError, ArithmeticError) as error:
            cause = " ".join(str(error).split())
            raise EvaluationFailed(f"node {node.name!r} ({node.op_type}) refuses its inputs: {cause}") from error
        results = result if isinstance(result, tuple) else (result,)
        store = self.read if node.op_type == "Constant" else widen
        return [None if array is None else _stored(array, store) for array in results]

    def call(
        self, function: ir.Function, inputs: Sequence[Array | None], attributes: Mapping[str, ir.Attr]
    ) -> Sequence[Array | None]:
        """A model-local function: its own opsets, its defaults where the call gives no attribute."""
        defaults = {name: attribute for name, attribute in function.attributes.items() if attribute.value is not None}
        return self.subgraph(function, inputs, function.opset_imports, {**defaults, **attributes})

    def subgraph(
        self,
        body: ir.Graph | ir.Function,
        inputs: Iterable[Array | None],
        opsets: Mapping[str, int],
        parameters: Mapping[str, ir.Attr],
    ) -> list[Array]:
        """Bind, run, collect, and forget what the body computed."""
        given = {value: array for value, array in zip(body.inputs, inputs, strict=False) if array is not None}
        self.absent = self.absent.difference(given).union(set(body.inputs) - set(given))
        self.arrays.update(given)
        self.block(body, opsets, parameters)
        results = [self.array(value) for value in body.outputs]
        own = {output for node in body for output in node.outputs}
        for value in own & set(body.outputs):
            self.arrays.pop(value, None)
        return results


def _op(node: ir.Node, attributes: Mapping[str, ir.Attr], opsets: Mapping[str, int]) -> Op:
    opset = node.version if node.version is not None else opsets.get(node.domain, 1)
    values = {name: _plain(attribute) for name, attribute in attributes.items()}
    if node.op_type != "Constant":  # a Constant's value goes through `read`, in its storage type
        values = {name: widen(v) if isinstance(v, np.ndarray) else v for name, v in values.items()}
    return Op(node.op_type, opset, values, tuple(bool(value.name) for value in node.outputs))


def _plain(attribute: ir.Attr) -> Any:
    value = attribute.value
    return value.numpy() if attribute.type == ir.AttributeType.TENSOR else value


def _resolved(node: ir.Node, parameters: Mapping[str, ir.Attr]) -> dict[str, ir.Attr]:
    """The node's attributes with references to a function's parameters replaced; an absent parameter leaves none."""
    found = {}
    for name, attribute in node.attributes.items():
        if not attribute.is_ref():
            found[name] = attribute
        elif attribute.ref_attr_name is not None and attribute.ref_attr_name in parameters:
            found[name] = parameters[attribute.ref_attr_name]
    return found


def _last_uses(nodes: ir.Graph | ir.Function) -> dict[int, list[ir.Value]]:
    """For each node's position, the values of this scope that nobody reads afterwards.

    A node reads what its subgraphs capture. Values from outside this scope, and outputs, are left alone.
    """
    last: dict[ir.Value, int] = {}
    own: set[ir.Value] = set(nodes.inputs)
    if isinstance(nodes, ir.Graph):
        own.update(nodes.initializers.values())
    for index, node in enumerate(nodes):
        own.update(node.outputs)
        last.update(dict.fromkeys(node.outputs, index))
        for value in _reads(node):
            last[value] = index
    ends: dict[int, list[ir.Value]] = {}
    kept = set(nodes.outputs)
    for value, index in last.items():
        if value in own and value not in kept:
            ends.setdefault(index, []).append(value)
    return ends


def _reads(node: ir.Node) -> Iterable[ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            body = attribute.as_graph()
            yield from body.outputs
            for inner in body:
                yield from _reads(inner)


def _if(
    run: _Run, attributes: Mapping[str, ir.Attr], inputs: Sequence[Array | None], opsets: Mapping[str, int], outer: Any
) -> list[Array]:
    condition, forced = inputs[0], run.steering.branch
    taken = forced if forced is not None else condition is not None and bool(condition.item())
    return run.subgraph(attributes["then_branch" if taken else "else_branch"].as_graph(), (), opsets, outer)


def _loop(
    run: _Run, attributes: Mapping[str, ir.Attr], inputs: Sequence[Array | None], opsets: Mapping[str, int], outer: Any
) -> list[Array]:
    """Body: (iteration, condition, carried...) -> (condition, carried..., scanned...)."""
    body, (limit, start, *carried) = attributes["body"].as_graph(), (*inputs, None, None)[: max(len(inputs), 2)]
    scanned: list[list[Array]] = [[] for _ in body.outputs[1 + len(carried) :]]
    going, iteration = start is None or bool(start.item()), 0
    while going and (limit is None or iteration < int(limit.item())):
        flag, *values = run.subgraph(
            body, (np.array(iteration, dtype=np.int64), np.array(going), *carried), opsets, outer
        )
        carried, going, iteration = [*values[: len(carried)]], bool(flag.item()), iteration + 1
        for history, value in zip(scanned, values[len(carried) :], strict=True):
            history.append(value)
    # With no iteration the element's shape is unknown; an empty vector is the best that can be said.
    return [*carried, *(np.stack(history) if history else np.empty(0) for history in scanned)]  # type: ignore[list-item]


def _scan(
    run: _Run, attributes: Mapping[str, ir.Attr], inputs: Sequence[Array | None], opsets: Mapping[str, int], outer: Any
) -> list[Array]:
    """Version 9 on: state variables, then inputs cut along an axis; results stacked along an axis."""
    body, scans = attributes["body"].as_graph(), attributes["num_scan_inputs"].as_int()
    state, sources = list(inputs[: len(inputs) - scans]), [a for a in inputs[len(inputs) - scans :] if a is not None]

    def setting(name: str, count: int) -> Sequence[int]:
        return attributes[name].as_ints() if name in attributes else (0,) * count

    flips_in = setting("scan_input_directions", scans)
    cut = [
        np.moveaxis(a, axis, 0)[:: -1 if flip else 1]
        for a, axis, flip in zip(sources, setting("scan_input_axes", scans), flips_in, strict=True)
    ]
    history: list[list[Array]] = [[] for _ in body.outputs[len(state) :]]
    for step in range(cut[0].shape[0]):
        values = run.subgraph(body, (*state, *(a[step] for a in cut)), opsets, outer)
        state = list(values[: len(state)])
        for line, value in zip(history, values[len(state) :], strict=True):
            line.append(value)
    axes, flips = setting("scan_output_axes", len(history)), setting("scan_output_directions", len(history))
    stacked = [
        np.stack(line[:: -1 if flip else 1], axis=axis) for line, axis, flip in zip(history, axes, flips, strict=True)
    ]
    return [*state, *stacked]  # type: ignore[list-item]


_CONTROL_FLOW: dict[str, Callable[..., list[Array]]] = {"If": _if, "Loop": _loop, "Scan": _scan}


def _stored(result: Any, store: ReadConstant) -> Any:
    """A tensor as the evaluator keeps it; of a sequence (SplitToSequence and its like), each of its tensors."""
    return [_stored(part, store) for part in result] if isinstance(result, list) else store(np.asarray(result))
