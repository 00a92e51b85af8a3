"""A version on trial through the real command, as clients and operators see it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.end_to_end.asking import asking
from tests.end_to_end.running import foldserve
from tests.service.handmade import DOUBLE, save_version

X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
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
