"""The door to ONNX Runtime, with real files and the real runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.datatypes import DATATYPES
from service.errors import InferenceFailed, ModelRejected, RequestMismatch
from service.session import Session
from tests.service.handmade import DOUBLE, PICKY, TEXT, save_model

CPU = ("CPUExecutionProvider",)


def open_session(path: Path, providers: tuple[str, ...] = CPU) -> Session:
    return Session(path, providers=providers, intra_op_threads=1)


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_of_the_protocol_goes_through_a_session(datatype: str, tmp_path: Path) -> None:
    row = DATATYPES[datatype]
    onnx_name = row.ort_type.removeprefix("tensor(").removesuffix(")")
    text = f"g ({onnx_name}[N,2] x) => ({onnx_name}[N,2] y) {{ y = Identity(x) }}"
    session = open_session(save_model(tmp_path / "m.onnx", text))
    assert [(t.name, t.datatype, t.dims, t.shape) for t in session.inputs] == [("x", datatype, ("N", 2), (-1, 2))]
    sent = np.array([[0, 1], [1, 0]]).astype(row.dtype)
    if datatype == "BYTES":
        sent = np.array([[b"", "é\0✓".encode()], [b"a", b"b"]], dtype=object)
    answer = session.run({"x": sent})["y"]
    np.testing.assert_array_equal(answer, sent, strict=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("g (bfloat16[N,2] x, string[N] s) => (bfloat16[N,2] y) { y = Identity(x) }",
                     ["bfloat16", "string input 's'"], id="bfloat16-beside-strings"),
        pytest.param("g (float[N,2] x) => (seq(float[N,2]) y) { y = SequenceConstruct(x) }",
                     ["output 'y'", "seq(tensor(float))"], id="sequence"),
        pytest.param("g (float[N,2] x) => (float[N,2] y) { y = NoSuchOp(x) }", ["m.onnx", "NoSuchOp"], id="operator"),
        pytest.param("g (float[N,2] x) => (float[N,2] y) { y = MatMul(x, nowhere) }", ["m.onnx"], id="dangling-input"),
    ],
)  # fmt: skip
def test_what_the_runtime_or_the_protocol_cannot_take_is_rejected_by_name(
    text: str, words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ModelRejected) as caught:
        open_session(save_model(tmp_path / "m.onnx", text))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"this is no protobuf" * 10, id="text"),
        pytest.param(bytes(range(256)) * 40, id="noise"),
        pytest.param(None, id="truncated"),
    ],
)
def test_a_damaged_file_is_rejected_in_one_line_without_our_folders(content: bytes | None, tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx", DOUBLE)
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    with pytest.raises(ModelRejected, match=r"m\.onnx cannot be loaded") as caught:
        open_session(path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert "[ONNXRuntimeError]" not in str(caught.value)


@pytest.mark.parametrize(
    ("providers", "share"),
    [
        pytest.param(CPU, {"CPUExecutionProvider": 1.0}, id="alone"),
        # In every build, and runs nothing that is not made for it.
        pytest.param(
            ("AzureExecutionProvider", *CPU), {"AzureExecutionProvider": 0.0, "CPUExecutionProvider": 1.0}, id="two"
        ),
    ],
)
def test_each_provider_s_share_of_nodes_is_what_onnx_runtime_assigned(
    providers: tuple[str, ...], share: dict[str, float], tmp_path: Path
) -> None:
    if missing := set(providers) - set(onnxruntime.get_available_providers()):
        pytest.skip(f"not in this build of ONNX Runtime: {missing}")
    assert open_session(save_model(tmp_path / "m.onnx", DOUBLE), providers).node_share == share


def test_a_missing_provider_is_rejected_with_what_there_is(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx", DOUBLE)
    with pytest.raises(ModelRejected, match=r"NoSuchExecutionProvider is not in this build.*CPUExecutionProvider"):
        open_session(path, ("NoSuchExecutionProvider", *CPU))
    assert open_session(path).providers == CPU


def test_free_dimensions_keep_their_symbols(tmp_path: Path) -> None:
    session = open_session(save_model(tmp_path / "m.onnx", "g (float[N,3,H] x) => (float[N,3,H] y) { y = Neg(x) }"))
    assert session.inputs[0].dims == ("N", 3, "H")
    assert session.inputs[0].shape == (-1, 3, -1)


def external_weight(folder: Path, location: str) -> Path:
    """y = x w, with w in another file."""
    weight = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [info("x", TensorProto.FLOAT, ["N", 2])],
        [info("y", TensorProto.FLOAT, ["N", 2])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def test_external_data_beside_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.ones((2, 2), np.float32).tobytes())
    session = open_session(external_weight(tmp_path, "w.bin"))
    np.testing.assert_array_equal(session.run({"x": np.ones((1, 2), np.float32)})["y"], [[2, 2]])


@pytest.mark.parametrize(
    "location",
    [
        pytest.param("../w.bin", id="parent"),
        pytest.param("link.bin", id="symlink"),
        pytest.param("{absolute}", id="absolute"),
        pytest.param("folder/../../w.bin", id="parent-in-the-middle"),
        pytest.param("missing.bin", id="missing"),
    ],
)
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    outside = tmp_path / "w.bin"
    outside.write_bytes(np.ones((2, 2), np.float32).tobytes())
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (folder / "link.bin").symlink_to(outside)
    with pytest.raises(ModelRejected, match=r"m\.onnx cannot be loaded"):
        open_session(external_weight(folder, location.format(absolute=outside)))


def test_a_refused_run_tells_the_runtime_s_reason_without_its_sources(tmp_path: Path) -> None:
    session = open_session(save_model(tmp_path / "m.onnx", PICKY))
    with pytest.raises(InferenceFailed, match=r"Out of range value in index tensor") as caught:
        session.run({"x": np.ones((1, 2), np.float32), "i": np.array([[9]])})
    assert "\n" not in str(caught.value)
    assert ".cc" not in str(caught.value)
    assert "[ONNXRuntimeError]" not in str(caught.value)


SMALLER_THAN_THE_KERNEL = """
    g (float[N,1,H,W] x) => (float[N,1,P,Q] y) <float[1,1,3,3] w = {1,1,1,1,1,1,1,1,1}> { y = Conv(x, w) }
"""
SMALLER_THAN_THE_WINDOW = "g (float[N,C,H,W] x) => (float[N,C,P,Q] y) { y = MaxPool<kernel_shape=[5,5]>(x) }"
TO_A_FIXED_SIZE = "g (float[N,C,H,W] x) => (float[A,8] y) <int64[2] s = {-1, 8}> { y = Reshape(x, s) }"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(SMALLER_THAN_THE_KERNEL, r"Conv: .*\{2,2\}", id="INVALID_ARGUMENT"),
        pytest.param(SMALLER_THAN_THE_WINDOW, r"MaxPool: .*output dimension is negative", id="FAIL, C++ signature"),
        pytest.param(TO_A_FIXED_SIZE, r"Reshape: .*cannot be reshaped", id="FAIL, helper"),
    ],
)
def test_a_size_that_no_declaration_forbids_but_a_kernel_does_is_the_caller_s_fault(
    text: str, reason: str, tmp_path: Path
) -> None:
    """Kernels say INVALID_ARGUMENT or FAIL of it; the text names the operator, not places in ONNX Runtime's source."""
    session = open_session(save_model(tmp_path / "m.onnx", text))
    with pytest.raises(RequestMismatch, match=f"cannot take these inputs: {reason}") as caught:
        session.run({"x": np.ones((1, 1, 2, 2), np.float32)})
    assert not any(noise in str(caught.value) for noise in ("onnxruntime", "Status Message", ".h:", "(const "))


def test_bytes_that_are_not_text_are_the_caller_s_fault(tmp_path: Path) -> None:
    session = open_session(save_model(tmp_path / "m.onnx", TEXT))
    with pytest.raises(RequestMismatch, match=r"input 'x': element 1 is not UTF-8"):
        session.run({"x": np.array([[b"a", b"\xff"]], dtype=object)})


def test_views_of_a_request_body_are_taken_at_any_address(tmp_path: Path) -> None:
    """Read-only and unaligned, as np.frombuffer gives them."""
    session = open_session(save_model(tmp_path / "m.onnx", DOUBLE))
    x = np.frombuffer(b"?" + np.arange(6, dtype="<f4").tobytes(), "<f4", offset=1).reshape(3, 2)
    assert not x.flags.aligned
    assert not x.flags.writeable
    np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * np.arange(6).reshape(3, 2))


def run_apart(code: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, without the variables that would silence telemetry by themselves."""
    kept = {name: value for name, value in os.environ.items() if name not in {"CI", "ORT_DISABLE_TELEMETRY"}}
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | dict(environment or {}), capture_output=True, text=True, check=False
    )


def test_telemetry_is_off_before_the_runtime_is_imported(tmp_path: Path) -> None:
    """Whatever the environment says; and importing the module alone does not import the runtime."""
    path = save_model(tmp_path / "m.onnx", DOUBLE)
    code = f"""
import os, sys, pathlib
import service.session
assert "onnxruntime" not in sys.modules, "imported too early"
seen = []
class Watch:
    def find_spec(self, name, *rest):
        if name == "onnxruntime":
            seen.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Watch())
service.session.Session(pathlib.Path({str(path)!r}), providers=("CPUExecutionProvider",), intra_op_threads=1)
assert seen == ["1"], seen
"""
    result = run_apart(code, {"ORT_DISABLE_TELEMETRY": "0"})
    assert result.returncode == 0, result.stderr


def test_the_runtime_prints_nothing_of_its_own(tmp_path: Path) -> None:
    """Neither for a model it has advice about, nor for a run that fails: the error reaches us as an exception."""
    path = save_model(tmp_path / "m.onnx", PICKY)
    code = f"""
import pathlib, numpy as np
from service.errors import InferenceFailed
from service.session import Session
session = Session(pathlib.Path({str(path)!r}), providers=("CPUExecutionProvider",), intra_op_threads=1)
try:
    session.run({{"x": np.ones((1, 2), np.float32), "i": np.array([[9]])}})
except InferenceFailed:
    print("refused")
"""
    result = run_apart(code)
    assert (result.stdout, result.stderr) == ("refused\n", "")


def test_one_session_is_shared_by_threads(tmp_path: Path) -> None:
    session = open_session(save_model(tmp_path / "m.onnx", DOUBLE))
    feeds: list[Any] = [np.full((1 + number % 5, 2), number, np.float32) for number in range(200)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda x: session.run({"x": x})["y"], feeds))
    for x, y in zip(feeds, answers, strict=True):
        np.testing.assert_array_equal(y, 2 * x, strict=True)
