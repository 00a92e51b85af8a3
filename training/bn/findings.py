"""What an examination says: findings, and checks that could not be made, each with its reason. The table of all checks.

Promises: every check of the table is answered, by findings, by a reason why it was not made, or by neither, which means
that it was made and found nothing. Knows no network and no figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Severity = Literal["red", "yellow", "note"]
SEVERITIES: tuple[Severity, ...] = ("red", "yellow", "note")
"""Worst first. red: what is served is or may be wrong. yellow: look at it. note: harmless, worth knowing."""

CHECKS: Mapping[str, str] = {
    "H1": "dead channels",
    "H2": "residual block that never woke",
    "H3": "bad variance",
    "H4": "gain",
    "H5": "untrained statistics",
    "H6": "drift",
    "H7": "batch too small",
    "H8": "train-eval gap",
    "H9": "counter of batches",
    "H10": "processes that disagree",
    "H11": "frozen but not frozen",
    "H12": "padding in the statistics",
    "H13": "useless bias",
    "H14": "effective learning rate",
    "L1": "dropout before BatchNorm",
    "L2": "weight decay on gamma and beta",
    "L4": "momentum",
    "L5": "momentum None under a compiler",
    "L6": "shared BatchNorm",
    "L7": "no running statistics",
    "L9": "SyncBatchNorm",
    "L10": "input that needs no BatchNorm",
    "L11": "epsilon",
    "L12": "last batch of one",
    "L13": "gradient accumulation",
    "L14": "rows that are not shuffled",
    "L16": "mode",
}
"""Id -> what is checked. H: health, from figures; L: lint, from the network's make alone."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at. `layer`: as `named_modules` tells it; "" where it is the network's or the run's."""

    check: str
    layer: str
    severity: Severity
    found: str
    expected: str
    fix: str


@dataclass(frozen=True, slots=True)
class NotMade:
    """A check that was not made, wholly or for `layers` alone, because of `reason`."""

    check: str
    reason: str
    layers: tuple[str, ...] = ()
