"""Loading and unloading through the real command: nobody who asks meanwhile notices, and a stop is never held up."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.running import PATIENCE_S, Answer, Foldserve, foldserve
from tests.service.handmade import DOUBLE, save_version

LOAD = "/v2/repository/models/m/load"
UNLOAD = "/v2/repository/models/m/unload"
X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


class Asker(threading.Thread):
    """Keeps asking for answers until it is told to end; `refused` is what was not answered with 200."""

    def __init__(self, service: Foldserve) -> None:
        super().__init__(daemon=True)
        self._service = service
        self._ended = threading.Event()
        self.answered = 0
        self.refused: list[Any] = []

    def run(self) -> None:
        while not self._ended.is_set():
            answer = self._service.infer("m", X)
            if answer.status == 200:
                self.answered += 1
            else:
                self.refused.append(answer.body)

    def end(self) -> None:
        self._ended.set()
        self.join(PATIENCE_S)


def test_reloading_under_load_loses_no_request(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with foldserve("--model-repository", tmp_path) as service:
        askers = [Asker(service) for _ in range(3)]
        for asker in askers:
            asker.start()
        for version in range(2, 12):
            save_version(tmp_path, "m", DOUBLE, version=version)
            answer = service.request("POST", LOAD)
            assert (answer.status, answer.json()) == (200, {})
            assert service.get("/v2/models/m").json()["versions"] == [str(version)]
            assert service.is_ready()
        for asker in askers:
            asker.end()
        assert [asker.refused for asker in askers] == [[], [], []]
        assert all(asker.answered for asker in askers)
        answer = service.request("POST", UNLOAD)
        assert answer.status == 200
        assert service.infer("m", X).status == 503
        assert "Traceback" not in service.log()


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
