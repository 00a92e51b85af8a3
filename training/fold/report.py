"""What folding did: one line a BatchNormalization, a summary, and the marks left in a folded file. Formats only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PREFIX = "foldserve."  # of our entries in a model's metadata_props


class Verdict(StrEnum):
    """`FOLDED`: nothing of it is left. `REDUCED`: one channelwise Add is left. `KEPT`: it stands as it was."""

    FOLDED = "folded"
    REDUCED = "reduced"
    KEPT = "kept"


@dataclass(frozen=True)
class BatchNormOutcome:
    """`into`: the names of the nodes that hold it now. `reason`: why it was not folded altogether, else empty."""

    name: str
    verdict: Verdict
    into: tuple[str, ...]
    reason: str

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "verdict": self.verdict.value, "into": list(self.into), "reason": self.reason}

    def as_text(self) -> str:
        into = f" into {', '.join(self.into)}" if self.into else ""
        return f"{self.verdict.value:<8}{self.name}{into}{': ' + self.reason if self.reason else ''}"


@dataclass(frozen=True)
class FoldReport:
    """Every BatchNormalization of the model in graph order; node counts include subgraphs."""

    batchnorms: tuple[BatchNormOutcome, ...]
    nodes_before: int
    nodes_after: int

    @property
    def changed(self) -> bool:
        """Is the folded model another one? If not, it is the original's copy, unmarked."""
        return any(outcome.verdict is not Verdict.KEPT for outcome in self.batchnorms)

    def count(self, verdict: Verdict) -> int:
        return sum(outcome.verdict is verdict for outcome in self.batchnorms)

    def summary(self) -> dict[str, int]:
        return {
            "found": len(self.batchnorms),
            "folded": self.count(Verdict.FOLDED),
            "clamped": 0,
            "reduced": self.count(Verdict.REDUCED),
            "kept": self.count(Verdict.KEPT),
            "affines_found": 0,
            "affines_folded": 0,
            "branches_merged": 0,
            "nodes_before": self.nodes_before,
            "nodes_after": self.nodes_after,
        }

    def as_dict(self) -> dict[str, Any]:
        """The fold report of architecture.md, contract 4, but for `verify`."""
        return {"batchnorms": [outcome.as_dict() for outcome in self.batchnorms], "summary": self.summary()}

    def as_text(self) -> str:
        """For people: what is kept and why, after one line of totals."""
        s = self.summary()
        head = (
            f"{s['found']} BatchNormalization found: {s['folded']} folded, {s['reduced']} reduced, {s['kept']} kept; "
            f"{s['nodes_before']} nodes before, {s['nodes_after']} after"
        )
        return "\n".join([head, *(f"  {outcome.as_text()}" for outcome in self.batchnorms)])

    def metadata(self, source_sha256: str | None) -> dict[str, str]:
        """`metadata_props` by which a folded file explains itself."""
        marks = {
            f"{_PREFIX}version": tool_version(),
            f"{_PREFIX}fold": json.dumps(self.summary(), separators=(",", ":")),
        }
        if source_sha256 is not None:
            marks[f"{_PREFIX}source_sha256"] = source_sha256
        return marks


def tool_version() -> str:
    try:
        return version("foldserve")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
