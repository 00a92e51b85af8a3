"""Merging as the tests ask for it: done in place, and judged against the graph as it was."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from tests.training.fold.models import Array, mild_statistics, reload, serialized
from tests.training.fold.oracle import feeds_for
from training.fold.branches import Merged, merge_branches
from training.fold.constants import Constants
from training.fold.graph import label
from training.fold.known import Known
from training.fold.shapes import Shapes
from training.reference import evaluate

_MAKES_CONSTANTS = ("CastLike", "Constant", "Expand", "Shape")
_WITHOUT_CANCELLATION = {"Sub": "Add", "Neg": "Identity"}


def facts(model: ir.Model) -> Known:
    shapes = Shapes(model)
    return Known(shapes, Constants(shapes), model.opset_imports[""], lambda _: None, lambda _: None)


def merge(model: ir.Model) -> tuple[Merged, ...]:
    """Merge `model` in place and demand of the result what holds for every graph.

    (1) It computes the same, within 1e-11 of what was summed up. (2) ONNX's checker finds every tensor as declared.
    (3) Inputs and outputs are what they were. (4) A second run finds nothing and changes no byte. (5) If nothing was
    merged, no byte changed. (6) What the records say is gone is gone, and what they name is there.
    """
    original, before = reload(model), serialized(model)
    merged = merge_branches(model, facts(model))
    after = serialized(model)
    if not merged:
        assert after == before
        return ()
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert [str(v) for v in (*model.graph.inputs, *model.graph.outputs)] == [
        str(v) for v in (*original.graph.inputs, *original.graph.outputs)
    ]
    assert merge_branches(model, facts(model)) == ()
    assert serialized(model) == after
    assert_same(original, reload(model))
    assert_records(original, model, merged)
    return merged


def assert_same(original: ir.Model, now: ir.Model) -> None:
    rng = np.random.default_rng(0)
    noise = feeds_for(original, rng)
    for feeds in (noise, {name: np.ones_like(array) for name, array in noise.items()}):
        expected, found = evaluate(original, feeds), evaluate(now, feeds)
        sizes = evaluate(_summed(original), {name: np.abs(array) for name, array in feeds.items()})
        for name, a in expected.items():
            assert a.shape == found[name].shape
            assert np.isfinite(a).all()
            np.testing.assert_array_less(np.abs(a - found[name]), 1e-11 * sizes[name] + 1e-300)


def _summed(model: ir.Model) -> ir.Model:
    """A copy in which nothing cancels: numbers by their absolute value, means by its negative, no Sub, no Neg."""
    copy = reload(model)
    means, variances = set(), set()
    for node in copy.graph.all_nodes():
        if node.op_type == "Constant":
            node.attributes.add(ir.AttrTensor("value", ir.tensor(np.abs(node.attributes["value"].as_tensor().numpy()))))
        node.op_type = _WITHOUT_CANCELLATION.get(node.op_type, node.op_type)
        if node.op_type == "BatchNormalization":
            means.add(node.inputs[3])
            variances.add(node.inputs[4])
    for graph in copy.graphs():
        for value in graph.initializers.values():
            assert value.const_value is not None
            if value not in variances and value.dtype == ir.DataType.DOUBLE:
                numbers = np.abs(value.const_value.numpy())
                value.const_value = ir.tensor(-numbers if value in means else numbers, name=value.name)
    return copy


def assert_records(original: ir.Model, now: ir.Model, merged: tuple[Merged, ...]) -> None:
    was = {label(node): node.op_type for node in original.graph.all_nodes()}
    names = {label(node): node.op_type for node in now.graph.all_nodes()}
    assert len(names) == sum(1 for _ in now.graph.all_nodes())
    for record in merged:
        assert names[record.node] in ("Conv", "Gemm", "MatMul")
        assert not names.keys() & (set(record.replaced + record.batchnorms) - {record.node})
        assert all(was[name] == "BatchNormalization" for name in record.batchnorms)
        assert "BatchNormalization" not in {was[name] for name in record.replaced}
    told = {name for record in merged for name in (*record.replaced, *record.batchnorms)}
    assert {name for name, op_type in was.items() if name not in names and op_type not in _MAKES_CONSTANTS} <= told


def batchnorm(rng: np.random.Generator, name: str, channels: int) -> dict[str, Array]:
    """The constants of `BatchNormalization (x, {name}_g, {name}_b, {name}_m, {name}_v)`."""
    return {f"{name}_{key}": part for key, part in mild_statistics(rng, channels).items()}
