"""A BatchNormalization whose input is always the same: a learned constant, as StyleGAN's, or what is computed from one.

Its numbers change, not the operator that made them: who else reads the constant keeps it as it was.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.fold.judge import judge
from tests.training.fold.models import build
from training.fold import Profile, Verdict

BN = "BatchNormalization ({}, g, b, m, v)"
STATISTICS = {
    "g": np.array([2.0, -1.0, 0.5]),
    "b": np.array([3.0, 1.0, 0.0]),
    "m": np.array([0.5, 0.0, 1.0]),
    "v": np.array([1.0, 2.0, 3.0]),
}
K, W = np.random.default_rng(0).normal(size=(1, 3, 2, 2)), np.random.default_rng(1).normal(size=(3, 3, 1, 1))

# What happens between the constant k (and x) and y; how many BatchNormalizations there are.
BODIES = {
    "into a sum": (f"t = {BN.format('k')} y = Add (x, t)", 1),
    "into what lets nothing pass": (f"t = {BN.format('k')} s = Sigmoid (t) y = Add (x, s)", 1),
    "into a graph output": (f"y = {BN.format('k4')}", 1),
    "of an Expand, before a convolution": (
        f"q = Expand (k, e) t = {BN.format('q')} u = Relu (t) p = Conv (u, w) y = Add (x, p)", 1),
    "of an Expand, before a padded one": (
        f"q = Expand (k, e) t = {BN.format('q')} p = Conv <pads = [1,1,1,1]> (t, w3) y = Add (x, p)", 1),
    "of a constant that others read": (f"t = {BN.format('k')} u = Add (t, k) y = Mul (x, u)", 1),
    "of a computed constant": (f"n = Neg (k) t = {BN.format('n')} z = Conv (x, w) y = Mul (z, t)", 1),
    "of a rectified constant": (f"r = Relu (k) t = {BN.format('r')} y = Add (x, t)", 1),
    "two of one constant": (
        f"t = {BN.format('k')} u = {BN.format('k')} s = Softmax (u) a = Mul (x, t) y = Add (a, s)", 2),
    "one behind the other": (f"t = {BN.format('k')} u = {BN.format('t')} y = Mul (x, u)", 2),
}  # fmt: skip


@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize("case", BODIES)
def test_the_constant_takes_it_all(case: str, profile: Profile):
    body, count = BODIES[case]
    constants = {
        "k": K,
        "k4": np.tile(K, (4, 1, 1, 1)),
        "w": W,
        "w3": np.tile(W, (1, 1, 3, 3)),
        "e": np.array([4, 3, 2, 2]),
    }
    used = {name: array for name, array in constants.items() if f"{name})" in body or f"{name}," in body}
    graph = build(f"m (double[4,3,2,2] x) => (double[4,3,2,2] y) {{ {body} }}", **used, **STATISTICS)

    report = judge(graph, profile).report

    assert report.count(Verdict.FOLDED) == count


def test_a_map_behind_a_sum_with_a_rectified_constant_is_refused_or_exact():
    body = f"r = Relu (k) s = Add (x, r) y = {BN.format('s')}"
    judge(build(f"m (double[4,3,2,2] x) => (double[4,3,2,2] y) {{ {body} }}", k=K, **STATISTICS), Profile.GENERIC)


@pytest.mark.parametrize("axis", [1, 2])
def test_one_part_of_a_constant_may_not_change_the_others(axis: int):
    """What a Split reads is its own, but all of its outputs read it."""
    body = f"a, z = Split <axis = {axis}> (k, n) t = {BN.format('a')} u = Mul (x, t) s = Softmax (z) y = Sub (u, s)"
    parts = np.concatenate([K, 2 * K], axis)
    half = parts.shape[axis] // 2
    graph = build(
        f"m (double[4,3,2,2] x) => (double[4,3,2,2] y) {{ {body} }}", k=parts, n=np.array([half, half]), **STATISTICS
    )

    judge(graph, Profile.GENERIC)


def test_parts_that_would_be_stored_along_different_axes_are_exact_or_refused():
    halves = {f"{name}2": np.resize(array, 2) for name, array in STATISTICS.items()}
    body = f"""a, z = Split <axis = 1> (k, n) t = {BN.format("a")} u = Mul (x, t)
               p = Transpose <perm = [0,2,1,3]> (z) q = BatchNormalization (p, g2, b2, m2, v2)
               r = Transpose <perm = [0,2,1,3]> (q) y = Mul (u, r)"""
    parts = np.random.default_rng(2).normal(size=(4, 6, 2, 2))
    graph = build(
        f"m (double[4,3,2,2] x) => (double[4,3,2,2] y) {{ {body} }}",
        k=parts,
        n=np.array([3, 3]),
        **STATISTICS,
        **halves,
    )

    judge(graph, Profile.GENERIC)
