"""What folding did, as values, JSON and text: each BatchNormalization, each other map, totals, a folded file's marks.

Knows neither graphs nor arithmetic; the page with the drawing is page.py's. Promises: whatever is not folded has a
reason, and the text stays short for a model of thousands of BatchNormalization.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PREFIX = "foldserve."  # of our entries in a model's metadata_props
_MOST_NAMES = 6  # of one group in the text
_TOLD_GROWTH = 1.01  # of the bytes of constants: weights that several maps went into are stored once for each
_SINGULAR = {"branches": "branch", "sequences": "sequence"}
_MOST_GROUPS = 20  # beyond these, reasons that differ in names alone count as one


class Verdict(StrEnum):
    """What is left of a map.

    `FOLDED`: nothing. `REDUCED`: one channelwise Add or Mul. `KEPT`: something as expensive as it was.
    """

    FOLDED = "folded"
    REDUCED = "reduced"
    KEPT = "kept"


@dataclass(frozen=True)
class _Outcome:
    """What became of one map.

    `into`: the names of the nodes that hold it now; `into_ops`: their operators, in the same order, where known.
    `reason`: why it was not folded altogether; empty for a folded one and for no other.
    `clamped`: its ReLU or Clip became a Max, Min or both, one bound a channel.
    `way_out`: the cheapest way to be rid of it, e.g. an option, or empty.
    `widened`: what was left of it is in a channel of ones, which the convolutions among `into` make and read.

    Raises ValueError where verdict and reason contradict each other.
    """

    name: str
    verdict: Verdict
    into: tuple[str, ...]
    reason: str
    clamped: bool = False
    way_out: str = ""
    into_ops: tuple[str, ...] = ()
    widened: bool = False

    def __post_init__(self) -> None:
        if (self.verdict is Verdict.FOLDED) is bool(self.reason):
            raise ValueError(
                f"'{self.name}' is {self.verdict.value}, with reason {self.reason!r}: expected one unless it is folded"
            )
        if self.into_ops and len(self.into_ops) != len(self.into):
            raise ValueError(f"'{self.name}' went into {len(self.into)} nodes, but has {len(self.into_ops)} operators")

    def as_dict(self) -> dict[str, Any]:
        """The keys of architecture.md, contract 4; `clamped`, `widened`, `way_out` only where they say something."""
        more: dict[str, Any] = {"clamped": True} if self.clamped else {}
        more |= {"widened": True} if self.widened else {}
        more |= {"way_out": self.way_out} if self.way_out else {}
        contract = {"name": self.name, "verdict": self.verdict.value, "into": list(self.into), "reason": self.reason}
        return contract | more

    def as_text(self) -> str:
        marks = f"{', clamped' if self.clamped else ''}{', widened' if self.widened else ''}"
        reason = f": {self.reason}" if self.reason else ""
        way_out = f" (way out: {self.way_out})" if self.way_out else ""
        return printable(f"{self.verdict.value:<8}{self.told_with_holders()}{marks}{reason}{way_out}")

    def told_with_holders(self) -> str:
        """The name, and where it went. A reduced one is among its own holders, as what is left of it."""
        ops = dict(zip(self.into, self.into_ops, strict=False))
        left = f" to one {ops[self.name]}" if self.verdict is Verdict.REDUCED and self.name in ops else ""
        others = [name for name in self.into if not (left and name == self.name)]
        into = f"{', the rest' if left else ''} into {', '.join(others)}" if others else ""
        return f"{self.name}{left}{into}"


@dataclass(frozen=True)
class BatchNormOutcome(_Outcome):
    """What became of one BatchNormalization."""


@dataclass(frozen=True)
class AffineOutcome(_Outcome):
    """What became of a map that is no BatchNormalization: a layer scale, an input's normalisation.

    `kind`: its operator, Mul, Add, Sub or Div.
    """

    kind: str = field(kw_only=True)

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind} | super().as_dict()


@dataclass(frozen=True)
class MergedBranches:
    """`node`, now a `kind`, computes what so many `branches` did; 1 where it is operators that followed one another."""

    node: str
    kind: str
    branches: int

    def as_dict(self) -> dict[str, Any]:
        return {"into": self.node, "kind": self.kind, "branches": self.branches}

    def as_text(self) -> str:
        return f"'{self.node}'{f' ({self.branches} of them)' if self.branches > 1 else ''}"


@dataclass(frozen=True)
class FoldReport:
    """Every BatchNormalization of the model in graph order; node counts include subgraphs.

    `affines`: the other maps that could have been lifted. `branches_merged`: parallel branches that are gone, each
    having become part of another operator; `merges`: into which. `profile`: whose costs decided.
    `constant_bytes_before`, `_after`: what all initializers and Constant nodes take; 0 where nobody has counted.
    """

    batchnorms: tuple[BatchNormOutcome, ...]
    nodes_before: int
    nodes_after: int
    affines: tuple[AffineOutcome, ...] = ()
    branches_merged: int = 0
    profile: str = "ort-cpu"
    constant_bytes_before: int = 0
    constant_bytes_after: int = 0
    merges: tuple[MergedBranches, ...] = ()

    @property
    def changed(self) -> bool:
        """Is the folded model another one? If not, it is the original's copy, unmarked."""
        return self.branches_merged > 0 or any(
            outcome.verdict is not Verdict.KEPT for outcome in (*self.batchnorms, *self.affines)
        )

    def count(self, verdict: Verdict) -> int:
        """How many BatchNormalization have this verdict."""
        return _count(self.batchnorms, verdict)

    def summary(self) -> dict[str, int]:
        """The totals. Clamped and widened ones are among the folded: found = folded + reduced + kept."""
        folded = [outcome for outcome in self.batchnorms if outcome.verdict is Verdict.FOLDED]
        return {
            "found": len(self.batchnorms),
            "folded": len(folded),
            "clamped": sum(outcome.clamped for outcome in folded),
            "widened": sum(outcome.widened for outcome in folded),
            "reduced": self.count(Verdict.REDUCED),
            "kept": self.count(Verdict.KEPT),
            "affines_found": len(self.affines),
            "affines_folded": _count(self.affines, Verdict.FOLDED),
            "branches_merged": self.branches_merged,
            "nodes_before": self.nodes_before,
            "nodes_after": self.nodes_after,
            "constant_bytes_before": self.constant_bytes_before,
            "constant_bytes_after": self.constant_bytes_after,
        }

    def as_dict(self) -> dict[str, Any]:
        """The fold report of architecture.md, contract 4, without `verify`; and `affines`, `merges`, `profile`."""
        return {
            "batchnorms": [outcome.as_dict() for outcome in self.batchnorms],
            "summary": self.summary(),
            "affines": [outcome.as_dict() for outcome in self.affines],
            "merges": [merged.as_dict() for merged in self.merges],
            "profile": self.profile,
        }

    def as_text(self, verbose: bool = False) -> str:
        """For people: one line of totals, and what is not folded, why, and what would help.

        The folded are counted by the operators they went into, and the others grouped by reason. verbose: a line for
        each map instead, in graph order.
        """
        outcomes: Sequence[_Outcome] = (*self.batchnorms, *self.affines)
        body = (outcome.as_text() for outcome in outcomes) if verbose else self._digest()
        return "\n".join([self._totals(), *(f"  {line}" for line in (*self._growth(), *self._merged(), *body))])

    def metadata(self, source_sha256: str | None) -> dict[str, str]:
        """`metadata_props` by which a folded file explains itself."""
        marks = {
            f"{_PREFIX}version": tool_version(),
            f"{_PREFIX}fold": json.dumps(self.summary(), separators=(",", ":")),
        }
        if source_sha256 is not None:
            marks[f"{_PREFIX}source_sha256"] = source_sha256
        return marks

    def _totals(self) -> str:
        s = self.summary()
        special = ", ".join(f"{s[kind]} {kind}" for kind in ("clamped", "widened") if s[kind])
        verdicts = f"{s['folded']} folded{f' ({special})' if special else ''}, {s['reduced']} reduced, {s['kept']} kept"
        parts = [f"{s['found']} BatchNormalization found: {verdicts}"]
        if s["affines_found"]:
            parts.append(f"{s['affines_folded']} of {s['affines_found']} other affine maps folded")
        if s["branches_merged"]:
            kinds = [kind for kind, merges in self._merges_by_kind().items() if merges] or ["branches"]
            what = _SINGULAR[kinds[0]] if s["branches_merged"] == 1 else " and ".join(kinds)
            parts.append(f"{s['branches_merged']} {what} merged")
        return "; ".join([*parts, f"{s['nodes_before']} nodes before, {s['nodes_after']} after"])

    def _growth(self) -> Iterator[str]:
        before, after = self.constant_bytes_before, self.constant_bytes_after
        if after > _TOLD_GROWTH * before > 0:
            yield f"constants grew by {100 * (after / before - 1):.0f} %, from {before:,} to {after:,} bytes"

    def _merged(self) -> Iterator[str]:
        for kind, merges in self._merges_by_kind().items():
            if merges:
                shown = ", ".join(merged.as_text() for merged in merges[:_MOST_NAMES])
                rest = len(merges) - _MOST_NAMES
                yield printable(f"{kind} merged into {shown}{f' and {rest} more' if rest > 0 else ''}")

    def _merges_by_kind(self) -> dict[str, list[MergedBranches]]:
        return {
            "branches": [merged for merged in self.merges if merged.branches > 1],
            "sequences": [merged for merged in self.merges if merged.branches == 1],
        }

    def _digest(self) -> Iterator[str]:
        folded = [outcome for outcome in self.batchnorms if outcome.verdict is Verdict.FOLDED]
        if folded:
            yield f"folded  {_targets(folded)}"
        yield from _grouped(outcome for outcome in self.batchnorms if outcome.verdict is not Verdict.FOLDED)
        other = [outcome for outcome in self.affines if outcome.verdict is not Verdict.FOLDED]
        if other:
            yield "other affine maps:"
            yield from (f"  {line}" for line in _grouped(other))


def printable(text: str) -> str:
    """`text` for a terminal: control characters of hostile names, line ends among them, as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def tool_version() -> str:
    try:
        return version("foldserve")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _count(outcomes: Iterable[_Outcome], verdict: Verdict) -> int:
    return sum(outcome.verdict is verdict for outcome in outcomes)


def _targets(folded: Iterable[_Outcome]) -> str:
    """`104 into Conv, 17 into Conv and Max`: the most frequent first, the operators of one map by name."""
    counts = Counter(_target(outcome) for outcome in folded)
    shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return printable(", ".join(f"{count} {target}" for target, count in shown))


def _target(outcome: _Outcome) -> str:
    if not outcome.into:
        return "without a trace"
    kinds = sorted(set(outcome.into_ops)) or ["other nodes"]
    return "into " + " and ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))


def _grouped(outcomes: Iterable[_Outcome]) -> Iterator[str]:
    """Reduced and kept ones, those that share verdict, reason and way out together, the largest group first."""
    outcomes = list(outcomes)
    groups = _by(outcomes, str)
    if len(groups) > _MOST_GROUPS:
        groups = _by(outcomes, without_names)
    shown = sorted(groups.items(), key=lambda item: -len(item[1]))
    for (verdict, reason, way_out), members in shown[:_MOST_GROUPS]:
        if len(members) == 1 and members[0].into:
            what = members[0].told_with_holders()
        else:
            what = _enumerated([member.name for member in members])
        yield printable(f"{verdict:<8}{what}: {reason}")
        if way_out:
            yield printable(f"        way out: {way_out}")
    rest = sum(len(members) for _, members in shown[_MOST_GROUPS:])
    if rest:
        yield f"and {rest} more for {len(shown) - _MOST_GROUPS} other reasons; the report file (--report) has them all"


def _by(outcomes: list[_Outcome], reading: Callable[[str], str]) -> dict[tuple[str, str, str], list[_Outcome]]:
    groups: dict[tuple[str, str, str], list[_Outcome]] = {}
    for outcome in outcomes:
        key = (outcome.verdict.value, reading(outcome.reason), reading(outcome.way_out))
        groups.setdefault(key, []).append(outcome)
    return groups


def without_names(reason: str) -> str:
    """Reasons quote the names of nodes and tensors: without them, equal causes read alike."""
    return re.sub(r"'[^']*'", "'...'", reason)


def _enumerated(names: Sequence[str]) -> str:
    if len(names) <= _MOST_NAMES:
        return ", ".join(names)
    return f"{len(names)} ({', '.join(names[:_MOST_NAMES])}, ...)"
