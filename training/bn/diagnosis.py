"""One examination of a network: lint and health together, worst findings first. The file to read first of the doctor's.

    network -> structure (what stands around each layer) -> lint
                   \\-> measure (what layers hold, what batches show) -> health

Promises: the network is left as it was found; every check of findings.CHECKS is made or named with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from training.bn.facts import Facts
from training.bn.figures import Examined, LayerFigures
from training.bn.findings import CHECKS, SEVERITIES, Finding, NotMade, Severity
from training.bn.health import drift, health
from training.bn.lint import lint
from training.bn.measure import Ranks, measure
from training.bn.population import Forward
from training.bn.structure import read_structure


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """findings: worst first, else in the order of checks and layers."""

    findings: tuple[Finding, ...]
    not_made: tuple[NotMade, ...]
    examined: Examined

    @property
    def healthy(self) -> bool:
        """Nothing is red."""
        return not self.of("red")

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "healthy": self.healthy,
            "layers": len(self.examined.layers),
            "rows": self.examined.rows,
            "counts": {severity: len(self.of(severity)) for severity in SEVERITIES},
            "findings": [asdict(finding) | {"title": CHECKS[finding.check]} for finding in self.findings],
            "not_made": [asdict(each) | {"title": CHECKS[each.check]} for each in self.not_made],
            "figures": [_figures(layer) for layer in self.examined.layers],
        }


def _figures(layer: LayerFigures) -> dict[str, Any]:
    """None: not measured, or no finite number."""
    shift, ratio, per_row = math.nan, math.nan, None
    if layer.seen is not None:
        shift, ratio = (float(each.max()) for each in drift(layer.running, layer.seen.population, layer.eps))
        per_row = layer.seen.effective_per_row
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "channels": layer.channels,
        "eps": layer.eps,
        "momentum": layer.momentum,
        "batches_tracked": layer.count,
        "mean_shift": _finite(shift),
        "log_variance_ratio": _finite(ratio),
        "effective_values_per_row": per_row,
        "largest_gain": _finite(float(abs(layer.gain).max())),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def examine(
    model: nn.Module,
    batches: Sequence[Any] = (),
    *,
    labels: Sequence[torch.Tensor] | None = None,
    masks: Sequence[torch.Tensor] | None = None,
    facts: Facts | None = None,
    ranks: Ranks = (),
    forward: Forward | None = None,
    inputs: int = 1,
) -> Diagnosis:
    """Without batches, only what can be told without. See `measure` for labels, masks, ranks and forward, and
    `read_structure` for inputs."""
    structure = read_structure(model, inputs)
    examined = measure(model, structure, batches, labels=labels, masks=masks, ranks=ranks, forward=forward)
    outcomes = [*lint(model, structure, facts), *health(examined, facts)]
    place = {check: number for number, check in enumerate(CHECKS)}
    findings = [outcome for outcome in outcomes if isinstance(outcome, Finding)]
    findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), place[finding.check]))
    not_made = [outcome for outcome in outcomes if isinstance(outcome, NotMade)]
    not_made.sort(key=lambda each: place[each.check])
    return Diagnosis(tuple(findings), tuple(not_made), examined)
