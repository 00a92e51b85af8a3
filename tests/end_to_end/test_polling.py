"""Polling through the real command: versions come and go on the disk, and nobody who asks meanwhile notices."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.end_to_end.asking import asking
from tests.end_to_end.running import Foldserve, foldserve
from tests.service.handmade import DOUBLE, save_version

X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
NEGATE = "g (float[N,2] x) => (float[N,2] y) { y = Neg(x) }"


def rows(service: Foldserve) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = service.request("POST", "/v2/repository/index").json()
    return found


def test_versions_come_and_go_under_load(tmp_path: Path) -> None:
    repository, staging = tmp_path / "models", tmp_path / "staging"
    save_version(repository, "m", DOUBLE)
    with foldserve("--model-repository", repository, "--repository-poll-s", "0.05") as service:

        def answers() -> list[float]:
            data: list[float] = service.infer("m", X).json()["outputs"][0]["data"]
            return data

        with asking(service, "m", X, 3) as clients:
            save_version(staging, "m", NEGATE, version=2).rename(repository / "m" / "2")
            service.wait_until(lambda: answers() == [-1, -2], "answering with version 2")
            shutil.rmtree(repository / "m" / "2")
            service.wait_until(lambda: answers() == [2, 4], "answering with version 1 again")
            damaged = save_version(staging, "m", NEGATE, version=3)
            (damaged / "model.onnx").write_bytes(b"nonsense")
            damaged.rename(repository / "m" / "3")
            service.wait_until(lambda: len(rows(service)) == 2, "telling of version 3")
        assert [client.lost for client in clients] == [[], [], []]
        assert {answer for client in clients for answer in client.answers} == {(2.0, 4.0), (-1.0, -2.0)}

        serving, failed = rows(service)
        assert (serving["version"], serving["state"]) == ("1", "READY")
        assert (failed["version"], failed["state"]) == ("3", "UNAVAILABLE")
        assert failed["reason"].startswith("model.onnx cannot be loaded by ONNX Runtime")
        assert service.is_ready()
        assert answers() == [2, 4]
        assert service.log().count("it is tried again when its files change") == 1

        shutil.rmtree(repository / "m" / "3")
        service.wait_until(lambda: len(rows(service)) == 1, "rid of version 3")
        assert service.request("POST", "/v2/repository/models/m/unload").status == 200
        save_version(staging, "n", DOUBLE).parent.rename(repository / "n")
        service.wait_until(lambda: service.infer("n", X).status == 200, "answering for the new model")
        assert service.infer("m", X).status == 503, "what a client has unloaded stays so"
        assert "Traceback" not in service.log()
