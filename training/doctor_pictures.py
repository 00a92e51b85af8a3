"""The pictures of an examination, each as one inline SVG: drift, gammas, running against population, batch size.

Knows figures and SVG; no page and no check's wording. Names come from strangers and are escaped and cut. The same
figures give the same text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from training.bn.figures import Array, Examined, LayerFigures
from training.bn.health import ENOUGH_VALUES, LOG_RATIO, RED_DRIFT, SHIFT, drift
from training.fold.report import printable

MOST_LAYERS = 200  # drawn; a table has them all
MOST_POINTS = 4000
_ROW, _NAME, _WIDE = 18, 210, 680
_BINS = 24
_LONGEST = 30


def name_of(text: str, longest: int = _LONGEST) -> str:
    """A layer's name for HTML; its end says more than its beginning."""
    plain = text if len(text) <= longest else f"…{text[1 - longest :]}"
    return escape(printable(plain))


def drift_picture(examined: Examined) -> str:
    """Two bars a layer, in units of the threshold: means above, variances below. Empty without data."""
    rows = []
    for layer in examined.layers[:MOST_LAYERS]:
        if layer.seen is not None:
            apart = drift(layer.running, layer.seen.population, layer.eps)
            shares = [float(each.max()) / limit for each, limit in zip(apart, (SHIFT, LOG_RATIO), strict=True)]
            rows.append((layer.name, shares))
    limits = [(1.0, "threshold", "yellow"), (RED_DRIFT, "red", "red")]
    return _bars(rows, limits, "drift per layer, in thresholds: means above, variances below")


def batch_picture(examined: Examined, batch_rows: int | None) -> str:
    """How many values a batch is worth to each layer: a batch of the training, or a row where its size is unknown."""
    rows = [
        (layer.name, [layer.seen.effective_per_row * (batch_rows or 1)])
        for layer in examined.layers[:MOST_LAYERS]
        if layer.seen is not None and layer.seen.effective_per_row is not None
    ]
    limits = [(ENOUGH_VALUES, f"{ENOUGH_VALUES:g} values", "yellow")] if batch_rows else []
    return _bars(rows, limits, f"independent values in {f'a batch of {batch_rows} rows' if batch_rows else 'one row'}")


def _bars(rows: Sequence[tuple[str, Sequence[float]]], limits: Sequence[tuple[float, str, str]], title: str) -> str:
    """On a logarithmic scale, since what is ill is often ill by orders of magnitude."""
    if not rows:
        return ""
    finite = [value for _, values in rows for value in values if math.isfinite(value) and value > 0]
    low = min([*finite, *(at for at, _, _ in limits)], default=0.1) / 2
    high = max([*finite, *(at for at, _, _ in limits)], default=1.0) * 2

    def place(value: float) -> float:
        inside = min(max(value, low), high) if not math.isnan(value) else high
        return _NAME + (_WIDE - _NAME) * math.log(inside / low) / math.log(high / low)

    drawn, height = [], _ROW * len(rows) + 24
    for number, (name, values) in enumerate(rows):
        top, thick = 20 + _ROW * number, (_ROW - 4) / len(values)
        drawn.append(f'<text class="name" x="{_NAME - 8}" y="{top + 11}">{name_of(name)}</text>')
        for part, value in enumerate(values):
            kind = next((kind for at, _, kind in reversed(limits) if value > at), "fine") if len(values) > 1 else "fine"
            if len(values) == 1 and limits and value < limits[0][0]:
                kind = "yellow"
            drawn.append(
                f'<rect class="{kind}" x="{_NAME}" y="{top + part * thick:.1f}" width="{place(value) - _NAME:.1f}" '
                f'height="{thick - 1:.1f}"><title>{name_of(name, 200)}: {value:.3g}</title></rect>'
            )
    for at, words, _ in limits:
        x = f"{place(at):.1f}"
        drawn.append(
            f'<line class="limit" x1="{x}" x2="{x}" y1="16" y2="{height}"/><text x="{x}" y="11">{words}</text>'
        )
    return _svg(_WIDE, height, title, drawn)


def gamma_pictures(examined: Examined) -> list[str]:
    """One small histogram of |gamma| a layer that has gammas."""
    return [_histogram(layer) for layer in examined.layers[:MOST_LAYERS] if layer.gamma is not None]


def _histogram(layer: LayerFigures) -> str:
    assert layer.gamma is not None
    sizes = np.abs(layer.gamma[np.isfinite(layer.gamma)])
    top = float(sizes.max()) if sizes.size and sizes.max() > 0 else 1.0
    counts, _ = np.histogram(sizes, bins=_BINS, range=(0.0, top))
    wide, high = 200.0, 54.0
    drawn = [
        f'<rect class="fine" x="{i * wide / _BINS:.1f}" y="{high - high * count / max(counts.max(), 1):.1f}" '
        f'width="{wide / _BINS - 1:.1f}" height="{high * count / max(counts.max(), 1):.1f}"/>'
        for i, count in enumerate(counts)
    ]
    drawn.append(f'<text x="0" y="68">0</text><text class="name" x="200" y="68">{top:.3g}</text>')
    drawn.append(f'<text x="0" y="84">{name_of(layer.name)}</text>')
    return _svg(200, 90, f"absolute gammas of {layer.name}", drawn)


def scatter_pictures(examined: Examined) -> list[str]:
    """Running against population, every channel of every layer a point: means in standard deviations of their layer,
    variances as they are. Empty without data."""
    seen = [layer for layer in examined.layers if layer.seen is not None]
    if not seen:
        return []
    means, variances = [], []
    for layer in seen:
        assert layer.seen is not None
        new, scale = layer.seen.population, np.sqrt(np.maximum(layer.seen.population.variance, 0) + layer.eps)
        means.append(np.stack([new.mean / scale, layer.running.mean / scale]))
        with np.errstate(all="ignore"):
            variances.append(np.log10(np.stack([new.variance + layer.eps, layer.running.variance + layer.eps])))
    return [
        _scatter(np.concatenate(means, axis=1), "means, in standard deviations"),
        _scatter(np.concatenate(variances, axis=1), "variances, as powers of ten"),
    ]


def _scatter(points: Array, title: str) -> str:
    finite = points[:, np.isfinite(points).all(axis=0)]
    step = -(-finite.shape[1] // MOST_POINTS) or 1
    finite, size = finite[:, ::step], 320.0
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    spread = (high - low) or 1.0
    placed = 10 + (finite - low) / spread * (size - 20)
    drawn = [f'<line class="limit" x1="10" y1="{size - 10:g}" x2="{size - 10:g}" y2="10"/>']
    drawn += [f'<circle class="point" cx="{x:.1f}" cy="{size - y:.1f}" r="2"/>' for x, y in placed.T]
    drawn.append(f'<text x="10" y="{size + 14:g}">population {low:.3g} to {high:.3g}</text>')
    drawn.append(f'<text x="10" y="14">running</text><text class="name" x="{size:g}" y="{size + 14:g}">{title}</text>')
    return _svg(320, 340, f"running against population: {title}", drawn)


def _svg(width: float, height: float, title: str, drawn: Sequence[str]) -> str:
    label = escape(printable(title), quote=True)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{label}">{"".join(drawn)}</svg>'
    )
