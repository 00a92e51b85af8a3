"""Widening: a channel of ones carries what is left of a BatchNormalization to the zero-padded convolution behind it.

A shift before a zero-padded convolution is seen by no window at the border as it is inside, so that no bias holds it,
and where it cannot go backward either (behind a PReLU) an Add is left. One channel more removes that Add, exactly and
for every image size: the convolution that makes the tensor gets an output of weights 0 and bias 1, and each that reads
the tensor an input, whose weights are, tap by tap, what the shift was worth there (row F3(d) of the pattern matrix):

    conv(s x + t) = sum_i W[o, i] * (s[i] x[i] + t[i])  =  sum_i (W[o, i] s[i]) * x[i]  +  (sum_i W[o, i] t[i]) * 1

Zero padding pads the ones too, so that the border comes out right. Maps that read one tensor share its channel of ones,
and so do all tensors between the same convolutions: such a *region* is widened as a whole or not at all. What passes a
channel more on is passages.py's affair. Tensors of the graph's interface never change. What is not finite on its way to
a tensor's own channels may come out as another thing that is not finite.

Works on what the solver left, and knows neither gauges nor the solver; refuses with a reason wherever in doubt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from training.fold.affine import Float64s
from training.fold.batchnorm import read_batchnorm
from training.fold.edits import Edit, SetOperand, apply, bypass, sweep
from training.fold.graph import describe, is_standard
from training.fold.known import Known
from training.fold.lift import operands_of
from training.fold.linear.convolution import conv, conv_transpose
from training.fold.linear.layer import Bias, End, Layer, Operand, overflow_is_refused, stored
from training.fold.passages import Held, Passage, passage, with_one_more
from training.fold.refusal import Refusal

_MOST_TENSORS = 2048  # of one region
_READS_A_TYPE = ("CastLike", 1)  # the operator and operand that is asked for its element type alone


@dataclass(frozen=True, eq=False)
class _Map:
    """`y = scale * x + shift` along axis 1, by `node`: what widening can take out. x is operand `place`."""

    node: ir.Node
    place: int
    scale: Float64s | None
    shift: Float64s

    @property
    def x(self) -> ir.Value:
        value = self.node.inputs[self.place]
        assert value is not None
        return value


@dataclass(eq=False)
class _Region:
    """Tensors that are widened together, and the nodes next to them."""

    tensors: dict[ir.Value, None] = field(default_factory=dict)
    passages: dict[ir.Node, Passage] = field(default_factory=dict)
    makers: dict[ir.Node, Layer] = field(default_factory=dict)  # convolutions that emit the channel
    readers: dict[ir.Node, Layer] = field(default_factory=dict)  # convolutions that read the tensors
    maps: dict[ir.Node, _Map] = field(default_factory=dict)  # those to take out
    held: dict[ir.Value, Held] = field(default_factory=dict)


class Widening:
    """What can be taken out of the graph of `known` by widening. `maps`: what is left of each map, by its node.

    `reasons`: why a map stays. Nothing is edited before `carry_out`.
    """

    def __init__(self, maps: Sequence[ir.Node], known: Known) -> None:
        self._known = known
        self.reasons: dict[ir.Node, str] = {}
        self._regions: list[_Region] = []
        self._find(maps)

    @property
    def maps(self) -> dict[ir.Node, tuple[ir.Node, ...]]:
        """Those that can be taken out, and the convolutions that hold each afterwards."""
        return {node: _holders(node, region) for region in self._regions for node in region.maps}

    def carry_out(self, model: ir.Model) -> dict[ir.Node, tuple[ir.Node, ...]]:
        """Widen, and return `maps`: fewer than before where something would not be finite in its own type."""
        edits, done = self._edits(), self.maps
        apply(model, edits)
        for region in self._regions:
            for tensor in region.tensors:
                if tensor.shape is not None:
                    tensor.shape = ir.Shape([d + 1 if i == 1 else d for i, d in enumerate(tensor.shape)])
            for one in region.maps.values():
                sweep(bypass(one.node, one.place, keeps_name=True))
        return done

    # --- regions

    def _find(self, nodes: Sequence[ir.Node]) -> None:
        answers: dict[ir.Value, _Region | Refusal] = {}
        regions: dict[_Region, None] = {}
        for node in nodes:
            one = _map_of(node, self._known)
            region = one if isinstance(one, Refusal) else self._region(one.x, answers)
            if isinstance(region, Refusal):
                self.reasons[node] = region.reason
            elif isinstance(one, _Map):
                region.maps[node] = one
                regions[region] = None
        for region in regions:
            self._settle(region)
            if region.maps:
                self._regions.append(region)

    def _region(self, start: ir.Value, answers: dict[ir.Value, _Region | Refusal]) -> _Region | Refusal:
        """The region of `start`, or why there is none: the same `answers` for all tensors that were looked at."""
        region = _Region()
        answer: _Region | Refusal = answers.get(start, region)
        waiting = [start] if answer is region else []
        while waiting and answer is region:
            value = waiting.pop()
            if value in region.tensors:
                continue
            region.tensors[value] = None
            known = answers.get(value)  # a region that is known to be one was left to all sides, and not met again
            more = known if isinstance(known, Refusal) else self._around(value, region)
            if isinstance(more, Refusal):
                answer = more
            elif len(region.tensors) > _MOST_TENSORS:
                answer = Refusal(f"more than {_MOST_TENSORS} tensors would have to be widened together")
            else:
                waiting += more
        answers |= dict.fromkeys(region.tensors, answer)
        return answer

    def _around(self, value: ir.Value, region: _Region) -> list[ir.Value] | Refusal:
        """The tensors that have to be widened with `value`."""
        refusal = _place(value, self._known)
        if refusal is not None:
            return refusal
        producer = value.producer()
        assert producer is not None
        layer = _convolution(producer, self._known)
        if layer is not None and not isinstance(layer, Refusal) and value is producer.outputs[0]:
            if not isinstance(layer.bias, Bias):
                return Refusal(f"the bias of {describe(producer)} is not constant")
            if not isinstance(layer.y, End) or layer.y.channels != self._channels(value):
                return Refusal(f"{describe(producer)} does not make the channels of '{value.name}'")
            region.makers[producer] = layer
            found = []
        elif isinstance(layer, Refusal):
            return layer
        else:
            through = self._through(producer, value, region)
            if isinstance(through, Refusal):
                return through
            found = list(through.operands)
        for use in value.uses():
            more = self._reader(use.node, use.idx, value, region)
            if isinstance(more, Refusal):
                return more
            found += more
        return found

    def _reader(self, node: ir.Node, place: int, value: ir.Value, region: _Region) -> list[ir.Value] | Refusal:
        producer = value.producer()
        if producer is None or node.graph is not producer.graph:
            return Refusal(f"'{value.name}' is read inside a subgraph, by {describe(node)}")
        if is_standard(node) and (node.op_type, place) == _READS_A_TYPE:
            return []
        layer = _convolution(node, self._known)
        if layer is None:
            through = self._through(node, value, region)
            return through if isinstance(through, Refusal) else [*through.operands, node.outputs[0]]
        if isinstance(layer, Refusal):
            return layer
        if list(node.inputs).count(value) != 1 or place != 0 or layer.x.channels != self._channels(value):
            return Refusal(f"{describe(node)} does not read the channels of '{value.name}'")
        region.readers[node] = layer
        return []

    def _channels(self, value: ir.Value) -> int | None:
        dims = self._known.dims(value)
        return None if dims is None else dims[1]

    def _through(self, node: ir.Node, value: ir.Value, region: _Region) -> Passage | Refusal:
        """How `node`, which reads or makes `value`, passes the channel on."""
        if node not in region.passages:
            found = passage(node, self._known)
            if isinstance(found, Refusal):
                return found
            region.passages[node] = found
        through = region.passages[node]
        reads = list(node.inputs).count(value)
        if reads != through.operands.count(value) or (not reads and value is not node.outputs[0]):
            return Refusal(f"{describe(node)} does not pass '{value.name}' on")
        return through

    # --- what the widened tensors stand for

    def _settle(self, region: _Region) -> None:
        """Take maps back until everybody can hold the others."""
        order = [node for node in self._order(region) if node in region.passages]
        while region.maps:
            refused = self._hold(region, order)
            if not refused:
                return
            self.reasons |= refused
            for node in refused:
                del region.maps[node]

    def _order(self, region: _Region) -> Iterator[ir.Node]:
        graph = next(iter(region.tensors)).producer()
        assert graph is not None and graph.graph is not None
        yield from graph.graph

    def _hold(self, region: _Region, order: Sequence[ir.Node]) -> dict[ir.Node, str]:
        """Fill `region.held`, from the makers downwards; the maps that somebody cannot hold, and why."""
        refused: dict[ir.Node, str] = {}
        silent = _silent(region)
        held = region.held = {node.outputs[0]: Held(0.0 if node in silent else 1.0) for node in region.makers}
        for node in order:
            through = region.passages[node]
            if any(value not in held for value in through.operands):
                return dict.fromkeys(region.maps, f"{describe(node)} stands before what it reads")
            before = [held[value] for value in through.operands]
            after = _taken(region.maps[node], before[0]) if node in region.maps else through.hold(before)
            if isinstance(after, Refusal):
                lifts = frozenset().union(*(one.lifts for one in before)) | (region.maps.keys() & {node})
                refused |= dict.fromkeys(lifts, after.reason)
                after = through.hold([replace(one, scale=None, shift=None, lifts=frozenset()) for one in before])
            if isinstance(after, Refusal):
                return dict.fromkeys(region.maps, after.reason)
            held[node.outputs[0]] = after
        for node in region.readers:
            one = held[_data(node)]
            if one.shift is not None and not abs(one.number) > 0:
                refused |= dict.fromkeys(one.lifts, f"the extra channel that {describe(node)} reads holds 0")
        return refused

    # --- edits

    @overflow_is_refused
    def _edits(self) -> list[Edit]:
        """All edits; without the regions of a convolution whose weights would not be finite."""
        while True:
            edits: list[Edit] = []
            bad = None
            for node in dict.fromkeys(n for region in self._regions for n in (*region.makers, *region.readers)):
                found = self._convolution_edits(node)
                if isinstance(found, Refusal):
                    bad = node, found
                    break
                edits += found
            if bad is None:
                break
            self._drop(*bad)
        for region in self._regions:
            for node, through in region.passages.items():
                if node not in region.maps:
                    edits += through.edits([region.held[value] for value in through.operands])
        return edits

    def _drop(self, node: ir.Node, why: Refusal) -> None:
        gone = [region for region in self._regions if node in region.makers or node in region.readers]
        self.reasons |= {one: why.reason for region in gone for one in region.maps}
        self._regions = [region for region in self._regions if region not in gone]

    def _convolution_edits(self, node: ir.Node) -> list[Edit] | Refusal:
        """A convolution may read one region and make another, or the same."""
        read = next((region for region in self._regions if node in region.readers), None)
        made = next((region.held[node.outputs[0]] for region in self._regions if node in region.makers), None)
        layer = _convolution(node, self._known)
        assert isinstance(layer, Layer) and isinstance(layer.weight, Operand)
        outputs = 0 if node.op_type == "Conv" else 1  # the axis of W; the other one has the inputs
        numbers = layer.weight.exact()
        if read is not None:
            numbers = _reading(numbers, 1 - outputs, read.held[_data(node)])
        if made is not None:
            numbers = with_one_more(numbers, outputs, 0.0)
        weight = stored(numbers, layer.weight.dtype, f"widened weight of {describe(node)}")
        if isinstance(weight, Refusal):
            return weight
        edits: list[Edit] = [SetOperand(node, layer.weight.index, weight, layer.weight.value, "weight")]
        if made is not None and isinstance(layer.bias, Bias) and (made.number or layer.bias.operand is not None):
            old = layer.bias.operand
            before = np.zeros(layer.bias.shape, layer.weight.dtype) if old is None else old.array
            origin = layer.weight.value if old is None else old.value
            edits.append(SetOperand(node, 2, with_one_more(before, 0, made.number), origin, "bias"))
        return edits


def _silent(region: _Region) -> set[ir.Node]:
    """Makers that emit zeros: what they make is only added to what has its ones from elsewhere, as at the end of a
    residual block, so that a stream does not come to hold as many as there are blocks."""
    found: set[ir.Node] = set()
    for node, through in region.passages.items():
        if node.op_type in ("Add", "Sub", "Sum"):
            makers = [value.producer() for value in through.operands if {use.node for use in value.uses()} == {node}]
            ends = [maker for maker in makers if maker in region.makers]
            found.update(maker for maker in ends[len(ends) == len(through.operands) :] if maker is not None)
    return found


def _holders(node: ir.Node, region: _Region) -> tuple[ir.Node, ...]:
    readers = (reader for reader in region.readers if node in region.held[_data(reader)].lifts)
    makers = (maker for maker in region.makers if region.held[maker.outputs[0]].number)
    return tuple(dict.fromkeys((*makers, *readers)))


def _data(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _reading(weight: Float64s, inputs: int, held: Held) -> Float64s:
    """W along its axis `inputs` for a widened input: `W s`, and behind it `sum_i W[i] t[i] / number`."""
    shape = [1] * weight.ndim
    shape[inputs] = weight.shape[inputs]
    if held.shift is None:
        extra = np.zeros_like(weight.take([0], axis=inputs))
    else:
        extra = (weight * held.shift.reshape(shape)).sum(axis=inputs, keepdims=True) / held.number
    scaled = weight if held.scale is None else weight * held.scale.reshape(shape)
    return np.concatenate([scaled, extra], axis=inputs)


def _taken(one: _Map, held: Held) -> Held | Refusal:
    """What y stands for when it is stored as x is."""
    if not held.uniform:
        return Refusal(f"the extra channel that {describe(one.node)} reads is not the same everywhere")
    scale = one.scale if held.scale is None else held.scale * (1.0 if one.scale is None else one.scale)
    before = 0.0 if held.shift is None else held.shift * (1.0 if one.scale is None else one.scale)
    return Held(held.number, True, scale, before + one.shift, held.lifts | {one.node})


def _map_of(node: ir.Node, known: Known) -> _Map | Refusal:
    """A BatchNormalization, or an Add or Sub of a constant, a number a channel."""
    if is_standard(node, "BatchNormalization"):
        record = read_batchnorm(node, known.opset, known.constants)
        if isinstance(record, Refusal):
            return record
        if (known.dims(record.x) or ())[1:2] not in ((), (None,), (record.affine.channels,)):  # unknown: see `_place`
            return Refusal(f"{describe(node)} does not have the channels of '{record.x.name}'")
        return _Map(node, 0, record.affine.scale, record.affine.shift)
    if not is_standard(node) or node.op_type not in ("Add", "Sub"):
        return Refusal(f"{describe(node)} scales: no channel more can do that")
    parts = operands_of(node, known)
    if isinstance(parts, Refusal):
        return parts
    dims = known.dims(parts.x)
    along = [axis for axis, size in enumerate(parts.constant.shape) if size != 1]
    reversed_sub = node.op_type == "Sub" and parts.index == 0
    if along not in ([], [1]) or dims is None or len(dims) < 3 or dims[1] is None or reversed_sub:
        return Refusal(f"{describe(node)} adds no number a channel")
    if not np.isfinite(parts.constant).all():
        return Refusal(f"the constant of {describe(node)} is not finite")
    shift = np.broadcast_to(parts.constant.reshape(-1), (dims[1],))
    return _Map(node, 1 - parts.index, None, -shift if node.op_type == "Sub" else shift)


def _place(value: ir.Value, known: Known) -> Refusal | None:
    """Why a tensor has to keep its shape, whoever reads it."""
    if value.is_graph_output():
        return Refusal(f"'{value.name}' is a graph output, whose shape stays")
    if value.producer() is None:
        return Refusal(f"no operator of this graph makes '{value.name}', none could add a channel")
    dims = known.dims(value)
    if dims is None or len(dims) < 3 or dims[1] is None or dims[1] == 0:
        return Refusal(f"'{value.name}' has no known number of channels")
    return None


def _convolution(node: ir.Node, known: Known) -> Layer | Refusal | None:
    """A Conv or ConvTranspose without groups, weights constant; None where it is another operator or has groups."""
    read = {"Conv": conv, "ConvTranspose": conv_transpose}.get(node.op_type) if is_standard(node) else None
    if read is None or node.attributes.get_int("group", 1) != 1:
        return None
    layer = read(node, known)
    if isinstance(layer, Refusal) or isinstance(layer.weight, Operand):
        return layer
    return Refusal(f"the weight of {describe(node)} is stored as integers")
