"""`foldtrain fold` as a function: a verified file and its report, or an error in one line and nothing written."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import training.command_files
import training.fold_file
from tests.training.graphs import Statistics, batch_norm, model, random
from training.command_files import CannotUseFile
from training.errors import UserError
from training.fold import FoldError, fold
from training.fold_file import fold_file
from training.reference import UnsupportedOperator
from training.samples import CannotMakeSamples
from training.verify import VerificationFailed, make_samples, verify

node = helper.make_node


def conv_bn(height: Any = 6, statistics: Statistics | None = None, dtype: Any = np.float32) -> ir.Model:
    s = statistics or Statistics.plausible(4)
    return model(
        [node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"), batch_norm("c", "y")],
        inputs={"x": [2, 3, height, 5]},
        outputs={"y": [2, 4, height, 5]},
        weights={"w": random(1, 4, 3, 3, 3), **s.weights()},
        dtype=dtype,
    )


def saved(graph: ir.Model, path: Path) -> Path:
    ir.save(graph, path)
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folded_verified_file_and_its_report_are_written(tmp_path: Path) -> None:
    source, target, report = saved(conv_bn(), tmp_path / "in.onnx"), tmp_path / "out.onnx", tmp_path / "report.json"
    result = fold_file(source, target, reports=[report])
    folded = onnx.load(target)
    onnx.checker.check_model(folded)
    assert [n.op_type for n in folded.graph.node] == ["Conv"]
    told = json.loads(report.read_text(encoding="utf-8"))
    assert told == result.as_dict()
    assert told["batchnorms"] == [{"name": "bn_y", "verdict": "folded", "into": ["conv"], "reason": ""}]
    assert told["summary"]["folded"] == 1
    assert told["verify"]["passed"] is True
    assert told["verify"]["algebra_error"] <= 1e-9
    assert told["verify"]["seconds"] > 0
    assert told["verify"]["peak_bytes"] > 1 << 20
    text = result.as_text()
    assert "1 folded" in text
    assert "  proved in " in text
    assert "verified: " in text
    assert text.endswith(f"wrote {target}")
    assert names(tmp_path) == {"in.onnx", "out.onnx", "report.json"}


def test_reports_come_as_data_and_as_a_page_at_once(tmp_path: Path) -> None:
    source, reports = saved(conv_bn(), tmp_path / "in.onnx"), [tmp_path / "r.json", tmp_path / "r.html"]
    fold_file(source, tmp_path / "out.onnx", reports=reports)
    assert json.loads(reports[0].read_text(encoding="utf-8"))["summary"]["folded"] == 1
    page = reports[1].read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert "bn_y" in page
    assert names(tmp_path) == {"in.onnx", "out.onnx", "r.json", "r.html"}


def test_without_the_proof_the_report_and_the_text_say_so(tmp_path: Path) -> None:
    source, report = saved(conv_bn("h"), tmp_path / "in.onnx"), tmp_path / "r.json"
    result = fold_file(source, tmp_path / "out.onnx", reports=[report, tmp_path / "r.html"], verified=False)
    assert json.loads(report.read_text(encoding="utf-8"))["verify"] == "skipped"
    assert "not verified: the proof was skipped (--no-verify)" in result.as_text()
    assert [n.op_type for n in onnx.load(tmp_path / "out.onnx").graph.node] == ["Conv"]


def test_widening_is_proved_like_any_other_fold(tmp_path: Path) -> None:
    """And counted, and drawn, with the way out in the report of a fold without it."""
    s = Statistics.plausible(4)
    graph = model(
        [
            node("Conv", ["x", "w"], ["c"], name="stem"),
            node("PRelu", ["c", "slope"], ["p"]),
            batch_norm("p", "b"),
            node("Conv", ["b", "w2"], ["y"], pads=[1, 1, 1, 1], name="body"),
        ],
        inputs={"x": [2, 3, "h", 5]},
        outputs={"y": [2, 2, None, 5]},
        weights={"w": random(1, 4, 3, 1, 1), "slope": random(2, 4, 1, 1), "w2": random(3, 2, 4, 3, 3), **s.weights()},
    )
    source, reports = saved(graph, tmp_path / "in.onnx"), [tmp_path / "r.json", tmp_path / "r.html"]
    shapes = {"x": (2, 3, 6, 5)}
    narrow = fold_file(source, tmp_path / "narrow.onnx", input_shapes=shapes)

    wide = fold_file(source, tmp_path / "wide.onnx", widen=True, reports=reports, input_shapes=shapes)

    assert "way out: --widen folds it" in narrow.as_text()
    assert "1 folded (1 widened)" in wide.as_text()
    assert wide.verify is not None and wide.verify.report.passed
    told = json.loads(reports[0].read_text(encoding="utf-8"))
    assert told["batchnorms"][0]["into"] == ["stem", "body"]
    assert told["summary"]["constant_bytes_after"] > told["summary"]["constant_bytes_before"] - 4 * s.scale.nbytes
    assert "widened" in reports[1].read_text(encoding="utf-8")
    onnx.checker.check_model(onnx.load(tmp_path / "wide.onnx"), full_check=True)


def test_a_profile_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="abacus"):
        fold_file(saved(conv_bn(), tmp_path / "in.onnx"), tmp_path / "out.onnx", profile="abacus")
    assert names(tmp_path) == {"in.onnx"}


def test_in_and_out_may_be_the_same_path(tmp_path: Path) -> None:
    path = saved(conv_bn(), tmp_path / "model.onnx")
    fold_file(path, path)
    assert [n.op_type for n in onnx.load(path).graph.node] == ["Conv"]
    before = path.read_bytes()
    again = fold_file(path, path)  # nothing is left to fold: the file is not touched by the second pass
    assert again.fold.summary()["found"] == 0
    assert path.read_bytes() == before


def test_a_convolution_with_a_bias_of_zeros_that_no_run_time_takes_is_folded_and_proved(tmp_path: Path) -> None:
    """As torch's exporter writes a Conv3d(bias=False)."""
    graph = model(
        [node("Conv", ["x", "w", "zeros"], ["c"], name="conv"), batch_norm("c", "y")],
        inputs={"x": [2, 3, 4, 4, 4]},
        outputs={"y": [2, 4, 2, 2, 2]},
        weights={"w": random(1, 4, 3, 3, 3, 3), "zeros": np.zeros((4, 2)), **Statistics.plausible(4).weights()},
    )
    result = fold_file(saved(graph, tmp_path / "in.onnx"), tmp_path / "out.onnx")
    assert result.fold.changed and result.verify is not None and not result.verify.report.note
    assert [n.op_type for n in onnx.load(tmp_path / "out.onnx").graph.node] == ["Conv"]


def test_a_file_in_which_nothing_folds_comes_out_byte_for_byte(tmp_path: Path) -> None:
    kept = model(
        [node("Relu", ["x"], ["r"]), batch_norm("r", "y")],
        inputs={"x": [2, 3, 4, 4]},
        outputs={"y": [2, 3, 4, 4]},
        weights=Statistics.plausible(3).weights(),
    )
    source, target = saved(kept, tmp_path / "in.onnx"), tmp_path / "out.onnx"
    result = fold_file(source, target, reports=[tmp_path / "r.json"])
    assert target.read_bytes() == source.read_bytes()
    assert result.as_dict()["summary"]["kept"] == 1
    assert result.as_dict()["verify"]["note"] == "nothing was folded; the file is a copy"
    assert "not verified: nothing was folded; the file is a copy" in result.as_text()


def test_weights_in_external_data_are_proved_and_written_into_the_file(tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    ir.save(conv_bn(), source, external_data="in.data", size_threshold_bytes=0)
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "out.onnx"
    assert fold_file(source, target).verify.report.passed
    assert names(tmp_path / "elsewhere") == {"out.onnx"}
    assert verify(ir.load(source), ir.load(target), make_samples(ir.load(source))).passed


def test_symbolic_sizes_come_from_the_option_or_from_real_samples(tmp_path: Path) -> None:
    source, target = saved(conv_bn("h"), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    assert fold_file(source, target, input_shapes={"x": [2, 3, 9, 5]}).verify.report.passed
    np.savez(tmp_path / "real.npz", x=random(3, 8, 3, 7, 5))
    result = fold_file(source, target, samples=tmp_path / "real.npz")
    assert result.verify.report.samples >= 4  # of two rows each


def replaced(*, wrong: Callable[[ir.Model], None]) -> Callable[[ir.Model], Any]:
    """The real fold, and then a mistake."""

    def mistaken(source: ir.Model, **options: Any) -> Any:
        folded, report = fold(source, **options)
        wrong(folded)
        return folded, report

    return mistaken


def _double_a_bias(folded: ir.Model) -> None:
    bias = folded.graph[0].inputs[2]
    assert bias is not None
    assert bias.const_value is not None
    bias.const_value = ir.tensor(bias.const_value.numpy() * 2, name=bias.name)


@pytest.mark.parametrize("present", [True, False], ids=["files exist", "files do not exist"])
def test_a_fold_that_cannot_be_proved_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, present: bool
) -> None:
    source, target, report = saved(conv_bn(), tmp_path / "in.onnx"), tmp_path / "out.onnx", tmp_path / "r.json"
    if present:
        target.write_bytes(b"old model")
        report.write_bytes(b"old report")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(training.fold_file, "fold", replaced(wrong=_double_a_bias))
    with pytest.raises(VerificationFailed, match="the folded graph is not the same function"):
        fold_file(source, target, reports=[report])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("failing", [1, 2], ids=["model", "report"])
def test_a_disk_that_refuses_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Neither file is moved to its place before both are complete."""
    calls = 0

    def refuses(path: Path) -> None:
        nonlocal calls
        calls += 1
        raise OSError(28, "No space left on device", str(path))

    target, report = tmp_path / "out.onnx", tmp_path / "r.json"
    target.write_bytes(b"old model")
    if failing == 1:
        source = saved(conv_bn(), tmp_path / "in.onnx")
        monkeypatch.setattr(training.command_files, "write_model", lambda model, path: refuses(path))
    else:
        source = saved(conv_bn(), tmp_path / "in.onnx")
        monkeypatch.setattr(training.command_files, "sync", refuses)
    with pytest.raises(CannotUseFile, match="cannot be written: No space left on device"):
        fold_file(source, target, reports=[report])
    assert calls == 1
    assert target.read_bytes() == b"old model"
    assert names(tmp_path) == {"in.onnx", "out.onnx"}


def bad_paths(folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
    return {
        "missing folder": ({"target": folder / "no" / "out.onnx"}, "the folder"),
        "target is a folder": ({"target": folder}, "is a folder, expected the name of a file"),
        "report is a folder": ({"reports": [folder]}, "is a folder, expected the name of a file"),
        "report is the model": ({"reports": [folder / "out.onnx"]}, "is the model's own path"),
        "two reports, one path": ({"reports": [folder / "r.json", folder / "r.json"]}, "or another report's"),
        "report is the source": ({"reports": [folder / "in.onnx"]}, "is the model's own path"),
        "samples missing": ({"samples": folder / "none.npz"}, "cannot be read as samples: No such file"),
    }


@pytest.mark.parametrize("case", bad_paths(Path()))
def test_a_bad_path_is_one_line_and_writes_nothing(tmp_path: Path, case: str) -> None:
    source = saved(conv_bn(), tmp_path / "in.onnx")
    arguments, message = bad_paths(tmp_path)[case]
    with pytest.raises(CannotUseFile) as error:
        fold_file(source, **{"target": tmp_path / "out.onnx", **arguments})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, UserError)
    assert names(tmp_path) == {"in.onnx"}


@pytest.mark.parametrize(
    "content", [None, b"", b"not a model", b"\x08\x08"], ids=["missing", "empty", "text", "truncated"]
)
def test_a_source_that_is_no_model_is_one_line_and_writes_nothing(tmp_path: Path, content: bytes | None) -> None:
    source = tmp_path / "in.onnx"
    if content is not None:
        source.write_bytes(content)
    before = names(tmp_path)
    with pytest.raises(FoldError) as error:
        fold_file(source, tmp_path / "out.onnx", reports=[tmp_path / "r.json"])
    assert str(error.value).startswith(str(source))
    assert "\n" not in str(error.value)
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (np.zeros((4, 3, 7, 7)), "input 'x': shape [2, 3, 7, 7] does not fit [2, 3, 6, 5]"),
        (np.full((2, 3, 6, 5), np.nan), "no finite number in output 'y' for these inputs, so that nothing can be"),
    ],
    ids=["for another model", "whose answers compare nothing"],
)
def test_samples_that_cannot_be_used_are_refused_by_their_path(tmp_path: Path, x: Any, told: str) -> None:
    source = saved(conv_bn(), tmp_path / "in.onnx")
    np.savez(tmp_path / "real.npz", x=x)
    with pytest.raises(CannotMakeSamples) as refused:
        fold_file(source, tmp_path / "out.onnx", samples=tmp_path / "real.npz")
    assert str(refused.value).startswith(f"{tmp_path / 'real.npz'}: {told}")
    assert names(tmp_path) == {"in.onnx", "real.npz"}


def test_a_fold_next_to_an_operator_whose_answer_nobody_knows_is_not_written_unproved(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["b"], name="bn"),
            node("Warp", ["b"], ["v"], domain="com.example", name="warp"),
            node("Relu", ["v"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 3, 3])],
        [
            onnx.numpy_helper.from_array(array.astype(np.float32), name)
            for name, array in {"w": random(0, 4, 3, 3, 3), **Statistics.plausible(4).weights()}.items()
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "in.onnx")
    with pytest.raises(UnsupportedOperator, match=r"node 'warp': operator 'Warp' of domain 'com\.example'"):
        fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert names(tmp_path) == {"in.onnx"}


def test_a_large_folded_model_waits_on_disk_during_the_proof_and_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(conv_bn(), tmp_path / "in.onnx")
    usual = fold_file(source, tmp_path / "usual.onnx")
    monkeypatch.setattr("training.fold_file._MOST_IN_MEMORY", 0)
    large = fold_file(source, tmp_path / "large.onnx")
    assert usual.fold.summary() == large.fold.summary()
    assert (tmp_path / "usual.onnx").read_bytes() == (tmp_path / "large.onnx").read_bytes()
    assert names(tmp_path) == {"in.onnx", "usual.onnx", "large.onnx"}


def test_a_file_with_a_shape_that_has_no_type_folds_without_a_word_on_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proto = ir.to_proto(conv_bn())
    info = onnx.ValueInfoProto(name=proto.graph.node[0].output[0])
    for size in (2, 4, 6, 5):
        info.type.tensor_type.shape.dim.add().dim_value = size
    proto.graph.value_info.append(info)
    onnx.save(proto, tmp_path / "in.onnx")
    result = fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert result.fold.summary()["folded"] == 1
    assert not caplog.records


# --- the engine and the proof together --------------------------------------------------------------------------------


@st.composite
def pairs(draw: st.DrawFn) -> ir.Model:
    """A linear operator of some kind and type, then a BatchNormalization, then now and then a ReLU."""
    kind = draw(st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul"]))
    groups, each, seed = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(0, 999))
    channels = groups * each
    statistics = Statistics.plausible(channels, seed)
    dtype = draw(st.sampled_from([np.float32, np.float64, np.float16]))
    weights = dict(statistics.weights())
    if kind in ("Gemm", "MatMul"):
        shapes, trans = {"x": [4, 5]}, draw(st.integers(0, 1)) if kind == "Gemm" else 0
        weights["w"] = random(seed, *((channels, 5) if trans else (5, channels)))
        attributes: dict[str, Any] = {"transB": trans, "alpha": 0.5} if kind == "Gemm" else {}
        out: list[Any] = [4, channels]
    else:
        shapes, out = {"x": [2, channels, 6, 5]}, [2, channels, None, None]
        weights["w"] = random(seed, channels, each, 3, 2)
        attributes = {"group": groups, "strides": [2, 1], "pads": [1, 0, 1, 1]}
    inputs = ["x", "w"]
    if kind != "MatMul" and draw(st.booleans()):
        weights["b"] = random(seed + 1, channels)
        inputs.append("b")
    nodes = [
        node(kind, inputs, ["c"], name="linear", **attributes),
        batch_norm("c", "n" if draw(st.booleans()) else "y"),
    ]
    if nodes[1].output[0] == "n":
        nodes.append(node("Relu", ["n"], ["y"]))
    return model(nodes, inputs=shapes, outputs={"y": out}, weights=weights, dtype=dtype)


@given(pairs())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_the_engine_folds_is_proved(original: ir.Model) -> None:
    folded, report = fold(original)
    assert report.changed
    assert verify(original, folded, make_samples(original)).passed


@given(pairs(), st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_one_folded_weight_off_by_a_ten_thousandth_is_caught(original: ir.Model, data: st.DataObject) -> None:
    """The proof has teeth: any single number of any weight that the engine made."""
    folded, _ = fold(original)
    floats = [
        v for v in folded.graph.initializers.values() if v.const_value and v.const_value.dtype.is_floating_point()
    ]
    chosen = data.draw(st.sampled_from(floats))
    weights = chosen.const_value.numpy().copy()
    index = data.draw(st.integers(0, weights.size - 1))
    before = weights.flat[index]
    # Thirty units of float16; and a number near zero weighs too little there.
    weights.flat[index] = before * (1.03 if weights.dtype == np.float16 else 1.0001)
    assume(abs(before) > (0.25 if weights.dtype == np.float16 else 0.02))
    assume(folded.graph[-1].op_type != "Relu")  # what a ReLU removes need not be right
    chosen.const_value = ir.tensor(weights, name=chosen.name)
    with pytest.raises(VerificationFailed):
        verify(original, folded, make_samples(original))


@pytest.mark.parametrize("seed", range(6))
def test_what_the_engine_folds_of_hostile_statistics_is_the_same_function(seed: int) -> None:
    original = conv_bn(statistics=Statistics.hostile(4, seed))
    folded, _ = fold(original)
    try:
        figures = verify(original, folded, make_samples(original)).as_dict()
    except VerificationFailed as failed:
        assert "loses accuracy" in str(failed)
        figures = failed.report.as_dict()
    assert figures["algebra_error"] <= 1e-9


# --- files in which nothing folds -------------------------------------------------------------------------------------

STRANGE = """<ir_version: 8, opset_import: ["own" : 1, "" : 17], producer_name: "somebody", doc_string: "about it">
    m (float[N,4] x) => (float[N,4] y, float[4] k) {
        [third] c = Sigmoid (x) [first] h = own.f (c, k) [second] y = Tanh (h) }
    <domain: "own", opset_import: ["" : 17]> f (a, b) => (c) { [inside] s = Softmax (a) c = Max (s, b) }"""


def nothing_to_fold() -> onnx.ModelProto:
    """No BatchNormalization, no map that could go anywhere; notes at every level, a function, a weight nobody reads."""
    proto = onnx.parser.parse_model(STRANGE)
    for name, size in (("z_unread", 3), ("k", 4)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(random(1, size).astype(np.float32), name))
    for holder in (proto, proto.graph, proto.graph.node[0], proto.functions[0], proto.graph.initializer[0]):
        holder.metadata_props.add(key="note", value="ünïcode")
    proto.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 4]))
    return proto


def another_order(proto: onnx.ModelProto) -> bytes:
    """The same model as other writers may write it: functions first, the graph in two parts, the version last."""
    head, tail = onnx.ModelProto(), onnx.ModelProto()
    head.functions.extend(proto.functions)
    head.graph.output.extend(proto.graph.output)
    tail.CopyFrom(proto)
    tail.ClearField("functions")
    del tail.graph.output[:]
    tail.ClearField("ir_version")
    return head.SerializeToString() + tail.SerializeToString() + onnx.ModelProto(ir_version=8).SerializeToString()


def with_what_is_not_known_yet(proto: onnx.ModelProto) -> bytes:
    return proto.SerializeToString() + b"\xfa\x3f\x03new"  # field 1023


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(onnx.ModelProto.SerializeToString, id="as protobuf writes it"),
        pytest.param(another_order, id="in another order"),
        pytest.param(with_what_is_not_known_yet, id="with a field of a later version"),
    ],
)
def test_whatever_is_in_a_file_in_which_nothing_folds_comes_out_byte_for_byte(
    tmp_path: Path, content: Callable[[onnx.ModelProto], bytes]
) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.write_bytes(content(nothing_to_fold()))
    result = fold_file(source, target, profile="generic")
    assert not result.fold.changed
    assert target.read_bytes() == source.read_bytes()
    once = fold_file(target, target, profile="generic")
    assert not once.fold.changed
    assert target.read_bytes() == source.read_bytes()


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A file without anything to fold, whose weights, one of them in a Constant node, are in another file."""
    proto = nothing_to_fold()
    constant = onnx.numpy_helper.from_array(random(2, 4).astype(np.float32), "constant")
    proto.graph.node.insert(0, node("Constant", [], ["j"], value=constant, name="constant"))
    proto.graph.node[2].input[1] = "j"
    path = tmp_path / "in.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="in.data", size_threshold=0, convert_attribute=True)
    held = onnx.load(path, load_external_data=False)
    assert held.graph.node[0].attribute[0].t.data_location == TensorProto.EXTERNAL
    return path


def test_beside_the_same_weights_it_comes_out_byte_for_byte_too(tmp_path: Path, beside: Path) -> None:
    before = (tmp_path / "in.data").read_bytes()
    fold_file(beside, tmp_path / "out.onnx", profile="generic")
    assert (tmp_path / "out.onnx").read_bytes() == beside.read_bytes()
    assert names(tmp_path) == {"in.onnx", "in.data", "out.onnx"}
    assert (tmp_path / "in.data").read_bytes() == before


def test_in_another_folder_the_weights_come_with_it(tmp_path: Path, beside: Path) -> None:
    """A copy of the graph alone would have no weights there."""
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "out.onnx"
    fold_file(beside, target, profile="generic")
    (tmp_path / "in.data").rename(tmp_path / "gone.data")
    assert names(tmp_path / "elsewhere") == {"out.onnx"}
    x = random(5, 3, 4).astype(np.float32)
    whole = onnx.load(target)
    (tmp_path / "gone.data").rename(tmp_path / "in.data")
    found, wanted = (ReferenceEvaluator(proto).run(None, {"x": x}) for proto in (whole, onnx.load(beside)))
    np.testing.assert_array_equal(found[0], wanted[0])


def test_weights_behind_the_second_gigabyte_are_read_where_they_are(tmp_path: Path) -> None:
    """The file beside the model is a hole of 2.2 GB, which takes no place on the disk, and a small weight behind it."""
    hole, side = 2_200_000_000 // 4096 * 4096, 16384
    proto = ir.to_proto(conv_bn())
    small = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    numbers = onnx.numpy_helper.to_array(small)
    with (tmp_path / "in.data").open("wb") as file:
        file.seek(hole)
        file.write(numbers.tobytes())
    small.ClearField("raw_data")
    large = TensorProto(name="unread", data_type=TensorProto.FLOAT, dims=[hole // 4 // side, side])
    proto.graph.initializer.append(large)
    large = proto.graph.initializer[-1]
    for tensor, offset, length in ((large, 0, hole // 4 // side * side * 4), (small, hole, numbers.nbytes)):
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "in.data"), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    (tmp_path / "in.onnx").write_bytes(proto.SerializeToString())
    folded, report = fold(tmp_path / "in.onnx")
    expected, _ = fold(conv_bn())
    assert report.summary()["folded"] == 1
    for value in expected.graph.initializers.values():
        found = folded.graph.initializers[value.name].const_value
        np.testing.assert_array_equal(found.numpy(), value.const_value.numpy())
    assert isinstance(folded.graph.initializers["unread"].const_value, ir.ExternalTensor)


def test_a_file_that_cannot_be_written_is_named_by_its_own_place(tmp_path: Path) -> None:
    """Not by the hidden folder beside it, in which it is made."""
    source, target = saved(conv_bn(), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(CannotUseFile, match=f"^{target}: cannot be written"):
            fold_file(source, target, verified=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == {"in.onnx"}
