"""The first judgement of the proof: in float64, do two graphs compute the same function up to the rounding of weights?

Knows the evaluator and nothing of ONNX Runtime, files or reports.

The bound. Let S be the largest magnitude of an output in one sample. Exact evaluations of equivalent graphs differ by a
small multiple of 2^-53 S, so that 1e-9 S is generous, unless the answer is sensitive: a shift that cancels a mean of a
thousand standard deviations amplifies every rounding a thousandfold. And a folded graph cannot be exact: each weight
that folding made was rounded once, to the precision of the file. Both effects are one thing, the response of the answer
to relative perturbations of the data, that is, its condition (N. J. Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., 2002, sections 1.5 and 1.6). A bound from norms of the weights would be sound and useless: over
fifty layers it grows like 1e50. So the response is *measured*, as in small-sample statistical condition estimation
(C. S. Kenney and A. J. Laub, SIAM J. Sci. Comput. 15(1), 1994): move each constant that the original does not contain
by relative normal noise whose standard deviation is the unit roundoff of its own type (rounding itself has at most 0.58
of that, and never moves by more than 1.0), evaluate again, and take the largest change in the channel. Its tolerance is

    max(1e-9 S, 3 * response)   =   1e-9 * S * condition,    condition >= 1,

in words: the folded graph is right if it is the exact graph with each new weight moved by a unit or so in its last
place (a small backward error). Anything else - a wrong axis, sign, epsilon, border - moves weights by 1e3 units.
A graph without new constants gets no allowance but 1e-9 S.

Four probes decide the usual case. A sample that does not pass gets more, up to 32, so that an unlucky draw cannot fail
a right fold (all 32 normal draws would have to be small); the last look adds the original's own response in float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from training.reference import ReadConstant, evaluate, is_float, widen
from training.reference.op import Array

BOUND = 1e-9  # of the output's scale times its condition; the figure the project promises
_FACTOR = (
    3.0  # rounding is at most 1.0 where the probe's standard deviation is 1.0; three of them leave no false alarms
)
_PROBES = (4, 8, 16, 32)  # a right fold needs four or eight; only a wrong one always takes 32
_DECISION_UNITS = (
    8.0  # a decision within this many units of the graph's own precision is the rounding's, not the fold's
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one sample says of one output. `error` and `tolerance` are absolute, at the channel that is worst.

    `scale` is the output's largest magnitude in the sample. For integers, bools and strings `error` counts the elements
    that differ and that rounding does not explain, and `decided_by_rounding` those that it does.
    """

    output: str
    error: float
    tolerance: float
    scale: float
    decided_by_rounding: int = 0

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

    def judge(self, sample: Mapping[str, Array], oracle: Mapping[str, Array]) -> list[Finding]:
        """One finding an output. `oracle` is `evaluate(original, sample)`."""
        answer = evaluate(self.folded, sample)
        findings = {name: _first_look(name, oracle[name], answer[name]) for name in oracle}
        responses = _Responses(answer)
        for probes in _PROBES:
            open_names = [name for name, finding in findings.items() if not finding.holds and _explicable(finding)]
            if not open_names:
                break
            responses.extend(self._probes(sample, responses.count, probes))
            if probes == _PROBES[-1]:
                responses.add(oracle, evaluate(self.original, sample, read=_own_rounding()))
            for name in open_names:
                findings[name] = _second_look(findings[name], oracle[name], answer[name], responses)
        return list(findings.values())

    def _probes(self, sample: Mapping[str, Array], start: int, stop: int) -> Iterator[dict[str, Array]]:
        for number in range(start, stop):
            yield evaluate(self.folded, sample, read=perturbed(number, spare=self._known))


def _explicable(finding: Finding) -> bool:
    return np.isfinite(finding.error)


def _first_look(name: str, expected: Array, found: Array) -> Finding:
    """Against 1e-9 of the scale alone."""
    if expected.shape != found.shape or _is_number(expected) != _is_number(found):
        return Finding(name, float("inf"), 0.0, 0.0)
    if not _is_number(expected):
        return Finding(name, float(np.count_nonzero(expected != found)), 0.0, 0.0)
    scale = largest(expected)
    return Finding(name, float(difference(expected, found).max(initial=0.0)), BOUND * scale, scale)


def _second_look(finding: Finding, expected: Array, found: Array, responses: _Responses) -> Finding:
    """Against the measured response, channel by channel; the finding tells of the channel nearest to its bound."""
    name = finding.output
    if not _is_number(expected):
        explained = (expected != found) & responses.values_seen(name, expected)
        differing = int(np.count_nonzero(expected != found))
        return Finding(name, float(differing - explained.sum()), 0.0, 0.0, int(explained.sum()))
    error = _by_channel(difference(expected, found))
    tolerance = np.maximum(BOUND * finding.scale, _FACTOR * responses.by_channel(name))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(error == 0, 0.0, error / tolerance)
    worst = int(share.argmax())
    return Finding(name, float(error[worst]), float(tolerance[worst]), finding.scale)


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

    All constants and float inputs move by normal noise of a few units of their own type. For ArgMax, comparisons and
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
    """Widen, then move each float by normal noise of `units` times the relative unit roundoff of its type.

    Constants whose hash is in `spare` stay exact. The same seed moves the same graph in the same way.
    """
    generator = np.random.default_rng((seed, 0x0F01D))
    exact = frozenset(spare)

    def read(array: Array) -> Array:
        wide = widen(array)
        if not is_float(array.dtype) or _digest(array) in exact:
            return wide
        info = ml_dtypes.finfo(array.dtype)
        moved = generator.standard_normal(array.shape, dtype=np.float32).astype(np.float64)
        moved *= 0.5 * units * float(info.eps)
        # Below the smallest normal number spacing no longer shrinks. In float16 that begins at 6e-5.
        moved *= np.maximum(np.abs(wide), float(info.smallest_normal)) if info.bits <= 16 else wide
        moved += wide
        return moved

    return read


def _own_rounding() -> ReadConstant:
    """All constants move by a few units of float64: how uncertain the oracle itself is."""
    generator = np.random.default_rng(0x0F01D)

    def read(array: Array) -> Array:
        wide = widen(array)
        if not is_float(array.dtype):
            return wide
        return wide * (1.0 + 4 * 2.0**-53 * generator.standard_normal(array.shape))

    return read


def spacing(values: Array, dtype: np.dtype) -> Array:
    """The distance between neighbours of `dtype` (bfloat16 too) at these float64 values: one unit in the last place."""
    info = ml_dtypes.finfo(dtype)
    magnitude = np.maximum(np.abs(values), float(info.smallest_normal))
    _, exponent = np.frexp(np.where(np.isfinite(magnitude), magnitude, float(info.max)))
    return np.ldexp(float(info.eps), exponent - 1)


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
    """The largest along all axes but the channel axis, 1."""
    if values.ndim < 2:
        return values.max(initial=0.0, keepdims=True).reshape(1)
    return values.max(axis=tuple(axis for axis in range(values.ndim) if axis != 1), initial=0.0)


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
    content = array.tobytes() if array.dtype.kind != "O" else repr(array.tolist()).encode()
    return f"{array.dtype}:{hashlib.blake2b(content, digest_size=16).hexdigest()}"
