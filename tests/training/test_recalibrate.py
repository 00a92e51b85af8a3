"""`foldtrain recalibrate`: statistics of a new domain, folded and published; the run itself is not touched."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import safetensors.torch

from service import repository as layout
from training import __main__ as command
from training import datasets, verify
from training.datasets.dataset import Examples
from training.recalibrate import Recalibration, recalibrate
from training.recipe import RECIPES
from training.run_folder import MODEL, REPORT
from training.train_run import start


def faint(images: np.ndarray) -> np.ndarray:
    """Pencil instead of ink, or another camera."""
    return (0.3 * images).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = RECIPES["digits"].model_copy(update={"epochs": 2, "minimum_test_accuracy": 0.0})
    folder = tmp_path_factory.mktemp("runs") / "digits"
    start(recipe, folder)
    return folder


@pytest.fixture(scope="module")
def held_out() -> Examples:
    return datasets.load("digits").test


@pytest.fixture(scope="module")
def new(held_out: Examples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "faint.npz"
    np.savez(path, image=faint(held_out.only))
    return path


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def published(run: Path, new: Path, tmp_path_factory: pytest.TempPathFactory) -> Recalibration:
    before = digests(run)
    result = recalibrate(run, str(new), tmp_path_factory.mktemp("repository"))
    assert digests(run) == before
    return result


def test_rows_of_the_new_domain_are_understood_again(published: Recalibration, run: Path, held_out: Examples) -> None:
    folded = ir.load(published.delivered.path / layout.MODEL_FILE)

    answers = verify.run(folded, {"image": faint(held_out.only)})["logits"].argmax(axis=1)

    before = json.loads((run / REPORT).read_text())["freeze"]["population"]["test_accuracy"]
    assert (answers == held_out.labels).mean() > before - 0.05
    assert [node.op_type for node in folded.graph if "Norm" in node.op_type] == []


def test_health_is_told_before_and_after(published: Recalibration) -> None:
    assert "H6" in {finding.check for finding in published.before.of("red")}
    assert published.after.healthy
    assert [finding for finding in published.after.findings if finding.check == "H6"] == []


def test_the_report_of_the_version_tells_what_changed(published: Recalibration, held_out: Examples) -> None:
    report = json.loads((published.delivered.path / layout.REPORT_FILE).read_text())
    told = report["recalibrate"]

    assert set(report) >= {"source", "train", "freeze", "fold", "verify", "recalibrate"}
    assert (told["data"], told["rows"]) == ("faint.npz", len(held_out))
    assert [layer["verdict"] for layer in told["estimate"]["layers"]] == ["estimated"] * 7
    assert max(layer["mean_shift"] for layer in told["estimate"]["layers"]) > 0.3
    assert (told["health"]["before"]["healthy"], told["health"]["after"]["healthy"]) == (False, True)
    assert told["accuracy"]["new"] is None
    assert report["verify"]["passed"] is True


def test_layers_that_no_data_reach_have_not_moved(published: Recalibration) -> None:
    nothing = replace(published, estimate=replace(published.estimate, layers=()))
    assert "measured: 0 BatchNorm layers over" in nothing.as_text()


def test_golden_samples_are_of_the_new_domain(published: Recalibration) -> None:
    with np.load(layout.VersionDirectory(published.delivered.path, 1).golden_path) as golden:
        assert golden["input.image"].shape == (4, 1, 8, 8)
        assert 3 < golden["input.image"].max() < 5


def test_a_data_source_with_the_same_classes_tells_accuracies(run: Path, published: Recalibration, capsys) -> None:
    """Into a repository that has a version already: the next one."""
    repository = published.delivered.path.parents[1]

    code = command.main(
        ["recalibrate", str(run), "--data", "digits", "--repository", str(repository), "--mode", "minibatch"]
    )

    told = capsys.readouterr().out
    assert code == 0
    assert f"published {repository / 'digits' / '2'}" in told
    assert re.search(r"accuracy of the new rows: \d+\.\d+% before, \d+\.\d+% now", told)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        pytest.param({"picture": np.zeros((64, 1, 8, 8))}, "holds no input 'image'; it holds picture", id="name"),
        pytest.param(
            {"image": np.zeros((64, 8, 8))},
            "image is [rows, 8, 8], the run's network takes [rows, 1, 8, 8]",
            id="shape",
        ),
        pytest.param({"image": np.full((64, 1, 8, 8), np.nan)}, "holds no finite number in row 0", id="NaN"),
        pytest.param({"image": np.zeros((8, 1, 8, 8))}, "8 rows are too few", id="rows"),
        pytest.param({"image": np.full((64, 1, 8, 8), "a")}, "image holds <U1, the run's network takes", id="words"),
    ],
)
def test_data_that_do_not_fit_are_one_line(run: Path, tmp_path: Path, arrays, told: str, capsys) -> None:
    np.savez(tmp_path / "new.npz", **arrays)

    code = command.main(
        ["recalibrate", str(run), "--data", str(tmp_path / "new.npz"), "--repository", str(tmp_path / "models")]
    )

    error = capsys.readouterr().err
    assert code == 2
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "models").exists()


def test_what_is_no_data_at_all_is_told(run: Path, tmp_path: Path, capsys) -> None:
    assert command.main(["recalibrate", str(run), "--data", "nowhere", "--repository", str(tmp_path)]) == 2
    assert "is neither an .npz nor a data source; sources are " in capsys.readouterr().err


def test_a_run_that_has_not_ended_is_sent_on(run: Path, new: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(run, tmp_path / "half")
    (tmp_path / "half" / MODEL).unlink()

    assert command.main(["recalibrate", str(tmp_path / "half"), "--data", str(new)]) == 2
    assert "the run has not ended, it is at step 44 of 44; go on with it first: " in capsys.readouterr().err


def test_what_stays_ill_is_not_published(run: Path, new: Path, tmp_path: Path, capsys) -> None:
    """A gamma that is no number cannot be mended by statistics."""
    shutil.copytree(run, tmp_path / "ill")
    weights = safetensors.torch.load_file(tmp_path / "ill" / MODEL)
    weights["body.head.bn.weight"][0] = float("nan")
    safetensors.torch.save_file(weights, tmp_path / "ill" / MODEL)

    code = command.main(
        ["recalibrate", str(tmp_path / "ill"), "--data", str(new), "--repository", str(tmp_path / "models")]
    )

    assert code == 1
    assert "findings are red; nothing was published. The first is H3 bad variance" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
