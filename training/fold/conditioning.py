"""Which folded shifts would cost digits: predicted per channel, from the statistics that BatchNormalization carries.

A BatchNormalization knows its input's mean and deviation. Where its shift goes into a tensor that others share (a
residual stream), that tensor is stored around `|A mean + B|`, and everything added to it is rounded at that size. Above
some 16 deviations this shows: the root mean square error grew 1.3 times at 16, 1.7 at 32 and 13.5 at 256 (one channel,
float32). A tensor that was as far from zero before is no worse for it.
"""

from __future__ import annotations

import numpy as np

from training.fold.batchnorm import read_batchnorm
from training.fold.known import Known
from training.fold.laws import Free, Lift, NoScale, Sum, ports
from training.fold.problem import Problem
from training.fold.refusal import Refusal
from training.fold.solve import Fate, Solution

MOST_DEVIATIONS = 16.0


def ill_conditioned(solution: Solution, known: Known) -> dict[int, str]:
    """Lifts (by tag) whose shift should stay, and what was predicted."""
    problem = solution.problem
    shared = _shared(problem)
    found = {}
    for tag in problem.lifts:
        law = problem.lift(tag)
        if solution.fate[tag] not in (Fate.FOLDED, Fate.MUL) or law.node.op_type != "BatchNormalization":
            continue
        classes = problem.classes(law.x)
        record = read_batchnorm(law.node, known.opset, known.constants)
        assert not isinstance(record, Refusal), "it was lifted"
        mean, deviation = record.affine.center, np.sqrt(record.spread)
        scale, shift = solution.scale[classes], solution.shift[classes]
        with np.errstate(divide="ignore", invalid="ignore"):
            stored = np.abs(scale * mean + shift) / (np.abs(scale) * deviation)
            before = np.abs(mean) / deviation
        living = shared[classes] & (scale != 0)  # a channel that is stored as one number has no digits to lose
        bad = np.flatnonzero(living & (stored > MOST_DEVIATIONS) & (stored > 1.01 * before))
        if bad.size:
            worst = int(bad[np.nanargmax(stored[bad])])
            found[tag] = (
                f"ill-conditioned: '{law.x.value.name}' would be stored {stored[worst]:.3g} deviations from zero in "
                f"channel {worst} (was {before[worst]:.3g}, limit {MOST_DEVIATIONS:g})"
            )
    return found


def _shared(problem: Problem) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
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
