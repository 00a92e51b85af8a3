"""Loading and unloading through the real command: nobody who asks meanwhile notices, and a stop is never held up."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

from tests.end_to_end.asking import asking
from tests.end_to_end.running import PATIENCE_S, Answer, foldserve
from tests.service.handmade import DOUBLE, save_version

LOAD = "/v2/repository/models/m/load"
UNLOAD = "/v2/repository/models/m/unload"
X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


def test_fifty_reloads_under_load_lose_no_request_and_leave_memory_as_it_was(tmp_path: Path) -> None:
    """By turns of the same version, and to a new one."""
    save_version(tmp_path, "m", DOUBLE)
    resident: list[int] = []
    with foldserve("--model-repository", tmp_path) as service:
        with asking(service, "m", X, 3) as clients:
            for reload in range(50):
                version = 1 + reload // 2
                save_version(tmp_path, "m", DOUBLE, version=version)
                answer = service.request("POST", LOAD)
                assert (answer.status, answer.json()) == (200, {})
                assert service.get("/v2/models/m").json()["versions"] == [str(version)]
                assert service.is_ready()
                resident.append(service.resident_bytes())
        assert [client.lost for client in clients] == [[], [], []]
        assert [set(client.answers) for client in clients] == [{(2.0, 4.0)}] * 3
        assert [client.told_to_close for client in clients] == [0, 0, 0], "one connection each, all along"
        assert resident[-1] < 1.05 * resident[4], resident
        answer = service.request("POST", UNLOAD)
        assert answer.status == 200
        assert service.infer("m", X).status == 503
        assert "Traceback" not in service.log()


def save_large(folder: Path) -> int:
    """Convolutions, whose weights ONNX Runtime keeps in another layout than the file's: two copies, of which one must
    go. Returns the bytes of the file."""
    count, channels = 22, 512
    weights = np.tile(np.linspace(-0.01, 0.01, channels, dtype=np.float32), (channels, 3, 3, 1)).transpose(0, 3, 1, 2)
    tensors = [onnx.numpy_helper.from_array(weights, f"w{index}") for index in range(count)]
    names = ["x", *(f"h{index}" for index in range(count - 1)), "y"]
    nodes = [
        onnx.helper.make_node("Conv", [names[index], f"w{index}"], [names[index + 1]], pads=[1, 1, 1, 1])
        for index in range(count)
    ]
    shape = ["N", channels, 2, 2]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    (folder / "1").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": folder.name, "max_batch_size": 1}))
    onnx.save(model, folder / "1" / "model.onnx")
    return (folder / "1" / "model.onnx").stat().st_size


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_large_model_takes_little_more_than_its_weights_and_gives_its_memory_back(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with foldserve("--model-repository", tmp_path) as service:
        before = service.resident_bytes()
        size = save_large(tmp_path / "large")
        assert size > 200_000_000
        for _ in range(2):
            assert service.request("POST", LOAD.replace("/m/", "/large/")).status == 200
            loaded = service.resident_bytes() - before
            assert size < loaded < 1.25 * size, loaded
            assert service.request("POST", UNLOAD.replace("/m/", "/large/")).status == 200
            # The kernel counts pages that a thread has given back a little later.
            service.wait_until(lambda: service.resident_bytes() - before < 0.15 * size, "rid of the model's memory")


@pytest.mark.parametrize("unloaded", [False, True], ids=["beside-the-old", "of-a-new-one"])
def test_a_stop_does_not_wait_for_a_load_that_never_ends(unloaded: bool, tmp_path: Path) -> None:
    folder = save_version(tmp_path, "m", DOUBLE)
    save_version(tmp_path, "n", DOUBLE)
    with foldserve("--model-repository", tmp_path, "--drain-limit-s", "1") as service:
        if unloaded:
            assert service.request("POST", UNLOAD).status == 200
        os.mkfifo(folder / "report.json")  # reading it blocks for ever
        answers: list[Answer | Exception] = []

        def load() -> None:
            try:
                answers.append(service.request("POST", LOAD))
            except OSError as error:
                answers.append(error)

        loading = threading.Thread(target=load, daemon=True)
        loading.start()
        service.wait_until(lambda: "asked to load" in service.log(), "loading")
        rows = service.request("POST", "/v2/repository/index").json()
        assert [row["state"] for row in rows] == ["LOADING" if unloaded else "READY", "READY"]
        assert service.infer("n", X).status == 200, "everybody else is answered"
        assert service.infer("m", X).status == (503 if unloaded else 200)
        assert service.stop() == 0
        loading.join(PATIENCE_S)
        assert len(answers) == 1
        assert "Traceback" not in service.log()
