"""The proof that folding changed nothing, in two judgements, and one of the two doors to ONNX Runtime.

*Algebra*: both graphs in float64 (`algebra`): the same function, up to one rounding of each new weight.
*Rounding*: both graphs in their own precision, in ONNX Runtime with its optimisations off (it would fold the original
too), against the float64 oracle of the original: the folded graph must not be less accurate than the original was.
That has two looks. The first compares root mean squares. Behind a rounding step or near a pole (Round, Reciprocal,
normalisation by a mean) one or two elements decide those, by luck, for either graph. So what the first look finds too
inaccurate is asked again over more samples, and is rejected only if nearly all bootstrap resamples of the rows agree
(B. Efron, Ann. Statist. 7(1), 1979; whole rows, because an error early in a row spreads over all of it).
A proof must also have seen something: each changed node ran, each output had numbers.
The rules of folding are not known here: the proof reads two graphs and nothing else.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from training.algebra import (
    BOUND,
    Algebra,
    Finding,
    decided_by_rounding,
    difference,
    largest,
    spacing,
    swayed_by_rounding,
)
from training.boundary import Cut, cut, declared, like, out_of_reach
from training.errors import UserError
from training.reference import EvaluationFailed, UnsupportedOperator, evaluate, float_format, is_float, widen
from training.reference.op import Array
from training.samples import CannotMakeSamples, Sample, check_answers, check_sample, make_samples, more_like, noise
from training.verify_report import CERTAIN, FLOAT64_ONLY, OutputReport, Rounding, VerificationFailed, VerifyReport

__all__ = ["CannotMakeSamples", "VerificationFailed", "VerifyReport", "make_samples", "run", "verify"]

ROUNDING_FACTOR = 1.5  # times the original's own error
ROUNDING_FLOOR_ULP = 4.0  # plus this many units in the last place of the output's scale
MINIMUM_OUTPUTS = 1000  # numbers to take the error over; fewer make the ratio a matter of luck
_RESAMPLES = 2000
_ROWS_FOR_SECOND_LOOK = 24  # fewer rows make a bootstrap mean little; samples are drawn until there are as many
MOST_WORK = 2**38  # multiply-adds, about ten seconds of one core; above, samples that are to spare are left out
_EVALUATIONS = 6  # that a sample takes: both graphs, and the usual number of probes
_LOOKED_AT = 4  # samples of an output that is far off
_SWAY = 32.0  # times what Monte Carlo rounding moves an answer by: further off, it was no rounding
_FAR_ULP = 1e4  # an original this far from the oracle is not rounding: an ill-conditioned graph, or another meaning
# Above, the session reads a temporary file: a copy, a message and its bytes in memory are three times the weights.
_IN_MEMORY_BYTES = 64 << 20


def verify(original: ir.Model, folded: ir.Model, samples: Sequence[Mapping[str, Array]]) -> VerifyReport:
    """Prove that `folded` computes what `original` computes.

    Args:
        original, folded: Neither is changed.
        samples: Full sets of inputs by name, from `make_samples` or one's own; cast to the graph's input types. When
            they give fewer than `MINIMUM_OUTPUTS` numbers, more are drawn that resemble them (rounding judgement only).

    Raises:
        VerificationFailed: The graphs do not agree; carries the report.
        CannotMakeSamples: `samples` is empty, one does not fit the graph's inputs, or one that somebody gave shows
            nothing (see `samples.check_answers`).
        training.reference.UnsupportedOperator: The oracle cannot evaluate a node, and nobody knows what it answers or
            it is inside a subgraph or a function, so that what follows it cannot be proved (see `boundary`).
    """
    if not samples:
        raise CannotMakeSamples("verify needs at least one sample; make_samples(model) makes some")
    proof = _Proof(original, folded)
    if mismatch := _interface_mismatch(original, folded):
        raise VerificationFailed(proof.report(mismatch))
    checked = [_checked(original, sample, number) for number, sample in enumerate(samples)]
    beyond = out_of_reach(original)
    while True:
        try:
            return _proved(original, folded, checked, beyond)
        except UnsupportedOperator as error:  # has a reference, which does not cover this one
            more = like(error.node, original)
            if not set(more) - set(beyond):
                raise
            beyond = [node for node in original.graph if node in (*beyond, *more)]


def _proved(original: ir.Model, folded: ir.Model, samples: Sequence[Sample], beyond: Sequence[ir.Node]) -> VerifyReport:
    """The proof of both graphs, or, with nodes that are `beyond` the oracle, of all that is around these."""
    if not beyond:
        proof = _Proof(original, folded)
        proof.judge_algebra(samples)
        proof.judge_rounding()
        return proof.report("")
    part = cut(original, folded, beyond)
    proof = _Proof(part.original, part.folded)
    answered, source = _answered(part, original, samples)
    proof.say(f"proved up to {part.described()}, which was not evaluated{source}")
    proof.judge_algebra(answered)
    proof.judge_rounding()
    proof.tell_of_whole(original, folded, samples, part)
    return proof.report("")


def _answered(part: Cut, original: ir.Model, samples: Sequence[Sample]) -> tuple[list[Sample], str]:
    """The samples with an array for each answer of the nodes that were cut out, and where these come from."""
    if not part.answers:
        return list(samples), ""
    generator = np.random.default_rng(1)
    whole = original.clone()
    values = {value.name: value for node in whole.graph for value in node.outputs}
    shown = [value.name for value in whole.graph.outputs]
    whole.graph.outputs.extend(values[a.value.name] for a in part.answers if a.value.name not in shown)
    try:
        with _Session(whole) as session:
            runs = [session.run(sample) for sample in samples]
        found = [{a.name: run[a.value.name or ""] for a in part.answers} for run in runs]
        part.check_tensors(found[0])
        source = ", and on from it for answers that ONNX Runtime computes"
    except _CannotRun:
        found, source = [], ", and on from it for answers that were made up"
        for sample in samples:
            kinds = {a.name: declared(a, sample, original.graph.inputs) for a in part.answers}
            found.append({name: noise(tuple(s), kind.numpy(), generator) for name, (kind, s) in kinds.items()})
    part.set_types({name: array.dtype for name, array in found[0].items()})
    return [sample.with_arrays(arrays) for sample, arrays in zip(samples, found, strict=True)], source


def _checked(model: ir.Model, sample: Mapping[str, Array], number: int) -> Sample:
    return check_sample(model, sample, getattr(sample, "label", f"number {number}"))


def run(model: ir.Model, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What ONNX Runtime answers on the CPU, in the model's own precision, graph optimisation off.

    `inputs` are cast to the graph's types. Raises UserError when it cannot run the model or these inputs.
    """
    try:
        with _Session(model) as session:
            return session.run(check_sample(model, inputs, "inputs"))
    except _CannotRun as error:
        raise UserError(f"ONNX Runtime cannot run the model: {error}") from error


def _interface_mismatch(original: ir.Model, folded: ir.Model) -> str:
    """Names, types and shapes of inputs and outputs are a promise to whoever uses the file."""
    for what in ("inputs", "outputs"):
        before, after = (
            [(v.name, str(v.type), str(v.shape)) for v in getattr(model.graph, what)] for model in (original, folded)
        )
        if before != after:
            lost = next((pair for pair in zip(before, after, strict=False) if pair[0] != pair[1]), (before, after))
            return f"the graph's {what} changed: {lost[0]} became {lost[1]}"
    return ""


@dataclass
class _Proof:
    """Gathers findings sample by sample; raises as soon as one does not hold."""

    original: ir.Model
    folded: ir.Model
    samples: list[Sample] = field(default_factory=list)
    oracles: list[dict[str, Array]] = field(default_factory=list)
    findings: dict[str, list[Finding]] = field(default_factory=dict)
    apart: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # folded - original: absolute, of scale
    undecided: dict[str, int] = field(default_factory=dict)
    rounding: dict[str, Rounding] = field(default_factory=dict)
    total: Rounding | None = None
    oracle: str = FLOAT64_ONLY
    note: str = ""
    work: int = 0  # multiply-adds that one sample's evaluation takes

    def judge_algebra(self, samples: Sequence[Sample]) -> None:
        """First judgement; keeps the oracle's answers for the second."""
        algebra = Algebra(self.original, self.folded)
        self._remember(samples[0], algebra.expected(samples[0]))
        self.work = algebra.effort.work
        samples = self._affordable(samples)
        for sample, expected in zip(samples[1:], algebra.expected_all(samples[1:]), strict=True):
            self._remember(sample, expected)
        for number, found in enumerate(algebra.judge_all(samples, self.oracles)):
            self._hold(found, f"sample {number + 1} ({samples[number].label})")
        self._steer(algebra, samples)
        if unproved := algebra.unproved():
            names = ", ".join(unproved[:3]) + (", ..." if len(unproved) > 3 else "")
            text = f"no sample reaches {len(unproved)} of the changed nodes: {names}; give inputs that do (--samples)"
            raise VerificationFailed(self.report(text))
        self._check_something_was_seen()

    def _affordable(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """All samples, or, where that would take very long, those that are not to spare."""
        kept = [sample for sample in samples if not sample.spare]
        if _EVALUATIONS * self.work * len(samples) <= MOST_WORK or not kept or len(kept) == len(samples):
            return samples
        left_out = ", ".join(sample.label for sample in samples if sample.spare)
        self.say(
            f"an evaluation takes {self.work / 1e9:.1f} billion multiply-adds: judged by {len(kept)} of {len(samples)} "
            f"samples, without {left_out}"
        )
        return kept if kept[0] is samples[0] else [samples[0], *kept]

    def _hold(self, found: Sequence[Finding], place: str) -> None:
        for finding in found:
            self.findings.setdefault(finding.output, []).append(finding)
        worst = max(found, key=lambda finding: finding.relative, default=None)
        if worst is not None and not worst.holds:
            raise VerificationFailed(self.report(_algebra_failure(worst, place)))

    def _steer(self, algebra: Algebra, samples: Sequence[Sample]) -> None:
        """Branches that no sample takes by itself are taken by force, in both graphs alike."""
        for branch in (True, False):
            for sample in reversed(samples):  # noise first: it says more than zeros do
                if not algebra.unproved():
                    return
                try:
                    expected = algebra.expected(sample, branch)
                except EvaluationFailed:  # a branch made for other shapes
                    continue
                place = f"sample ({sample.label}), every If sent to its {'then' if branch else 'else'} branch"
                self._hold(algebra.judge(sample, expected, branch), place)

    def _check_something_was_seen(self) -> None:
        """Empty outputs and NaN are equal to themselves whatever the fold did."""
        for value in self.original.graph.outputs:
            seen = [oracle[value.name or ""] for oracle in self.oracles]
            if any(_numbers(array) for array in seen):
                continue
            what = "has no finite number" if any(array.size for array in seen) else "is empty"
            text = f"output {value.name!r} {what} in any sample, so that nothing was compared"
            raise VerificationFailed(self.report(f"{text}; give inputs for which it has some (--samples)"))

    def _remember(self, sample: Sample, expected: dict[str, Array]) -> None:
        check_answers(expected, sample)
        self.samples.append(sample)
        self.oracles.append(expected)

    def judge_rounding(self) -> None:
        """Second judgement; skipped, with a note, when ONNX Runtime cannot run the original. One session at a time."""
        try:
            with _Session(self.original) as session:
                before = [session.run(sample) for sample in self.samples]
                self._draw(session, self._missing(), before)
        except _CannotRun as error:
            self.note = f"the proof is float64 only: ONNX Runtime cannot run the original ({error})"
            return
        self.oracle = f"float64, onnxruntime {_runtime().__version__}"
        try:
            with _Session(self.folded) as session:
                after = [session.run(sample) for sample in self.samples]
        except _CannotRun as error:
            raise VerificationFailed(
                self.report(f"ONNX Runtime runs the original but not the folded graph: {error}")
            ) from error
        try:
            self._judge_runs(before, after, certainly=False)
        except _Doubtful:
            with suppress(_CannotRun, EvaluationFailed), _Session(self.original) as session:  # what there is must do
                self._draw(session, self._missing_rows(), before)
            try:
                with _Session(self.folded) as session:
                    after += [session.run(sample) for sample in self.samples[len(after) :]]
            except _CannotRun as error:
                text = f"ONNX Runtime runs the original but not the folded graph: {error}"
                raise VerificationFailed(self.report(text)) from error
            self._judge_runs(before, after, certainly=True)

    def _draw(self, session: _Session, count: int, before: list[dict[str, Array]]) -> None:
        """`count` more samples, which resemble those there are; the original's runs of them join `before`."""
        for sample in islice(more_like(tuple(self.samples), seed=len(self.samples)), count):
            expected = evaluate(self.original, sample)
            before.append(session.run(sample))
            self._remember(sample, expected)

    def _missing(self) -> int:
        """As many more samples as `MINIMUM_OUTPUTS` asks for."""
        per_sample = sum(array.size for array in self.oracles[0].values())
        missing = MINIMUM_OUTPUTS - sum(array.size for oracle in self.oracles for array in oracle.values())
        wanted = max(-(-missing // per_sample), 0) if per_sample else 0
        affordable = max(MOST_WORK // (_EVALUATIONS * max(self.work, 1)), 1)
        if wanted > affordable:
            self.say(
                f"an evaluation takes {self.work / 1e9:.1f} billion multiply-adds: the rounding was judged over "
                f"{MINIMUM_OUTPUTS - missing + affordable * per_sample} numbers only"
            )
        return min(wanted, affordable)

    def _missing_rows(self) -> int:
        """As many more samples as the second look asks for."""
        rows = [max((len(array) for array in oracle.values() if array.ndim), default=1) for oracle in self.oracles]
        return max(-(-(_ROWS_FOR_SECOND_LOOK - sum(rows)) // max(rows[-1], 1)), 0)

    def _judge_runs(
        self, before: Sequence[Mapping[str, Array]], after: Sequence[Mapping[str, Array]], *, certainly: bool
    ) -> None:
        """Raises _Doubtful where only a second look, `certainly`, can tell."""
        sums = []
        self.apart.clear()
        for name in self.oracles[0]:
            expected = [oracle[name] for oracle in self.oracles]
            runs = list(zip(expected, (run[name] for run in before), (run[name] for run in after), strict=True))
            for number, (_, old, new) in enumerate(runs):
                if old.shape != new.shape or old.dtype != new.dtype:
                    was, became = (f"{run.dtype}{list(run.shape)}" for run in (old, new))
                    raise VerificationFailed(self.report(f"{self._place(name, number)}: {was} became {became}"))
            if any(oracle.shape != old.shape for oracle, old, _ in runs):
                self._judge_without_oracle(name, runs)
            elif expected[0].dtype.kind in "fc":
                sums.append(self._judge_numbers(name, runs, certainly))
            else:
                self._judge_decisions(name, runs)
        if sums:
            self.total = self._judged("all outputs together", np.concatenate(sums), certainly)

    def _judged(self, what: str, sums: Array, certainly: bool) -> Rounding:
        """First look: the sums' root mean squares. Second: do resamples of the rows agree?"""
        rounding = _rounding(sums.sum(axis=0))
        if rounding.within:
            return rounding
        if not certainly:
            raise _Doubtful
        rounding = replace(rounding, certainty=_certainty(sums))
        if not rounding.holds:
            raise VerificationFailed(self.report(_rounding_failure(what, rounding)))
        self.say(
            f"{what}: RMS error {rounding.folded_ulp:.3g} ulp is above {rounding.bound_ulp:.3g}, but a few rows decide "
            f"it ({rounding.certainty:.1%} of resamples agree, {CERTAIN:.1%} would be needed)"
        )
        return rounding

    def say(self, text: str) -> None:
        if text not in self.note:
            self.note = f"{self.note}; {text}" if self.note else text

    def _judge_another_meaning(self, name: str, runs: Sequence[tuple[Array, Array, Array]]) -> None:
        """Is it rounding that takes ONNX Runtime this far from the specification? Else its two runs have to agree."""
        gaps = [
            float(difference(widen(old), expected).max(initial=0.0, where=np.isfinite(expected)))
            for expected, old, _ in runs
        ]
        sizes = [largest(expected) or 1.0 for expected, _, _ in runs]
        # In small answers a gap of constant size shows, which the rounding of large ones hides.
        for number in sorted(range(len(runs)), key=lambda number: -gaps[number] / sizes[number])[:_LOOKED_AT]:
            exact = runs[number][0]
            sway = largest(swayed_by_rounding(self.original, self.samples[number], name, exact))
            if gaps[number] > _SWAY * sway:
                self._judge_without_oracle(name, runs)
                return

    def _judge_without_oracle(self, name: str, runs: Sequence[tuple[Array, Array, Array]]) -> None:
        """ONNX Runtime's answer is another than the specification's: only its two runs can be compared.

        They may differ by half of the digits of their type, and by what the algebra found the answer's condition to be.
        """
        condition = max((finding.condition for finding in self.findings.get(name, [])), default=1.0)
        for number, (_, old, new) in enumerate(runs):
            if not is_float(old.dtype):
                if differing := int(np.count_nonzero(old != new)):
                    text = f"{differing} of {new.size} values differ between ONNX Runtime's runs of the two graphs"
                    raise VerificationFailed(self.report(f"{self._place(name, number)}: {text}"))
                continue
            wide = [widen(run) for run in (old, new)]
            scale = largest(wide[0])
            apart = float(difference(*wide).max(initial=0.0))
            bound = scale * max(float_format(old.dtype).eps ** 0.5, BOUND * condition)
            self.apart.setdefault(name, []).append((apart, apart / scale if scale else 0.0))
            if apart > bound:
                text = f"ONNX Runtime's runs of the two graphs are {apart:.3g} apart, above {bound:.3g}"
                raise VerificationFailed(self.report(f"{self._place(name, number)}: {text}"))
        shapes = [(list(old.shape), list(expected.shape)) for expected, old, _ in runs if expected.shape != old.shape]
        detail = " (shape {}, not {})".format(*shapes[0]) if shapes else ""
        text = f"ONNX Runtime disagrees with the specification at output {name!r}{detail}"
        self.say(f"{text}: proved in float64 only, and its two runs agree")

    def tell_of_whole(self, original: ir.Model, folded: ir.Model, samples: Sequence[Sample], part: Cut) -> None:
        """How far apart are ONNX Runtime's runs of the whole files, with the nodes that the proof leaves out?

        A figure, not a judgement: nobody knows what such a node makes of the roundings before it.
        """
        if part.is_random:
            return self.say("ONNX Runtime did not run the whole files: their answers are random")
        runs: list[list[dict[str, Array]]] = []
        for model in (original, folded):
            try:
                with _Session(model) as session:
                    runs.append([session.run(sample) for sample in samples])
            except _CannotRun as error:
                if runs:
                    text = f"ONNX Runtime runs the original but not the folded graph: {error}"
                    raise VerificationFailed(self.report(text)) from error
                return self.say(f"ONNX Runtime cannot run the whole file ({error}), only what is around such nodes")
        apart = max((_apart(old, new) for pair in zip(*runs, strict=True) for old, new in _outputs(*pair)), default=0.0)
        return self.say(f"ONNX Runtime's runs of the whole files are at most {apart:.2g} of an output's scale apart")

    def _judge_numbers(self, name: str, runs: Sequence[tuple[Array, Array, Array]], certainly: bool) -> Array:
        """Returns [sum of squares of the original's error, of the folded one's, elements] of each row.

        Errors are in ulps of the scale.

        The scale is the output's largest magnitude in any sample, larger by as much as a sample's inputs are larger.
        Not each sample's own: an answer that happens to cancel, or of which a ReLU left little, carries the error of
        what is gone, and one such sample would decide the whole sum by luck.
        """
        stretches = self._stretches()
        per_input = max(largest(expected) / stretch for (expected, _, _), stretch in zip(runs, stretches, strict=True))
        sums = []
        for number, ((expected, old, new), stretch) in enumerate(zip(runs, stretches, strict=True)):
            scale = per_input * stretch
            finite = np.isfinite(expected) & np.isfinite(old)  # where the original overflows, nothing is promised
            if not np.isfinite(new[finite]).all():
                text = f"{self._place(name, number)}: not finite, where the original is"
                raise VerificationFailed(self.report(text))
            unit = float(spacing(np.array(scale), old.dtype))
            wide = [np.where(finite, run.astype(expected.dtype), 0.0) for run in (old, new)]
            errors = [difference(run, np.where(finite, expected, 0.0)) / unit for run in wide]
            sums.append(np.stack([_by_row(errors[0] ** 2), _by_row(errors[1] ** 2), _by_row(finite)], axis=1))
            apart = float(difference(*wide).max(initial=0.0))
            self.apart.setdefault(name, []).append((apart, apart / scale if scale else 0.0))
        rows = np.concatenate(sums)
        self.rounding[name] = _rounding(rows.sum(axis=0))
        self.rounding[name] = self._judged(f"output {name!r}", rows, certainly)
        if (far := self.rounding[name].original_ulp) > _FAR_ULP:
            self._judge_another_meaning(name, runs)
            self.say(
                f"output {name!r}: ONNX Runtime's run of the original is {far:.3g} ulp from "
                "the oracle, so that the rounding judgement says little; the runs differ by "
                f"{max(of_scale for _, of_scale in self.apart[name]):.2g} of the scale"
            )
        return rows

    def _stretches(self) -> list[float]:
        """How many times the median sample's largest input each sample has; at least 1."""
        inputs = [
            max((largest(widen(array)) for array in sample.values() if is_float(array.dtype)), default=0.0)
            for sample in self.samples
        ]
        usual = float(np.median(inputs)) or 1.0
        return [max(value / usual, 1.0) for value in inputs]

    def _judge_decisions(self, name: str, runs: Sequence[tuple[Array, Array, Array]]) -> None:
        """Integers, bools, strings: as the oracle, unless the original errs there too or the graph is undecided."""
        for number, (expected, old, new) in enumerate(runs):
            wrong = (new != expected) & (old == expected)
            if not wrong.any():
                continue
            explained = decided_by_rounding(self.folded, self.samples[number], name, new, wrong)
            self.undecided[name] = self.undecided.get(name, 0) + int(explained.sum())
            if rest := int((wrong & ~explained).sum()):
                text = f"{self._place(name, number)}: {rest} of {new.size} values differ, and no rounding explains it"
                raise VerificationFailed(self.report(text))

    def _place(self, name: str, number: int) -> str:
        return f"output {name!r}, sample {number + 1} ({self.samples[number].label})"

    def report(self, failure: str) -> VerifyReport:
        """What is known so far."""
        return VerifyReport(
            outputs=tuple(self._output_report(name) for name in (self.oracles[0] if self.oracles else ())),
            samples=len(self.samples),
            outputs_compared=sum(_numbers(array) for oracle in self.oracles for array in oracle.values()),
            oracle=self.oracle,
            rounding=self.total,
            note=self.note,
            failure=failure,
        )

    def _output_report(self, name: str) -> OutputReport:
        findings = self.findings.get(name, [])
        apart = self.apart.get(name) or [(f.error, f.error / f.scale if f.scale else 0.0) for f in findings]
        return OutputReport(
            name=name,
            algebra_error=max((f.relative for f in findings), default=0.0),
            condition=max((f.condition for f in findings), default=1.0),
            max_abs_error=max((a for a, _ in apart), default=0.0),
            max_rel_error=max((r for _, r in apart), default=0.0),
            decided_by_rounding=sum(f.decided_by_rounding for f in findings) + self.undecided.get(name, 0),
            rounding=self.rounding.get(name),
        )


def _outputs(one: Mapping[str, Array], other: Mapping[str, Array]) -> Iterator[tuple[Array, Array]]:
    """The floating-point outputs of both, where their shapes agree."""
    for name, array in one.items():
        if is_float(array.dtype) and array.shape == other[name].shape:
            yield widen(array), widen(other[name])


def _apart(old: Array, new: Array) -> float:
    scale = largest(old)
    return float(difference(old, new).max(initial=0.0)) / scale if scale else 0.0


def _rounding(sums: Any) -> Rounding:
    old, new, elements = (float(value) for value in sums)
    original, folded = ((total / elements) ** 0.5 if elements else 0.0 for total in (old, new))
    return Rounding(original, folded, ROUNDING_FACTOR * original + ROUNDING_FLOOR_ULP, int(elements))


def _certainty(sums: Array) -> float:
    """In what share of resamples of the rows is the folded graph's error above its bound?"""
    rows = len(sums)
    weights = np.random.default_rng(0).multinomial(rows, np.full(rows, 1.0 / rows), _RESAMPLES)
    with np.errstate(invalid="ignore"):
        roots = np.sqrt((weights @ sums[:, :2]) / (weights @ sums[:, 2:]))  # NaN where no row of numbers was drawn
    return float(np.mean(roots[:, 1] > ROUNDING_FACTOR * roots[:, 0] + ROUNDING_FLOOR_ULP))


def _by_row(values: Array) -> Array:
    """Sums along all axes but the first."""
    return np.sum(values, axis=tuple(range(1, values.ndim)), dtype=np.float64).reshape(-1)


def _numbers(array: Array) -> int:
    """How many elements there are to compare: all, but of floats only the finite ones."""
    return int(np.isfinite(array).sum()) if array.dtype.kind in "fc" else array.size


def _algebra_failure(finding: Finding, sample: str) -> str:
    place = f"output {finding.output!r}, {sample}"
    if not finding.comparable:
        return f"{place}: its shape or its type differs in float64"
    if not finding.scale and not finding.tolerance and float(finding.error).is_integer():
        return f"{place}: {finding.error:g} values differ in float64, and no rounding explains it"
    return (
        f"{place}: error {finding.error:.3g} in float64 is above {finding.tolerance:.3g} = {BOUND:g} * scale "
        f"{finding.scale:.3g} * condition {finding.condition:.3g}; the folded graph is not the same function"
    )


def _rounding_failure(what: str, rounding: Rounding) -> str:
    return (
        f"{what}: the folded graph's RMS error of {rounding.folded_ulp:.3g} ulp is above {rounding.bound_ulp:.3g} ulp "
        f"= {ROUNDING_FACTOR:g} * the original's {rounding.original_ulp:.3g} + {ROUNDING_FLOOR_ULP:g}, over "
        f"{rounding.elements} numbers; it is the same function, but loses accuracy"
    )


class _Doubtful(Exception):
    """The first look at the rounding does not hold; a second one decides."""


# --- the door to ONNX Runtime -------------------------------------------------------------------------------------


class _CannotRun(Exception):
    """ONNX Runtime refuses the graph or a run of it; the text is its reason, on one line."""


def _runtime() -> Any:
    """Imported late, because the import takes a while, and with telemetry off: the proof opens no connection."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


class _Session:
    """A session on the CPU without graph optimisation, closed (and its weights freed) at the end of the `with` block.

    Its weights are where ONNX Runtime maps them: not packed a second time for each kernel.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._session: Any = None

    def __enter__(self) -> _Session:
        ort = _runtime()
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.log_severity_level = 4  # errors arrive as exceptions; no second copy on the terminal
        with tempfile.TemporaryDirectory(prefix="foldtrain-verify-") as folder:
            try:
                source = _loadable(self._model, Path(folder))
                self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime's exceptions share no base class
                raise _CannotRun(_one_line(error)) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None

    def run(self, sample: Mapping[str, Array]) -> dict[str, Array]:
        """Only while it is open: whoever kept the session itself would keep its weights, beside the next one's."""
        names = [output.name for output in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, dict(sample)), strict=True))
        except Exception as error:  # as above
            raise _CannotRun(_one_line(error)) from error


def _loadable(model: ir.Model, folder: Path) -> bytes | str:
    """The model as bytes, or, when large, as a file with external weights in `folder`."""
    copy = model.clone()
    weights = [v.const_value for graph in copy.graphs() for v in graph.initializers.values()]
    if sum(tensor.nbytes for tensor in weights if tensor is not None) > _IN_MEMORY_BYTES:
        path = folder / "model.onnx"
        ir.save(copy, path, external_data="weights")
        return str(path)
    ir.external_data.load_to_model(copy)
    return bytes(ir.serde.serialize_model(copy).SerializeToString())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
