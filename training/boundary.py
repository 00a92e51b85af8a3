"""Nodes that the oracle cannot follow, cut out of both graphs: a proof up to them, and on from them.

A node of a custom domain, of an operator without a reference, or with a random answer pins what it reads and what it
answers: folding leaves both as they were. So let its operands be outputs of both graphs, and its answers inputs. If the
operands agree and, given the same answers, all that follows agrees, then by induction over the nodes in their order the
whole graphs agree, whatever the node computes. Knows graphs and which operators the reference has; runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from training.reference import RANDOM, has_reference, unsupported
from training.reference.op import Array

# What these read of their operand is its shape: its numbers may be stored in another way (ONNX's operator pages).
_READS_A_SHAPE = frozenset({"RandomNormalLike", "RandomUniformLike"})
_ADVICE = "declare its type and shape in the file (value_info), or skip the proof (--no-verify)"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node that was cut out answers: the tensor `value` of the whole graph, the input `name` of the cut one."""

    name: str
    node: ir.Node
    value: ir.Value


@dataclass(frozen=True, slots=True)
class Cut:
    """Both graphs without `nodes`, those of the original. `answers` have to be given to both."""

    original: ir.Model
    folded: ir.Model
    nodes: tuple[ir.Node, ...]
    answers: tuple[Answer, ...]

    @property
    def is_random(self) -> bool:
        """Would two runs of the whole graph differ?"""
        return any(node.op_type in (*RANDOM, "Dropout") and not node.domain for node in self.nodes)

    def check_tensors(self, found: Mapping[str, object]) -> None:
        """Raises UnsupportedOperator where an answer is a sequence, or none."""
        for answer in self.answers:
            if not isinstance(found[answer.name], np.ndarray):
                raise unsupported(answer.node, f"its output {answer.value.name!r} is no tensor")

    def set_types(self, kinds: Mapping[str, np.dtype[Any]]) -> None:
        """Of the answers: the file need not declare them."""
        for model in (self.original, self.folded):
            for value in model.graph.inputs:
                if value.name is not None and value.name in kinds:
                    value.type = ir.TensorType(ir.DataType.from_numpy(kinds[value.name]))

    def described(self) -> str:
        """The nodes, as in a report."""
        names = [_described(node) for node in self.nodes]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def cut(original: ir.Model, folded: ir.Model, nodes: Sequence[ir.Node]) -> Cut:
    """Cut `nodes` of the original's main graph, and their counterparts, out of copies of both graphs.

    Raises UnsupportedOperator: a node is in one of the graphs only.
    """
    pairs = list(zip(nodes, _counterparts(nodes, folded), strict=True))
    whats = [
        _described(node) + (f", {number + 1} of {len(pairs)}" if len(pairs) > 1 else "")
        for number, (node, _) in enumerate(pairs)
    ]
    copies = [_Copy(model, side) for model, side in zip((original, folded), zip(*pairs, strict=True), strict=True)]
    for what, pair in zip(whats, pairs, strict=True):
        for copy, node in zip(copies, pair, strict=True):
            copy.name_answers(node, what)
    answers = []
    for what, pair in zip(whats, pairs, strict=True):
        for place, operands in enumerate(zip(*(node.inputs for node in pair), strict=True)):
            if not _are_the_same(operands, copies):
                for copy, value in zip(copies, operands, strict=True):
                    copy.show(value, f"operand {place} of {what}", shape_only=pair[0].op_type in _READS_A_SHAPE)
    for pair in pairs:
        for outputs in zip(*(node.outputs for node in pair), strict=True):
            read = [copy.answer(value) for copy, value in zip(copies, outputs, strict=True)]
            if any(read):
                answers.append(Answer(copies[0].answers[outputs[0]], pair[0], outputs[0]))
    for copy in copies:
        copy.finish(answers)
    return Cut(copies[0].model, copies[1].model, tuple(nodes), tuple(answers))


def out_of_reach(model: ir.Model) -> list[ir.Node]:
    """Nodes of the main graph for which there is no reference; but none with a graph of its own, which may read more
    than its operands."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    plain = [node for node in model.graph if not any(each.type in kinds for each in node.attributes.values())]
    return [node for node in plain if not has_reference(model, node)]


def like(node: ir.Node, model: ir.Model) -> list[ir.Node]:
    """The nodes of the main graph that a node of a copy may be."""
    return [one for one in model.graph if _key(one) == _key(node)]


def declared(answer: Answer, sample: Mapping[str, Array], inputs: Iterable[ir.Value]) -> tuple[ir.DataType, list[int]]:
    """Type and shape of an answer as the file declares them; symbolic sizes are those of the sample's inputs.

    Raises UnsupportedOperator where the file does not say.
    """
    sizes: dict[str | None, int] = {}
    for value in inputs:
        if value.shape is not None and value.name is not None and value.name in sample:
            pairs = zip(value.shape, sample[value.name].shape, strict=True)
            sizes |= {symbol.value: size for symbol, size in pairs if isinstance(symbol, ir.SymbolicDim)}
    sizes.pop(None, None)
    value, shape = answer.value, []
    for size in value.shape if value.shape is not None else [None]:
        known = size if isinstance(size, int) else sizes.get(getattr(size, "value", None))
        if known is None or value.dtype is None:
            raise unsupported(
                answer.node,
                f"its output {value.name!r} has no known type and shape, so that what follows it cannot be proved: "
                f"{_ADVICE}",
            )
        shape.append(known)
    assert value.dtype is not None
    return value.dtype, shape


class _Copy:
    """A copy of a graph in which values of the graph itself are shown and fed; without `nodes` in the end.

    `answers` names the outputs of these.
    """

    def __init__(self, model: ir.Model, nodes: Iterable[ir.Node]) -> None:
        self.model = model.clone()
        self.answers: dict[ir.Value, str] = {}
        self._of: dict[ir.Value, ir.Value] = dict(_same_values(model.graph, self.model.graph))
        twins = dict(zip(model.graph, self.model.graph, strict=True))
        self._nodes = [twins[node] for node in nodes]
        self._inputs: dict[str, ir.Value] = {}

    def name_answers(self, node: ir.Node, what: str) -> None:
        self.answers |= {value: f"output {place} of {what}" for place, value in enumerate(node.outputs)}

    def show(self, value: ir.Value | None, name: str, *, shape_only: bool) -> None:
        """Make it an output."""
        assert value is not None
        kind = value.type if not shape_only else ir.TensorType(ir.DataType.INT64)
        shown = ir.Node("", "Shape" if shape_only else "Identity", [self._of[value]], num_outputs=1)
        shown.outputs[0].name, shown.outputs[0].type = name, kind
        self.model.graph.append(shown)
        self.model.graph.outputs.append(shown.outputs[0])

    def answer(self, value: ir.Value) -> bool:
        """What reads it shall read an input, and it is no output any more. Does any node that stays read it?"""
        twin, outputs, name = self._of[value], self.model.graph.outputs, self.answers[value]
        for place in reversed([index for index, output in enumerate(outputs) if output is twin]):
            outputs.pop(place)
        self._inputs[name] = given = ir.Value(name=name, type=value.type, shape=value.shape)
        read = any(use.node not in self._nodes for use in twin.uses())
        twin.replace_all_uses_with(given)
        return read

    def finish(self, answers: Iterable[Answer]) -> None:
        """Take the nodes out; the graph has inputs for the answers besides its own."""
        self.model.graph.inputs.extend(self._inputs[answer.name] for answer in answers)
        self.model.graph.remove(self._nodes)


def _same_values(graph: ir.Graph, copy: ir.Graph) -> Iterator[tuple[ir.Value, ir.Value]]:
    yield from zip(graph.inputs, copy.inputs, strict=True)
    for name, value in graph.initializers.items():
        yield value, copy.initializers[name]
    for node, twin in zip(graph, copy, strict=True):
        yield from zip(node.outputs, twin.outputs, strict=True)


def _are_the_same(operands: Sequence[ir.Value | None], copies: Sequence[_Copy]) -> bool:
    """The same operand in both graphs: none, the same constant tensor, or an answer of the same node."""
    one, other = operands
    if one is None or other is None:
        return one is other
    if one.const_value is not None:
        return one.const_value is other.const_value
    answers = [copy.answers.get(value) for copy, value in zip(copies, (one, other), strict=True)]
    return answers[0] is not None and answers[0] == answers[1]


def _counterparts(nodes: Sequence[ir.Node], folded: ir.Model) -> list[ir.Node]:
    """By operator, name and attributes; among several by the name of the first output, else in their order.

    Two that are mistaken for each other read different operands, which the proof would not accept.
    """
    left = [node for node in folded.graph if node.op_type in {one.op_type for one in nodes}]
    found: dict[ir.Node, ir.Node] = {}
    for by_name in (True, False):
        for node in nodes:
            if node in found:
                continue
            same = [other for other in left if _key(other) == _key(node)]
            if by_name:
                same = [other for other in same if other.outputs[0].name == node.outputs[0].name]
            if same:
                found[node] = same[0]
                left.remove(same[0])
    if missing := [node for node in nodes if node not in found]:
        raise unsupported(missing[0], "and the other graph has no such node")
    return [found[node] for node in nodes]


def _key(node: ir.Node) -> tuple[object, ...]:
    """What counterparts have in common, attributes bit by bit."""
    attributes = sorted(
        (name, ir.serde.serialize_attribute(attribute).SerializeToString(deterministic=True))
        for name, attribute in node.attributes.items()
    )
    return *node.op_identifier(), node.name, len(node.inputs), len(node.outputs), tuple(attributes)


def _described(node: ir.Node) -> str:
    kind = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
    return f"node {node.name or node.outputs[0].name!r} ({kind})"
