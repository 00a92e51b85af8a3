"""The promises of `fold` as a whole: the input stays, twice is once, the user's own things stay."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import training.fold
from tests.training.fold.models import (
    acceptance_model,
    build,
    mild_statistics,
    op_types,
    rng_of,
    serialized,
    statistics,
)
from training.fold import FoldError, fold, write_model


def small(**more) -> ir.Model:
    return build(
        """m (double[2,3,8] x) => (double[2,4,6] y) {
            [conv] h = Conv (x, w) [bn] y = BatchNormalization (h, g, b, m, v) }""",
        w=rng_of(0).normal(size=(4, 3, 3)),
        **statistics(rng_of(0), 4),
        **more,
    )


def test_the_input_model_is_not_mutated():
    model = acceptance_model()
    before = serialized(model)

    folded, _ = fold(model)
    for value in folded.graph.initializers.values():
        value.const_value.name = "renamed"

    assert serialized(model) == before


def test_folding_twice_changes_nothing_more():
    once, first = fold(acceptance_model())
    twice, second = fold(once)

    assert first.changed and not second.changed
    assert serialized(twice) == serialized(once)
    assert second.summary()["found"] == second.summary()["kept"] == 1


def test_the_same_model_folds_to_the_same_bytes():
    assert serialized(fold(acceptance_model())[0]) == serialized(fold(acceptance_model())[0])


def test_a_model_without_batchnorm_comes_back_byte_for_byte():
    model = build("m (float[2] x) => (float[2] y) { [n] y = Relu (x) }", unused=np.ones(3, np.float32))
    model.metadata_props["mine"] = "kept"

    folded, report = fold(model)

    assert serialized(folded) == serialized(model)
    assert folded is not model and not report.changed and report.summary()["found"] == 0


def test_a_model_in_which_nothing_folds_comes_back_byte_for_byte():
    model = build(
        "m (double[2,4] x) => (double[2,4] y) { y = BatchNormalization (x, g, b, m, v) }", **statistics(rng_of(0), 4)
    )

    folded, report = fold(model)

    assert serialized(folded) == serialized(model)
    assert report.summary()["kept"] == 1


def test_a_path_folds_like_the_model_in_it(tmp_path: Path):
    write_model(acceptance_model(), tmp_path / "m.onnx")

    for path in (tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        folded, report = fold(path)
        assert report.summary()["folded"] == 3
        assert op_types(folded) == op_types(fold(acceptance_model())[0])


def test_a_model_that_onnx_loaded_folds_like_the_model_in_it(tmp_path: Path):
    write_model(acceptance_model(), tmp_path / "m.onnx")

    folded, report = fold(onnx.load(tmp_path / "m.onnx"))

    assert report.summary()["folded"] == 3
    assert op_types(folded) == op_types(fold(acceptance_model())[0])


@pytest.mark.parametrize("thing", [None, b"bytes of a model", onnx.GraphProto()])
def test_what_is_no_model_is_named(thing: object):
    with pytest.raises(TypeError, match=f"path of a file, found {type(thing).__name__}"):
        fold(thing)  # type: ignore[arg-type]


def test_a_model_that_contradicts_itself_is_one_line():
    proto = onnx.ModelProto()
    proto.opset_import.add(version=18)
    proto.graph.node.add(op_type="Relu", input=["x"], output=["y"])
    proto.graph.node.add(op_type="Relu", input=["x"], output=["y"])

    with pytest.raises(FoldError, match="cannot be read"):
        fold(proto)


def test_the_users_own_things_stay():
    model = build(
        """m (double[2,3,8] x) => (double[2,4,6] y) {
            [conv] h = Conv (x, w)
            p = own.Other (x)
            [bn] y = BatchNormalization (h, g, b, m, v) }""",
        w=rng_of(0).normal(size=(4, 3, 3)),
        **statistics(rng_of(0), 4),
    )
    model.metadata_props["author"] = "somebody"
    model.doc_string, model.graph.doc_string = "the model", "the graph"
    conv, other = model.graph[0], model.graph[1]
    conv.doc_string, conv.metadata_props["layer"] = "the conv", "1"
    other.metadata_props["mine"] = "yes"

    folded, _ = fold(model)

    assert folded.metadata_props["author"] == "somebody"
    assert (folded.doc_string, folded.graph.doc_string) == ("the model", "the graph")
    assert [(n.op_type, n.domain) for n in folded.graph] == [("Conv", ""), ("Other", "own")]
    assert (folded.graph[0].doc_string, dict(folded.graph[0].metadata_props)) == ("the conv", {"layer": "1"})
    assert dict(folded.graph[1].metadata_props) == {"mine": "yes"}


def test_a_folded_model_explains_itself():
    folded, report = fold(small())

    assert json.loads(folded.metadata_props["foldserve.fold"]) == report.summary()
    assert folded.metadata_props["foldserve.version"]
    assert "foldserve.source_sha256" not in folded.metadata_props  # the model did not come from a file


def test_names_of_the_user_are_never_taken():
    """A bias is needed, and its first names are in use, one of them only inside a subgraph."""
    model = build(
        """m (bool c, double[2,3,8] x) => (double[2,4,6] y, double[2,3,8] z) {
            [conv] h = Conv (x, w) [bn] y = BatchNormalization (h, g, b, m, v)
            z = If (c) <then_branch = then () => (double[2,3,8] w_bias_1) { w_bias_1 = Relu (x) },
                        else_branch = other () => (double[2,3,8] e) { e = Identity (x) }> }""",
        w=rng_of(0).normal(size=(4, 3, 3)),
        w_bias=np.ones(1),
        **statistics(rng_of(0), 4),
    )

    assert sorted(fold(model)[0].graph.initializers) == ["w", "w_bias", "w_bias_2"]


def test_nodes_out_of_order_are_an_error_in_one_line():
    graph = small().graph
    conv, bn = list(graph)
    graph.remove(conv)
    graph.insert_after(bn, conv)

    with pytest.raises(FoldError, match=r"expected a graph in topological order$"):
        fold(ir.Model(graph, ir_version=8))


def test_a_model_without_opset_is_an_error():
    model = small()
    model.opset_imports.clear()

    with pytest.raises(FoldError, match=r"does not say which version of ONNX's operators it uses"):
        fold(model)


def test_folding_says_nothing_on_the_side(capfd, caplog):
    with caplog.at_level(logging.DEBUG, logger="onnx_ir"):
        fold(acceptance_model())
        fold(small())

    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_odd_operator_stops_shape_inference_but_not_folding():
    """The MatMul asks for a rank, which needs inference, which meets an operator that ONNX does not know."""
    model = build(
        """m (double[5,6] x) => (double[5,7] y) {
            q = own.Thing (x) r = Relu (x) h = MatMul (r, w) y = BatchNormalization (h, g, b, m, v) }""",
        w=np.ones((6, 7)),
        **mild_statistics(rng_of(0), 7),
    )

    assert fold(model)[1].summary()["folded"] == 1


def test_the_public_names_are_these():
    assert sorted(training.fold.__all__) == [
        "BatchNormOutcome", "FoldError", "FoldReport", "ModelFileError", "Profile", "Verdict", "fold", "read_model",
        "write_model",
    ]  # fmt: skip
