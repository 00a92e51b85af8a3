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
place (a small backward error). Anything else - a wrong axis, sign, epsilon, border - moves weights by 1e3 units.
A graph without new constants gets no allowance but 1e-9 S and the original's own response to moving its data by a few
units of float64, which is what a channel that cancels to nearly nothing consists of. Where it cancels exactly (x minus
its mean, on a sample of zeros), rounding inside the operators is all there is, and no perturbation of the data shows
it: such a channel is allowed 64 * 2^-53 of the size that it had in the samples before.

Four probes decide the usual case. A sample that does not pass gets more, up to 32, so that an unlucky draw cannot fail
a right fold (all 32 draws would have to be small), and from the second look on the original's own response.

What never ran proves nothing: `unproved` names the nodes that folding changed and no sample reached. `branch` sends all
Ifs one way. Two graphs with equal branches stay equal when both are steered, whatever the conditions say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from training.reference import ReadConstant, Steering, evaluate, float_format, is_float, widen
from training.reference.op import Array

BOUND = 1e-9  # of the output's scale times its condition; the figure the project promises
_FACTOR = (
    3.0  # rounding is at most 1.0 where the probe's standard deviation is 1.0; three of them leave no false alarms
)
_PROBES = (4, 8, 16, 32)  # a right fold needs four or eight; only a wrong one always takes 32
_NOISE = 64 * 2.0**-53  # of a channel's size in other samples: what float64 leaves of one that cancels in this one
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
    """Compares two graphs sample by sample. Holds the hashes of the original's constants, nothing that grows."""

    def __init__(self, original: ir.Model, folded: ir.Model) -> None:
        self.original = original
        self.folded = folded
        self._known = {_digest(array) for array in _constants(original)}
        self._unproved = _changed(original, folded)
        self._sizes: dict[str, Array] = {}  # of each output's channels, the largest in any sample so far

    def expected(self, sample: Mapping[str, Array], branch: bool | None = None) -> dict[str, Array]:
        """What the original answers: the oracle of `judge`."""
        return self._evaluate(self.original, sample, branch)

    def judge(
        self, sample: Mapping[str, Array], oracle: Mapping[str, Array], branch: bool | None = None
    ) -> list[Finding]:
        """One finding an output. `oracle` is `expected(sample, branch)`."""
        answer = self._evaluate(self.folded, sample, branch)
        noise = {name: _NOISE * self._largest_so_far(name, oracle[name]) for name in oracle}
        findings = {name: _first_look(name, oracle[name], answer[name], noise[name]) for name in oracle}
        responses = _Responses(answer)
        for probes in _PROBES:
            open_names = [name for name, finding in findings.items() if not finding.holds and _explicable(finding)]
            if not open_names:
                break
            responses.extend(self._probes(sample, responses.count, probes, branch))
            if probes == _PROBES[1]:
                responses.add(oracle, self._own_response(sample, branch))
            for name in open_names:
                findings[name] = _second_look(findings[name], oracle[name], answer[name], responses, noise[name])
        return list(findings.values())

    def unproved(self) -> list[str]:
        """Nodes, as "name (operator)", that are in one graph and not in the other and were never evaluated."""
        return sorted({f"{node.name or node.outputs[0].name!r} ({node.op_type})" for node in self._unproved})

    def _evaluate(self, model: ir.Model, sample: Mapping[str, Array], branch: bool | None) -> dict[str, Array]:
        steering = Steering(branch)
        answer = evaluate(model, sample, steering=steering)
        self._unproved -= steering.ran
        return answer

    def _largest_so_far(self, name: str, expected: Array) -> Array:
        """Of each channel, this sample included; this sample's alone where the number of channels is another."""
        if not _is_number(expected):
            return np.zeros(1)
        scale = _scales(expected)
        before = self._sizes.get(name, scale)
        self._sizes[name] = np.maximum(scale, before) if before.shape == scale.shape else scale
        return self._sizes[name]

    def _own_response(self, sample: Mapping[str, Array], branch: bool | None) -> dict[str, Array]:
        move = _own_rounding()
        moved = {name: move(np.asarray(array)) for name, array in sample.items()}
        return evaluate(self.original, moved, read=move, steering=Steering(branch))

    def _probes(
        self, sample: Mapping[str, Array], start: int, stop: int, branch: bool | None
    ) -> Iterator[dict[str, Array]]:
        for number in range(start, stop):
            read = perturbed(number, spare=self._known)
            yield evaluate(self.folded, sample, read=read, steering=Steering(branch))


def _explicable(finding: Finding) -> bool:
    return finding.comparable and bool(np.isfinite(finding.error))


def _first_look(name: str, expected: Array, found: Array, noise: Array) -> Finding:
    """Against 1e-9 of each channel's scale, or `noise` where that is more."""
    if expected.shape != found.shape or _is_number(expected) != _is_number(found):
        return Finding(name, float("inf"), 0.0, 0.0, comparable=False)
    if not _is_number(expected):
        return Finding(name, float(np.count_nonzero(expected != found)), 0.0, 0.0)
    scale = _scales(expected)
    return _worst(name, _by_channel(difference(expected, found)), np.maximum(BOUND * scale, noise), scale)


def _worst(name: str, error: Array, tolerance: Array, scale: Array) -> Finding:
    """Of the channel that is nearest to its bound."""
    if not error.size:
        return Finding(name, 0.0, 0.0, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(error == 0, 0.0, error / tolerance)
    worst = int(share.argmax()) if error.any() else int(scale.argmax())
    return Finding(name, float(error[worst]), float(tolerance[worst]), float(scale[worst]))


def _second_look(finding: Finding, expected: Array, found: Array, responses: _Responses, noise: Array) -> Finding:
    """Against the measured response, channel by channel; the finding tells of the channel nearest to its bound."""
    name = finding.output
    if not _is_number(expected):
        explained = (expected != found) & responses.values_seen(name, expected)
        differing = int(np.count_nonzero(expected != found))
        return Finding(name, float(differing - explained.sum()), 0.0, 0.0, int(explained.sum()))
    scale = _scales(expected)
    tolerance = np.maximum(np.maximum(BOUND * scale, noise), _FACTOR * responses.by_channel(name))
    return _worst(name, _by_channel(difference(expected, found)), tolerance, scale)


class _Responses:
    """What perturbed evaluations did to each output: the largest change in a channel, and the decisions they took."""

    def __init__(self, answer: Mapping[str, Array]) -> None:
        self._answer = answer
        self._outputs: list[dict[str, Array]] = []
        self._largest: dict[str, Array] = {}
        self.count = 0

    def extend(self, probes: Iterable[dict[str, Array]]) -> None:
        for probe in probes:
            self.add(self._answer, probe)
            self._outputs.append({name: array for name, array in probe.items() if not _is_number(array)})
            self.count += 1

    def add(self, base: Mapping[str, Array], moved: Mapping[str, Array]) -> None:
        for name, array in moved.items():
            if _is_number(array) and array.shape == base[name].shape:
                change = difference(base[name], array)
                change[~np.isfinite(change)] = 0.0  # an overflow explains nothing
                so_far = self._largest.get(name, np.zeros(1))
                self._largest[name] = np.maximum(so_far, _by_channel(change))

    def by_channel(self, name: str) -> Array:
        return self._largest[name]

    def values_seen(self, name: str, wanted: Array) -> Array:
        """Where did some probe give just the wanted value?"""
        seen = np.zeros(wanted.shape, dtype=bool)
        for probe in self._outputs:
            if probe[name].shape == wanted.shape:
                seen |= probe[name] == wanted
        return seen


def decided_by_rounding(
    model: ir.Model, sample: Mapping[str, Array], output: str, wanted: Array, asked: Array
) -> Array:
    """Of the elements `asked` about, those whose decision rounding in the graph's own precision can turn to `wanted`.

    All constants and float inputs move by noise of a few units of their own type. For ArgMax, comparisons and
    their like: an element may differ only where the graph is undecided.
    """
    explained = np.zeros(wanted.shape, dtype=bool)
    for number in range(_PROBES[-1]):
        move = perturbed(number, units=_DECISION_UNITS)
        moved = evaluate(model, {name: move(np.asarray(array)) for name, array in sample.items()}, read=move)[output]
        if moved.shape == wanted.shape:
            explained |= moved == wanted
        if explained[asked].all():
            break
    return explained & asked


def perturbed(seed: int, *, units: float = 1.0, spare: Iterable[str] = ()) -> ReadConstant:
    """Widen, then move each float by uniform noise; its deviation is `units` times the unit roundoff of its type.

    Constants whose hash is in `spare` stay exact. The same seed moves the same graph in the same way.
    """
    generator = np.random.default_rng((seed, 0x0F01D))
    exact = frozenset(spare)

    def read(array: Array) -> Array:
        wide = widen(array)
        if not is_float(array.dtype) or _digest(array) in exact:
            return wide
        form = float_format(array.dtype)
        moved = generator.random(array.shape, dtype=np.float32).astype(np.float64)
        moved -= 0.5
        moved *= 12**0.5 * 0.5 * units * form.eps  # a uniform number's deviation is 1 / sqrt(12) of its span
        # Below the smallest normal number spacing no longer shrinks. In float16 that begins at 6e-5.
        with np.errstate(invalid="ignore"):
            moved *= np.maximum(np.abs(wide), form.smallest_normal) if form.bits <= 16 else wide
            moved += wide
        still = ~np.isfinite(wide)  # an infinite bound of a clamp is not rounded to anything else
        moved[still] = wide[still]
        return moved

    return read


def _own_rounding() -> ReadConstant:
    """All constants, and inputs, move by a few units of float64: how uncertain the oracle itself is."""
    generator = np.random.default_rng(0x0F01D)

    def read(array: Array) -> Array:
        wide = widen(array)
        if not is_float(array.dtype):
            return wide
        return wide * (1.0 + 4 * 2.0**-53 * generator.standard_normal(array.shape))

    return read


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


def _constants(model: ir.Model) -> Iterator[Array]:
    """As `evaluate` reads them: initializers and Constant nodes of all graphs, subgraphs and local functions."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value.numpy()
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in ir.traversal.RecursiveGraphIterator(body):
            if node.op_type == "Constant" and "value" in node.attributes and not node.attributes["value"].is_ref():
                yield node.attributes["value"].as_tensor().numpy()


def _digest(array: Array) -> str:
    """Of type and content, not of the shape: a reshaped constant is still exact."""
    if array.dtype.kind == "O":
        content: Any = repr(array.tolist()).encode()
    else:
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data  # no copy: all weights pass here, often
    return f"{array.dtype}:{hashlib.blake2b(content, digest_size=16).hexdigest()}"
