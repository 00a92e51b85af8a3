from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.model_operators import operators_of
from tests.service.handmade import DOUBLE, save_model

NESTED = """
<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
g (int64 turns, float[N] x) => (float[N] y) <bool go = {1}> {
  y = Loop (turns, go, x) <body = walk (int64 n, bool c, float[N] a) => (bool c2, float[N] a2) {
    c2 = Identity(c)
    a2 = If (c) <
      then_branch = one () => (float[N] b) { b = own.twice(a) },
      else_branch = two () => (float[N] b) { b = Cos(a) }
    >
  }>
}
<domain: "own", opset_import: ["" : 17]>
twice (a) => (b) { b = Add(a, a) }
"""


def test_operators_in_subgraphs_and_functions_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(NESTED), path)
    assert operators_of(path) == frozenset({"Loop", "Identity", "If", "twice", "Cos", "Add"})


def test_weights_are_not_looked_into(tmp_path: Path) -> None:
    """Bytes that would say `op_type: "Loop"` if they were a node's."""
    path = save_model(tmp_path / "model.onnx", DOUBLE)
    model = onnx.load(path)
    model.graph.initializer.append(
        onnx.helper.make_tensor("w", onnx.TensorProto.UINT8, [8], b"\x0a\x06\x22\x04Loop", raw=True)
    )
    onnx.save(model, path)
    assert operators_of(path) == frozenset({"Constant", "Mul"})


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x3a\x7f", id="cut-off"),
        pytest.param(b"\x3a\x02\x0a\x05", id="longer-than-what-holds-it"),
        pytest.param(b"\x0f", id="no-such-wire-type"),
        pytest.param(b"\xff" * 20, id="endless-number"),
        pytest.param(b"\x3a\x02\x0a\x00" * 10 + b"\x09\x00", id="cut-in-a-number"),
    ],
)
def test_other_files_have_none_to_tell(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert operators_of(path) is None


@given(st.binary(max_size=200))
def test_any_bytes_end_in_names_or_none(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content)
    assert operators_of(path) is None or content
