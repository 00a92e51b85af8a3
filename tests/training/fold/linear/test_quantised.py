"""Weights behind a DequantizeLinear (C13): the output's scale goes into its scales and signs, and is exact there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.linear.judging import (
    Given,
    assert_stored_alike,
    edits_of,
    gauge,
    judge,
    kinds,
    law_of,
    rewritten,
)
from tests.training.fold.models import build, constant, op_types, rng_of
from training.fold.laws import Free, NoScale, NoShift, Positive
from training.fold.refusal import Refusal

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """y = op(x, DequantizeLinear(q, s, z)), with one scale an output channel."""

    id: str
    x: list[int]
    q: tuple[int, ...]
    axis: int
    op: str
    y: list[int]
    after: tuple[str, ...] = ("DequantizeLinear", "Conv")
    constants: dict[str, Array] = field(default_factory=dict)

    def model(self, seed: int = 0, integers: Array | None = None, zero: Array | None = None) -> ir.Model:
        rng = rng_of(seed)
        q = rng.integers(-127, 128, self.q).astype(np.int8) if integers is None else integers
        constants = {"q": q, "s": rng.uniform(0.01, 0.1, self.q[self.axis])} | self.constants
        if zero is not None:
            constants["z"] = zero
        return build(
            f"""m (double{self.x} x) => (double{self.y} y) {{
                [dq] w = DequantizeLinear <axis = {self.axis}> (q, s{", z" if zero is not None else ""})
                {self.op} }}""",
            opset=21,
            **constants,
        )


B = {"b": np.arange(4.0)}
CONV = Case("conv", [2, 3, 8], (4, 3, 3), 0, "[op] y = Conv (x, w, b)", [2, 4, 6], constants=B)
CASES = [
    CONV,
    Case("depthwise", [2, 4, 8], (4, 1, 3), 0, "[op] y = Conv <group = 4> (x, w)", [2, 4, 6]),
    Case(
        "deconv",
        [2, 3, 8],
        (3, 4, 3),
        1,
        "[op] y = ConvTranspose (x, w)",
        [2, 4, 10],
        ("DequantizeLinear", "ConvTranspose"),
    ),
    Case("gemm", [5, 6], (6, 7), 1, "[op] y = Gemm (x, w)", [5, 7], ("DequantizeLinear", "Gemm")),
    Case("gemm transB", [5, 6], (7, 6), 0, "[op] y = Gemm <transB = 1> (x, w)", [5, 7], ("DequantizeLinear", "Gemm")),
    Case("matmul", [5, 6], (6, 7), 1, "[op] y = MatMul (x, w)", [5, 7], ("DequantizeLinear", "Gemm")),
    Case("negative axis", [5, 6], (6, 7), -1, "[op] y = MatMul (x, w)", [5, 7], ("DequantizeLinear", "Gemm")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_rewritten_operator_computes_the_same_under_a_gauge_of_its_output(case: Case):
    for seed in range(3):
        judged = judge(case.model(seed), rng_of(seed + 7), "y")

        assert kinds(judged.y) == [Free]
        assert tuple(op_types(judged.model)) == case.after
        assert constant(judged.model, "q").dtype == np.int8


@pytest.mark.parametrize("case", [case for case in CASES if case.id != "deconv"], ids=lambda case: case.id)
@pytest.mark.parametrize("zero", [None, 5])
def test_the_input_takes_a_shift_into_the_bias_and_no_scale(case: Case, zero: int | None):
    points = None if zero is None else np.full(case.q[case.axis], zero, np.int8)

    judged = judge(case.model(zero=points), rng_of(7), "x")

    (law,) = judged.x
    assert isinstance(law, NoScale)
    assert law.reason.endswith("'op' is quantised: its input cannot be rescaled")
    np.testing.assert_array_equal(constant(judged.model, "q"), constant(case.model(), "q"))


ONE_STEP = {
    "conv": ("[op] y = Conv (x, w, b)", [2, 3, 8], [2, 4, 6], (4, 3, 3), 0),
    "deconv": ("[op] y = ConvTranspose (x, w, b)", [2, 3, 8], [2, 4, 10], (3, 4, 3), 1),
    "gemm": ("[op] y = Gemm (x, w, b)", [5, 6], [5, 4], (6, 4), 1),
    "one output channel": ("[op] y = Gemm (x, w)", [5, 6], [5, 1], (6, 1), 1),
}


@pytest.mark.parametrize(("op", "x", "y", "q", "axis"), ONE_STEP.values(), ids=ONE_STEP)
@pytest.mark.parametrize("zero", [None, np.array(3, np.int8), np.array([3], np.int8)], ids=["", "zero", "[zero]"])
@pytest.mark.parametrize("step", [np.array(0.03), np.array([0.03])], ids=["number", "vector of one"])
def test_one_scale_for_all_becomes_one_for_each_output_channel(
    op: str, x: list[int], y: list[int], q: tuple[int, ...], axis: int, zero: Array | None, step: Array
):
    """And a zero point likewise, which has the shape of the scales."""
    shape = {} if zero is None else {"z": zero.reshape(step.shape)}
    model = build(
        f"m (double{x} x) => (double{y} y) {{ [dq] w = DequantizeLinear (q, s{', z' if shape else ''}) {op} }}",
        opset=13,
        q=rng_of(0).integers(-100, 100, q).astype(np.int8),
        s=step,
        **shape,
        **({"b": np.arange(4.0)} if "b)" in op else {}),
    )

    judged = judge(model, rng_of(1), "y")

    (dq, _) = judged.model.graph
    assert kinds(judged.y) == [Free] and dq.attributes.get_int("axis") == axis
    assert [list(value.shape) for value in dq.inputs[1:]] == [[q[axis]]] * len(dq.inputs[1:])  # type: ignore[union-attr, arg-type]


def test_before_opset_13_there_is_one_scale_for_all_and_the_bias_takes_a_shift():
    model = build(
        "m (double[2,3,8] x) => (double[2,4,6] y) { [dq] w = DequantizeLinear (q, s) [op] y = Conv (x, w) }",
        opset=12,
        q=rng_of(0).integers(-100, 100, (4, 3, 3)).astype(np.int8),
        s=np.array(0.03),
    )

    judged = judge(model, rng_of(1))

    assert kinds(judged.x) == kinds(judged.y) == [NoScale]
    refusal = edits_of(model, Given(y=gauge((1,), np.full(4, 2.0))))
    assert isinstance(refusal, Refusal) and "is quantised with one scale" in refusal.reason


def test_only_scales_change_where_no_sign_does():
    model = CONV.model()

    after = rewritten(model, Given(y=gauge((1,), np.array([1.0, 2.0, 3.0, 4.0]))))

    np.testing.assert_array_equal(constant(after, "q"), constant(model, "q"))
    np.testing.assert_array_equal(constant(after, "s"), constant(model, "s") * [1, 2, 3, 4])


def test_a_shift_alone_leaves_the_weight():
    model = CONV.model()

    after = rewritten(model, Given(y=gauge((1,), np.ones(4), 5.0)))

    for name in "qs":
        np.testing.assert_array_equal(constant(after, name), constant(model, name))
    np.testing.assert_array_equal(constant(after, "b"), constant(model, "b") + 5)


@pytest.mark.parametrize(
    ("dtype", "zero", "values", "negative"),
    [
        (np.int8, None, [-127, 127], True),
        (np.int8, None, [-128, 127], False),
        (np.int8, 0, [-127, 127], True),
        (np.int8, 1, [-125, 127], True),
        (np.int8, 1, [-126, 3], False),
        (np.uint8, 128, [1, 255], True),
        (np.uint8, 128, [0, 255], False),
        (np.uint8, None, [1, 2], False),
        (np.uint8, None, [0, 0], True),
        (ml_dtypes.int4, None, [-7, 7], True),
        (ml_dtypes.int4, None, [-8, 7], False),
    ],
)
def test_signs_change_where_every_integer_has_a_negative(
    dtype: Any, zero: int | None, values: list[int], negative: bool
):
    """About its zero point: `2 z - q`."""
    integers = rng_of(0).choice(values, (4, 3, 3))
    integers.flat[:2] = values
    points = None if zero is None else np.full(4, zero).astype(dtype)
    model = CONV.model(0, integers.astype(dtype), points)

    judged = judge(model, rng_of(1), "y")

    assert kinds(judged.y) == [Free] if negative else [Free, Positive]
    flipped = edits_of(model, Given(y=gauge((1,), np.array([1.0, -1.0, -1.0, -1.0]))))
    if negative:
        assert not isinstance(flipped, Refusal)
    elif values[0] in integers[1:]:
        assert isinstance(flipped, Refusal)
        assert flipped.reason == f"'w', a weight of Conv 'op', has no negative in {np.dtype(dtype)}"


def test_a_dead_channel_has_the_zero_point_for_weights():
    model = CONV.model(0, rng_of(0).integers(0, 255, (4, 3, 3)).astype(np.uint8), np.full(4, 7, np.uint8))
    dead = gauge((1,), np.array([0.0, 1.0, 2.0, 0.0]), np.array([3.0, 0.0, 0.0, 0.0]))

    after = rewritten(model, Given(y=dead))

    assert (constant(after, "q")[[0, 3]] == 7).all()
    assert_stored_alike(model, after, {"y": dead}, rng_of(0))


def test_a_quantised_bias_becomes_a_float_one():
    model = build(
        """m (double[2,3,8] x) => (double[2,4,6] y) {
            [dq] w = DequantizeLinear <axis = 0> (q, s) [dqb] b = DequantizeLinear <axis = 0> (qb, sb)
            [op] y = Conv (x, w, b) }""",
        q=rng_of(0).integers(-127, 128, (4, 3, 3)).astype(np.int8),
        s=np.array([0.1, 0.2, 0.3, 0.4]),
        qb=np.array([1000, -2000, 3000, 4000], np.int32),
        sb=np.array([0.001, 0.002, 0.003, 0.004]),
    )

    judged = judge(model, rng_of(0), "y")

    assert op_types(judged.model) == ["DequantizeLinear", "Conv"]
    assert set(judged.model.graph.initializers) == {"q", "s", "b"}


def test_scales_are_rounded_once_and_refused_where_they_leave_their_type():
    constants = {
        "q": rng_of(0).integers(-127, 128, (4, 3, 3)).astype(np.int8),
        "s": np.array([0.1, 0.2, 0.3, 0.4], np.float16),
    }
    model = build(
        """m (float16[2,3,8] x) => (float16[2,4,6] y) {
            [dq] w = DequantizeLinear <axis = 0> (q, s) [op] y = Conv (x, w) }""",
        opset=21,
        **constants,
    )
    scale = np.array([1 / 3, 1.7, 0.77, 3.14])

    after = rewritten(model, Given(y=gauge((1,), scale)))

    exact = constants["s"].astype(np.float64) * scale
    np.testing.assert_array_equal(constant(after, "s"), exact.astype(np.float16))
    for factor in (1e6, 1e-6):
        refusal = edits_of(model, Given(y=gauge((1,), scale * factor)))
        assert isinstance(refusal, Refusal)
        assert refusal.reason == "folded scale of DequantizeLinear 'dq', a weight of Conv 'op', leaves float16"


DQ = "[dq] w = DequantizeLinear <axis = 0> (q, s)"
ONE_EACH = "is quantised with scales {} along axis 1, expected one for each output channel"
REFUSED = {
    "scales along the input channels": (
        "[dq] w = DequantizeLinear <axis = 1> (q, s3) [op] y = Conv (x, w)",
        f"weight 'w' of Conv 'op' {ONE_EACH.format([3])}",
    ),
    "two readers": (
        f"{DQ} [op] y = Conv (x, w) z = Relu (w)",
        "quantised weight 'w' of Conv 'op' has 2 readers",
    ),
    "a Transpose in between": (
        "[dq] t = DequantizeLinear <axis = 2> (qt, s) [t] w = Transpose <perm = [2, 1, 0]> (t) [op] y = Conv (x, w)",
        "weight 'w' of Conv 'op' is quantised, with other operators between DequantizeLinear 'dq' and itself",
    ),
    "computed scales": (
        "r = Relu (z) [dq] w = DequantizeLinear <axis = 0> (q, r) [op] y = Conv (x, w)",
        "weight 'w' of Conv 'op' is quantised, and not constant",
    ),
    "blocks": (
        "[dq] w = DequantizeLinear <axis = 1, block_size = 3> (q, blocks) [op] y = Conv (x, w)",
        "weight 'w' of Conv 'op' is quantised as int8 with float64 scales of rank 3",
    ),
    "grouped deconvolution": (
        "[dq] w = DequantizeLinear <axis = 1> (qd, s2) [op] y = ConvTranspose <group = 3> (x, w)",
        f"weight 'w' of ConvTranspose 'op' {ONE_EACH.format([2])}",
    ),
}


@pytest.mark.parametrize(("nodes", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_rescaled_says_why(nodes: str, reason: str):
    channels, length = (6, 10) if "ConvTranspose" in nodes else (4, 6)
    output = ", double[4,3,3] other" if "z = Relu" in nodes else ""
    nodes = nodes.replace("z = Relu (w)", "other = Relu (w)")
    model = build(
        f"m (double[2,3,8] x, double[4] z) => (double[2,{channels},{length}] y{output}) {{ {nodes} }}",
        opset=21,
        q=np.ones((4, 3, 3), np.int8),
        qt=np.ones((3, 3, 4), np.int8),
        qd=np.ones((3, 2, 3), np.int8),
        s=np.ones(4),
        s2=np.ones(2),
        s3=np.ones(3),
        blocks=np.ones((4, 1, 3)),
    )

    answer = law_of(model, "y", (1,))

    assert reason == (answer if isinstance(answer, str) else answer[0].reason)  # type: ignore[union-attr]
    assert isinstance(answer, str) or kinds(answer) == [NoScale]  # the bias holds a shift


def test_beside_an_add_a_quantised_matmul_keeps_its_shift_like_any_other():
    case = Case("", [5, 6], (6, 7), 1, "[op] p = MatMul (x, w) y = Add (p, b)", [5, 7], constants={"b": np.ones(7)})

    assert kinds(law_of(case.model(), "p", (1,))) == [NoShift]
    assert kinds(law_of(case.model(), "x", (1,))) == [NoScale]


def test_a_gauge_of_its_input_that_the_law_forbids_is_refused_by_the_rewrite_too():
    refusal = edits_of(CONV.model(), Given(x=gauge((1,), np.full(3, 2.0), 1.0)))

    assert isinstance(refusal, Refusal)
    assert refusal.reason == "weight 'w' of Conv 'op' is quantised: its input cannot be rescaled"
