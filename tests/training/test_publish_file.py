"""`foldtrain publish` as a function: anyone's file becomes a version that the service loads, checks and serves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from service import repository as layout
from service.protocol import InferenceRequest, InputTensor
from service.registry import Registry
from service.settings import Settings
from service.version_states import ModelState
from tests.training.fold.models import build, rng_of
from training.command_files import CannotUseFile
from training.errors import UserError
from training.fold import FoldError
from training.publish import PublishRefused
from training.publish_file import ROWS, publish_file
from training.samples import CannotMakeSamples

W = rng_of(0).standard_normal((3, 2)).astype(np.float32)


def linear(rows: str = "N") -> ir.Model:
    return build(f"g (float[{rows},3] x) => (float[{rows},2] y) {{ y = MatMul (x, w) }}", w=W)


# What other exporters write: one model each, and how many rows of it the service may batch.
SERVED: Mapping[str, tuple[ir.Model, int]] = {
    "a free batch": (linear(), 64),
    "a fixed batch of one": (linear("1"), 0),
    "a fixed batch of three": (linear("3"), 0),
    "rows that depend on each other": (
        build("g (float[N,3] x) => (float[N,3] y) { y = Softmax <axis = 0> (x) }"),
        0,
    ),
    "an image of free size": (
        build("g (float[N,3,H,W] x) => (float[N,3,1,1] y) { y = GlobalAveragePool (x) }"),
        64,
    ),
    "bytes": (build("g (uint8[N,4] x) => (float[N,4] y) { y = Cast <to = 1> (x) }"), 64),
    "two inputs": (
        build("g (float[N,3] a, int64[N,3] b) => (float[N,3] y) { c = Cast <to = 1> (b) y = Add (a, c) }"),
        64,
    ),
    "an input that has a value": (
        build("g (float[N,3] x, float[3,2] w) => (float[N,2] y) { y = MatMul (x, w) }", w=W),
        64,
    ),
    "an output without rows": (
        build("g (float[N,3] x) => (float s, float[N,3] y) { s = ReduceSum <keepdims = 0> (x) y = Relu (x) }"),
        0,
    ),
    "half precision": (build("g (float16[N,3] x) => (float16[N,3] y) { y = Sigmoid (x) }"), 64),
}


def served(repository: Path, name: str, check: Any = None) -> Any:
    """The version as the real registry loads it: the model, after `check(model)` ran on its loop."""

    async def scenario() -> Any:
        registry = Registry(Settings(model_repository=repository))
        await registry.load_all()
        try:
            states = {(status.name, status.version): (status.state, status.reason) for status in registry.states()}
            assert states == {(name, 1): (ModelState.READY, "")}
            model = registry.get(name)
            return model, (await check(model) if check else None)
        finally:
            await registry.close()

    return asyncio.run(asyncio.wait_for(scenario(), timeout=60))


@pytest.mark.parametrize("case", SERVED)
def test_the_service_loads_it_and_replays_its_golden_samples(tmp_path: Path, case: str) -> None:
    graph, rows = SERVED[case]
    ir.save(graph, tmp_path / "model.onnx")
    result = publish_file(tmp_path / "model.onnx", name="theirs", repository=tmp_path / "models")
    assert result.path == tmp_path / "models" / "theirs" / "1"
    model, _ = served(tmp_path / "models", "theirs")
    assert model.max_batch_size == rows
    assert "samples, largest difference" in model.report.golden


def test_the_service_answers_what_the_file_computes(tmp_path: Path) -> None:
    ir.save(linear(), tmp_path / "model.onnx")
    publish_file(tmp_path / "model.onnx", name="theirs", repository=tmp_path / "models")
    x = rng_of(2).standard_normal((5, 3)).astype(np.float32)

    async def check(model: Any) -> Any:
        return await model.infer(InferenceRequest((InputTensor("x", "FP32", x),)))

    _, response = served(tmp_path / "models", "theirs", check)
    np.testing.assert_allclose(response.outputs[0].data, x @ W, rtol=1e-5, atol=1e-6)


def test_real_inputs_and_their_float64_answers_are_the_golden_samples(tmp_path: Path) -> None:
    ir.save(linear(), tmp_path / "model.onnx")
    x = rng_of(1).standard_normal((40, 3)).astype(np.float32)
    np.savez(tmp_path / "real.npz", x=x)
    result = publish_file(
        tmp_path / "model.onnx", name="theirs", repository=tmp_path / "models", samples=tmp_path / "real.npz"
    )
    with np.load(result.path / "golden.npz") as golden:
        assert np.array_equal(golden["input.x"], x[:ROWS])
        assert np.array_equal(golden["output.y"], (x[:ROWS].astype(np.float64) @ W).astype(np.float32))
    assert f"golden samples: {ROWS} rows of real inputs, answers computed in float64" in result.as_text()


@pytest.mark.parametrize(("rows", "kept"), [("1", ROWS), ("3", 15), ("20", 20)])
def test_a_fixed_batch_takes_real_rows_so_many_at_a_time(tmp_path: Path, rows: str, kept: int) -> None:
    ir.save(linear(rows), tmp_path / "model.onnx")
    np.savez(tmp_path / "real.npz", x=rng_of(1).standard_normal((41, 3)))
    publish_file(tmp_path / "model.onnx", name="m", repository=tmp_path / "models", samples=tmp_path / "real.npz")
    model, _ = served(tmp_path / "models", "m")
    assert model.report.golden.startswith(f"{kept} samples")


def test_a_swapped_weight_is_noticed_by_the_service(tmp_path: Path) -> None:
    ir.save(linear(), tmp_path / "model.onnx")
    path = publish_file(tmp_path / "model.onnx", name="m", repository=tmp_path / "models").path
    damaged = build("g (float[N,3] x) => (float[N,2] y) { y = MatMul (x, w) }", w=W[::-1].copy())
    ir.save(damaged, path / "model.onnx")
    report = json.loads((path / "report.json").read_text())
    report["files"]["model.onnx"] = {  # as if whoever swapped it had mended the hash, too
        "sha256": __import__("hashlib").sha256((path / "model.onnx").read_bytes()).hexdigest(),
        "bytes": (path / "model.onnx").stat().st_size,
    }
    (path / "report.json").write_text(json.dumps(report))

    async def states() -> Any:
        registry = Registry(Settings(model_repository=tmp_path / "models"))
        await registry.load_all()
        await registry.close()
        return [status.reason for status in registry.states()]

    (reason,) = asyncio.run(states())
    assert "golden check: output 'y' differs" in reason


def test_an_operator_that_the_evaluator_does_not_know_is_answered_by_the_runtime(tmp_path: Path) -> None:
    graph = build("g (float[N,3] x) => (float[N,3] y) { y = com.microsoft.QuickGelu (x) }")
    graph.graph[0].domain = "com.microsoft"
    graph.graph[0].op_type = "QuickGelu"
    graph.opset_imports["com.microsoft"] = 1
    ir.save(graph, tmp_path / "model.onnx")
    result = publish_file(tmp_path / "model.onnx", name="m", repository=tmp_path / "models")
    assert "answers of ONNX Runtime's own (" in result.as_text()
    model, _ = served(tmp_path / "models", "m")
    assert "samples, largest difference 0" in model.report.golden


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ("g (string[N,2] x) => (string[N,2] y) { y = Identity (x) }", "input 'x' holds strings"),
        ("g (float[N,3] x, float k) => (float[N,3] y) { y = Mul (x, k) }", "input 'k' has no rows"),
        ("g (float[2,3] x, float[4,3] k) => (float[6,3] y) { y = Concat <axis = 0> (x, k) }", "numbers of rows"),
        ("g () => (float[2] y) { y = Constant <value_floats = [1.0, 2.0]> () }", "the model has no inputs"),
    ],
    ids=["strings", "scalar", "other rows", "no inputs"],
)  # fmt: skip
def test_where_no_samples_can_be_kept_it_is_published_without_and_told(tmp_path: Path, graph: str, reason: str) -> None:
    ir.save(build(graph), tmp_path / "model.onnx")
    result = publish_file(tmp_path / "model.onnx", name="m", repository=tmp_path / "models")
    assert "golden samples: none, because " in result.as_text()
    assert reason in result.as_text()
    assert {path.name for path in result.path.iterdir()} == {"model.onnx", "report.json"}
    served(tmp_path / "models", "m")


def test_labels_go_to_the_output_that_has_as_many_values(tmp_path: Path) -> None:
    graph = build("g (float[N,3] x) => (float[N,3] r, float[N,2] y) { r = Relu (x) y = MatMul (x, w) }", w=W)
    ir.save(graph, tmp_path / "model.onnx")
    (tmp_path / "names.txt").write_text("cat\ndög\n", encoding="utf-8")
    result = publish_file(
        tmp_path / "model.onnx", name="m", repository=tmp_path / "models", labels=tmp_path / "names.txt"
    )
    config = layout.read_config(result.path.parent)
    assert [output.labels for output in config.outputs] == [None, "labels.txt"]
    assert (result.path / "labels.txt").read_text(encoding="utf-8") == "cat\ndög\n"
    served(tmp_path / "models", "m")


def test_the_batch_size_is_the_operators_or_left_to_the_service(tmp_path: Path) -> None:
    ir.save(linear(), tmp_path / "model.onnx")
    publish_file(tmp_path / "model.onnx", name="m", repository=tmp_path / "free")
    publish_file(tmp_path / "model.onnx", name="m", repository=tmp_path / "set", max_batch_size=4)
    assert "max_batch_size" not in json.loads((tmp_path / "free" / "m" / "config.json").read_text())
    assert served(tmp_path / "set", "m")[0].max_batch_size == 4


def test_a_version_is_added_or_exchanged(tmp_path: Path) -> None:
    ir.save(linear(), tmp_path / "model.onnx")
    paths = [
        publish_file(tmp_path / "model.onnx", name="m", repository=tmp_path / "models", replace=replace).path.name
        for replace in (None, None, 1)
    ]
    assert paths == ["1", "2", "1"]


def test_weights_beside_the_file_come_along(tmp_path: Path) -> None:
    ir.save(linear(), tmp_path / "model.onnx", external_data="model.data", size_threshold_bytes=0)
    publish_file(tmp_path / "model.onnx", name="m", repository=tmp_path / "models")
    (tmp_path / "model.data").unlink()
    served(tmp_path / "models", "m")


REFUSED: Mapping[str, tuple[ir.Model | bytes | None, dict[str, Any], type[Exception], str]] = {
    "no file": (None, {}, FoldError, "model.onnx: cannot be read"),
    "no model": (b"text", {}, FoldError, "is not an ONNX model"),
    "a bad name": (linear(), {"name": "../m"}, PublishRefused, "'../m' is not a model name"),
    "no such version": (linear(), {"name": "there", "replace": 5}, PublishRefused, "has no version 5 to replace"),
    "a fixed batch that is to be batched": (
        linear("1"), {"max_batch_size": 4}, PublishRefused, "max_batch_size is 4, so the first dimension of input 'x'"
    ),
    "bfloat16": (
        build("g (bfloat16[N,3] x) => (bfloat16[N,3] y) { y = Identity (x) }"), {}, PublishRefused, "type BFLOAT16"
    ),
    "no labels file": (linear(), {"labels": Path("absent.txt")}, CannotUseFile, "cannot be read as labels: No such"),
    "no text": (linear(), {"labels": Path("binary.txt")}, CannotUseFile, "cannot be read as labels: it is no UTF-8"),
    "no labels": (linear(), {"labels": Path("empty.txt")}, CannotUseFile, "holds no labels; expected one a line"),
    "three labels for two values": (
        linear(), {"labels": Path("three.txt")}, PublishRefused, "3 labels fit 0 outputs, expected one"
    ),
    "no samples": (linear(), {"samples": Path("absent.npz")}, CannotUseFile, "cannot be read as samples"),
    "samples of another": (
        linear(), {"samples": Path("wide.npz")}, CannotMakeSamples, "wide.npz: input 'x': shape [2, 7] does not fit"
    ),
    "samples without an answer": (
        linear(), {"samples": Path("nan.npz")}, CannotMakeSamples, "nan.npz: no finite number in output"
    ),
    "samples of which one has none": (
        linear(), {"samples": Path("one_nan.npz")}, PublishRefused, "one_nan.npz: output"
    ),
    "an index out of range": (
        build("g (int64[9] i) => (float[9,2] y) { y = Gather (w, i) }", w=W[:1]), {}, UserError, "refuses its inputs"
    ),
    "answers that are no numbers": (
        build("g (float[N,3] x) => (float[N,3] y) { y = Log (x) }"), {}, PublishRefused, "output 'y' is not finite"
    ),
    "rounding ruins it": (
        build("g (float[N,3] x) => (float[N,3] y) { a = Add (x, k) y = Sub (a, k) }", k=np.float32([1e9])), {},
        PublishRefused, "ONNX Runtime is too far from the float64 answer",
    ),
    "a runtime that cannot run it": (
        build("g (float[N,3] x) => (float[N,3] y) { y = own.Warp (x) }"), {}, UserError, "cannot run the model"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_published_is_one_line_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ir.save(linear(), "there.onnx")
    publish_file(Path("there.onnx"), name="there", repository=Path("models"))
    Path("binary.txt").write_bytes(b"\xff\xfe\xff")
    Path("empty.txt").write_text("")
    Path("three.txt").write_text("a\nb\nc\n")
    np.savez("wide.npz", x=np.zeros((2, 7)))
    np.savez("nan.npz", x=np.full((2, 3), np.nan))
    np.savez("one_nan.npz", x=np.array([[1, 2, 3], [1, 2, np.nan]]))
    graph, options, kind, told = REFUSED[case]
    if isinstance(graph, ir.Model):
        ir.save(graph, "model.onnx")
    elif graph is not None:
        Path("model.onnx").write_bytes(graph)
    before = {path: path.is_file() and path.read_bytes() for path in Path("models").rglob("*")}
    with pytest.raises(kind) as refused:
        publish_file(Path("model.onnx"), **{"name": "new", "repository": Path("models"), **options})
    assert isinstance(refused.value, UserError | FoldError)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {path: path.is_file() and path.read_bytes() for path in Path("models").rglob("*")} == before
