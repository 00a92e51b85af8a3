"""The whole path of one model on real digits: built once here, then questioned; and what forbids to publish."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from service import repository as layout
from training import datasets, pipeline, verify
from training.health_check import Unhealthy
from training.pipeline import BuildResult, ChecksFailed, build
from training.recipe import Recipe
from training.recipe_sources import find_recipe

SAME_BYTES = ("golden.npz", "labels.txt", "model.onnx", "report.json")
STEPS = ["train", "freeze", "doctor", "export", "fold", "verify", "publish"]


def quick(*overrides: str) -> Recipe:
    """Three epochs of a narrow network: every step is real, the accuracy is not the point."""
    narrow = ["epochs=3", "architecture.options.widths=[8,8,16,16,16,16]", "minimum_test_accuracy=0"]
    return find_recipe("digits", [*narrow, *overrides])


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> tuple[BuildResult, list[str]]:
    """The shipped recipe, unchanged."""
    announced: list[str] = []
    result = build(find_recipe("digits"), tmp_path_factory.mktemp("repository"), announce=announced.append)
    return result, [line.split()[0] for line in announced]


@pytest.fixture(scope="module")
def result(shipped) -> BuildResult:
    return shipped[0]


def test_digits_reach_98_percent_and_keep_no_batchnorm(result) -> None:
    model = ir.load(result.path / layout.MODEL_FILE)

    assert result.freeze.scores.test_accuracy >= 0.98
    assert [node.op_type for node in model.graph if "Norm" in node.op_type] == []
    assert (result.fold.summary()["found"], result.fold.summary()["folded"], result.batchnorms_left) == (7, 7, 0)


def test_steps_are_announced_in_the_order_of_the_path(shipped) -> None:
    assert shipped[1] == STEPS


def test_the_published_file_classifies_raw_held_out_pixels(result) -> None:
    """Nothing but the file and the raw pixels: normalisation is in the graph. Default session, as the service's."""
    test = datasets.load("digits").test
    session = onnxruntime.InferenceSession(result.path / layout.MODEL_FILE)

    (logits,) = session.run(["logits"], {"image": test.only})

    assert (logits.argmax(axis=1) == test.labels).mean() == result.freeze.scores.test_accuracy


def test_a_default_session_reproduces_the_golden_samples(result) -> None:
    version = layout.VersionDirectory(result.path, 1)
    record = layout.read_report(version).golden
    session = onnxruntime.InferenceSession(version.model_path)
    with np.load(version.golden_path) as golden:
        (logits,) = session.run(["logits"], {"image": golden["input.image"]})
        difference = np.abs(logits.astype(np.float64) - golden["output.logits"]).max()

    assert difference < record.tolerance["logits"] / 4


def with_changed_bit(model: ir.Model, tensor: str, bit: int) -> ir.Model:
    """One bit of the largest value of one tensor."""
    copy = model.clone()
    value = copy.graph.initializers[tensor]
    weights = value.const_value.numpy().copy()
    weights.reshape(-1).view(np.uint32)[np.abs(weights).argmax()] ^= np.uint32(1 << bit)
    value.const_value = ir.Tensor(weights, name=tensor)
    return copy


@pytest.mark.parametrize("bit", [31, 23, 20, 16], ids=["sign", "exponent", "an eighth", "1/128"])
def test_one_bit_in_the_largest_weight_or_bias_of_any_layer_breaks_the_golden_samples(result, bit) -> None:
    version = layout.VersionDirectory(result.path, 1)
    model = ir.load(version.model_path)
    tolerance = layout.read_report(version).golden.tolerance["logits"]
    with np.load(version.golden_path) as golden:
        image, expected = golden["input.image"], golden["output.logits"]
    layers = [name for name, value in model.graph.initializers.items() if value.const_value.numpy().ndim]

    unnoticed = [
        name
        for name in layers
        if np.abs(verify.run(with_changed_bit(model, name, bit), {"image": image})["logits"] - expected).max()
        <= tolerance
    ]

    assert len(layers) == 14
    assert unnoticed == []


def test_the_report_tells_the_whole_story(result) -> None:
    report = json.loads((result.path / layout.REPORT_FILE).read_text())

    assert set(report) == {"files", "golden", "versions", "source", "train", "freeze", "doctor", "fold", "verify"}
    assert report["train"]["test_accuracy"] == result.train.test_accuracy
    assert report["freeze"] == json.loads(json.dumps(result.freeze.as_dict()))
    measured, averaged = (report["freeze"][kind]["train_loss"] for kind in ("population", "running"))
    assert report["freeze"]["kept"] == ("population" if measured <= averaged else "running")
    assert [layer["verdict"] for layer in report["freeze"]["estimate"]["layers"]] == ["estimated"] * 7
    assert report["train"]["settings"] == json.loads(result.recipe.model_dump_json())
    assert report["doctor"]["healthy"] is True
    assert report["fold"]["summary"]["folded"] == 7
    assert report["verify"]["passed"] is True
    assert report["verify"]["outputs_compared"] >= 1000
    assert report["verify"]["algebra_error"] <= 1e-9


def test_the_file_names_its_source_and_no_path(result) -> None:
    content = (result.path / layout.MODEL_FILE).read_bytes()
    report = json.loads((result.path / layout.REPORT_FILE).read_text())

    assert report["source"]["sha256"].encode() in content
    assert [trace for trace in (b'File "', b"site-packages", b".py", bytes(Path.cwd())) if trace in content] == []


def test_clients_are_told_what_to_send(result) -> None:
    config = layout.read_config(result.path.parent)

    (image,), (logits,) = config.inputs, config.outputs
    assert (image.name, image.datatype, image.shape, image.minimum, image.maximum) == (
        "image",
        "FP32",
        (-1, 1, 8, 8),
        0,
        16,
    )
    assert "raw pixel values" in image.description
    assert (logits.name, logits.datatype, logits.shape, logits.labels) == ("logits", "FP32", (-1, 10), "labels.txt")
    assert (result.path / "labels.txt").read_text().split() == list("0123456789")


def test_the_summary_says_how_good_it_is_what_was_folded_and_how_to_serve_it(result) -> None:
    text = result.as_text()

    assert f"{result.freeze.scores.test_accuracy:.2%} of 360 held-out examples" in text
    assert "7 BatchNormalization found, 7 folded, 0 left" in text
    assert f"foldserve --model-repository {result.path.parents[1]}" in text


def test_the_same_recipe_builds_the_same_files_twice(tmp_path) -> None:
    first, second = (build(quick("epochs=1"), tmp_path).path for _ in range(2))

    assert (first.name, second.name) == ("1", "2")
    assert [(first / name).read_bytes() == (second / name).read_bytes() for name in SAME_BYTES] == [True] * 4


def test_an_accuracy_below_the_recipes_publishes_nothing(tmp_path) -> None:
    with pytest.raises(ChecksFailed) as caught:
        build(quick("minimum_test_accuracy=1", "epochs=1"), tmp_path)

    assert "but asks for 100.00%; nothing was published" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_offered_override_is_enough_to_publish_it_all_the_same(tmp_path) -> None:
    with pytest.raises(ChecksFailed) as caught:
        build(quick("minimum_test_accuracy=1", "epochs=1"), tmp_path)
    offered = str(caught.value).rpartition("--set ")[2]

    assert build(quick("epochs=1", offered), tmp_path).path == tmp_path / "digits" / "1"


def test_statistics_that_are_worth_nothing_are_not_published_unless_that_is_asked_for(tmp_path) -> None:
    ill = ["epochs=1", "statistics=running", "architecture.momentum=0.001", "minimum_test_accuracy=0"]
    with pytest.raises(Unhealthy, match=r"recipe 'digits': \d+ findings are red; nothing was published") as caught:
        build(quick(*ill), tmp_path)
    assert list(tmp_path.iterdir()) == []
    offered = str(caught.value).rpartition("--set ")[2]

    path = build(quick(*ill, offered), tmp_path).path

    assert json.loads((path / layout.REPORT_FILE).read_text())["doctor"]["healthy"] is False


def with_wrong_bias(model: ir.Model) -> ir.Model:
    """The kind of defect verification is for: one bias of the first layer a thousandth off."""
    (bias,) = [node.inputs[2] for node in model.graph if node.op_type == "Conv"][:1]
    values = bias.const_value.numpy().copy()
    values[0] += 1e-3 * np.abs(values).max()
    bias.const_value = ir.Tensor(values, name=bias.name)
    return model


def test_a_fold_that_changes_the_function_publishes_nothing(monkeypatch, tmp_path) -> None:
    real_fold = pipeline.fold

    def wrong_fold(model):
        folded, report = real_fold(model)
        return with_wrong_bias(folded), report

    monkeypatch.setattr(pipeline, "fold", wrong_fold)

    with pytest.raises(verify.VerificationFailed):
        build(quick(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_fold_that_leaves_a_batchnorm_publishes_nothing_and_counts_for_itself(monkeypatch, tmp_path) -> None:
    real_fold = pipeline.fold
    monkeypatch.setattr(pipeline, "fold", lambda model: (model.clone(), real_fold(model)[1]))

    with pytest.raises(ChecksFailed, match="7 BatchNormalization are left in 'digits', its recipe allows 0"):
        build(quick("epochs=1"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_class_that_differs_from_torchs_publishes_nothing(monkeypatch, tmp_path) -> None:
    """The last gate alone: torch's answers are turned round, everything before has passed."""
    real_logits = pipeline.logits
    monkeypatch.setattr(pipeline, "logits", lambda module, inputs: -real_logits(module, inputs))

    with pytest.raises(ChecksFailed, match="360 of 360 held-out inputs get another class than from torch"):
        build(quick("epochs=1"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_destination_that_cannot_be_is_refused_before_training(tmp_path) -> None:
    announced: list[str] = []
    (tmp_path / "digits").write_text("")

    with pytest.raises(pipeline.UserError, match="is in the way"):
        build(quick(), tmp_path, announce=announced.append)
    assert announced == []
