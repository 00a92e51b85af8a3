"""What a row of the pattern matrix is as a test: a graph, its sizes, its statistics, and what should become of it.

Graphs are ONNX text with sizes by name, `$N` or `${N}`; constants are given by their shapes, `"O C 3 3"`. Every case is
built with all sizes different and, unless it cannot be, with all sizes equal, where an axis taken for another shows
in no shape. Outputs declare none: what is in a graph has to be enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from string import Template
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tests.training.fold.models import TEXT_TYPES, build, rng_of, statistics

Array = NDArray[Any]
Sizes = Mapping[str, int]


def _sizes(n: int, c: int, o: int, h: int, w: int, d: int) -> Sizes:
    """`c`, `o`: of one of two groups; CHW, HW: flattened."""
    basic = {"N": n, "C": c, "O": o, "H": h, "W": w, "D": d, "c": c // 2, "o": o // 2}
    return basic | {"CHW": c * h * w, "HW": h * w, "CO": c + o, "CC": 2 * c, "C4": 4 * c, "OHW": o * h * w}


SIZES: Mapping[str, Sizes] = {"distinct": _sizes(3, 4, 6, 7, 5, 8), "coincident": _sizes(4, 4, 4, 4, 4, 4)}


def settled(rng: np.random.Generator, channels: int) -> dict[str, Array]:
    """As training leaves them, with both signs among the gammas."""
    parts = upright(rng, channels)
    return parts | {"g": parts["g"] * np.where(np.arange(channels) % 2, 1.0, -1.0)}


def upright(rng: np.random.Generator, channels: int) -> dict[str, Array]:
    """As training leaves them, all gammas above zero."""
    return {
        "g": rng.uniform(0.7, 1.3, channels),
        "b": 0.2 * rng.normal(size=channels),
        "m": 0.5 * rng.normal(size=channels),
        "v": rng.uniform(0.5, 2, channels),
    }


def pruned(rng: np.random.Generator, channels: int) -> dict[str, Array]:
    """Settled, with a gamma of zero in the last two channels, of which one puts out 0.3 and the other -0.4."""
    parts = settled(rng, channels)
    parts["g"][-2:] = 0
    parts["b"][-2:] = 0.3, -0.4
    return parts


def plain(rng: np.random.Generator, channels: int) -> dict[str, Array]:
    """Without gamma and beta (affine=False)."""
    return settled(rng, channels) | {"g": np.ones(channels), "b": np.zeros(channels)}


def alive(rng: np.random.Generator, channels: int) -> dict[str, Array]:
    """Hostile, but no gamma is zero."""
    parts = statistics(rng, channels)
    return parts | {"g": np.where(parts["g"] == 0, -1.0, parts["g"])}


def hostile(rng: np.random.Generator, channels: int) -> dict[str, Array]:
    return statistics(rng, channels)


Statistics = Callable[[np.random.Generator, int], dict[str, Array]]


@dataclass(frozen=True)
class Case:
    """`code`: the row. `bn`: suffix of the names g, b, m, v -> channels. `draw`: constant -> shape; `given`: constant.

    Expected are counts, `affines` those of them that were folded, a fragment of each reason in `reasons`, and, where
    given, the operators of the folded graph. `allowed`: what the algebra would allow beyond that, and why it is not so.
    Constants are of `dtype`, `$T` in the text, where `types` says nothing else.
    """

    code: str
    name: str
    graph: str
    bn: Mapping[str, str] = field(default_factory=dict)
    draw: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Array] = field(default_factory=dict)
    folded: int = 0
    clamped: int = 0
    reduced: int = 0
    kept: int = 0
    affines: int = 0
    merged: int = 0
    reasons: tuple[str, ...] = ()
    ops: str | None = None
    statistics: tuple[Statistics, ...] = (alive, settled)
    sizes: tuple[str, ...] = ("distinct", "coincident")
    dtype: Any = np.float64
    types: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    ir_version: int = 8
    functions: str = ""
    allowed: str = ""

    def model(self, sizes: str, draw: Statistics, seed: int = 0) -> ir.Model:
        by_name, rng = SIZES[sizes], rng_of(seed)
        constants = {name: rng.normal(size=_shape(text, by_name)) for name, text in self.draw.items()}
        for suffix, channels in self.bn.items():
            parts = draw(rng, _shape(channels, by_name)[0])
            constants |= {f"{key}{suffix}": part for key, part in parts.items()}
        constants = {name: array.astype(self.types.get(name, self.dtype)) for name, array in constants.items()}
        constants |= self.given
        text = Template(self.graph).substitute(by_name, T=TEXT_TYPES[np.dtype(self.dtype)])
        model = build(text, self.opset, self.ir_version, self.functions, **constants)
        for output in model.graph.outputs:
            output.shape = None
        return model

    @property
    def expected(self) -> dict[str, int]:
        return {
            "folded": self.folded,
            "clamped": self.clamped,
            "reduced": self.reduced,
            "kept": self.kept,
            "affines_folded": self.affines,
            "branches_merged": self.merged,
        }


def _shape(text: str, sizes: Sizes) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else sizes[part] for part in text.split())


def expand(cases: tuple[Case, ...]) -> list[tuple[Case, str, Statistics]]:
    return [(case, sizes, draw) for case in cases for sizes in case.sizes for draw in case.statistics]
