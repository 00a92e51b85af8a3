"""`foldtrain verify` as a function: two files agree, or they differ by so much, or they cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.models import build, mild_statistics, rng_of
from training.command_files import CannotUseFile
from training.errors import UserError
from training.fold import FoldError, fold
from training.half_precision import to_half
from training.reference import UnsupportedOperator
from training.samples import CannotMakeSamples
from training.verify_files import CannotCompare, verify_files

GRAPH = """
g (float[{0},3,5,5] {1}) => (float[{0},4,5,5] {2}) {{
    c = Conv <pads = [1,1,1,1]> ({1}, w)
    {2} = BatchNormalization (c, g, b, m, v)
}}"""


def network(rows: str = "N", x: str = "x", y: str = "y", weight: float = 1.0) -> ir.Model:
    statistics = {name: part.astype(np.float32) for name, part in mild_statistics(rng_of(1), 4).items()}
    w = rng_of(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    return build(GRAPH.format(rows, x, y), w=w * np.float32(weight), **statistics)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    ir.save(network(), "a.onnx")
    return tmp_path


def against(other: ir.Model, **options: Any) -> Any:
    ir.save(other, "b.onnx")
    return verify_files(Path("a.onnx"), Path("b.onnx"), **options)


def test_a_file_and_its_fold_agree(folder: Path) -> None:
    result = against(fold(network())[0], report=Path("r.json"))
    assert result.agree
    assert result.notes == ()
    told = json.loads(Path("r.json").read_text())
    assert (told["agree"], told["distances"]) == (True, [])
    assert told["verify"]["algebra_error"] <= 1e-9
    assert result.as_text().startswith("a.onnx and b.onnx agree\n")


@pytest.mark.parametrize(
    ("rows", "x", "y"), [("M", "x", "y"), ("2", "x", "y"), ("N", "data", "y"), ("N", "x", "scores")]
)
def test_names_and_free_sizes_are_no_difference_but_are_told(folder: Path, rows: str, x: str, y: str) -> None:
    result = against(network(rows, x, y))
    assert result.agree
    assert result.notes
    assert any(name in result.as_text() for name in (f"'{x}'", f"'{y}'", rows))


def test_inputs_in_another_order_are_told_apart_by_name(folder: Path) -> None:
    graph = "g (float[N,2] {}, float[N,2] {}) => (float[N,2] y, float[N,2] z) {{ y = Sub (a, b) z = Add (a, b) }}"
    ir.save(build(graph.format("a", "b")), "a.onnx")
    assert against(build(graph.format("b", "a"))).agree
    turned = build("g (float[N,2] a, float[N,2] b) => (float[N,2] z, float[N,2] y) { y = Sub (a, b) z = Add (a, b) }")
    assert against(turned).agree
    assert not against(build(graph.format("a", "b").replace("Sub (a, b)", "Sub (b, a)"))).agree


def test_other_weights_differ_by_so_much(folder: Path) -> None:
    result = against(network(weight=1.5), report=Path("r.json"))
    assert not result.agree
    (distance,) = result.distances
    assert distance.output == "y"
    assert 0.2 < distance.of_scale < 0.6  # the shift of the BatchNormalization is the same
    told = json.loads(Path("r.json").read_text())
    assert told["agree"] is False
    assert told["distances"][0]["absolute"] == pytest.approx(distance.absolute)
    text = result.as_text()
    assert text.startswith("a.onnx and b.onnx differ\n")
    assert "in float64, output 'y': at most " in text
    assert "NOT verified: " in text


def test_half_precision_is_another_type_and_so_far_away(folder: Path) -> None:
    result = against(to_half(network(), ir.DataType.FLOAT16))
    assert not result.agree
    assert 0 < result.distances[0].of_scale < 1e-2


def test_values_that_are_no_numbers_are_counted(folder: Path) -> None:
    graph = "g (float[4,3] x) => (int64[4] y) {{ y = {} <axis = 1, keepdims = 0> (x) }}"
    ir.save(build(graph.format("ArgMax")), "a.onnx")
    result = against(build(graph.format("ArgMin")))
    assert not result.agree
    assert result.distances[0].differing > 0
    assert "values differ" in result.as_text()


def test_a_number_that_only_one_has_is_infinitely_far(folder: Path) -> None:
    graph = "g (float[N,3] x) => (float[N,3] y) {{ y = {} (x) }}"
    ir.save(build(graph.format("Abs")), "a.onnx")
    result = against(build(graph.format("Log")), report=Path("r.json"))
    assert not result.agree
    assert json.loads(Path("r.json").read_text())["distances"][0]["absolute"] is None


def test_real_inputs_may_show_what_made_up_ones_do_not(folder: Path) -> None:
    graph = "g (float[N,3] x) => (float[N,3] y) {{ y = Min (x, k) }}"
    ir.save(build(graph.format(), k=np.float32(1e7)), "a.onnx")
    other = build(graph.format(), k=np.float32(2e7))
    np.savez("real.npz", x=np.full((2, 3), 3e7, np.float32))
    assert against(other).agree
    assert not against(other, samples=Path("real.npz")).agree


def shaped(x: str = "float[N,3,5,5] x", y: str = "float[N,3,5,5] y", nodes: str = "y = Relu (x)") -> ir.Model:
    return build(f"g ({x}) => ({y}) {{ {nodes} }}")


CASES: Mapping[str, tuple[ir.Model | bytes | None, dict[str, Any], type[Exception], str]] = {
    "no file": (None, {}, FoldError, "b.onnx: cannot be read"),
    "no model": (b"text", {}, FoldError, "b.onnx: is not an ONNX model"),
    "more inputs": (
        shaped("float[N,3,5,5] x, float[N] z"), {}, CannotCompare,
        "has the inputs float[N,3,5,5] x, the second float[N,3,5,5] x, float[N] z; expected the same",
    ),
    "other outputs": (
        shaped(y="float[N,3,5,5] y, float[N,3,5,5] z", nodes="y = Relu (x) z = Abs (x)"), {}, CannotCompare,
        "has the outputs float[N,4,5,5] y, the second float[N,3,5,5] y, float[N,3,5,5] z",
    ),
    "another type": (
        shaped(y="float16[N,4,5,5] scores", nodes="scores = own.Half (x)"), {}, CannotCompare,
        "has the outputs float[N,4,5,5] y, the second float16[N,4,5,5] scores; expected the same",
    ),
    "another shape": (
        shaped("float[N,3,6,6] x", "float[N,3,6,6] y"), {}, CannotCompare, "input 'x' has shape [N,3,5,5] in the first"
    ),
    "a name that is taken": (
        shaped("float[N,3,5,5] z", "float[N,4,5,5] y", "x = Relu (z) y = own.Four (x)"), {}, CannotCompare,
        "has the inputs float[N,3,5,5] x, the second float[N,3,5,5] z",
    ),
    "unknown operator": (
        shaped(y="float[N,4,5,5] y", nodes="y = own.Warp (x)"), {}, UnsupportedOperator, "'Warp' of domain 'own'"
    ),
    "no such input": (network(), {"input_shapes": {"z": (1,)}}, CannotMakeSamples, "the graph has no input 'z'"),
    "no samples": (network(), {"samples": Path("s.npz")}, CannotUseFile, "s.npz: cannot be read as samples"),
    "samples without an answer": (
        network(), {"samples": Path("nan.npz")}, CannotMakeSamples, "nan.npz: no finite number in output 'y'"
    ),
    "nowhere to report": (network(), {"report": Path("no/r.json")}, CannotUseFile, "the folder no does not exist"),
    "a report over a model": (network(), {"report": Path("a.onnx")}, CannotCompare, "is one of the models"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_compared_is_one_line_and_leaves_no_report(folder: Path, case: str) -> None:
    other, options, kind, told = CASES[case]
    if isinstance(other, ir.Model):
        ir.save(other, "b.onnx")
    elif other is not None:
        Path("b.onnx").write_bytes(other)
    np.savez("nan.npz", x=np.full((2, 3, 5, 5), np.nan))
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(kind) as refused:
        verify_files(Path("a.onnx"), Path("b.onnx"), **{"report": Path("r.json"), **options})
    assert isinstance(refused.value, UserError | FoldError)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {path.name for path in folder.iterdir()} == before
