"""From what the rounds of `make bench-serve` found to one table: medians, ratios, and which targets are met.

Only figures of the same round are compared: a ratio is the median of the rounds' ratios. "Not below" asks for more
than a ratio of a few rounds, in which equals differ by a tenth: for bounds, from pairs measured within a second
(pairing.py), that reach the limit and rule out that ours is worse by `BELOW`. Pure; runs nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.pairing import Ratio

OURS, IN_PROCESS = "ours", "in-process"
ONE_PROCESS = "ours, one process"
"""OURS is told nothing: it chooses its number of processes."""
DEADLINE_MS = 1000.0
OVERLOAD = 10  # times the measured capacity


@dataclass(frozen=True)
class Workload:
    """One row: letter of the issue, and how many clients ask at once (0: the open loop)."""

    letter: str
    model: str
    form: str
    clients: int

    @property
    def title(self) -> str:
        what = {"mlp": "64-64-10", "image": "ResNet-18, 224x224"}[self.model]
        how = f"{self.clients} client{'s' if self.clients > 1 else ''}" if self.clients else f"{OVERLOAD} x capacity"
        return f"({self.letter}) {what}, {'JSON' if self.form == 'json' else self.form}, {how}"


WORKLOADS = (
    *(Workload("a", "mlp", "json", clients) for clients in (1, 16, 64)),
    *(Workload("b", "mlp", "binary", clients) for clients in (1, 16, 64)),
    *(Workload("c", "image", "binary", clients) for clients in (1, 8)),
    Workload("d", "image", "binary", 0),
)


@dataclass(frozen=True)
class Figures:
    """One workload, one contender, one round. `per_s`: right answers, in the open loop those within the deadline.

    `capacity_per_s` and `refused_p99_ms` are of the open loop only; a round without refusals has none.
    """

    per_s: float
    p50_ms: float
    p99_ms: float | None = None
    capacity_per_s: float | None = None
    refused_p99_ms: float | None = None


Found = dict[tuple[Workload, str], list[Figures | str]]
"""One entry a round; a line of text where the contender failed."""

Paired = Mapping[Workload, Ratio]
"""How many times the rate of one process ours is, from pairs."""

BELOW = 0.05


@dataclass(frozen=True)
class Verdict:
    """A target of the table and what was found: `value` must be at least (or at most) `limit`.

    A value with bounds must not be below `limit`: the module says what that takes.
    """

    workload: Workload
    what: str
    value: float | Ratio | None
    limit: float
    at_most: bool = False

    @property
    def is_met(self) -> bool:
        if isinstance(self.value, Ratio):
            return self.value.high >= self.limit and self.value.low >= self.limit - BELOW
        return self.value is not None and (self.value <= self.limit if self.at_most else self.value >= self.limit)

    def __str__(self) -> str:
        value = "not measured" if self.value is None else str(self.value)
        if isinstance(self.value, float | int):
            value = f"{self.value:.3g}"
        sign = "≤" if self.at_most else "≥"
        return f"{self.what} {sign} {self.limit:g}: {value} {'met' if self.is_met else '**MISSED**'}"


Measure = Callable[[Figures], float | None]


def rate(figures: Figures) -> float | None:
    return figures.per_s


def share_of_capacity(figures: Figures) -> float | None:
    return figures.per_s / figures.capacity_per_s if figures.capacity_per_s else None


MEASURES: tuple[Measure, ...] = (
    rate,
    lambda figures: figures.p50_ms,
    lambda figures: figures.p99_ms,
    share_of_capacity,
    lambda figures: figures.refused_p99_ms,
)
"""What a cell of the table shows."""


def median_of(found: Found, workload: Workload, name: str, measure: Measure) -> float | None:
    """Of the rounds in which there is something to measure."""
    rounds = [measure(figures) for figures in found.get((workload, name), []) if isinstance(figures, Figures)]
    numbers = [number for number in rounds if number is not None]
    return statistics.median(numbers) if numbers else None


def compared(
    found: Found,
    ours: tuple[Workload, str],
    other: tuple[Workload, str],
    compare: Callable[[Figures, Figures], float | None],
) -> float | None:
    """The median over the rounds in which both were measured."""
    pairs = zip(found.get(ours, []), found.get(other, []), strict=False)
    both = [compare(a, b) for a, b in pairs if isinstance(a, Figures) and isinstance(b, Figures)]
    numbers = [number for number in both if number is not None]
    return statistics.median(numbers) if numbers else None


def rate_ratio(a: Figures, b: Figures) -> float | None:
    return a.per_s / b.per_s if b.per_s else None


def ratio_to(found: Found, workload: Workload, other: str) -> float | None:
    """How many times the other's rate ours is."""
    return compared(found, (workload, OURS), (workload, other), rate_ratio)


RATIOS = {
    ("a", 1): (("FastAPI", 3.5),),
    ("a", 16): (("mosec", 4.0),),
    ("a", 64): (("mosec", 1.3),),
    ("c", 8): ((IN_PROCESS, 0.95),),
}
NOT_BELOW_ONE_PROCESS = tuple(each for each in WORKLOADS if each.letter == "a" and each.clients in (1, 16))
ADDED_MS, GOODPUT = 0.4, 0.9


def verdicts(found: Found, paired: Paired) -> list[Verdict]:
    """Every target of the workloads that ours was measured on."""
    measured = [workload for workload in WORKLOADS if (workload, OURS) in found]
    return [verdict for workload in measured for verdict in _verdicts(found, paired, workload)]


def _verdicts(found: Found, paired: Paired, workload: Workload) -> list[Verdict]:
    place = (workload, OURS)
    told = [
        Verdict(workload, f"÷ {other}", ratio_to(found, workload, other), limit)
        for other, limit in RATIOS.get((workload.letter, workload.clients), ())
    ]
    if workload in NOT_BELOW_ONE_PROCESS:
        told.append(Verdict(workload, f"÷ {ONE_PROCESS}", paired.get(workload), 1.0))
    if workload.letter == "b":
        (json,) = (each for each in WORKLOADS if each.letter == "a" and each.clients == workload.clients)
        told.append(Verdict(workload, "÷ ours (a)", compared(found, place, (json, OURS), rate_ratio), 1.0))
    if (workload.letter, workload.clients) == ("c", 1):
        added = compared(found, place, (workload, IN_PROCESS), lambda a, b: a.p50_ms - b.p50_ms)
        told.append(Verdict(workload, "added median ms", added, ADDED_MS, at_most=True))
    if workload.letter == "d":
        share = median_of(found, workload, OURS, share_of_capacity)
        p99 = median_of(found, workload, OURS, lambda f: f.p99_ms)
        told.append(Verdict(workload, "goodput ÷ capacity", share, GOODPUT))
        told.append(Verdict(workload, "admitted p99 ms", p99, DEADLINE_MS, at_most=True))
    return told


def table(found: Found, paired: Paired, names: Sequence[str]) -> str:
    """Markdown: a row a workload, a column for each of `names` in their order, and the targets."""
    columns = ["", *names, "targets"]
    rows = [columns, ["---"] * len(columns)]
    told = verdicts(found, paired)
    for workload in WORKLOADS:
        if not any((workload, name) in found for name in names):
            continue
        cells = [cell(found, workload, name) for name in names]
        targets = "; ".join(str(verdict) for verdict in told if verdict.workload == workload)
        rows.append([workload.title, *cells, targets])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(found: Found, workload: Workload, name: str) -> str:
    rounds = found.get((workload, name), [])
    failures = [line for line in rounds if isinstance(line, str)]
    per_s, p50, p99, share, refused = (median_of(found, workload, name, measure) for measure in MEASURES)
    if per_s is None:
        return "failed" if failures else ""
    text = f"{number(per_s)}/s"
    if name != OURS and (ratio := ratio_to(found, workload, name)) is not None:
        text += f" (ours {number(ratio)} x)"
    if share is not None:
        text += f" = {share:.2f} of capacity"
    text += f", {number(p50)} ms" + (f" (p99 {number(p99)})" if p99 is not None else "")
    if refused is not None:
        text += f", refused p99 {number(refused)} ms"
    return text + (f", failed in {len(failures)} of {len(rounds)} rounds" if failures else "")


def number(value: float | None) -> str:
    """Three figures are as many as a round repeats."""
    if value is None:
        return ""
    if value != value:  # no answer at all has no latency
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
