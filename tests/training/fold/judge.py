"""Is a folded graph the same function? And the laws that every fold obeys. For the property tests and the fuzzer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tests.training.fold.models import serialized
from tests.training.fold.oracle import feeds_for
from training.algebra import Algebra
from training.fold import FoldReport, Profile, fold


@dataclass(frozen=True)
class Judged:
    folded: ir.Model
    report: FoldReport


def batchnorms(model: ir.Model) -> int:
    return sum(node.op_type == "BatchNormalization" and not node.domain for node in model.graph.all_nodes())


def interface(model: ir.Model) -> list[tuple[str, str, str]]:
    return [(v.name or "", str(v.type), str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]


def judge(model: ir.Model, profile: Profile, seed: int = 0, widen: bool = False) -> Judged:
    """Fold and raise AssertionError unless: the model is untouched, the function, the inputs and the outputs are the
    same, every BatchNormalization is told of, a graph in which nothing folds is byte-identical, and folding the result
    again, with or without `widen` where it was given, changes nothing."""
    before = serialized(model)
    folded, report = fold(model, profile, widen)
    assert serialized(model) == before, "the source was changed"
    assert interface(model) == interface(folded), "inputs or outputs changed"
    if not model.functions:  # there a BatchNormalization may be called more than once
        assert report.summary()["found"] == batchnorms(model), "a BatchNormalization is not told of"
    if not report.changed:
        assert serialized(folded) == before, "nothing was folded, but the graph differs"
        return Judged(folded, report)
    assert_same_function(model, folded, seed)
    for wider in {False, widen}:
        again, second = fold(folded, profile, wider)
        assert not second.changed, f"a second pass changed something: {second.as_text()}"
        assert serialized(again) == serialized(folded)
    return Judged(folded, report)


def assert_same_function(model: ir.Model, folded: ir.Model, seed: int) -> None:
    """On noise, zeros and ones, to 1e-9 of each channel's size times its measured condition (training/algebra.py)."""
    algebra = Algebra(model, folded)
    noise = feeds_for(model, np.random.default_rng(seed))
    for feeds in (noise, *({k: np.full_like(v, fill) for k, v in noise.items()} for fill in (0, 1))):
        for finding in algebra.judge(feeds, algebra.expected(feeds)):
            assert finding.holds, f"{finding}"
