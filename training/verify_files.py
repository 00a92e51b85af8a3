"""The work of `foldtrain verify`: do two ONNX files compute the same, and if not, how far are they apart?

The second is judged as a fold of the first (see verify): the float64 oracle is the first one's. What a fold may not
change and a comparison may forgive - names of inputs, outputs and free sizes - is brought into line before, and said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from training.algebra import difference, largest
from training.command_files import check_places, read_samples, write_json
from training.errors import UserError
from training.fold import read_model
from training.reference import UnsupportedOperator, evaluate
from training.reference.op import Array
from training.samples import Sample, cut_rows, make_samples
from training.verify import verify
from training.verify_report import VerificationFailed, VerifyReport


class CannotCompare(UserError):
    """The files do not take the same inputs or do not give the same outputs, so that nothing can be compared."""


@dataclass(frozen=True, slots=True)
class Distance:
    """One output over all samples, both files in float64. `of_scale`: of the first one's largest number in a sample.

    `differing` counts integers, bools and strings. Infinite where only one of them has a number.
    """

    output: str
    absolute: float
    of_scale: float
    differing: int

    def as_text(self) -> str:
        if self.differing:
            return f"output {self.output!r}: {self.differing} values differ"
        return f"output {self.output!r}: at most {self.absolute:.3g} apart, {self.of_scale:.2g} of its scale"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`proof` holds all figures; `distances` are measured only where it failed. `notes`: what was brought into line."""

    first: Path
    second: Path
    proof: VerifyReport
    distances: tuple[Distance, ...]
    notes: tuple[str, ...]

    @property
    def agree(self) -> bool:
        return self.proof.passed

    def as_dict(self) -> dict[str, Any]:
        apart = [
            {key: value if value != np.inf else None for key, value in asdict(distance).items()}
            for distance in self.distances
        ]
        return {"agree": self.agree, "verify": self.proof.as_dict(), "distances": apart, "notes": list(self.notes)}

    def as_text(self) -> str:
        verdict = "agree" if self.agree else "differ"
        lines = [f"{self.first} and {self.second} {verdict}", *(f"  note: {note}" for note in self.notes)]
        lines += [f"  in float64, {distance.as_text()}" for distance in self.distances]
        return "\n".join([*lines, self.proof.as_text()])


def verify_files(
    first: Path,
    second: Path,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: Path | None = None,
    report: Path | None = None,
) -> Comparison:
    """Judge `second` against `first`, and write the report if one is asked for.

    Raises CannotCompare, CannotUseFile, training.fold.FoldError, CannotMakeSamples, UnsupportedOperator,
    EvaluationFailed: then nothing is known, and nothing written.
    """
    if report:
        check_places([report])
        if report.resolve() in (first.resolve(), second.resolve()):
            raise CannotCompare(f"{report}: is one of the models; give the report another path")
    held_out = read_samples(samples) if samples else None
    one, other = read_model(first), read_model(second)
    notes = _bring_into_line(one, other)
    rows = cut_rows(one, held_out, str(samples)) if held_out else None
    made = make_samples(one, rows, shapes=input_shapes)
    distances: tuple[Distance, ...] = ()
    try:
        proof = verify(one, other, made)
    except VerificationFailed as failed:
        proof = failed.report
        with suppress(UnsupportedOperator):  # proved up to a node and on from it: no evaluation gets through
            distances = _distances(one, other, made)
    result = Comparison(first, second, proof, distances, notes)
    if report:
        write_json(report, result.as_dict())
    return result


def _bring_into_line(one: ir.Model, other: ir.Model) -> tuple[str, ...]:
    """Give `other` the first one's names, where its inputs and outputs can be taken for them; says what was done."""
    notes: list[str] = []
    for what, mine, theirs in (
        ("input", _given(one), _given(other)),
        ("output", list(one.graph.outputs), list(other.graph.outputs)),
    ):
        by_name = {value.name: value for value in theirs}
        if set(by_name) != {value.name for value in mine}:
            _rename(what, mine, theirs, other, notes)
        by_name = {value.name: value for value in theirs}
        for value in mine:
            _align(what, value, by_name[value.name], notes)
        if what == "output" or not any(value.const_value for value in other.graph.inputs):
            ends = other.graph.inputs if what == "input" else other.graph.outputs
            ends[:] = [by_name[value.name] for value in mine]  # in the same order
    return tuple(notes)


def _given(model: ir.Model) -> list[ir.Value]:
    """Inputs that a caller gives: those that have no initializer."""
    return [value for value in model.graph.inputs if value.const_value is None]


def _rename(what: str, mine: Sequence[ir.Value], theirs: Sequence[ir.Value], model: ir.Model, notes: list[str]) -> None:
    """By position, where as many fit. Raises CannotCompare."""
    names = [[str(value.name) for value in side] for side in (mine, theirs)]
    fits = len(mine) == len(theirs) and all(_fits(a, b) for a, b in zip(mine, theirs, strict=True))
    taken = {value.name for node in model.graph for value in (*node.inputs, *node.outputs) if value is not None}
    if not fits or (set(names[0]) - set(names[1])) & taken:
        told = [", ".join(_spelled(value) for value in side) for side in (mine, theirs)]
        raise CannotCompare(f"the first file has the {what}s {told[0]}, the second {told[1]}; expected the same")
    for value, name in zip(theirs, names[0], strict=True):
        if value.name != name:
            notes.append(f"{what} {value.name!r} of the second file is taken for {name!r}")
            value.name = name


def _spelled(value: ir.Value) -> str:
    """Name, type and shape, as ONNX's text has them: `float16[N,3] x`."""
    kind = "tensor" if value.dtype is None else str(value.dtype).lower()
    return f"{kind}{value.shape if value.shape is not None else ''} {value.name}"


def _fits(a: ir.Value, b: ir.Value) -> bool:
    if a.dtype != b.dtype or a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    pairs = zip(a.shape, b.shape, strict=True)
    return all(m == t or not isinstance(m, int) or not isinstance(t, int) for m, t in pairs)


def _align(what: str, mine: ir.Value, theirs: ir.Value, notes: list[str]) -> None:
    """Sizes that only one file leaves free, or that bear other names, are no difference in what is computed."""
    if mine.dtype == theirs.dtype and str(mine.shape) != str(theirs.shape):
        ranks = [None if value.shape is None else len(value.shape) for value in (mine, theirs)]
        if None not in ranks and not _fits(mine, theirs):
            raise CannotCompare(
                f"{what} {mine.name!r} has shape {mine.shape} in the first file, {theirs.shape} in the second"
            )
        notes.append(f"{what} {mine.name!r} has shape {mine.shape} in the first file, {theirs.shape} in the second")
        theirs.shape = mine.shape


def _distances(one: ir.Model, other: ir.Model, samples: Sequence[Sample]) -> tuple[Distance, ...]:
    worst: dict[str, Distance] = {}
    for sample in samples:
        mine, theirs = evaluate(one, sample), evaluate(other, sample)
        for name in mine:
            found = _distance(name, mine[name], theirs[name])
            so_far = worst.get(name, found)
            worst[name] = Distance(
                name,
                max(found.absolute, so_far.absolute),
                max(found.of_scale, so_far.of_scale),
                max(found.differing, so_far.differing),
            )
    return tuple(worst.values())


def _distance(name: str, mine: Array, theirs: Array) -> Distance:
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return Distance(name, np.inf, np.inf, 0)
    if mine.dtype.kind not in "fc":
        return Distance(name, 0.0, 0.0, int(np.count_nonzero(mine != theirs)))
    apart, scale = float(difference(mine, theirs).max(initial=0.0)), largest(mine)
    return Distance(name, apart, apart / scale if scale else (np.inf if apart else 0.0), 0)
