"""Pools: each exact under every gauge that its laws allow, asked from either end; each condition with its refusal."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import pytest

from tests.training.fold.carriers.laws_oracle import assert_laws_hold, refusal
from tests.training.fold.models import build
from training.fold.carriers.pooling import RULES

FULL, POSITIVE, SCALE, NORM = "any gauge", "positive scales, any shift", "any scale", "positive scales"


@dataclass(frozen=True)
class Case:
    """`op` pools x of shape `x`; `passes` says which gauges do."""

    id: str
    op: str
    x: list[int | str]
    y: list[int | str]
    passes: str = FULL
    opset: int = 17

    def model(self) -> ir.Model:
        x, y = (", ".join(map(str, shape)) for shape in (self.x, self.y))
        return build(f"m (double[{x}] x) => (double[{y}] y) {{ [pool] y = {self.op} (x) }}", opset=self.opset)


AVG2 = "AveragePool <kernel_shape = [2, 3], strides = [2, 1]"
COUNTED = "AveragePool <kernel_shape = [3], count_include_pad = 1"
MAX3 = "MaxPool <kernel_shape = [3], strides = [2]"

CASES = [
    # averages over real elements
    Case("average, opset 1", "AveragePool <kernel_shape = [2]>", [2, 3, 6], [2, 3, 5], opset=1),
    Case("average, opset 7", "AveragePool <kernel_shape = [2]>", [2, 3, 6], [2, 3, 5], opset=7),
    Case("average of distinct sizes", f"{AVG2}>", [2, 3, 4, 5], [2, 3, 2, 3]),
    Case("average of coincident sizes", "AveragePool <kernel_shape = [1, 1]>", [3, 3, 3, 3], [3, 3, 3, 3]),
    Case("average in 3-D", "AveragePool <kernel_shape = [2, 1, 2]>", [1, 2, 3, 4, 5], [1, 2, 2, 4, 4]),
    Case("average, pads not counted", f"{AVG2}, pads = [1, 2, 0, 1]>", [2, 3, 4, 5], [2, 3, 2, 6]),
    Case("average, pads, opset 1", "AveragePool <kernel_shape = [3], pads = [1, 1]>", [2, 3, 6], [2, 3, 6], opset=1),
    Case("average, SAME", f'{AVG2}, auto_pad = "SAME_UPPER">', [2, 3, 5, 5], [2, 3, 3, 5]),
    Case("average, partial windows", f"{AVG2}, ceil_mode = 1>", [2, 3, 5, 5], [2, 3, 3, 3]),
    Case("average, partial, opset 10", f"{AVG2}, ceil_mode = 1>", [2, 3, 5, 5], [2, 3, 3, 3], opset=10),
    Case("average, partial, opset 19", f"{AVG2}, ceil_mode = 1>", [2, 3, 5, 5], [2, 3, 3, 3], opset=19),
    Case("average, dilated", "AveragePool <kernel_shape = [2], dilations = [3]>", [2, 3, 9], [2, 3, 6], opset=19),
    Case("average, symbolic sizes", f"{AVG2}, pads = [1, 1, 1, 1]>", ["N", 3, "H", "W"], ["N", 3, "A", "B"]),
    # counted padding
    Case("counted, without pads", f"{COUNTED}>", [2, 3, 6], [2, 3, 4]),
    Case("counted, VALID", f'{COUNTED}, auto_pad = "VALID">', [2, 3, 6], [2, 3, 4]),
    Case("counted pads", f"{COUNTED}, pads = [1, 0]>", [2, 3, 6], [2, 3, 5], SCALE),
    Case("counted pads, opset 7", f"{COUNTED}, pads = [1, 1]>", [3, 3, 3], [3, 3, 3], SCALE, opset=7),
    Case("counted, SAME", f'{COUNTED}, auto_pad = "SAME_LOWER">', [2, 3, 6], [2, 3, 6], SCALE),
    Case("counted, ceil, no remainder", f"{COUNTED}, strides = [2], ceil_mode = 1>", [2, 3, 7], [2, 3, 3]),
    Case("counted, partial windows", f"{COUNTED}, strides = [2], ceil_mode = 1>", [2, 3, 6], [2, 3, 3], SCALE),
    Case("counted, ceil, symbolic", f"{COUNTED}, strides = [2], ceil_mode = 1>", [2, 3, "L"], [2, 3, "M"], SCALE),
    # windows wholly in padding average nothing
    Case(
        "average, a window of padding alone",
        "AveragePool <kernel_shape = [1], strides = [1], pads = [1, 0]>",
        [2, 3, "L"],
        [2, 3, "M"],
        SCALE,
    ),
    # maxima
    Case("maximum, opset 1", f"{MAX3}>", [2, 3, 7], [2, 3, 3], POSITIVE, opset=1),
    Case("maximum, padded", f"{MAX3}, pads = [1, 1]>", [2, 3, 7], [2, 3, 4], POSITIVE, opset=8),
    Case("maximum, partial windows", f"{MAX3}, ceil_mode = 1>", [2, 3, 8], [2, 3, 4], POSITIVE, opset=10),
    Case("maximum, symbolic, ceil", f"{MAX3}, ceil_mode = 1>", ["N", 3, "L"], ["N", 3, "M"], POSITIVE),
    Case("maximum, SAME", f'{MAX3}, auto_pad = "SAME_UPPER">', [2, 3, 7], [2, 3, 4], POSITIVE),
    Case("maximum, dilated", "MaxPool <kernel_shape = [2], dilations = [3]>", [2, 3, 9], [2, 3, 6], POSITIVE),
    Case(
        "maximum, dilated and padded",
        "MaxPool <kernel_shape = [2], dilations = [2], pads = [1, 1]>",
        [2, 3, 9],
        [2, 3, 9],
        POSITIVE,
    ),
    Case("maximum of coincident sizes", "MaxPool <kernel_shape = [1, 1]>", [3, 3, 3, 3], [3, 3, 3, 3], POSITIVE),
    # norms
    Case("norm", "LpPool <kernel_shape = [2], pads = [1, 1]>", [2, 3, 6], [2, 3, 7], NORM),
    Case("norm, p 3", "LpPool <kernel_shape = [2], p = 3>", [2, 3, 6], [2, 3, 5], NORM, opset=22),
    # global
    Case("global average", "GlobalAveragePool", [2, 3, 4, 5], [2, 3, 1, 1]),
    Case("global average, opset 1", "GlobalAveragePool", ["N", 3, "L"], ["N", 3, 1], opset=1),
    Case("global maximum", "GlobalMaxPool", [3, 3, 3, 3], [3, 3, 1, 1], POSITIVE),
    Case("global norm", "GlobalLpPool <p = 1>", [2, 3, 4, 5], [2, 3, 1, 1], NORM),
]


@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_gauge_passes_a_pool(case: Case, side: str) -> None:
    asked = assert_laws_hold(case.model(), "pool", side, (1,), rules=RULES, sizes={"L": 8, "H": 5, "W": 6})

    assert asked.scales == case.x[1]
    assert asked.free("x") and asked.free("y")
    assert (asked.shifts > 0) == (case.passes in (FULL, POSITIVE))
    assert _is_positive(asked.laws) == (case.passes in (POSITIVE, NORM))


def _is_positive(laws: list[object]) -> bool:
    return "Positive" in {type(law).__name__ for law in laws}


@pytest.mark.parametrize("op", ["AveragePool <kernel_shape = [1, 1]>", "GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("axes", [(0,), (2,), (3,), (1, 2)])
@pytest.mark.parametrize("side", ["x", "y"])
def test_only_channels_pass_though_all_sizes_are_equal(op: str, axes: tuple[int, ...], side: str) -> None:
    model = build(f"m (double[3,3,3,3] x) => (double[3,3,h,w] y) {{ [pool] y = {op} (x) }}")

    assert f"axis 1; '{side}' is stored along {axes}" in refusal(model, "pool", side, axes, rules=RULES)


REFUSED = [
    ("pads = [3, 0], kernel_shape = [3]", "windows without an element"),
    ("pads = [0, 3], kernel_shape = [3]", "windows without an element"),
    ("kernel_shape = [2], strides = [3], ceil_mode = 1", "windows without an element"),
    ("kernel_shape = [2], dilations = [9], pads = [8, 8]", "windows without an element"),
    ('kernel_shape = [2], dilations = [2], auto_pad = "SAME_UPPER"', "windows without an element"),
    ("strides = [1]", "do not fit together"),
    ("kernel_shape = [2], strides = [0]", "do not fit together"),
    ("kernel_shape = [2], pads = [1]", "do not fit together"),
    ("kernel_shape = [2, 2]", "2 kernel sizes for 1 spatial axes"),
    ('kernel_shape = [2], auto_pad = "ROUND"', "auto_pad 'ROUND'"),
]


@pytest.mark.parametrize(("attributes", "reason"), REFUSED, ids=[attributes for attributes, _ in REFUSED])
def test_a_max_pool_is_refused_whose_windows_are_not_understood(attributes: str, reason: str) -> None:
    model = build(f"m (double[2,3,6] x) => (double[2,3,l] y) {{ [pool] y = MaxPool <{attributes}> (x) }}")

    found = refusal(model, "pool", "x", (1,), rules=RULES)

    assert reason in found and "MaxPool 'pool'" in found


def test_a_max_pool_is_refused_if_a_window_may_miss_a_symbolic_size() -> None:
    op = "MaxPool <kernel_shape = [2], strides = [3], ceil_mode = 1>"
    model = build(f"m (double[2,3,l] x) => (double[2,3,k] y) {{ [pool] y = {op} (x) }}")

    assert "windows without an element" in refusal(model, "pool", "y", (1,), rules=RULES)


def test_a_max_pool_is_refused_whose_indices_are_read() -> None:
    op = "MaxPool <kernel_shape = [2]>"
    model = build(f"m (double[2,3,6] x) => (double[2,3,5] y, int64[2,3,5] i) {{ [pool] y, i = {op} (x) }}")

    assert "'i', the indices of MaxPool 'pool', is read" in refusal(model, "pool", "x", (1,), rules=RULES)


def test_a_max_pool_whose_indices_nobody_reads_passes_a_gauge() -> None:
    model = build("m (double[2,3,6] x) => (double[2,3,5] y) { [pool] y, i = MaxPool <kernel_shape = [2]> (x) }")

    assert assert_laws_hold(model, "pool", "x", (1,), rules=RULES).scales == 3


def test_a_norm_of_order_zero_is_refused() -> None:
    model = build("m (double[2,3,6] x) => (double[2,3,1] y) { [pool] y = GlobalLpPool <p = 0> (x) }")

    assert "p = 0" in refusal(model, "pool", "x", (1,), rules=RULES)


def test_a_symbolic_number_of_channels_is_refused() -> None:
    model = build("m (double[2,c,6] x) => (double[2,c,1] y) { [pool] y = GlobalAveragePool (x) }")

    assert "the size of 'x'" in refusal(model, "pool", "x", (1,), rules=RULES)


def test_channels_that_the_file_declares_to_vanish_are_refused() -> None:
    model = build("m (double[2,3,6] x) => (double[2,4,1] y) { [pool] y = GlobalAveragePool (x) }")

    assert "size [4] of [3]" in refusal(model, "pool", "x", (1,), rules=RULES)
