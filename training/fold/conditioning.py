"""Which folded shifts would cost digits: predicted per channel, from the statistics that BatchNormalization carries.

A BatchNormalization knows its input's mean and deviation, and so its output's. A tensor that is stored under a gauge is
centred at `|A mean + B|`, and what is rounded there is rounded at that size. It shows in three places:

* in a tensor that others share (a residual stream), since everything added to it is rounded so: the root mean square
  error grew 1.3 times at 16 deviations, 1.7 at 32 and 13.5 at 256 (one channel, float32);
* where a graph input is normalised: nothing rounded it yet, unlike a tensor inside, which a product made at that size.
  At 1e4 deviations a Gemm that took the map was off by 7e-4 of its output (float32), where the BatchNormalization had
  been off by 5e-6. So the error may reach 2^-15: 256 deviations in float32, and what a double has for it;
* at a Cast to fewer digits, which keeps those of what is stored, and no numbers beyond its range.

A tensor that was as far from zero before is no worse for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from training.fold.affine import Float64s
from training.fold.batchnorm import read_batchnorm
from training.fold.known import Known
from training.fold.laws import Equal, Free, Lift, NoScale, Port, Sum, ports
from training.fold.problem import Problem
from training.fold.refusal import Refusal
from training.fold.solve import Fate, Solution

MOST_DEVIATIONS = 16.0
_MOST_ERROR = 2.0**-15  # of a deviation, from reading a graph input as it comes
_MOST_AT_A_CAST = 4.0  # deviations; they are as many digits less, at once
_TAIL = 8.0  # deviations from the mean, that must not overflow

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Seen:
    """One side of a lift: what its statistics say of a tensor, and what is rounded where it is stored."""

    port: Port
    mean: Float64s
    deviation: Float64s
    limit: Float64s  # of deviations from zero; infinite where nothing is rounded


def ill_conditioned(solution: Solution, known: Known) -> dict[int, str]:
    """Lifts (by tag) whose shift should stay, and what was predicted."""
    problem = solution.problem
    if ill_conditioned not in problem.notes:  # solutions of one problem differ in none of these
        problem.notes[ill_conditioned] = _shared(problem), _given(problem), _largest(problem, known)
    shared, given, largest = problem.notes[ill_conditioned]
    found = {}
    for tag in problem.lifts:
        law = problem.lift(tag)
        if solution.fate[tag] not in (Fate.FOLDED, Fate.MUL) or law.node.op_type != "BatchNormalization":
            continue
        for side in _sides(law, problem, known, shared, given):
            why = _predicted(side, solution, largest)
            if why:
                found[tag] = f"ill-conditioned: '{side.port.value.name}' {why}"
                break
    return found


def _sides(law: Lift, problem: Problem, known: Known, shared: Mask, given: Mask) -> Iterator[_Seen]:
    record = read_batchnorm(law.node, known.opset, known.constants)
    assert not isinstance(record, Refusal), "it was lifted"
    mean, deviation = record.affine.center, np.sqrt(record.spread)
    classes = problem.classes(law.x)
    yield _Seen(law.x, mean, deviation, np.where(shared[classes], MOST_DEVIATIONS, np.inf))
    scale, shift = record.affine.scale, record.affine.shift
    dtype = known.shapes.dtype(law.x.value)
    assert dtype is not None, "it is of some floating-point type"
    most = max(_MOST_ERROR / float(_info(dtype).eps), MOST_DEVIATIONS)
    yield _Seen(law.y, scale * mean + shift, np.abs(scale) * deviation, np.where(given[classes], most, np.inf))


def _predicted(side: _Seen, solution: Solution, largest: Float64s) -> str:
    """What would go wrong with the tensor as it would be stored; empty where nothing would."""
    classes = solution.problem.classes(side.port)
    scale, shift, top = solution.scale[classes], solution.shift[classes], largest[classes]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        centre, spread = np.abs(scale * side.mean + shift), np.abs(scale) * side.deviation
        stored, before = centre / spread, np.abs(side.mean) / side.deviation
        outside = centre + _TAIL * spread
    moved = (scale != 1) | (shift != 0)
    living = (scale != 0) & (side.deviation != 0)  # a channel that is stored as one number has no digits to lose
    bad = living & (stored > side.limit) & (stored > 1.01 * before)
    narrow = living & moved & np.isfinite(top)
    lost = narrow & (stored > _MOST_AT_A_CAST) & (stored > 1.5 * before)
    for channels, limit in ((bad, side.limit), (lost, np.full(len(scale), _MOST_AT_A_CAST))):
        if channels.any():
            worst = int(np.flatnonzero(channels)[np.nanargmax(stored[channels])])
            return (
                f"would be stored {stored[worst]:.3g} deviations from zero in channel {worst} "
                f"(was {before[worst]:.3g}, limit {limit[worst]:g})"
            )
    over = np.flatnonzero(narrow & (outside > top) & (np.abs(side.mean) + _TAIL * side.deviation <= top))
    if over.size:
        return f"would reach {outside[over[0]]:.3g} in channel {over[0]}, where a Cast leaves {top[over[0]]:.3g}"
    return ""


def _given(problem: Problem) -> Mask:
    """Classes that a graph input is among: what is fed, moved at most."""
    found = np.zeros(len(problem.weight), dtype=bool)
    for port in problem.reached.ports.values():
        if port.value.is_graph_input():
            found[problem.classes(port)] = True
    return found


def _info(dtype: ir.DataType) -> Any:
    return ml_dtypes.finfo(dtype.numpy())  # type: ignore[no-untyped-call]  # NumPy's, and bfloat16's


def _largest(problem: Problem, known: Known) -> Float64s:
    """Of classes that tensors of several types are among, the largest number of the narrowest; else infinite."""
    found = np.full(len(problem.weight), np.inf)
    for statement in problem.reached.statements:
        law = statement.law
        if isinstance(law, Equal):
            types = [known.shapes.dtype(port.value) for port in (law.a, law.b)]
            if types[0] is not types[1] and None not in types:
                top = min(float(_info(dtype).max) for dtype in types if dtype is not None)
                classes = problem.classes(law.a)
                found[classes] = np.minimum(found[classes], top)
    return found


def _shared(problem: Problem) -> Mask:
    """Classes that a sum makes or reads, or that more than one operator reads."""
    sums = np.zeros(len(problem.weight), dtype=bool)
    readers = np.zeros(len(problem.weight), dtype=np.int64)
    for statement in problem.reached.statements:
        law = statement.law
        if isinstance(law, Sum) and not law.holds_shift:
            for port in ports(law):
                sums[problem.classes(port)] = True
        elif isinstance(law, Lift):
            readers[np.unique(problem.classes(law.x))] += 1
        elif isinstance(law, Free | NoScale) and statement.is_demand:
            readers[np.unique(problem.classes(law.port))] += 1
    return np.asarray(sums | (readers > 1))
