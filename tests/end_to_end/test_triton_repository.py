"""What was laid out for Triton, or mounted by KServe, is served as it lies there: the real command, a real client."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import tritonclient.http as triton

from tests.end_to_end.material import DIGITS, image_input
from tests.end_to_end.running import foldserve
from training.datasets.dataset import Examples

CONFIG = """
name: "digits"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "image" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 1, 8, 8 ] } ]
output [ { name: "logits" data_type: TYPE_FP32 dims: [ 10 ] label_filename: "digits.txt" } ]
version_policy { specific { versions: [ 2, 3 ] } }
instance_group [ { kind: KIND_CPU count: 2 } ]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
"""


def test_a_triton_repository_is_served(checkout: Path, tmp_path: Path, held_out: Examples) -> None:
    model = checkout / "models" / DIGITS / "1" / "model.onnx"
    folder = tmp_path / "repository" / "digits"
    for place in ("1/model.onnx", "2/model.onnx", "3/model.onnx/model.onnx"):
        (folder / place).parent.mkdir(parents=True)
        shutil.copy(model, folder / place)
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "digits.txt").write_text("".join(f"digit {n}\n" for n in range(10)))

    with foldserve("--model-store", tmp_path / "repository") as service:
        with triton.InferenceServerClient(service.address) as client:
            assert client.get_model_metadata("digits")["versions"] == ["2", "3"]
            image = triton.InferInput("image", [8, 1, 8, 8], "FP32")
            image.set_data_from_numpy(held_out.only[:8])
            for version in ("2", "3"):
                logits = client.infer("digits", [image], model_version=version).as_numpy("logits")
                assert logits is not None
                assert np.sum(logits.argmax(axis=1) == held_out.labels[:8]) >= 7
        answer = service.infer("digits", image_input(held_out.only[:9]))
        assert answer.status == 400
        assert "8" in answer.json()["error"]
        for warned in ("input.format FORMAT_NCHW", "dynamic_batching.preferred_batch_size"):
            assert f"{warned} is not used" in service.log()


def test_a_kserve_mount_is_served_under_the_name_that_kserve_gives(
    checkout: Path, tmp_path: Path, held_out: Examples
) -> None:
    shutil.copytree(checkout / "models" / DIGITS / "1", tmp_path / "mnt" / "models")
    with foldserve("--model_name=my-digits", f"--model_dir={tmp_path / 'mnt' / 'models'}") as service:
        assert service.get("/v2/models/my-digits/ready").status == 200
        answer = service.infer("my-digits", image_input(held_out.only[:10]))
        logits = np.reshape(answer.json()["outputs"][0]["data"], (10, 10))
        assert np.sum(logits.argmax(axis=1) == held_out.labels[:10]) >= 9
        # What lies beside the file is this version's own: its report was checked and its golden answers replayed.
        assert "golden none" not in service.log()
