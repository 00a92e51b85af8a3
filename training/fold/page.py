"""The fold report as a page: one HTML file that needs no network and no scripts, to look at or to hand on.

Knows HTML and the report's dict. What is drawn is page_graph's, where it stands page_layout's. Names come from files of
strangers: all text is escaped and cut, and the page's own content policy runs no script but the page's own. The same
arguments give the same text; thousands of nodes stay below a few megabytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import onnx_ir as ir

from training.fold.normalise import normalise
from training.fold.page_graph import Box, Fates, Picture, picture_after, picture_before
from training.fold.page_layout import BOX_HEIGHT, BOX_WIDTH, Layout, Point, lay_out
from training.fold.report import printable, tool_version, without_names

_LONGEST = 240  # characters shown of any one text
_MOST_LINKS = 8  # shown of the nodes that hold one map
_MOST_REASONS = 12
_WIDE = 660  # pixels, about half of the page
_VERDICTS = {
    "folded": "nothing of it is left",
    "clamped": "folded, and its ReLU or Clip has one bound a channel now",
    "reduced": "one channelwise Add or Mul is left",
    "kept": "still as expensive as it was",
}
_OTHER_KINDS = {
    "holds": "holds what was folded",
    "new": "was not in the original",
    "gone": "is not in the folded graph",
}
_PROOF = (
    ("algebra_error", "Algebra, in float64", "of scale times condition"),
    ("rounding_ratio", "Rounding error", "times the original's own"),
    ("max_abs_error", "Largest difference", "absolute"),
    ("max_rel_error", "", "of the output's scale"),
    ("samples", "Samples", ""),
    ("oracle", "Judged by", ""),
    ("note", "Note", ""),
    ("failure", "Failure", ""),
)
_WHY = {"reason": "What blocked it", "way_out": "Way out"}  # columns where there is something to say
_BOUNDS = {"algebra_error": "algebra_bound"}


def render_page(original: ir.Model, folded: ir.Model, result: dict[str, Any]) -> str:
    """The page of one fold.

    original, folded: the two models, which stay as they are. result: the fold report of architecture.md, contract 4, as
    `FoldedFile.as_dict()` gives it; `verify` may be missing or a word like "skipped".
    """
    original, folded = normalise(original), normalise(folded)  # the report's names are those of after it
    fates = Fates(result)
    before, after = picture_before(original, folded, fates), picture_after(original, folded, fates)
    style, script = _resource("page.css"), _resource("page.js")
    name = _text(folded.graph.name or "model")
    proof_kind, proof_word = _proof_verdict(result.get("verify", "skipped"))
    return Template(_resource("page_template.html")).substitute(
        title=f"Fold report: {name}",
        name=name,
        style=style,
        style_hash=_digest(style),
        script=script,
        script_hash=_digest(script),
        headline=_headline(result["summary"]),
        bar=_bar(result["summary"]),
        figures="".join(_figures(result)),
        proof_kind=proof_kind,
        proof_word=proof_word,
        proof=_proof(result.get("verify", "skipped")),
        left=_what_is_left(fates),
        legend="".join(_legend()),
        drawings=_drawings(before, after),
        table_title="Every BatchNormalization" if result["summary"]["found"] else "No BatchNormalization",
        table="".join(_tables(fates, before, after)),
        merges=_merges(result.get("merges", ()), after.by_name()),
        footer=_footer(folded),
    )


# Words and numbers.


def _resource(name: str) -> str:
    return files("training.fold").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """For the content policy, which then allows this text and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _text(text: Any, longest: int = _LONGEST) -> str:
    """Anybody's text for HTML: cut in the middle, control characters spelled out, escaped."""
    plain = str(text)
    if len(plain) > longest:
        half = (longest - 1) // 2
        plain = f"{plain[:half]}…{plain[-half:]}"
    return escape(printable(plain))


def _number(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.3g}" if isinstance(value, float) else _text(value)


def _headline(summary: dict[str, int]) -> str:
    if not summary["found"]:
        return "The model has no BatchNormalization."
    all_of = f"{summary['folded']} of {summary['found']} BatchNormalization folded"
    nodes = f"{summary['nodes_before']} nodes became {summary['nodes_after']}"
    return f"{all_of}; {nodes}."


def _shares(summary: dict[str, int]) -> dict[str, int]:
    """How many of each colour; the clamped apart from the others that are folded."""
    return {
        "folded": summary["folded"] - summary["clamped"],
        **{kind: summary[kind] for kind in ("clamped", "reduced", "kept")},
    }


def _bar(summary: dict[str, int]) -> str:
    if not summary["found"]:
        return ""
    parts, start = [], 0.0
    for kind, count in _shares(summary).items():
        width = 1000 * count / summary["found"]
        if count:
            parts.append(f'<rect class="{kind}" x="{start:.1f}" width="{width:.1f}" height="14"/>')
        start += width
    words = ", ".join(f"{count} {kind}" for kind, count in _shares(summary).items() if count)
    view = 'viewBox="0 0 1000 14" preserveAspectRatio="none"'
    return f'<svg class="bar" {view} role="img" aria-label="{words}">{"".join(parts)}</svg>'


def _figures(result: dict[str, Any]) -> Iterator[str]:
    summary = result["summary"]
    yield _figure("BatchNormalization", str(summary["found"]))
    for kind in ("folded", "clamped", "reduced", "kept"):
        more = " <small>of the folded</small>" if kind == "clamped" else ""
        yield _figure(kind, f"{summary[kind]}{more}", kind)
    if summary.get("widened"):
        yield _figure("widened", f"{summary['widened']} <small>of the folded</small>")
    if summary["affines_found"]:
        of = f" <small>of {summary['affines_found']}</small>"
        yield _figure("other affine maps folded", f"{summary['affines_folded']}{of}")
    if summary["branches_merged"]:
        yield _figure("branches merged", str(summary["branches_merged"]))
    yield _figure("nodes", f"{summary['nodes_before']} → {summary['nodes_after']}")
    if result.get("profile"):
        yield _figure("profile", _text(result["profile"]))


def _figure(name: str, value: str, kind: str = "") -> str:
    return f'<div class="{kind}"><dt>{name}</dt><dd>{value}</dd></div>'


def _proof_verdict(verify: Any) -> tuple[str, str]:
    if not isinstance(verify, dict):
        return "reduced", _text(verify)
    if not verify.get("passed", True):
        return "kept", "failed"
    if not verify.get("samples"):
        return "gone", "not needed" if verify.get("note") else "skipped"
    return "folded", "proved"


def _proof(verify: Any) -> str:
    if not isinstance(verify, dict):
        return "<p>Nobody has compared the two graphs.</p>"
    if not verify.get("samples"):
        return f"<p>{_text(verify.get('note', ''))}</p>"
    rows = []
    for key, name, unit in _PROOF:
        if key in verify and verify[key] != "":
            bound = f" (at most {_number(verify[_BOUNDS[key]])})" if _BOUNDS.get(key) in verify else ""
            rows.append(f"<dt>{name}</dt><dd>{_number(verify[key])} {unit}{bound}</dd>")
    return f'<dl class="proof">{"".join(rows)}</dl>'


def _what_is_left(fates: Fates) -> str:
    """Reasons by how many they hold back; names aside, equal reasons count as one."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, outcome in enumerate(fates.outcomes):
        if outcome["verdict"] != "folded":
            why = (without_names(outcome.get(key, "")) for key in _WHY)
            groups.setdefault((outcome["verdict"], *why), []).append(row)
    if not groups:
        return ""
    ranked = sorted(groups.values(), key=lambda rows: -len(rows))
    told = [key for number, key in enumerate(_WHY, 1) if any(group[number] for group in groups)]
    head = _row_of_heads(("How many", "Verdict", *(_WHY[key] for key in told), "For example"))
    body = "".join(_reason_row(rows, told, fates) for rows in ranked[:_MOST_REASONS])
    more = len(ranked) - _MOST_REASONS
    note = f"<p>More reasons ({more}) are in the table below.</p>" if more > 0 else ""
    return (
        '<section aria-labelledby="left"><h2 id="left">What is left, and what would help</h2>'
        f'<div class="table"><table>{head}<tbody>{body}</tbody></table></div>{note}</section>'
    )


def _reason_row(rows: Sequence[int], told: Sequence[str], fates: Fates) -> str:
    first = fates.outcomes[rows[0]]
    why = (first.get(key, "") if len(rows) == 1 else without_names(first.get(key, "")) for key in told)
    cells = "".join(f"<td>{_text(text)}</td>" for text in why)
    return (
        f'<tr><td class="number">{len(rows)}</td><td>{_pill(first["verdict"])}</td>{cells}'
        f'<td><a href="#r{rows[0]}"><code>{_text(first["name"], 60)}</code></a></td></tr>'
    )


def _pill(kind: str) -> str:
    return f'<span class="pill {kind}">{kind}</span>'


def _legend() -> Iterator[str]:
    for kind, meaning in (_VERDICTS | _OTHER_KINDS).items():
        yield f"<span>{_pill(kind)} {meaning}</span>"


def _footer(folded: ir.Model) -> str:
    source = folded.metadata_props.get("foldserve.source_sha256")
    of = f", from the file with SHA-256 <code>{_text(source)}</code>" if source else ""
    return f"Made by foldserve {_text(tool_version())}{of}."


# The drawings.


def _drawings(before: Picture, after: Picture) -> str:
    """Side by side; where one is wide, below each other."""
    layouts = [lay_out(len(picture.boxes), picture.edges) for picture in (before, after)]
    wide = " wide" if max(layout.width for layout in layouts) > _WIDE else ""
    first = _drawing("b", "Before", before, after, layouts[0])
    return f'<div class="graphs{wide}">{first}{_drawing("a", "After", after, before, layouts[1])}</div>'


def _drawing(prefix: str, name: str, picture: Picture, other: Picture, layout: Layout) -> str:
    links = _links(picture, other, "a" if prefix == "b" else "b")
    boxes = "".join(
        _box(f"{prefix}{index}", box, corner, links[index])
        for index, (box, corner) in enumerate(zip(picture.boxes, layout.corners, strict=True))
    )
    wires = "".join(map(_wire, layout.lines))
    note = f"<small>{_text(picture.note)}</small>" if picture.note else ""
    size = f'width="{layout.width}" height="{layout.height}" viewBox="0 0 {layout.width} {layout.height}"'
    return (
        f'<figure class="graph"><figcaption>{name}{note}</figcaption><div class="scroll" tabindex="0">'
        f'<svg {size} role="group" aria-label="{name}: the graph">'
        f'<path class="wire" d="{wires}"/>{boxes}</svg></div></figure>'
    )


def _links(picture: Picture, other: Picture, prefix: str) -> list[str]:
    """For each box, the ids of the other drawing's boxes that hold, or held, the same maps; the first few."""
    places: dict[int, list[int]] = {}
    for index, box in enumerate(other.boxes):
        for row in box.rows:
            places.setdefault(row, []).append(index)
    found = (dict.fromkeys(place for row in box.rows for place in places.get(row, ())) for box in picture.boxes)
    return [" ".join(f"{prefix}{place}" for place in list(places_of)[:_MOST_LINKS]) for places_of in found]


def _box(name: str, box: Box, corner: Point, links: str) -> str:
    x, y = corner
    css = "io" if box.kind == "io" else "" if box.kind == "plain" else f"b-{box.kind}"
    word = f'<text class="w" x="{x + BOX_WIDTH - 8}" y="{y + 15}">{_text(box.word, 14)}</text>' if box.word else ""
    room = 25 - (len(box.word) + 1 if box.word else 0)
    to = f' data-to="{links}"' if links else ""
    inside = (
        f"<title>{chr(10).join(_text(line) for line in box.lines)}</title>"
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="{19 if box.kind == "io" else 5}"/>'
        f'<text x="{x + 10}" y="{y + 15}">{_text(box.title, room)}</text>{word}'
        f'<text class="n" x="{x + 10}" y="{y + 30}">{_text(box.caption, 26)}</text>'
    )
    if box.rows:
        return f'<a class="box {css}" id="{name}" href="#r{box.rows[0]}"{to}>{inside}</a>'
    return f'<g class="box {css}" id="{name}">{inside}</g>'


def _wire(points: Sequence[Point]) -> str:
    """A path along the points, its corners rounded."""
    parts = [f"M{points[0][0]} {points[0][1]}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        near, far = _towards(corner, before), _towards(corner, after)
        parts.append(f"L{near[0]} {near[1]}Q{corner[0]} {corner[1]} {far[0]} {far[1]}")
    return "".join([*parts, f"L{points[-1][0]} {points[-1][1]}"])


def _towards(corner: Point, other: Point) -> Point:
    """A few pixels from the corner, at most half way."""
    step = [max(-6, min(6, (there - here) // 2)) for here, there in zip(corner, other, strict=True)]
    return corner[0] + step[0], corner[1] + step[1]


# The tables.


def _tables(fates: Fates, before: Picture, after: Picture) -> Iterator[str]:
    count = len(fates.result["batchnorms"])
    if not fates.outcomes:
        return
    yield from _filters(fates)
    yield '<input id="search" type="search" placeholder="Search" aria-label="Search in the tables" hidden>'
    drawn_rows: dict[int, int] = {}
    for index, box in enumerate(before.boxes):
        for row in box.rows if box.kind != "holds" else ():
            drawn_rows.setdefault(row, index)
    places = after.by_name()
    for title, rows in (("BatchNormalization", range(count)), ("Other affine maps", range(count, len(fates.outcomes)))):
        if rows:
            told = [key for key in _WHY if any(fates.outcomes[row].get(key) for row in rows)]
            body = "".join(_outcome_row(row, told, fates, drawn_rows, places) for row in rows)
            head = _row_of_heads(("#", "Name", "Verdict", "Into", *(_WHY[key] for key in told)))
            caption = f"<caption>{title} ({len(rows)})</caption>"
            yield f'<div class="table"><table>{caption}{head}<tbody>{body}</tbody></table></div>'


def _merges(merges: Sequence[dict[str, Any]], places: dict[str, int]) -> str:
    """Operators that do now what several did."""
    if not merges:
        return ""
    rows = ""
    for row, one in enumerate(merges, 1):
        number = one["branches"] if one["branches"] > 1 else "operators in sequence"
        rows += f'<tr><td class="number">{row}</td><th scope="row">{_into([one["into"]], places)}</th>'
        rows += f"<td>{_text(one['kind'])}</td><td>{number}</td></tr>"
    head = _row_of_heads(("#", "Into", "Operator", "Branches"))
    return (
        '<section aria-labelledby="merged"><h2 id="merged">Operators that do what several did</h2>'
        f'<div class="table"><table>{head}<tbody>{rows}</tbody></table></div></section>'
    )


def _filters(fates: Fates) -> Iterator[str]:
    """Radio buttons that the style sheet reads: no script is needed."""
    counts = {"all": len(fates.outcomes), **dict.fromkeys(_VERDICTS, 0)}
    for row, outcome in enumerate(fates.outcomes):
        counts[outcome["verdict"]] += 1
        counts["clamped"] += fates.kind(row) == "clamped"
    for kind, count in counts.items():
        checked = " checked" if kind == "all" else ""
        yield f'<input class="filter-input" type="radio" name="only" id="only-{kind}"{checked}>'
        yield f'<label class="filter" for="only-{kind}">{kind} ({count})</label>'


def _row_of_heads(names: Sequence[str]) -> str:
    """The first column holds numbers."""
    first, *others = names
    cells = "".join(f'<th scope="col">{name}</th>' for name in others)
    return f'<thead><tr><th scope="col" class="number">{first}</th>{cells}</tr></thead>'


def _outcome_row(row: int, told: Sequence[str], fates: Fates, drawn: dict[int, int], places: dict[str, int]) -> str:
    outcome, kind = fates.outcomes[row], fates.kind(row)
    name = f"<code>{_text(outcome['name'], 120)}</code>"
    if row in drawn:
        name = f'<a href="#b{drawn[row]}">{name}</a>'
    if "kind" in outcome:
        name += f" <small>{_text(outcome['kind'], 40)}</small>"
    css = "folded clamped" if kind == "clamped" else kind
    cells = (_pill(kind), _into(outcome["into"], places), *(_text(outcome.get(key, "")) for key in told))
    return (
        f'<tr id="r{row}" class="{css}"><td class="number">{row + 1}</td><th scope="row">{name}</th>'
        f"{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    )


def _into(names: Sequence[str], places: dict[str, int]) -> str:
    shown = []
    for name in names[:_MOST_LINKS]:
        text = f"<code>{_text(name, 80)}</code>"
        shown.append(f'<a href="#a{places[name]}">{text}</a>' if name in places else text)
    more = f" and {len(names) - _MOST_LINKS} more" if len(names) > _MOST_LINKS else ""
    return ", ".join(shown) + more
