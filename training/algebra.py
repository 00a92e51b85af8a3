"""The first judgement of the proof: in float64, do two graphs compute the same function up to the rounding of weights?

Knows the evaluator and nothing of ONNX Runtime, files or reports.

The bound. Let S be the largest magnitude of one channel of an output in one sample: of a channel, because one at 1e12
would otherwise excuse any mistake in its neighbours. Exact evaluations of equivalent graphs differ by a
small multiple of 2^-53 S, so that 1e-9 S is generous, unless the answer is sensitive: a shift that cancels a mean of a
thousand standard deviations amplifies every rounding a thousandfold. And a folded graph cannot be exact: each weight
that folding made was rounded once, to the precision of the file. Both effects are one thing, the response of the answer
to relative perturbations of the data, that is, its condition (N. J. Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., 2002, sections 1.5 and 1.6). A bound from norms of the weights would be sound and useless: over
fifty layers it grows like 1e50. So the response is *measured*, as in small-sample statistical condition estimation
(C. S. Kenney and A. J. Laub, SIAM J. Sci. Comput. 15(1), 1994): move each constant that the original does not contain
by relative uniform noise whose standard deviation is the unit roundoff of its own type (rounding itself has at most
0.58 of that, and never moves by more than 1.0), evaluate again, and take the largest change in the channel. Its
tolerance is

    max(1e-9 S, 3 * response)   =   1e-9 * S * condition,    condition >= 1,

in words: the folded graph is right if it is the exact graph with each new weight moved by a unit or so in its last
place (a small backward error). Anything else - a wrong axis, sign, epsilon, border - moves weights by 1e3 units. Of one
weight alone that much is seen only as far as the samples make its channel active.
A graph without new constants gets no allowance but 1e-9 S and the original's own response to moving its data by a few
units of float64, and each result by one, which is what a channel that cancels to nearly nothing consists of. Where it
cancels exactly (x minus its mean, on a sample of zeros), no perturbation shows what rounding leaves: such a channel is
allowed 64 * 2^-53 of the size that it had in the samples before.

Probes are drawn one by one, for the samples that do not pass yet: more of them can only widen the tolerance, so that
to stop early is to be strict. Two or three decide the usual case. There are up to 32, so that an unlucky draw cannot
fail a right fold (all 32 draws would have to be small), and from the eighth on the original's own response.

Samples are evaluated side by side, as many as fit, because each pass over the constants (reading, widening, moving)
costs more than the products with a few rows do.

What never ran proves nothing: `unproved` names the nodes that folding changed and no sample reached. `branch` sends all
Ifs one way. Two graphs with equal branches stay equal when both are steered, whatever the conditions say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from training.recurring import Recurring
from training.reference import (
    Effort,
    EvaluationFailed,
    ReadConstant,
    Steering,
    evaluate,
    evaluate_all,
    float_format,
    is_float,
    widen,
    widened,
)
from training.reference.op import Array

Move = Callable[[Array], Array]
"""From an array as it is stored to a widened one, of which each number is a little beside its place."""

BOUND = 1e-9  # of the output's scale times its condition; the figure the project promises
_FACTOR = (
    3.0  # rounding is at most 1.0 where the probe's standard deviation is 1.0; three of them leave no false alarms
)
_PROBES = 32  # a right fold needs a few; only a wrong one always takes them all
_OWN_RESPONSE = 8  # probes before the original's own response is measured, and before samples go on one by one
_TOGETHER_BYTES = 128 << 20  # of computed tensors of samples side by side
_CHUNK = 1 << 15  # numbers moved at a time: what a core's cache holds, and no second copy of a large weight
_NOISE = 64 * 2.0**-53  # of a channel's size in other samples: what float64 leaves of one that cancels in this one
_EVALUATION_UNITS = 4.0  # of float64, that rounding inside the operators is worth in weights of that type
_FEW = 64  # numbers: what decides on sizes, steps or counts has no more, and a weight of that few is seldom exact
_CONTENTS: dict[ir.AttributeType, Any] = {
    ir.AttributeType.TENSOR: None,
    ir.AttributeType.FLOAT: np.float32,
    ir.AttributeType.FLOATS: np.float32,
}
_SIZES = {"Resize": (1, 2), "Upsample": (1,), "Range": (0, 1, 2)}  # operands that decide on shapes
_OWN_PROBES = 4  # of the original
_DECISION_UNITS = (
    8.0  # a decision within this many units of the graph's own precision is the rounding's, not the fold's
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one sample says of one output. `error` and `tolerance` are absolute, at the channel that is worst.

    `scale` is that channel's largest magnitude in the sample. For integers, bools and strings `error` counts the
    elements that differ and that rounding does not explain, and `decided_by_rounding` those that it does.
    `comparable` is False where shape or kind differ, and there is nothing to measure.
    """

    output: str
    error: float
    tolerance: float
    scale: float
    decided_by_rounding: int = 0
    comparable: bool = True

    @property
    def condition(self) -> float:
        """How many times 1e-9 of the scale the tolerance is; 1 for a benign graph."""
        return self.tolerance / (BOUND * self.scale) if self.scale else 1.0

    @property
    def relative(self) -> float:
        """The error in units of scale times condition: the figure to compare with `BOUND`."""
        if self.error == 0:
            return 0.0
        return BOUND * self.error / self.tolerance if self.tolerance else float("inf")

    @property
    def holds(self) -> bool:
        """Is the error within the tolerance?"""
        return self.relative <= BOUND


class Algebra:
    """Compares two graphs on samples. Holds views of the original's constants, nothing that grows."""

    def __init__(self, original: ir.Model, folded: ir.Model) -> None:
        self.original = original
        self.folded = folded
        self.effort = Effort()  # of the first sample's evaluation
        self._sizes_said = Recurring(_steering_sizes(original))
        self._unmoved = Recurring([*_constants(original), *_steering_sizes(folded)])
        self._unproved = _changed(original, folded)
        self._sizes: dict[str, Array] = {}  # of each output's channels, the largest in any sample so far

    def expected(self, sample: Mapping[str, Array], branch: bool | None = None) -> dict[str, Array]:
        """What the original answers: the oracle of `judge`."""
        return self.expected_all([sample], branch)[0]

    def expected_all(
        self, samples: Sequence[Mapping[str, Array]], branch: bool | None = None
    ) -> list[dict[str, Array]]:
        """`expected` of each sample. The first of all tells how many may be evaluated side by side."""
        if self.effort.work:
            return self._evaluate(self.original, samples, branch)
        first = self._evaluate(self.original, samples[:1], branch, effort=self.effort)
        return first + (self._evaluate(self.original, samples[1:], branch) if samples[1:] else [])

    def judge(
        self, sample: Mapping[str, Array], oracle: Mapping[str, Array], branch: bool | None = None
    ) -> list[Finding]:
        """One finding an output. `oracle` is `expected(sample, branch)`."""
        return self.judge_all([sample], [oracle], branch)[0]

    def judge_all(
        self,
        samples: Sequence[Mapping[str, Array]],
        oracles: Sequence[Mapping[str, Array]],
        branch: bool | None = None,
    ) -> list[list[Finding]]:
        """The findings of each sample. After one that does not hold, the rest may not have had all their probes."""
        answers = self._evaluate(self.folded, samples, branch)
        views = []
        for oracle, answer in zip(oracles, answers, strict=True):
            views.append({n: _View(n, oracle[n], answer[n], self._noise(n, oracle[n])) for n in oracle})
        for probe in range(_OWN_RESPONSE):
            still = [index for index, view in enumerate(views) if _is_open(view)]
            if not still:
                break
            self._probe([samples[i] for i in still], [views[i] for i in still], probe, branch)
        for sample, view, oracle in zip(samples, views, oracles, strict=True):
            if _is_open(view):
                self._insist(sample, view, oracle, branch)
            if not all(each.finding().holds for each in view.values()):
                break
        return [[each.finding() for each in view.values()] for view in views]

    def _insist(
        self, sample: Mapping[str, Array], view: dict[str, _View], oracle: Mapping[str, Array], branch: bool | None
    ) -> None:
        """The original's own response, to rounding too, and all the probes there are."""
        for seed in range(_OWN_PROBES):
            own = _own_rounding(seed)
            moved = {name: own(np.asarray(array)) for name, array in sample.items()}
            steering = Steering(branch, rounding=_rounding(seed))
            try:
                (response,) = evaluate_all(
                    self.original, [moved], read=_moving(own, self._sizes_said), steering=steering
                )
            except EvaluationFailed:
                continue
            for name, each in view.items():
                each.add(oracle[name], response[name])
        for probe in range(_OWN_RESPONSE, _PROBES):
            if not _is_open(view):
                return
            self._probe([sample], [view], probe, branch)

    def _probe(
        self,
        samples: Sequence[Mapping[str, Array]],
        views: Sequence[dict[str, _View]],
        number: int,
        branch: bool | None,
    ) -> None:
        for group, places in self._groups(samples):
            read = _moving(perturbed(number), self._unmoved)  # the same for each group: it is one graph that moved
            try:
                probes = evaluate_all(self.folded, group, read=read, steering=Steering(branch))
            except EvaluationFailed:  # a size that is computed from what moved: this probe explains nothing
                continue
            for view, probe in zip(views[places], probes, strict=True):
                for name, each in view.items():
                    each.add(each.answer, probe[name], moved=True)

    def unproved(self) -> list[str]:
        """Nodes, as "name (operator)", that are in one graph and not in the other and were never evaluated."""
        return sorted({f"{node.name or node.outputs[0].name!r} ({node.op_type})" for node in self._unproved})

    def _evaluate(
        self,
        model: ir.Model,
        samples: Sequence[Mapping[str, Array]],
        branch: bool | None,
        *,
        read: ReadConstant = widened,
        effort: Effort | None = None,
    ) -> list[dict[str, Array]]:
        steering, answers = Steering(branch), []
        for group, _ in self._groups(samples):
            answers += evaluate_all(model, group, read=read, steering=steering, effort=effort)
        self._unproved -= steering.ran
        return answers

    def _groups(self, samples: Sequence[Mapping[str, Array]]) -> Iterator[tuple[Sequence[Mapping[str, Array]], slice]]:
        """As many samples as may be evaluated side by side, and their places."""
        together = max(_TOGETHER_BYTES // max(self.effort.live_bytes, 1), 1) if self.effort.work else 1
        for start in range(0, len(samples), together):
            places = slice(start, start + together)
            yield samples[places], places

    def _noise(self, name: str, expected: Array) -> Array:
        """What rounding inside operators leaves of each channel: of its size in this sample and those before it.

        This sample's alone where the number of channels is another.
        """
        if not _is_number(expected):
            return np.zeros(1)
        scale = _scales(expected)
        before = self._sizes.get(name, scale)
        self._sizes[name] = np.maximum(scale, before) if before.shape == scale.shape else scale
        return _NOISE * self._sizes[name]


class _View:
    """One output of one sample: how far apart the graphs are, and what perturbed evaluations explain of it."""

    def __init__(self, name: str, expected: Array, answer: Array, noise: Array) -> None:
        self.name = name
        self.answer = answer
        self.comparable = expected.shape == answer.shape and _is_number(expected) == _is_number(answer)
        self._is_number = _is_number(expected)
        if not self.comparable:
            return
        if self._is_number:
            self._error = _by_channel(difference(expected, answer))
            self._scale = _scales(expected)
            self._allowed = np.maximum(BOUND * self._scale, noise)
            self._response = np.zeros_like(self._scale)
        else:
            self._wanted = expected
            self._differing = expected != answer
            self._explained = np.zeros(expected.shape, dtype=bool)

    def add(self, base: Array, other: Array, *, moved: bool = False) -> None:
        """An evaluation with perturbed data, `moved`: of the folded graph; and what it is compared with.

        Of a number counts how far it moved, of a decision whether the folded graph can come to the wanted one.
        """
        if not self.comparable or other.shape != base.shape or _is_number(other) != self._is_number:
            return
        if self._is_number:
            change = difference(base, other)
            change[~np.isfinite(change)] = 0.0  # an overflow explains nothing
            self._response = np.maximum(self._response, _by_channel(change))
        elif moved:
            self._explained |= other == self._wanted

    def finding(self) -> Finding:
        """Of the channel that is nearest to its bound."""
        if not self.comparable:
            return Finding(self.name, float("inf"), 0.0, 0.0, comparable=False)
        if not self._is_number:
            explained = int(np.count_nonzero(self._differing & self._explained))
            return Finding(self.name, float(np.count_nonzero(self._differing) - explained), 0.0, 0.0, explained)
        tolerance = np.maximum(self._allowed, _FACTOR * self._response)
        return _worst(self.name, self._error, tolerance, self._scale)


def _is_open(view: Mapping[str, _View]) -> bool:
    """Is there an output that does not hold yet, and that probes could explain?"""
    findings = [each.finding() for each in view.values()]
    return any(not one.holds and one.comparable and np.isfinite(one.error) for one in findings)


def _worst(name: str, error: Array, tolerance: Array, scale: Array) -> Finding:
    """Of the channel that is nearest to its bound."""
    if not error.size:
        return Finding(name, 0.0, 0.0, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(error == 0, 0.0, error / tolerance)
    worst = int(share.argmax()) if error.any() else int(scale.argmax())
    return Finding(name, float(error[worst]), float(tolerance[worst]), float(scale[worst]))


def decided_by_rounding(
    model: ir.Model, sample: Mapping[str, Array], output: str, wanted: Array, asked: Array
) -> Array:
    """Of the elements `asked` about, those whose decision rounding in the graph's own precision can turn to `wanted`.

    All constants and float inputs move by noise of a few units of their own type. For ArgMax, comparisons and
    their like: an element may differ only where the graph is undecided.
    """
    explained = np.zeros(wanted.shape, dtype=bool)
    for number in range(_PROBES):
        try:
            moved = _moved(model, sample, perturbed(number, units=_DECISION_UNITS))[output]
        except EvaluationFailed:
            continue
        if moved.shape == wanted.shape:
            explained |= moved == wanted
        if explained[asked].all():
            break
    return explained & asked


def swayed_by_rounding(model: ir.Model, sample: Mapping[str, Array], output: str, exact: Array) -> Array:
    """How far from `exact`, its answer, rounding in the output's own precision moves each element: constants, inputs
    and every result of an operator by a few units. Float64; 0 where the perturbed graph cannot be evaluated."""
    eps = next(float_format(v.dtype.numpy()).eps for v in model.graph.outputs if v.name == output and v.dtype)
    sizes, sway = Recurring(_steering_sizes(model)), np.zeros(exact.shape)
    for number in range(_OWN_PROBES):
        move, steering = perturbed(number, units=_DECISION_UNITS), Steering(rounding=_rounding(number, eps))
        try:
            moved = _moved(model, sample, move, sizes, steering)[output]
        except EvaluationFailed:
            continue
        if moved.shape == exact.shape:
            sway = np.fmax(sway, difference(moved, exact))
    return sway


def _moved(
    model: ir.Model,
    sample: Mapping[str, Array],
    move: Move,
    unmoved: Recurring | None = None,
    steering: Steering | None = None,
) -> dict[str, Array]:
    """The outputs with all inputs and all other constants moved."""
    inputs = {name: move(np.asarray(array)) for name, array in sample.items()}
    return evaluate(model, inputs, read=_moving(move, unmoved), steering=steering)


def perturbed(seed: int, *, units: float = 1.0) -> Move:
    """Widen, then move each float by uniform noise; its deviation is `units` times the unit roundoff of its type, in
    float64 four times that: there the evaluation rounds as coarsely as the weights were rounded.

    The same seed moves the same arrays, in the same order, in the same way.
    """
    generator = np.random.default_rng((seed, 0x0F01D))

    def move(array: Array) -> Array:
        if not is_float(array.dtype):
            return widen(array)
        form = float_format(array.dtype)
        own = units * (_EVALUATION_UNITS if form.bits == 64 else 1.0)
        spread = 12**0.5 * 0.5 * own * form.eps  # a uniform number's deviation is 1 / sqrt(12) of its span
        moved, stored = np.empty(array.size), array.reshape(-1)
        with np.errstate(invalid="ignore"):
            for start in range(0, array.size, _CHUNK):
                wide = widen(stored[start : start + _CHUNK])
                noise = np.subtract(generator.random(wide.size, dtype=np.float32), 0.5, dtype=np.float64)
                noise *= spread
                # Below the smallest normal number spacing no longer shrinks. In float16 that begins at 6e-5.
                noise *= np.maximum(np.abs(wide), form.smallest_normal) if form.bits <= 16 else wide
                noise += wide
                still = ~np.isfinite(wide)  # an infinite bound of a clamp is not rounded to anything else
                noise[still] = wide[still]
                moved[start : start + _CHUNK] = noise
        return moved.reshape(array.shape)

    return move


def _own_rounding(seed: int) -> Move:
    """All constants, and inputs, move by a few units of float64: how uncertain the oracle itself is."""
    generator = np.random.default_rng((seed, 0x0F01D))

    def move(array: Array) -> Array:
        wide = widen(array)
        if not is_float(array.dtype):
            return wide
        return wide * (1.0 + 4 * 2.0**-53 * generator.standard_normal(array.shape))

    return move


def _moving(move: Move, unmoved: Recurring | None = None) -> ReadConstant:
    def read(tensor: ir.TensorProtocol) -> Array:
        array = tensor.numpy()
        return widen(array) if (unmoved and unmoved.has(tensor)) or _is_exact(array) else move(array)

    return read


def _rounding(seed: int, eps: float = 2.0**-52) -> Move:
    """Monte Carlo arithmetic (D. S. Parker, UCLA CSD-970002, 1997): each result moves by its own last place or so, so
    that what cancels afterwards shows what rounding had left of it."""
    generator = np.random.default_rng((seed, 0x0F01D, 1))

    def move(result: Array) -> Array:
        return result * (1.0 + eps * generator.standard_normal(result.shape))

    return move


def spacing(values: Array, dtype: np.dtype) -> Array:
    """The distance between neighbours of `dtype` (bfloat16 too) at these float64 values: one unit in the last place."""
    form = float_format(dtype)
    magnitude = np.maximum(np.abs(values), form.smallest_normal)
    _, exponent = np.frexp(np.where(np.isfinite(magnitude), magnitude, form.max))
    return np.asarray(np.ldexp(form.eps, exponent - 1))


def difference(a: Array, b: Array) -> Array:
    """|a - b|; 0 where both are the same infinity or both NaN, infinite where only one is finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(a - b)
        distance = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, distance)
    return np.where(np.isnan(distance), np.inf, distance)


def largest(values: Array) -> float:
    """The largest finite magnitude; 0 when there is none."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max(initial=0.0))


def _is_number(array: Array) -> bool:
    """Is this a real or complex output, for which an error has a size?"""
    return array.dtype.kind in "fc"


def _by_channel(values: Array) -> Array:
    """The largest in each channel. Channels are axis 1, or the last after a Transpose to NHWC: both, one by one."""
    if values.ndim < 2:
        return np.asarray(np.max(values, initial=0.0)).reshape(1)
    return np.concatenate(
        [
            np.max(values, axis=tuple(other for other in range(values.ndim) if other != axis), initial=0.0)
            for axis in sorted({1, values.ndim - 1})
        ]
    )


def _scales(values: Array) -> Array:
    """The largest finite magnitude in each channel."""
    magnitude = np.abs(values)
    return _by_channel(np.where(np.isfinite(magnitude), magnitude, 0.0))


def _changed(original: ir.Model, folded: ir.Model) -> set[ir.Node]:
    """Nodes of either graph that the other has no equal of. Only a graph with control flow can leave one out."""
    nodes = [list(_reachable(model)) for model in (original, folded)]
    if not any(node.op_type in ("If", "Loop", "Scan") and node.domain == "" for some in nodes for node in some):
        return set()
    keys = [{node: _identity(node) for node in some} for some in nodes]
    shared = set(keys[0].values()) & set(keys[1].values())
    return {node for some in keys for node, key in some.items() if key not in shared}


def _reachable(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes of the main graph, its subgraphs, and the local functions that these call."""
    waiting: list[ir.Graph | ir.Function] = [model.graph]
    called = set()
    while waiting:
        for node in ir.traversal.RecursiveGraphIterator(waiting.pop()):
            yield node
            function = model.functions.get(node.op_identifier())
            if function is not None and function not in called:
                called.add(function)
                waiting.append(function)


def _identity(node: ir.Node) -> tuple[object, ...]:
    """What two equal nodes share: operator, names, attributes, and the content of each constant they read."""
    reads = tuple(
        "" if value is None else value.name if value.const_value is None else _digest(value.const_value.numpy())
        for value in node.inputs
    )
    plain = sorted(
        (name, _digest(attribute.value.numpy()) if attribute.type == ir.AttributeType.TENSOR else str(attribute.value))
        for name, attribute in node.attributes.items()
        if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    )
    ends = tuple(
        tuple(value.name for value in attribute.as_graph().outputs)
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref()
    )
    return (*node.op_identifier(), reads, tuple(value.name for value in node.outputs), tuple(plain), ends)


def _constants(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """As `evaluate` reads them: initializers and Constant nodes of all graphs, subgraphs and local functions."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in ir.traversal.RecursiveGraphIterator(body):
            if node.op_type == "Constant":
                yield from filter(None, map(_content, node.attributes.values()))


def _content(attribute: ir.Attr) -> ir.TensorProtocol | None:
    """Of a Constant node's attribute, whatever form it has; None where a function's caller gives it."""
    if attribute.is_ref() or attribute.type not in _CONTENTS:
        return None
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.as_tensor()
    return ir.tensor(np.asarray(attribute.value, dtype=_CONTENTS[attribute.type]))


def _steering_sizes(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Constants that say how large a result is: moved, they would make another graph."""
    for node in _reachable(model):
        for index in _SIZES.get(node.op_type, ()) if node.domain == "" else ():
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and value.const_value is not None:
                yield value.const_value


def _is_exact(array: Array) -> bool:
    """Few small numbers, all multiples of 1/16: no rounding made them. A scale of 2 is such a one, or a step of 1.

    Of the float32 numbers below 256 that rounding makes, fewer than one in 4096 is. In half precision many are.
    """
    if array.size > _FEW or array.dtype not in (np.float32, np.float64):
        return False
    units = array * 16.0
    return bool((np.abs(units) <= 4096.0).all() and (units == np.round(units)).all())


def _digest(array: Array) -> str:
    """Of type and content, not of the shape: a reshaped constant is still exact."""
    if array.dtype.kind == "O":
        content: Any = repr(array.tolist()).encode()
    else:
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data  # no copy: all weights pass here, often
    return f"{array.dtype}:{hashlib.blake2b(content, digest_size=16).hexdigest()}"
