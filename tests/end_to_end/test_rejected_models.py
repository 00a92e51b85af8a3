"""A model that is not what was published does not serve: it is UNAVAILABLE with the reason, and the others serve on."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.end_to_end.material import DIGITS, image_input, record_again
from tests.end_to_end.running import Foldserve, foldserve
from training.datasets.dataset import Examples


def flip_a_bit_of_a_weight(version: Path) -> None:
    """The lowest bit of one byte in the middle of the file, which is weights."""
    content = bytearray((version / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (version / "model.onnx").write_bytes(content)


def flip_a_bit_and_hide_it(version: Path) -> None:
    """The highest bit of one exponent; the recorded hash is made to agree, so that only the golden samples can tell."""
    model = onnx.load(version / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda one: int(np.prod(one.dims)))
    weights = numpy_helper.to_array(tensor).copy()
    weights.reshape(-1).view(np.uint32)[weights.size // 2] ^= 1 << 30
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    onnx.save(model, version / "model.onnx")
    record_again(version, "model.onnx")


def swap_the_model(version: Path) -> None:
    """A good model with the same inputs and outputs; just not the one that was published."""
    model = onnx.load(version / "model.onnx")
    model.producer_name = "somebody else"
    onnx.save(model, version / "model.onnx")


def swap_the_model_for_one_of_another_shape(version: Path) -> None:
    """With its hash recorded: the published config then speaks of inputs that the file does not have."""
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "other",
        [info("x", onnx.TensorProto.FLOAT, ["N", 3])],
        [info("y", onnx.TensorProto.FLOAT, ["N", 3])],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8),
        version / "model.onnx",
    )
    record_again(version, "model.onnx")


def remove_the_golden_samples(version: Path) -> None:
    (version / "golden.npz").unlink()


def truncate_the_golden_samples(version: Path) -> None:
    path = version / "golden.npz"
    path.write_bytes(path.read_bytes()[:-100])
    record_again(version, "golden.npz")


def truncate_the_model(version: Path) -> None:
    path = version / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1000])
    record_again(version, "model.onnx")


def break_the_report(version: Path) -> None:
    (version / "report.json").write_text('{"files": ')


def break_the_config(version: Path) -> None:
    (version.parent / "config.json").write_text('{"name": "digits", "max_batch_size": "many"}')


def rename_an_input_in_the_config(version: Path) -> None:
    path = version.parent / "config.json"
    config = json.loads(path.read_text())
    config["inputs"][0]["name"] = "picture"
    path.write_text(json.dumps(config))


def deny_reading(version: Path) -> None:
    """A folder where the file should be; permissions would not stop root."""
    (version / "model.onnx").unlink()
    (version / "model.onnx").mkdir()


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (flip_a_bit_of_a_weight, "model.onnx"),
    (flip_a_bit_and_hide_it, "golden"),
    (swap_the_model, "model.onnx"),
    (swap_the_model_for_one_of_another_shape, "image"),
    (remove_the_golden_samples, "golden.npz"),
    (truncate_the_golden_samples, "golden.npz"),
    (truncate_the_model, "model.onnx"),
    (break_the_report, "report.json"),
    (break_the_config, "max_batch_size"),
    (rename_an_input_in_the_config, "picture"),
    (deny_reading, "model.onnx"),
]


@pytest.mark.parametrize(
    ("damage", "told"), [pytest.param(damage, told, id=damage.__name__) for damage, told in DAMAGES]
)
def test_damaged_model_is_unavailable_with_its_reason_and_the_others_serve_on(
    damage: Callable[[Path], None], told: str, repository: Path, held_out: Examples
) -> None:
    damage(repository / DIGITS / "1")
    with foldserve("--model-repository", repository, wait="settled") as service:
        ready = service.get("/v2/health/ready")
        assert ready.status == 503
        for part in (DIGITS, "UNAVAILABLE", told):
            assert part in ready.body.decode()
        for path in (f"/v2/models/{DIGITS}/ready", f"/v2/models/{DIGITS}/versions/1/ready"):
            assert service.get(path).status in {404, 503}
        refused = service.infer(DIGITS, image_input(held_out.only[:1]))
        assert refused.status == 503
        assert told in refused.json()["error"]
        assert_serves(service, "healthy", held_out)
        assert told in service.log(), "the reason belongs into the log as well"
        assert "Traceback" not in service.log()


def test_without_strict_readiness_one_ready_model_is_enough(repository: Path, held_out: Examples) -> None:
    flip_a_bit_of_a_weight(repository / DIGITS / "1")
    with foldserve("--model-repository", repository, "--no-strict-readiness") as service:
        assert service.get("/v2/health/ready").status == 200
        assert service.get(f"/v2/models/{DIGITS}/ready").status == 503
        assert_serves(service, "healthy", held_out)


def test_without_strict_readiness_no_ready_model_is_not_enough(repository: Path) -> None:
    for name in (DIGITS, "healthy"):
        flip_a_bit_of_a_weight(repository / name / "1")
    with foldserve("--model-repository", repository, "--no-strict-readiness", wait="settled") as service:
        assert service.get("/v2/health/ready").status == 503


def test_model_made_by_hand_needs_neither_report_nor_golden_samples(repository: Path, held_out: Examples) -> None:
    """Only what publish promised is demanded: nothing was promised here."""
    for name in ("report.json", "golden.npz"):
        (repository / DIGITS / "1" / name).unlink()
    with foldserve("--model-repository", repository) as service:
        assert_serves(service, DIGITS, held_out)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("strictness", ["--strict-readiness", "--no-strict-readiness"])
def test_service_is_live_but_not_ready_while_a_model_loads(
    strictness: str, repository: Path, held_out: Examples
) -> None:
    """report.json is a named pipe that nobody has written to yet: that model stays LOADING for as long as we like."""
    report = repository / DIGITS / "1" / "report.json"
    content = report.read_bytes()
    report.unlink()
    os.mkfifo(report)
    # Unblocks the service should an assertion fail; opening a pipe waits for the other side, so it needs a thread.
    writer = threading.Thread(target=report.write_bytes, args=[content], daemon=True)
    with foldserve("--model-repository", repository, strictness, wait="nothing") as service:
        try:
            service.wait_until_live()
            service.wait_until(lambda: service.get("/v2/models/healthy/ready").status == 200, "serving the other model")
            assert_serves(service, "healthy", held_out)
            waiting = service.get("/v2/health/ready")
            assert waiting.status == 503
            assert "LOADING" in waiting.body.decode()
            assert service.infer(DIGITS, image_input(held_out.only[:1])).status == 503
        finally:
            writer.start()
        service.wait_until_ready()
        assert_serves(service, DIGITS, held_out)
    writer.join()


def assert_serves(service: Foldserve, model: str, held_out: Examples) -> None:
    answer = service.infer(model, image_input(held_out.only[:10]))
    assert answer.status == 200, answer.body
    logits = np.reshape(answer.json()["outputs"][0]["data"], (10, 10))
    assert np.sum(logits.argmax(axis=1) == held_out.labels[:10]) >= 9
