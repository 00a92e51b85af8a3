"""Graphs that were written to break folding, and once did."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.training.fold.judge import judge
from tests.training.fold.models import build, mild_statistics, op_types, rng_of
from tests.training.fold.random_graphs import random_model
from training.fold import Profile, fold

INFINITE = np.array([0.0, 0.0, -np.inf])


@pytest.mark.parametrize("profile", [Profile.GENERIC, Profile.ORT_CPU])
@pytest.mark.parametrize("ends", ["y = Add (x, k)", "h = Sigmoid (x) a = Add (h, k) y = Softmax (a)"])
def test_a_mask_of_infinities_is_no_shift(ends, profile):
    model = build(f"m (double[2,3] x) => (double[2,3] y) {{ {ends} }}", k=INFINITE)

    assert op_types(fold(model, profile)[0]) == op_types(model)


def test_a_batchnorm_in_front_of_a_mask_is_folded_all_the_same():
    model = build(
        """m (double[2,3,4] x) => (double[2,3,4] y) {
            h = Conv (x, w) n = BatchNormalization (h, g, b, m, v) a = Add (n, k) y = Relu (a) }""",
        w=rng_of(0).normal(size=(3, 3, 1)),
        k=INFINITE.reshape(3, 1),
        **mild_statistics(rng_of(0), 3),
    )

    assert op_types(fold(model)[0]) == ["Conv", "Add", "Relu"]


def test_large_shifts_that_cancel_do_not_swallow_the_small_one_between_them():
    model = build(
        """m (double[2,3] x) => (double[2,3] y) {
            r = Sigmoid (x) a = Add (r, p) c = Add (a, n) d = Add (c, s) y = Cos (d) }""",
        p=np.full(3, 65536.0),
        n=np.full(3, -65536.0),
        s=np.full(3, 5e-5),
    )

    folded, _ = fold(model, Profile.GENERIC)

    (left,) = [node for node in folded.graph if node.op_type == "Add"]
    np.testing.assert_allclose(left.inputs[1].const_value.numpy(), 5e-5, rtol=1e-6)


def test_a_prelu_whose_slope_is_its_input_is_no_prelu():
    statistics = mild_statistics(rng_of(0), 4)
    model = build(
        """m (double[2,3,7] x) => (double[2,4,7] y) {
            c = Conv (x, w) q = PRelu (c, c) n = BatchNormalization (q, g, b, m, v) y = Sigmoid (n) }""",
        w=rng_of(0).normal(size=(4, 3, 1)),
        **statistics | {"g": np.abs(statistics["g"]), "b": np.zeros(4), "m": np.zeros(4)},
    )

    judged = judge(model, Profile.GENERIC)

    assert judged.report.summary()["folded"] == 0


def test_maps_along_other_axes_get_their_turn_in_the_same_fold():
    statistics = mild_statistics(rng_of(0), 4) | {"b": np.zeros(4), "m": np.zeros(4)}
    muls = " ".join(f"t{i + 1} = Mul (t{i}, {'ab'[i % 2]})" for i in range(13))
    model = build(
        f"""m (double[2,3,7] x) => (double[2,4,6] t13) {{
            c = Conv (x, w) d = MatMul (c, u) t0 = BatchNormalization (d, g, b0, m, v) {muls} }}""",
        w=rng_of(0).normal(size=(4, 3, 1)),
        u=rng_of(1).normal(size=(7, 6)),
        a=rng_of(2).normal(size=6) + 3,
        b=rng_of(3).normal(size=(4, 1)) + 3,
        **{("b0" if key == "b" else key): part for key, part in statistics.items()},
    )

    assert op_types(judge(model, Profile.GENERIC).folded) == ["Conv", "MatMul"]


@pytest.mark.parametrize("shape", [(2, 0, 5), (2, 3, 0)])
def test_an_axis_of_size_0_is_left_alone(shape):
    channels = shape[1]
    model = build(
        f"""m (double{list(shape)} x) => (double{list(shape)} y) {{
            c = Relu (x) n = BatchNormalization (c, g, b, m, v) y = Relu (n) }}""",
        **mild_statistics(rng_of(0), channels),
    )

    onnx.checker.check_model(ir.to_proto(fold(model, Profile.GENERIC)[0]))


def test_when_many_weights_overflow_those_that_do_not_are_folded():
    """Half precision; every other BatchNormalization has a scale that no half weight can hold."""
    lines, constants, at = [], {}, "x"
    for i in range(20):
        lines.append(f"h{i} = Conv ({at}, w) n{i} = BatchNormalization (h{i}, g{i}, b, m, v) s{i} = Sigmoid (n{i})")
        constants[f"g{i}"] = np.full(2, 6e4 if i % 2 else 1.5, np.float32)
        at = f"s{i}"
    vectors = {key: np.full(2, value, np.float32) for key, value in (("b", 0.0), ("m", 0.0), ("v", 1e-3))}
    model = build(
        f"m (float16[1,2,3] x) => (float16[1,2,3] {at}) {{ {' '.join(lines)} }}",
        w=np.ones((2, 2, 1), np.float16),
        **vectors,
        **constants,
    )

    _, report = fold(model, Profile.GENERIC)

    assert report.summary()["folded"] == 10
    assert all("not finite in float16" in o.reason for o in report.batchnorms if o.reason)


def test_a_long_chain_is_no_matter():
    lines = " ".join(f"b{i} = BatchNormalization (c{i}, g, b, m, v) c{i + 1} = Relu (b{i})" for i in range(600))
    model = build(
        f"m (double[2,3,7] x) => (double[2,4,7] y) {{ c0 = Conv (x, w) {lines} y = Conv (c600, u) }}",
        w=rng_of(0).normal(size=(4, 3, 1)),
        u=rng_of(1).normal(size=(4, 4, 1)),
        **mild_statistics(rng_of(0), 4),
    )

    assert fold(model, Profile.GENERIC)[1].summary()["folded"] == 600


def test_a_batchnorm_that_one_pass_keeps_may_merge_in_the_next():
    """Found by the fuzzer: the report lost track of it."""
    assert judge(random_model(6019160), Profile.GENERIC).report.changed


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_pruned_dense_block_folds_whole(seed, zero):
    """Each map reads all that was made so far, and has lost other channels of it than the maps before."""
    rng = rng_of(seed)
    lines, constants, at, width = [], {}, "x", 3
    for i in range(4):
        stats = mild_statistics(rng, width)
        stats["g"] = np.where(rng.random(width) < 0.4, zero, stats["g"])
        constants |= {f"{key}{i}": part for key, part in stats.items()}
        constants |= {f"u{i}": rng.normal(size=(4, width, 1, 1)), f"w{i}": rng.normal(size=(2, 4, 3, 3))}
        lines.append(
            f"""n{i} = BatchNormalization ({at}, g{i}, b{i}, m{i}, v{i}) r{i} = Relu (n{i}) c{i} = Conv (r{i}, u{i})
                s{i} = Sigmoid (c{i}) d{i} = Conv <pads = [1, 1, 1, 1]> (s{i}, w{i})
                t{i} = Concat <axis = 1> ({at}, d{i})"""
        )
        at, width = f"t{i}", width + 2
    model = build(
        f"m (double[2,3,4,4] x) => (double[2,11,4,4] y) {{ {' '.join(lines)} y = Identity ({at}) }}", **constants
    )

    judged = judge(model, Profile.GENERIC)

    assert judged.report.summary()["folded"] == 4


def test_a_batchnorm_that_begins_at_zero_folds():
    """The last one of a residual block, as training starts it: the block puts out beta alone."""
    stats = mild_statistics(rng_of(0), 3) | {"g": np.zeros(3)}
    model = build(
        """m (double[2,3,4,4] x) => (double[2,3,4,4] y) {
            a = Sigmoid (x) c = Conv (a, w) n = BatchNormalization (c, g, b, m, v) s = Add (x, n) y = Relu (s) }""",
        w=rng_of(0).normal(size=(3, 3, 1, 1)),
        **stats,
    )

    assert op_types(judge(model, Profile.GENERIC).folded) == ["Sigmoid", "Conv", "Add", "Relu"]
