"""A version on trial through the real command, as clients and operators see it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.asking import asking
from tests.end_to_end.running import Foldserve, foldserve
from tests.service.handmade import DOUBLE, save_version

X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
LOAD = "/v2/repository/models/m/load"
NEARLY = "g (float[N,2] x) => (float[N,2] y) { c = Constant<value_float=2.5>() y = Mul(x, c) }"


def test_shadow_then_canary_under_load(tmp_path: Path) -> None:
    """Clients meet the version on trial only when it becomes a canary, and then for its share."""
    save_version(tmp_path, "m", DOUBLE)
    config = {"version_policy": {"all": True}, "traffic": {"shadow": {"version": 2}}}
    save_version(tmp_path, "m", NEARLY, version=2, config=config)
    with foldserve("--model-repository", tmp_path) as service:
        with asking(service, "m", X, 3) as clients:
            service.wait_until(
                lambda: service.get("/v2/models/m").json()["traffic"]["shadow"]["compared"] > 20, "comparing"
            )
        assert {answer for client in clients for answer in client.answers} == {(2.0, 4.0)}
        assert [client.lost for client in clients] == [[]] * 3
        told = service.get("/v2/models/m").json()["traffic"]
        assert (told["version"], told["version_on_trial"]) == ("1", "2")
        assert told["shadow"]["differing"] == told["shadow"]["compared"]
        assert told["shadow"]["largest_absolute_difference"] == 1.0

        canary = config | {"name": "m", "traffic": {"canary": {"version": 2, "weight": 0.25}}}
        (tmp_path / "m" / "config.json").write_text(json.dumps(canary))
        with asking(service, "m", X, 3) as clients:
            assert service.request("POST", "/v2/repository/models/m/load").status == 200
            service.wait_until(lambda: service.get("/v2/models/m").json()["traffic"]["requests"] > 200, "sharing")
        assert [client.lost for client in clients] == [[]] * 3
        told = service.get("/v2/models/m").json()["traffic"]
        assert told["on_trial"] == int(0.25 * told["requests"])
        assert "Traceback" not in service.log()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_new_version_that_a_call_puts_on_trial_stays_so_where_the_disk_is_polled(
    workers: str, tmp_path: Path
) -> None:
    """Polling meets the files of the new version as well; loading them again would let it answer everybody."""
    save_version(tmp_path, "m", DOUBLE)
    with foldserve("--model-repository", tmp_path, "--repository-poll-s", "0.2", "--workers", workers) as service:
        save_version(tmp_path, "m", NEARLY, version=2)
        trial = {"version_policy": {"latest": 2}, "traffic": {"canary": {"version": 2, "weight": 0}}}
        assert service.post(LOAD, {"parameters": trial}).status == 200
        save_version(tmp_path, "other", DOUBLE)
        service.wait_until(lambda: service.get("/v2/models/other/ready").status == 200, "polling")
        assert service.infer("m", X).json()["model_version"] == "1"
        assert service.get("/v2/models/m").json()["traffic"]["version_on_trial"] == "2"


def test_a_model_whose_only_version_is_on_trial_is_not_ready(tmp_path: Path) -> None:
    """It answers nobody who names no version, so no load balancer is to send anybody here; and it says why."""
    config = {"version_policy": {"all": True}, "traffic": {"canary": {"version": 2, "weight": 0.1}}}
    save_version(tmp_path, "m", DOUBLE, version=2, config=config)
    with foldserve("--model-repository", tmp_path, wait="settled") as service:
        ready = service.get("/v2/health/ready")
        asked = service.infer("m", X)
        assert (ready.status, asked.status) == (503, 503)
        told = "version 2 is on trial and never answers alone"
        assert told in ready.body.decode()
        assert told in asked.body.decode()
        assert service.post("/v2/models/m/versions/2/infer", {"inputs": [X]}).status == 200

        save_version(tmp_path, "m", DOUBLE)
        assert service.request("POST", LOAD).status == 200
        assert service.is_ready()


def test_load_calls_begin_change_and_end_a_trial_under_load(tmp_path: Path) -> None:
    """Nothing is written to disk, so polling has nothing to undo; a call that is refused changes nothing."""
    save_version(tmp_path, "m", DOUBLE)
    save_version(tmp_path, "m", NEARLY, version=2)

    def load(service: Foldserve, **parameters: object) -> int:
        return service.post(LOAD, {"parameters": parameters}).status

    def traffic(service: Foldserve) -> Any:
        return service.get("/v2/models/m").json().get("traffic")

    with foldserve("--model-repository", tmp_path, "--repository-poll-s", "0.1") as service:
        both = {"version_policy": {"all": True}}
        with asking(service, "m", X, 3) as clients:
            assert load(service, **both, traffic={"shadow": {"version": 2}}) == 200
            service.wait_until(lambda: traffic(service)["shadow"]["compared"] > 5, "comparing")
            assert load(service, **both, traffic={"canary": {"version": 2, "weight": 0.25}}) == 200
            service.wait_until(lambda: traffic(service)["requests"] > 200, "sharing")
            assert load(service, **both, traffic={"canary": {"version": 2, "weight": 25}}) == 400
            assert load(service, **both, traffic={"canary": {"version": 3, "weight": 0.25}}) == 400
            save_version(tmp_path, "other", DOUBLE)
            service.wait_until(lambda: "other version 1 READY" in service.log(), "polling")
            told = traffic(service)
            assert told["on_trial"] == int(0.25 * told["requests"])
            assert load(service, config=json.dumps({**both, "traffic": {"canary": {"version": 2, "weight": 1}}})) == 200
            assert service.infer("m", X).json()["model_version"] == "2"
            assert load(service) == 200
            assert traffic(service) is None
        assert [client.lost for client in clients] == [[]] * 3
        assert {answer for client in clients for answer in client.answers} == {(2.0, 4.0), (2.5, 5.0)}

        assert load(service, **both, traffic={"canary": {"version": 2, "weight": 0.25}}) == 200
        assert service.request("POST", LOAD.replace("/load", "/unload")).status == 200
        assert load(service) == 200
        assert traffic(service) is None
        assert "Traceback" not in service.log()
