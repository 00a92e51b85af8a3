"""Resize, Upsample, GridSample: exact under every gauge that their laws allow, from either end; each refusal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.carriers.laws_oracle import ask, assert_laws_hold, refusal
from tests.training.fold.models import build
from training.fold.carriers.resizing import RULES
from training.fold.laws import Equal, NoShift

Array = np.ndarray[Any, Any]
Axes = tuple[int, ...]


def floats(*numbers: float) -> Array:
    return np.array(numbers, dtype=np.float32)


def ints(*numbers: int) -> Array:
    return np.array(numbers, dtype=np.int64)


def coordinates(mode: str, more: str = 'mode = "linear"') -> str:
    return f'Resize <{more}, coordinate_transformation_mode = "{mode}"> (x, roi, scales)'


@dataclass(frozen=True)
class Case:
    """`op` resamples x into y; the gauge lies along `axes` of both."""

    id: str
    op: str
    constants: dict[str, Array] = field(default_factory=dict)
    opset: int = 13
    x: tuple[int | str, ...] = (2, 3, 4, 5)
    y: tuple[int | str, ...] = (2, 3, 8, 7)
    axes: Axes = (1,)

    def model(self) -> ir.Model:
        x, y = (", ".join(map(str, shape)) for shape in (self.x, self.y))
        return build(f"m (double[{x}] x) => (double[{y}] y) {{ [op] y = {self.op} }}", self.opset, **self.constants)


UP = {"scales": floats(1, 1, 2, 1.5), "roi": floats()}
DOWN = {"scales": floats(1, 1, 0.5, 0.7), "roi": floats()}
HALF = {"scales": floats(1, 1, 0.5, 0.5)}
SMALL = (2, 3, 2, 3)
CUBE = (3, 3, 3, 3)

CASES = [
    Case("Upsample 7", 'Upsample <scales = [1.0, 1.0, 2.0, 1.5], mode = "linear"> (x)', opset=7),
    Case("Upsample 9", "Upsample (x, scales)", {"scales": floats(1, 1, 2, 1.5)}, opset=9),
    Case("Resize 10", "Resize (x, scales)", {"scales": floats(1, 1, 2, 1.5)}, opset=10),
    Case("Resize 10 down", 'Resize <mode = "linear"> (x, scales)', {"scales": DOWN["scales"]}, 10, y=SMALL),
    Case("nearest", "Resize (x, roi, scales)", UP),
    Case("nearest without roi", "Resize (x, , scales)", {"scales": UP["scales"]}, opset=11),
    Case("linear", 'Resize <mode = "linear"> (x, roi, scales)', UP),
    Case("linear down", 'Resize <mode = "linear"> (x, roi, scales)', DOWN, y=SMALL),
    Case("cubic", 'Resize <mode = "cubic"> (x, roi, scales)', UP),
    Case("cubic, outside left out", 'Resize <mode = "cubic", exclude_outside = 1> (x, roi, scales)', UP),
    Case("cubic, sharper", 'Resize <mode = "cubic", cubic_coeff_a = -0.5> (x, roi, scales)', DOWN, y=SMALL),
    Case("antialias", 'Resize <mode = "linear", antialias = 1> (x, , scales)', DOWN, 18, y=SMALL),
    Case("antialias cubic", 'Resize <mode = "cubic", antialias = 1> (x, , scales)', HALF, 19, (2, 3, 4, 6), SMALL),
    Case("align corners", coordinates("align_corners"), UP),
    Case("asymmetric", coordinates("asymmetric", 'nearest_mode = "ceil"'), UP),
    Case("pytorch_half_pixel", coordinates("pytorch_half_pixel"), UP),
    Case("half_pixel_symmetric", coordinates("half_pixel_symmetric"), UP, 19),
    Case("tf_half_pixel_for_nn", coordinates("tf_half_pixel_for_nn", 'nearest_mode = "floor"'), UP, 11),
    # which axes stay
    Case("sizes", "Resize (x, , , sizes)", {"sizes": ints(2, 3, 8, 7)}),
    Case(
        "sizes beside empty scales", "Resize (x, roi, none, sizes)", {**UP, "none": floats(), "sizes": ints(2, 3, 8, 7)}
    ),
    Case("axes", "Resize <axes = [2, 3]> (x, , scales)", {"scales": floats(2, 1.5)}, 18),
    Case("negative axes", "Resize <axes = [-1, -2]> (x, , scales)", {"scales": floats(1.5, 2)}, 18),
    Case("axes and sizes", "Resize <axes = [3, 2]> (x, , , sizes)", {"sizes": ints(7, 8)}, 18),
    Case(
        "ratio kept on other axes",
        'Resize <axes = [2, 3], keep_aspect_ratio_policy = "not_larger"> (x, , , sizes)',
        {"sizes": ints(8, 10)},
        18,
        y=(2, 3, 8, 10),
    ),
    Case("symbolic sizes", "Resize (x, , scales)", UP, x=("N", 3, "H", "W"), y=("N", 3, "A", "B")),
    Case("1-D", 'Resize <mode = "linear"> (x, , scales)', {"scales": floats(1, 1, 2)}, x=(2, 3, 4), y=(2, 3, 8)),
    Case("all sizes equal", "Resize (x, , scales)", {"scales": floats(1, 1, 1, 1)}, x=CUBE, y=CUBE),
    Case("channels last", "Resize (x, , scales)", {"scales": floats(1, 2, 2, 1)}, y=(2, 6, 8, 5), axes=(3,)),
    Case("two axes", "Resize (x, , scales)", {"scales": floats(1, 1, 1, 2)}, y=(2, 3, 4, 10), axes=(1, 2)),
    Case(
        "linear along other axes of a cube",
        'Resize <mode = "linear"> (x, , scales)',
        {"scales": floats(2, 1, 1, 1)},
        x=CUBE,
        y=(6, 3, 3, 3),
    ),
]


@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_any_gauge_passes_along_axes_that_are_not_resampled(case: Case, side: str) -> None:
    asked = assert_laws_hold(case.model(), "op", side, case.axes, rules=RULES, sizes={"H": 4, "W": 5})

    sizes = [case.x[axis] for axis in case.axes]
    assert asked.scales == asked.shifts == np.prod(sizes)  # type: ignore[arg-type]
    assert asked.free("x") and asked.free("y")


CROP = {"scales": floats(1, 1, 2, 1.5), "roi": floats(0, 0, 0, 0, 1, 1, 1, 1)}
REFUSED = [
    (Case("crop", coordinates("tf_crop_and_resize"), CROP), "'tf_crop_and_resize', whose weights may not sum"),
    (Case("half a point", coordinates("tf_half_pixel_for_nn"), UP, 11), "moves every axis by half a point"),
    (
        Case("half a point, up", coordinates("tf_half_pixel_for_nn", 'nearest_mode = "round_prefer_ceil"'), UP, 11),
        "moves every axis by half a point",
    ),
    (Case("mode", 'Resize <mode = "area"> (x, roi, scales)', UP), "mode 'area', expected nearest, linear, cubic"),
    (Case("bilinear Resize", 'Resize <mode = "bilinear"> (x, roi, scales)', UP), "mode 'bilinear'"),
    (Case("along height", "Resize (x, roi, scales)", UP, axes=(2,)), "resizes axis [2]"),
    (Case("along one of two", "Resize (x, roi, scales)", UP, axes=(1, 3)), "resizes axis [3]"),
    (
        Case("as many points, but others", "Resize (x, , scales)", {"scales": floats(1, 1.1, 2, 1.5)}),
        "resizes axis [1]",
    ),
    (Case("Upsample 1 along width", "Upsample <height_scale = 1.0, width_scale = 1.5> (x)", {}, 1, axes=(3,)), "[3]"),
    (Case("Upsample 7 without scales", "Upsample (x)", {}, 7), "0 scales for 4 axes"),
    (Case("too few scales", "Resize (x, , scales)", {"scales": floats(2, 1.5)}), "2 scales for 4 axes"),
    (Case("scales and sizes", "Resize (x, , scales, sizes)", {**UP, "sizes": ints(2, 3, 8, 7)}), "or it has sizes too"),
    (Case("neither", "Resize (x)", {}), "the scales of Resize 'op' are not constant"),
    (Case("sizes along the gauge", "Resize (x, , , sizes)", {"sizes": ints(2, 3, 8, 7)}, axes=(2,)), "axis [2]"),
    (
        Case(
            "ratio kept",
            'Resize <keep_aspect_ratio_policy = "not_larger"> (x, , , sizes)',
            {"sizes": ints(2, 3, 8, 7)},
            18,
        ),
        "to keep an aspect ratio, along axis [1]",
    ),
    (
        Case("a negative axis", "Resize <axes = [-3]> (x, , s)", {"s": floats(2)}, 18, y=(2, 6, 4, 5)),
        "resizes axis [1]",
    ),
    (Case("no such axis", "Resize (x, roi, scales)", UP, axes=(4,)), "or too small"),
]


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=[case.id for case, _ in REFUSED])
@pytest.mark.parametrize("side", ["x", "y"])
def test_a_resize_is_refused(case: Case, reason: str, side: str) -> None:
    found = refusal(case.model(), "op", side, case.axes, rules=RULES)

    assert reason in found and ("'op'" in found)


def test_scales_that_are_computed_are_refused() -> None:
    model = build("m (double[2,3,4] x, float[3] s) => (double[2,3,8] y) { [op] y = Resize (x, , s) }")

    assert "the scales of Resize 'op' are not constant" in refusal(model, "op", "x", (1,), rules=RULES)


def test_sizes_that_are_computed_count_by_the_shape_they_make() -> None:
    """As exporters write it: `sizes` comes from Shape and Concat, and the file declares what it makes."""
    model = build("m (double[2,3,4] x, int64[3] s) => (double[2,3,8] y) { [op] y = Resize (x, , , s) }")

    asked = assert_laws_hold(model, "op", "x", (1,), rules=RULES, feeds={"s": ints(2, 3, 8)})

    assert asked.shifts == 3


def test_a_region_of_interest_carries_nothing() -> None:
    model = build(
        "m (double[6] r, double[2,3,4] x) => (double[2,3,8] y) { [op] y = Resize (x, r, s) }", s=floats(1, 1, 2)
    )

    assert "'r' is no data" in refusal(model, "op", "r", (0,), rules=RULES)


def test_an_upsample_of_opset_1_has_two_scales() -> None:
    """No reference evaluates it; it is opset 7's with scales of 1 in front."""
    model = build(
        "m (double[2,3,4,5] x) => (double[2,3,8,7] y) { [op] y = Upsample <height_scale = 2.0, width_scale = 1.5, "
        'mode = "bilinear"> (x) }',
        opset=1,
    )

    assert isinstance(ask(model, "op", "x", (1,), rules=RULES), tuple)
    assert "resizes axis [2]" in refusal(model, "op", "x", (0, 2), rules=RULES)


# --- GridSample ------------------------------------------------------------------------------------------------------

# A good part lies outside. Sixteenths of sizes that are powers of two: the reference's float32 coordinates are exact.
GRID = np.random.default_rng(5).integers(-26, 27, (2, 6, 7, 2)) / 16


def grid_sample(mode: str, padding: str, opset: int) -> ir.Model:
    attributes = f'mode = "{mode}", padding_mode = "{padding}"'
    tensors = "(double[2,3,4,8] x, double[2,6,7,2] g) => (double[2,3,6,7] y)"
    return build(f"m {tensors} {{ [op] y = GridSample <{attributes}> (x, g) }}", opset)


@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(("mode", "opset"), [("nearest", 16), ("linear", 20), ("cubic", 22)])
def test_grid_sample_passes_shifts_unless_it_pads_with_zeros(mode: str, opset: int, padding: str, side: str) -> None:
    asked = assert_laws_hold(grid_sample(mode, padding, opset), "op", side, (1,), rules=RULES, feeds={"g": GRID})

    assert asked.scales == 3
    assert asked.shifts == (0 if padding == "zeros" else 3)
    assert asked.tied(NoShift) == (padding == "zeros")


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_modes_of_opset_16_obey_the_laws_of_their_later_names(mode: str, padding: str) -> None:
    laws = ask(grid_sample(mode, padding, 16), "op", "x", (1,), rules=RULES)

    assert isinstance(laws, tuple)
    assert [type(law) for law in laws] == ([Equal, NoShift] if padding == "zeros" else [Equal])


def test_grid_sample_pads_with_zeros_unless_told_otherwise() -> None:
    model = build("m (double[2,3,4,8] x, double[2,6,7,2] g) => (double[2,3,6,7] y) { [op] y = GridSample (x, g) }")

    assert assert_laws_hold(model, "op", "x", (1,), rules=RULES, feeds={"g": GRID}).tied(NoShift)


def test_grid_sample_is_refused_but_for_the_channels_of_its_image() -> None:
    reasons = [
        refusal(grid_sample("bilinear", "border", 16), "op", "x", (2,), rules=RULES),
        refusal(grid_sample("bilinear", "border", 16), "op", "y", (0,), rules=RULES),
        refusal(grid_sample("bilinear", "border", 16), "op", "g", (3,), rules=RULES),
        refusal(grid_sample("bilinear", "wrap", 16), "op", "x", (1,), rules=RULES),
    ]

    for reason, part in zip(
        reasons, ["along (2,)", "along (0,)", "'g' is no data", "padding_mode 'wrap'"], strict=True
    ):
        assert part in reason


def test_an_image_that_is_its_own_grid_is_refused() -> None:
    model = build("m (double[2,2,2,2] x) => (double[2,2,2,2] y) { [op] y = GridSample (x, x) }")

    assert "operand [0, 1]" in refusal(model, "op", "x", (1,), rules=RULES)
    assert "reads 'x' twice" in refusal(model, "op", "y", (1,), rules=RULES)
