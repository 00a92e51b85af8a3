"""What the proof found: figures for each output, their totals, and how they are told. Computes nothing but maxima."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from training.algebra import BOUND
from training.errors import UserError

FLOAT64_ONLY = "float64 only"
CERTAIN = 0.999  # of the resamples must agree that the folded graph is less accurate


@dataclass(frozen=True, slots=True)
class Rounding:
    """Root mean square errors against the float64 oracle of the original, in units in the last place of the scale.

    `elements` counts the finite numbers they were taken over. `bound_ulp` is what the folded graph was allowed.
    `certainty` is the share of resamples of the rows in which the folded graph is above its bound too; it is measured
    only when the first look finds it there, and below `CERTAIN` a few rows' luck decides, not the fold.
    """

    original_ulp: float
    folded_ulp: float
    bound_ulp: float
    elements: int
    certainty: float = 1.0

    @property
    def ratio(self) -> float:
        """Folded to original; an original that happens to be exact counts half an ulp, the error of one rounding."""
        return self.folded_ulp / max(self.original_ulp, 0.5)

    @property
    def holds(self) -> bool:
        """Is the folded graph's error within what it was allowed, or not surely above it?"""
        return self.within or self.certainty < CERTAIN

    @property
    def within(self) -> bool:
        """Is the folded graph's error within what it was allowed, at first look?"""
        return self.folded_ulp <= self.bound_ulp


@dataclass(frozen=True, slots=True)
class OutputReport:
    """One graph output over all samples.

    `algebra_error` is in units of scale times condition, to be compared with 1e-9; `condition` is the largest that was
    needed. `max_abs_error` is folded against original as both run in their own precision (in float64 when ONNX Runtime
    cannot run them), `max_rel_error` the same over the output's scale in that sample.
    `decided_by_rounding` counts integers and bools that differ where the graph itself is undecided.
    """

    name: str
    algebra_error: float
    condition: float
    max_abs_error: float
    max_rel_error: float
    decided_by_rounding: int
    rounding: Rounding | None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The proof that two graphs agree, or the figures that show that they do not. `failure` is empty when it holds."""

    outputs: tuple[OutputReport, ...]
    samples: int
    outputs_compared: int
    oracle: str
    rounding: Rounding | None = None
    note: str = ""
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Did both judgements hold?"""
        return not self.failure

    def as_dict(self) -> dict[str, Any]:
        """For report.json: plain JSON values; a figure that is infinite or was not measured is null."""
        total = self.rounding
        worst = {
            name: max((getattr(output, name) for output in self.outputs), default=0.0)
            for name in ("algebra_error", "condition", "max_abs_error", "max_rel_error")
        }
        judged = [*(output.rounding for output in self.outputs), total]
        ratios = [rounding.ratio for rounding in judged if rounding is not None]
        found = {
            "passed": self.passed,
            "failure": self.failure,
            "algebra_error": worst["algebra_error"],
            "algebra_bound": BOUND,
            "condition": worst["condition"],
            "rounding_ratio": max(ratios, default=None),
            "rounding": asdict(total) if total else None,
            "max_abs_error": worst["max_abs_error"],
            "max_rel_error": worst["max_rel_error"],
            "samples": self.samples,
            "outputs_compared": self.outputs_compared,
            "oracle": self.oracle,
            "note": self.note,
            "outputs": [asdict(output) for output in self.outputs],
        }
        return _finite(found)  # type: ignore[no-any-return]

    def as_text(self) -> str:
        """A few lines for a terminal."""
        if self.passed and not self.outputs:
            return f"not verified: {self.note}"
        figures = self.as_dict()
        lines = [
            f"verified: {self.samples} samples, {self.outputs_compared} outputs compared; oracle: {self.oracle}"
            if self.passed
            else f"NOT verified: {self.failure}",
            (
                f"  algebra   {_figure(figures['algebra_error'])} of scale times condition (at most {BOUND:g}), "
                f"condition up to {_figure(figures['condition'])}"
            ),
        ]
        if self.rounding:
            lines.append(
                f"  rounding  {self.rounding.folded_ulp:.3g} ulp, the original's own {self.rounding.original_ulp:.3g} "
                f"(at most {self.rounding.bound_ulp:.3g}); worst ratio {_figure(figures['rounding_ratio'])}"
            )
        lines.append(
            f"  folded against original: at most {_figure(figures['max_abs_error'])} absolute, "
            f"{_figure(figures['max_rel_error'])} of the output's scale"
        )
        if self.note:
            lines.append(f"  note: {self.note}")
        return "\n".join(lines)


class VerificationFailed(UserError):
    """The graphs do not agree. One line says which output, sample, error and bound; `report` has all figures."""

    def __init__(self, report: VerifyReport) -> None:
        super().__init__(f"verification failed: {report.failure}")
        self.report = report


def _figure(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.2g}"


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
