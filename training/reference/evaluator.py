"""Walks a graph node by node in float64 and drops each tensor after its last use.

Knows graphs, scopes, local functions and control flow; what an operator computes is in `table`. Constants are widened
one at a time, when first used, so that the weights are never all in memory as float64. Several samples walk side by
side, node by node, so that each constant is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from training.reference.fallback import by_onnx_reference, onnx_reference_has, unsupported
from training.reference.op import Array, EvaluationFailed, Op, Unforeseeable, is_float, widen
from training.reference.table import OPERATORS, ROW_BY_ROW
from training.reference.work import multiply_adds

ReadConstant = Callable[[ir.TensorProtocol], Array]
"""From a constant as it is stored to the array the graph computes with; `widened`, perhaps with a perturbation."""


@dataclass(frozen=True, slots=True)
class Steering:
    """Which way an evaluation goes, and where it has been.

    `branch` sends every If to `then_branch` (True) or `else_branch` (False) whatever its condition; None leaves the
    choice to the condition. `ran` gathers each node that was computed, over all evaluations it is given to.
    `rounding` is what becomes of each floating-point result of an operator, where rounding is to be seen at work.
    """

    branch: bool | None = None
    ran: set[ir.Node] = field(default_factory=set)
    rounding: Callable[[Array], Array] | None = None


@dataclass(slots=True)
class Effort:
    """What evaluations cost: multiply-adds, and the most bytes of computed tensors that were alive at once."""

    work: int = 0
    live_bytes: int = 0


def widened(tensor: ir.TensorProtocol) -> Array:
    """A constant's array, its floating-point type widened to float64."""
    return widen(tensor.numpy())


def evaluate(
    model: ir.Model,
    inputs: Mapping[str, Array],
    *,
    read: ReadConstant = widened,
    steering: Steering | None = None,
    effort: Effort | None = None,
) -> dict[str, Array]:
    """The graph's outputs by name: float64 where the graph has a floating-point type, otherwise as typed.

    Args:
        model: Any opset; it is not changed.
        inputs: One array for each graph input (float inputs of any width; exact values are kept). An input that has an
            initializer of the same name may be left out.
        read: Applied to each initializer and Constant as it is stored; must return a widened array.
        steering: Forces the branch of each If, and is told which nodes ran.
        effort: Is told what it cost.

    Raises:
        UnsupportedOperator: A node that neither the table nor onnx.reference knows.
        EvaluationFailed: A missing or unknown input, or a node whose inputs do not fit.
    """
    return evaluate_all(model, [inputs], read=read, steering=steering, effort=effort)[0]


def evaluate_all(
    model: ir.Model,
    samples: Sequence[Mapping[str, Array]],
    *,
    read: ReadConstant = widened,
    steering: Steering | None = None,
    effort: Effort | None = None,
) -> list[dict[str, Array]]:
    """`evaluate` for several sets of inputs, side by side: constants are read once, all samples' tensors are alive."""
    constants: dict[ir.Value, Array] = {}
    runs = [_Run(model, read, steering or Steering(), effort or Effort(), constants) for _ in samples]
    for run, inputs in zip(runs, samples, strict=True):
        run.bind(inputs)
    with np.errstate(all="ignore"):  # infinities and NaN are results like any other; the caller compares them
        _walk(runs, model.graph, model.opset_imports, {})
        return [{value.name or "": run.tensor(value) for value in model.graph.outputs} for run in runs]


def has_reference(model: ir.Model, node: ir.Node) -> bool:
    """Is there a rule for the node's operator? It may still refuse this one of it."""
    if node.op_identifier() in model.functions:
        return True
    if node.domain == "" and (node.op_type in OPERATORS or node.op_type in _CONTROL_FLOW):
        return True
    opset = node.version if node.version is not None else model.opset_imports.get(node.domain, 1)
    return onnx_reference_has(node, opset)


class _Run:
    """One sample's evaluation. `arrays` maps each live value to its array; subgraphs capture a value by the same key.

    `constants` are shared with the runs beside it.
    """

    def __init__(
        self,
        model: ir.Model,
        read: ReadConstant,
        steering: Steering,
        effort: Effort,
        constants: dict[ir.Value, Array],
    ) -> None:
        self.model = model
        self.read = read
        self.steering = steering
        self.effort = effort
        self.constants = constants
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
        if value in self.arrays:
            return self.arrays[value]
        if value not in self.constants:
            if value.const_value is None:
                raise EvaluationFailed(f"value {value.name!r} is used before any node computes it")
            self.constants[value] = self.read(value.const_value)
        return self.constants[value]

    def tensor(self, value: ir.Value) -> Array:
        """The array of an output, which for some operators is a sequence of arrays, or nothing."""
        found = self.array(value)
        if not isinstance(found, np.ndarray | np.generic):
            raise EvaluationFailed(f"output {value.name!r} is a {type(found).__name__}, expected a tensor")
        return np.asarray(found)

    def inputs(self, node: ir.Node) -> list[Array | None]:
        return [None if value is None or value in self.absent else self.array(value) for value in node.inputs]

    def keep(self, node: ir.Node, results: Sequence[Array | None]) -> None:
        """A node's outputs, as far as the graph names them."""
        for value, result in zip(node.outputs, results, strict=False):
            if value.name and result is not None:
                self.arrays[value] = result

    def forget(self, value: ir.Value) -> None:
        self.arrays.pop(value, None)
        self.constants.pop(value, None)

    def live_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values() if isinstance(array, np.ndarray))

    def node(self, node: ir.Node, opsets: Mapping[str, int], parameters: Mapping[str, ir.Attr]) -> None:
        """Compute one node's outputs."""
        function = self.model.functions.get(node.op_identifier())
        inputs = self.inputs(node)
        attributes = _resolved(node, parameters)
        if function is not None:
            results: Sequence[Array | None] = self.call(function, inputs, attributes)
        elif node.op_type in _CONTROL_FLOW and node.domain == "":
            results = _CONTROL_FLOW[node.op_type](self, attributes, inputs, opsets, parameters)
        elif node.op_type == "Constant" and "value" in attributes:
            results = [self.read(attributes["value"].as_tensor())]
        else:
            results = self.operator(node, _op(node, attributes, opsets), inputs)
        self.keep(node, results)

    def operator(self, node: ir.Node, op: Op, inputs: list[Array | None]) -> Sequence[Array | None]:
        """By the table, or by onnx.reference."""
        known = OPERATORS.get(node.op_type) if node.domain == "" else None
        while inputs and inputs[-1] is None:  # trailing omitted inputs: let defaults speak
            inputs.pop()
        try:
            result = by_onnx_reference(node, op, inputs) if known is None else known(op, *inputs)
        except NotImplementedError:  # a row that does not cover this variant
            result = by_onnx_reference(node, op, inputs)
        except Unforeseeable as error:
            raise unsupported(node, str(error)) from error
        except (ValueError, IndexError, TypeError, KeyError, ArithmeticError) as error:
            cause = " ".join(str(error).split())
            raise EvaluationFailed(f"node {node.name!r} ({node.op_type}) refuses its inputs: {cause}") from error
        results = result if isinstance(result, tuple) else (result,)
        if node.op_type == "Constant":
            array = np.asarray(results[0])
            return [self.read(ir.tensor(array)) if is_float(array.dtype) else widen(array)]
        self.effort.work += multiply_adds(op, inputs, results)
        return [None if array is None else self.rounded(_stored(array)) for array in results]

    def rounded(self, result: Array) -> Array:
        if self.steering.rounding is None or not isinstance(result, np.ndarray) or not is_float(result.dtype):
            return result
        return self.steering.rounding(result)

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
        _walk([self], body, opsets, parameters)
        results = [self.array(value) for value in body.outputs]
        own = {output for node in body for output in node.outputs}
        for value in own & set(body.outputs):
            self.arrays.pop(value, None)
        return results


def _walk(
    runs: Sequence[_Run],
    nodes: ir.Graph | ir.Function,
    opsets: Mapping[str, int],
    parameters: Mapping[str, ir.Attr],
) -> None:
    """Run a graph or a function body whose inputs are bound. `parameters` are a function call's attributes."""
    ends = _last_uses(nodes)
    for index, node in enumerate(nodes):
        runs[0].steering.ran.add(node)
        if len(runs) == 1 or not _rows_together(runs, node, opsets, parameters):
            for run in runs:
                run.node(node, opsets, parameters)
        effort = runs[0].effort
        effort.live_bytes = max(effort.live_bytes, sum(run.live_bytes() for run in runs))
        for value in ends.get(index, ()):
            for run in runs:
                run.forget(value)


def _rows_together(
    runs: Sequence[_Run], node: ir.Node, opsets: Mapping[str, int], parameters: Mapping[str, ir.Attr]
) -> bool:
    """Where each row has its own answer, one product with a constant serves all samples; was this such a node?"""
    if node.op_type not in ROW_BY_ROW or node.domain or node.op_identifier() in runs[0].model.functions:
        return False
    op, inputs = _op(node, _resolved(node, parameters), opsets), [run.inputs(node) for run in runs]
    first, *others = zip(*inputs, strict=True)
    rows = [array for array in first if array is not None and array.ndim >= 2]
    alike = len(rows) == len(runs) and len({array.shape[1:] for array in rows}) == 1
    constant = all(array is column[0] for column in others for array in column)
    if not (alike and constant and ROW_BY_ROW[node.op_type](op, *inputs[0])):
        return False
    (answer,) = runs[0].operator(node, op, [np.concatenate(rows), *inputs[0][1:]])
    assert answer is not None
    for run, part in zip(runs, np.split(answer, np.cumsum([len(array) for array in rows])[:-1]), strict=True):
        run.keep(node, [part])
    return True


def _op(node: ir.Node, attributes: Mapping[str, ir.Attr], opsets: Mapping[str, int]) -> Op:
    opset = node.version if node.version is not None else opsets.get(node.domain, 1)
    values = {name: _plain(attribute) for name, attribute in attributes.items()}
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


def _stored(result: Any) -> Any:
    """A tensor as the evaluator keeps it; of a sequence (SplitToSequence and its like), each of its tensors."""
    return [_stored(part) for part in result] if isinstance(result, list) else widen(np.asarray(result))
