"""An application in this process reads its models behind its start: tests wait until it says that it has."""

from __future__ import annotations

import time

from starlette.testclient import TestClient

PATIENCE_S = 60


def wait_until_ready(client: TestClient, path: str = "/v2/health/ready", **headers: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while client.get(path, headers=headers).status_code != 200:
        assert time.monotonic() < give_up, client.get(path, headers=headers).text
        time.sleep(0.01)
