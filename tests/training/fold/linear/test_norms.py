"""Layer-, Instance- and GroupNormalization under gauges: any behind them, next to none in front."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.judge import judge as judge_fold
from tests.training.fold.linear.judging import Given, gauge, judge, kinds, law_of, rewritten
from tests.training.fold.models import build, constant, mild_statistics, op_types, rng_of
from training.fold import Profile
from training.fold.laws import Free, NoScale

Axes = tuple[int, ...]
Array = np.ndarray[Any, Any]


def norm(x: list[int], call: str, shape: Axes, opset: int = 21, seed: int = 0, **more: Array) -> ir.Model:
    rng = rng_of(seed)
    text = f"m (double{x} x) => (double{x} y) {{ [op] y = {call} }}"
    return build(text, opset, w=rng.normal(size=shape), k=rng.normal(size=shape), **more)


LAYER, INSTANCE = "LayerNormalization (x, w, k)", "InstanceNormalization (x, w, k)"
GROUPS = "GroupNormalization <num_groups = 2> (x, w, k)"
# x, call, shape of scale and B, the axes of the output along which a gauge goes into them
NORMS = {
    "last axis": ([2, 3, 6], LAYER, (6,), (2,)),
    "last axis, all 4": ([4, 4, 4], LAYER, (4,), (2,)),
    "without B": ([2, 3, 6], "LayerNormalization (x, w)", (6,), (2,)),
    "two axes, along both": ([2, 3, 6], "LayerNormalization <axis = 1> (x, w, k)", (3, 6), (1, 2)),
    "two axes, along the first": ([2, 3, 6], "LayerNormalization <axis = -2> (x, w, k)", (3, 6), (1,)),
    "two axes, along the last": ([4, 4, 4], "LayerNormalization <axis = 1> (x, w)", (4, 4), (2,)),
    "channels": ([2, 4, 3, 5], INSTANCE, (4,), (1,)),
    "channels, all 4": ([4, 4, 4, 4], INSTANCE, (4,), (1,)),
    "groups": ([2, 4, 3, 5], GROUPS, (4,), (1,)),
    "groups, all 4": ([4, 4, 4, 4], GROUPS, (4,), (1,)),
}


@pytest.mark.parametrize(("x", "call", "shape", "axes"), NORMS.values(), ids=NORMS)
def test_scale_and_b_take_any_gauge_of_the_output(x: list[int], call: str, shape: Axes, axes: Axes):
    for seed in range(2):
        judged = judge(norm(x, call, shape, seed=seed), rng_of(seed), "y", y=axes)

        assert kinds(judged.y) == [Free]


@pytest.mark.parametrize("x", [[2, 4, 3, 5], [4, 4, 4, 4]])
def test_an_instance_normalization_is_blind_to_a_shift_of_its_input(x: list[int]):
    model = norm(x, INSTANCE, (4,))
    judged = judge(model, rng_of(1), x=(1,))

    assert kinds(judged.x) == [NoScale]
    shifted = rewritten(model, Given(x=gauge((1,), np.ones(4), np.arange(4.0))))
    assert all(np.array_equal(constant(shifted, name), constant(model, name)) for name in "wk")


DIVIDES = "Normalization 'op' divides 'x' by its own deviation"
REFUSED = {
    "in front of a LayerNormalization": ([2, 3, 6], LAYER, (6,), "x", (2,), f"Layer{DIVIDES}"),
    "in front of groups": ([2, 4, 3], GROUPS, (4,), "x", (1,), f"Group{DIVIDES}"),
    "another axis": ([4, 4, 4], LAYER, (4,), "y", (1,), "acts on axis 2"),
    "one number a group": ([2, 4, 3], GROUPS, (2,), "y", (1,), "has 2 channels, 'y' 4"),
    "a scale that is spread": ([2, 3, 6], LAYER, (1,), "y", (2,), "has 1 channels, 'y' 6"),
    "a scale of fewer axes": ([2, 3, 6], "LayerNormalization <axis = 1> (x, w, k)", (6,), "y", (2,),
                              "scale 'w' of LayerNormalization 'op' has shape [6], expected 2 axes"),
    "a scale that is computed": ([6], "LayerNormalization (x, x, k)", (6,), "y", (0,), "is not constant"),
}  # fmt: skip


@pytest.mark.parametrize(("x", "call", "shape", "end", "axes", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_says_why(x: list[int], call: str, shape: Axes, end: str, axes: Axes, reason: str):
    assert reason in str(law_of(norm(x, call, shape), end, axes))


BN = "BatchNormalization (q, g, b, m, v)"
FOLDS = {
    "behind a LayerNormalization": (f"p = LayerNormalization (x, w, k) q = Transpose <perm = [0, 2, 1]> (p) y = {BN}",
                                    1, "LayerNormalization Transpose"),
    "behind an InstanceNormalization": (f"q = InstanceNormalization (x, w, k) y = {BN}", 1, "InstanceNormalization"),
    "behind groups": (f"q = GroupNormalization <num_groups = 2> (x, w, k) y = {BN}", 1, "GroupNormalization"),
    "in front of an InstanceNormalization": (f"q = Tanh (x) h = {BN} y = InstanceNormalization (h, w, k)", 0,
                                             "Tanh Mul InstanceNormalization"),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "folded", "ops"), FOLDS.values(), ids=FOLDS)
@pytest.mark.parametrize("coincident", [False, True])
def test_a_batchnorm_next_to_a_norm(nodes: str, folded: int, ops: str, coincident: bool):
    rng = rng_of(3)
    x = [4, 4, 4] if coincident else [3, 5, 4] if "Transpose" in nodes else [3, 4, 5]
    constants = mild_statistics(rng, 4) | {"w": rng.normal(size=4), "k": rng.normal(size=4)}
    model = build(f"m (double{x} x) => (double[A,B,C] y) {{ {nodes} }}", 21, **constants)
    model.graph.outputs[0].shape = None

    judged = judge_fold(model, Profile.GENERIC)

    found = judged.report.summary()
    assert (found["folded"], found["reduced"]) == (folded, 1 - folded), judged.report.as_text(verbose=True)
    assert op_types(judged.folded) == ops.split()
