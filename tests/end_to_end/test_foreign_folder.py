"""Both commands work inside a project with `training` and `service` packages of its own, from data to answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.end_to_end.material import DIGITS, accuracy, image_input
from tests.end_to_end.running import foldserve, run_command
from training.datasets.dataset import Examples


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: packages with our names and modules with names that we import, all refusing to load."""
    folder = tmp_path_factory.mktemp("project")
    for package in ("training", "service"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(f"raise ImportError('the user\\'s own {package} was imported')\n")
    for module in ("numpy", "signal", "recipe"):
        (folder / f"{module}.py").write_text(f"raise ImportError('the user\\'s own {module} was imported')\n")
    return folder


def test_build_then_serve_from_raw_data_to_at_least_98_percent(project: Path, held_out: Examples) -> None:
    """The acceptance line: `foldtrain build digits --repository r`, then `foldserve --model-repository r`."""
    built = run_command("foldtrain", "build", DIGITS, "--repository", "r", cwd=project)
    assert built.returncode == 0, built.stderr
    assert sorted(path.name for path in (project / "r" / DIGITS / "1").iterdir()) == [
        "golden.npz", "labels.txt", "model.onnx", "report.json",
    ]  # fmt: skip
    with foldserve("--model-repository", "r", cwd=project) as service:

        def predict(images: npt.NDArray[np.float32]) -> npt.NDArray[np.floating]:
            answer = service.infer(DIGITS, image_input(images))
            assert answer.status == 200, answer.body
            (logits,) = answer.json()["outputs"]
            return np.reshape(logits["data"], logits["shape"])

        assert accuracy(predict, held_out) >= 0.98


@pytest.mark.parametrize("command", ["foldserve", "foldtrain"])
def test_help_is_printed_there(command: str, project: Path) -> None:
    shown = run_command(command, "--help", cwd=project)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(f"usage: {command}")
