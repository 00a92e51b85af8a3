"""The guard around the application, under whatever ASGI server: under a root path too, and for each method."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.access import Guard
from service.access_api import GuardedApp
from service.api_keys import KeyFile
from service.app import build_app, create_app
from service.knobs import SettingsError
from service.logs import ConsoleFormatter
from service.settings import Settings
from tests.service.fakes import fake_registry
from tests.service.handmade import DOUBLE, save_version
from tests.service.waiting_for import wait_until_ready

KEY = "infer-key-0123456789"
SHOWN = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"infer: {KEY}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def client(key_file: Path, tmp_path: Path) -> Iterator[TestClient]:
    save_version(tmp_path / "models", "m", DOUBLE)
    settings = Settings(model_repository=tmp_path / "models", api_key_file=key_file, root_path="/base")
    with TestClient(create_app(settings)) as opened:
        wait_until_ready(opened, **SHOWN)
        yield opened


@pytest.mark.parametrize("base", ["", "/base"])
@pytest.mark.parametrize(
    ("method", "path", "without", "shown"),
    [
        pytest.param("GET", "/v2", 401, 200, id="read"),
        pytest.param("HEAD", "/v2", 401, 200, id="head"),
        pytest.param("GET", "/v2/health/live", 200, 200, id="probe"),
        pytest.param("HEAD", "/v2/health/live", 200, 200, id="probe-by-head"),
        pytest.param("POST", "/v2/models/none/infer", 401, 404, id="infer"),
        pytest.param("POST", "/v2/repository/models/none/load", 401, 403, id="control"),
        pytest.param("POST", "/base/v2/models/none/infer", 401, 403, id="no-such-route"),
        pytest.param("OPTIONS", "/v2/models/none/infer", 401, 405, id="options"),
    ],
)
def test_a_root_path_changes_nothing(
    method: str, path: str, without: int, shown: int, base: str, client: TestClient
) -> None:
    if not base and path.startswith("/base"):
        shown = 404  # there the first is the root path
    assert client.request(method, base + path).status_code == without
    assert client.request(method, base + path, headers=SHOWN).status_code == shown


def test_a_refusal_has_the_form_of_every_error(client: TestClient) -> None:
    answer = client.get("/v2")
    assert list(answer.json()) == ["error"]
    assert (answer.headers["content-type"], answer.headers["www-authenticate"]) == ("application/json", "Bearer")


def test_an_application_whose_keys_cannot_be_read_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--api-key-file"):
        create_app(Settings(api_key_file=tmp_path / "none"))


def test_without_a_guard_everything_is_everybody_s() -> None:
    with TestClient(build_app(fake_registry(), 1000)) as opened:
        assert opened.get("/v2").status_code == 200


async def _refuse(guard: Guard, headers: list[tuple[bytes, bytes]]) -> list[Any]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async def unreachable(*_: Any) -> None:
        raise AssertionError

    scope = {"type": "http", "method": "POST", "path": "/v2/models/m/infer", "headers": headers}
    await GuardedApp(unreachable, guard)(scope, receive, send)
    return sent


@pytest.mark.parametrize(
    ("headers", "closes"),
    [
        pytest.param([], False, id="no-body"),
        pytest.param([(b"content-length", b"65536")], False, id="short"),
        pytest.param([(b"content-length", b"65537")], True, id="long"),
        pytest.param([(b"content-length", b"9" * 30)], True, id="very-long"),
        pytest.param([(b"content-length", b"x")], True, id="no-number"),
        pytest.param([(b"transfer-encoding", b"chunked")], True, id="of-unknown-length"),
    ],
)
def test_a_connection_is_kept_only_when_little_of_the_refused_body_is_to_come(
    headers: list[tuple[bytes, bytes]], closes: bool, key_file: Path
) -> None:
    start, *_ = asyncio.run(_refuse(Guard(KeyFile(key_file)), headers))
    assert start["status"] == 401
    assert ((b"connection", b"close") in start["headers"]) is closes


@pytest.mark.parametrize(
    ("headers", "reason", "path"),
    [
        ({}, "unauthenticated", "/v2/models/none/infer"),
        (SHOWN, "forbidden", "/v2/repository/models/none/load"),
    ],
)
def test_who_is_not_let_through_has_a_line_without_the_key(
    headers: dict[str, str], reason: str, path: str, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    with caplog.at_level(logging.INFO, "service"):
        client.post(path, headers={**headers, "X-Request-Id": "a-1"})
    (line,) = [ConsoleFormatter().format(one) for one in caplog.records if one.name == "service.refusal_lines"]
    assert f" path={path} reason={reason} status=40" in line
    assert line.endswith(" request_id=a-1")
    assert KEY not in line
