"""An examination as a page: one HTML file that needs no network and no scripts, to look at or to hand on.

Knows HTML and the diagnosis; what is drawn is doctor_pictures'. Names come from files of strangers: all text is
escaped, and the page's own content policy allows nothing but its own style. The same diagnosis gives the same text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

from training.bn.diagnosis import Diagnosis
from training.bn.facts import Facts
from training.bn.findings import CHECKS, SEVERITIES, Finding, NotMade
from training.doctor_pictures import (
    MOST_LAYERS,
    batch_picture,
    drift_picture,
    gamma_pictures,
    name_of,
    scatter_pictures,
)
from training.fold.report import printable

_LONGEST = 80


def render(name: str, diagnosis: Diagnosis, facts: Facts | None = None) -> str:
    """The page of one examination; `name` of what was examined."""
    examined, style = diagnosis.examined, _resource("doctor_page.css")
    missing = f'<p class="quiet">Not measured: {_text(examined.unseen)}.</p>'
    return Template(_resource("doctor_page.html")).substitute(
        title=f"BatchNorm health: {_text(name)}",
        name=_text(name),
        style=style,
        style_hash=f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}",
        headline=_headline(diagnosis),
        findings=_findings(diagnosis.findings),
        drift=_cut(diagnosis) + (drift_picture(examined) or missing),
        scatter=_pictures(scatter_pictures(examined)) or missing,
        batch=batch_picture(examined, facts.batch_rows if facts else None) or missing,
        gammas=_pictures(gamma_pictures(examined)) or '<p class="quiet">No layer has gammas.</p>',
        not_made=_not_made(diagnosis.not_made),
    )


def _resource(name: str) -> str:
    return files("training").joinpath(name).read_text(encoding="utf-8")


def _text(text: str) -> str:
    return escape(printable(text))


def _headline(diagnosis: Diagnosis) -> str:
    counts = ", ".join(f"{len(diagnosis.of(severity))} {severity}" for severity in SEVERITIES)
    word, kind = ("healthy", "green") if diagnosis.healthy else ("ill", "red")
    examined = diagnosis.examined
    data = f"{examined.rows} rows" if examined.rows else "no data"
    return f'<span class="pill {kind}">{word}</span> {len(examined.layers)} layers, {data}: {counts}'


def _cut(diagnosis: Diagnosis) -> str:
    layers = len(diagnosis.examined.layers)
    more = f'<p class="quiet">The first {MOST_LAYERS} of {layers} layers are drawn.</p>'
    return more if layers > MOST_LAYERS else ""


def _pictures(drawn: Sequence[str]) -> str:
    return f'<div class="pictures">{"".join(drawn)}</div>' if drawn else ""


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<p>Nothing was found by the checks that were made.</p>"
    rows = [
        f'<tr><td><span class="pill {each.severity}">{each.severity}</span></td>'
        f"<td>{each.check} {CHECKS[each.check]}</td><td>{name_of(each.layer, _LONGEST)}</td>"
        f"<td>{_text(each.found)}</td>"
        f"<td>{_text(each.expected)}</td><td>{_text(each.fix)}</td></tr>"
        for each in findings
    ]
    head = "<tr><th></th><th>Check</th><th>Layer</th><th>Found</th><th>Expected</th><th>What to do</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _not_made(not_made: Sequence[NotMade]) -> str:
    if not not_made:
        return "<p>None.</p>"
    rows = [
        f"<tr><td>{each.check} {CHECKS[each.check]}</td><td>{_text(each.reason)}</td>"
        f"<td>{f'{len(each.layers)} layers' if each.layers else 'all'}</td></tr>"
        for each in not_made
    ]
    return f"<table><tr><th>Check</th><th>Why not</th><th>For</th></tr>{''.join(rows)}</table>"
