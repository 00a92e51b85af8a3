"""Every row of the pattern matrix (folding.md, sections 1.2 to 1.5): folded exactly, or refused with its reason.

A row's cases are in rows/, one table a section. Each is built with all sizes different and with all sizes equal, under
hostile statistics where these allow the verdict, and judged by judge.py: the same function to 1e-9 of each channel's
size times its condition, the source untouched, a second pass the identity, byte-identical where nothing folds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.training.fold.judge import assert_same_function, judge
from tests.training.fold.models import affine_of, constant, op_types
from tests.training.fold.rows import backward, forms, forward, through
from tests.training.fold.rows.case import Case, Statistics, expand, settled, upright
from training.fold import Profile, Verdict, fold, read_model, write_model
from training.fold.weights import round_once

CASES = (*backward.CASES, *forward.CASES, *through.CASES, *forms.CASES)
ROWS = [f"{section}{i}" for section, last in (("B", 12), ("F", 9), ("T", 14), ("C", 20)) for i in range(1, last + 1)]


def test_every_row_has_a_case() -> None:
    assert list(dict.fromkeys(case.code for case in CASES)) == ROWS


@pytest.mark.parametrize(
    ("case", "sizes", "draw"),
    [
        pytest.param(*parts, id=f"{parts[0].code}: {parts[0].name} ({parts[1]}, {parts[2].__name__})")
        for parts in expand(CASES)
    ],
)
def test_row(case: Case, sizes: str, draw: Statistics) -> None:
    judged = judge(case.model(sizes, draw), Profile.GENERIC)

    found = judged.report.summary()
    assert {key: found[key] for key in case.expected} == case.expected, judged.report.as_text(verbose=True)
    reasons = [one.reason for one in judged.report.batchnorms if one.verdict is not Verdict.FOLDED]
    assert [fragment for fragment in case.reasons if not any(fragment in reason for reason in reasons)] == [], reasons
    if case.ops is not None:
        assert op_types(judged.folded) == case.ops.split()


@pytest.mark.parametrize(
    "case", [*forms.C7[:1], *forms.C8[:1], *forms.C9], ids=lambda case: f"{case.code}: {case.name}"
)
@pytest.mark.parametrize("draw", [settled, upright])
def test_a_weight_of_few_bits_is_rounded_once(case: Case, draw: Statistics) -> None:
    """C7 to C9: the number of its type next to the product in float64; no tensor changes its type."""
    model = case.model("distinct", draw)
    weight, bias = (constant(model, name).astype(np.float64) for name in "wk")
    stats = {name: constant(model, name) for name in "gbmv"}
    slope, _ = affine_of(stats)
    moved = slope * (bias - stats["m"].astype(np.float64)) + stats["b"].astype(np.float64)

    folded, _ = fold(model, Profile.GENERIC)

    kept = constant(folded, "w"), constant(folded, "k")
    assert [array.dtype for array in kept] == [case.dtype, case.dtype]
    assert np.array_equal(kept[0], round_once(slope[:, None, None, None] * weight, np.dtype(case.dtype)))
    assert np.array_equal(kept[1], round_once(moved, np.dtype(case.dtype)))


def test_external_data(tmp_path: Path) -> None:
    """C14: weights beside the file are read, folded and written beside the next one."""
    model = forms.C14[0].model("distinct", settled)
    proto = ir.to_proto(model)
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)

    folded, report = fold(tmp_path / "model.onnx", Profile.GENERIC)
    write_model(folded, tmp_path / "folded.onnx")

    assert report.summary()["folded"] == 1
    assert_same_function(model, read_model(tmp_path / "folded.onnx"), seed=0)
