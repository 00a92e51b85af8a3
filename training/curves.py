"""A run's metrics as one SVG that needs nothing else to be seen: loss above, accuracy below, a point an epoch.

Knows figures and SVG. The same figures give the same text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_WIDE, _HIGH, _LEFT, _TOP, _GAP = 640.0, 190.0, 56.0, 26.0, 40.0
_COLOURS = {"train": "#1f6fb2", "held_out": "#c8501e"}
_WORDS = {"train": "training", "held_out": "held out"}


def curves_picture(lines: Sequence[Mapping[str, Any]]) -> str:
    """lines: of metrics.jsonl; figures that are missing are not drawn."""
    height = 2 * (_HIGH + _GAP) + _TOP
    drawn = [
        *_panel(lines, "loss", _TOP, None),
        *_panel(lines, "accuracy", _TOP + _HIGH + _GAP, 1.0),
        f'<text x="{_LEFT:g}" y="{height - 8:g}">epoch 1 to {lines[-1]["epoch"] if lines else 0}</text>',
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE:g} {height:g}" width="{_WIDE:g}" '
        f'height="{height:g}" role="img" aria-label="loss and accuracy by epoch" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{"".join(drawn)}</svg>\n'
    )


def _panel(lines: Sequence[Mapping[str, Any]], what: str, top: float, highest: float | None) -> list[str]:
    """One axis with its lines. Accuracy reaches to 1; a loss to its own highest."""
    series = {
        kind: [(int(line["epoch"]), float(line[f"{kind}_{what}"])) for line in lines if f"{kind}_{what}" in line]
        for kind in _COLOURS
    }
    values = [value for points in series.values() for _, value in points if math.isfinite(value)]
    high = highest or max(values, default=1.0) or 1.0
    last = max((int(line["epoch"]) for line in lines), default=1)
    drawn = [
        f'<text x="{_LEFT:g}" y="{top - 8:g}">{what}</text>',
        f'<path d="M{_LEFT:g} {top:g}V{top + _HIGH:g}H{_WIDE - 10:g}" fill="none" stroke="#888"/>',
        f'<text x="{_LEFT - 6:g}" y="{top + 10:g}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{_LEFT - 6:g}" y="{top + _HIGH:g}" text-anchor="end">0</text>',
    ]
    for place, (kind, points) in enumerate(series.items()):
        if not points:
            continue
        at = " ".join(f"{_x(epoch, last):.1f},{_y(value, high, top):.1f}" for epoch, value in points)
        colour = _COLOURS[kind]
        drawn += [
            f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="1.5"/>',
            (
                f'<text x="{_WIDE - 20:g}" y="{top + 12 + 15 * place:g}" text-anchor="end" fill="{colour}">'
                f"{_WORDS[kind]}: {points[-1][1]:.4g}</text>"
            ),
        ]
    return drawn


def _x(epoch: int, last: int) -> float:
    return _LEFT + (_WIDE - 10 - _LEFT) * (epoch - 1) / max(1, last - 1)


def _y(value: float, high: float, top: float) -> float:
    inside = min(max(value, 0.0), high) if math.isfinite(value) else high
    return top + _HIGH * (1.0 - inside / high)
