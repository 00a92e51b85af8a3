"""`foldserve --model FILE.onnx`: any one file, without a repository and without a configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from tests.end_to_end.material import DIGITS, image_input
from tests.end_to_end.running import foldserve
from training.datasets.dataset import Examples


def test_one_file_is_served_under_its_own_name_with_a_derived_configuration(
    checkout: Path, tmp_path: Path, held_out: Examples
) -> None:
    shutil.copy(checkout / "models" / DIGITS / "1" / "model.onnx", tmp_path / "my-digits.onnx")
    with foldserve("--model", tmp_path / "my-digits.onnx") as service:
        metadata = service.get("/v2/models/my-digits").json()
        assert metadata["versions"] == ["1"]
        assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
        answer = service.infer("my-digits", image_input(held_out.only[:10]))
        assert answer.status == 200, answer.body
        logits = np.reshape(answer.json()["outputs"][0]["data"], (10, 10))
        assert np.sum(logits.argmax(axis=1) == held_out.labels[:10]) >= 9


def test_relative_path_is_taken_from_where_the_command_was_typed(checkout: Path, tmp_path: Path) -> None:
    shutil.copy(checkout / "models" / DIGITS / "1" / "model.onnx", tmp_path / "here.onnx")
    with foldserve("--model", "here.onnx", cwd=tmp_path) as service:
        assert service.get("/v2/models/here/ready").status == 200
