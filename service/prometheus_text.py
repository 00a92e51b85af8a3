"""Metrics in Prometheus's text format 0.0.4: families of samples to bytes.

https://prometheus.io/docs/instrumenting/exposition_formats/ . Pure; knows no metric.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """`suffix`: what a histogram's samples have behind the family's name."""

    value: float
    labels: Labels = ()
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """`kind`: counter, gauge or histogram. One without samples is shown by its head alone."""

    name: str
    kind: str
    help: str
    samples: Iterable[Sample]


def histogram(labels: Labels, bounds: Sequence[float], counts: Sequence[float], total: float) -> Iterator[Sample]:
    """The samples of one histogram. counts: of each bucket by itself, one more than bounds; here they are cumulated."""
    seen = 0.0
    for bound, count in zip((*bounds, math.inf), counts, strict=True):
        seen += count
        yield Sample(seen, (*labels, ("le", _number(bound))), "_bucket")
    yield Sample(total, labels, "_sum")
    yield Sample(seen, labels, "_count")


def write_lines(families: Iterable[Family | None]) -> Iterator[str | None]:
    """One after the other, each made when it is asked for; None for None, so that whoever asks may pause there, too."""
    for family in families:
        if family is None:
            yield None
            continue
        yield f"# HELP {family.name} {_escaped(family.help)}"
        yield f"# TYPE {family.name} {family.kind}"
        for sample in family.samples:
            yield f"{family.name}{sample.suffix}{_shown(sample.labels)} {_number(sample.value)}"


def to_text(lines: Iterable[str]) -> bytes:
    # A model's name is a folder's, which need not be UTF-8.
    return "\n".join([*lines, ""]).encode("utf-8", "replace")


def _shown(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = [f'{name}="{_escaped(value, quote=True)}"' for name, value in labels]
    return "{" + ",".join(pairs) + "}"


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
