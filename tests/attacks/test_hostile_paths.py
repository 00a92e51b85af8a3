"""Nothing that a client sends names a path on the server's disk, over raw sockets to the real command.

Names that mean folders elsewhere, configurations that name files, and models that are made of files elsewhere: nothing
outside the repository is loaded, read, or so much as mentioned, and what serves goes on serving.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.end_to_end.running import PATIENCE_S, Foldserve, foldserve
from tests.service.handmade import DOUBLE, save_model, save_version
from tests.service.test_session import external_weight

# A word that is in every file outside the repository, and a shape that no model in it has.
SECRET = "hunter2"
OUTSIDE = f"g (float[N,7] {SECRET}) => (float[N,7] y) {{ y = Neg({SECRET}) }}"
GOOD = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository, `models`, in a folder with another model and a secret beside it."""
    place = tmp_path_factory.mktemp("place")
    save_version(place / "models", "good", DOUBLE)
    save_version(place, "outside", OUTSIDE)
    save_version(place / "outside", "deeper", OUTSIDE)
    (place / "outside" / "labels.txt").write_text(SECRET)
    (place / "outside" / "w.bin").write_bytes(np.ones((2, 2), np.float32).tobytes())
    return place


@pytest.fixture(scope="module")
def service(place: Path) -> Iterator[Foldserve]:
    with foldserve("--model-repository", place / "models", "--no-strict-readiness") as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_has_changed(service: Foldserve) -> Iterator[None]:
    yield
    assert service.post("/v2/models/good/infer", GOOD).json()["outputs"][0]["data"] == [2, 4]
    assert "Traceback" not in service.log()


def ask(service: Foldserve, method: str, path: str, body: bytes = b"") -> tuple[int, str]:
    """As spelt: nothing between here and the server tidies the path."""
    connection = http.client.HTTPConnection(service.address, timeout=PATIENCE_S)
    connection.putrequest(method, path, skip_accept_encoding=True)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    result = answer.status, answer.read().decode()
    connection.close()
    return result


NAMES = {
    "parent": "..",
    "beside": "../outside",
    "escaped-dots": "%2e%2e",
    "escaped-slash": "..%2Foutside",
    "escaped-twice": "%252e%252e%252foutside",
    "through-a-model": "good/../../outside",
    "through-a-model-escaped": "good%2F..%2F..%2Foutside",
    "backslash": "..%5Coutside",
    "current": ".",
    "nothing": "",
    "nul": "good%00",
    "nul-behind-a-path": "..%2Foutside%00good",
    "absolute": "%2Fetc",
    "overlong-utf-8": "%c0%ae%c0%ae%c0%afoutside",
    "long": "a" * 5000,
    "home": "~",
    "star": "*",
    "version-folder": "good%2F1",
}
ROUTES = [
    pytest.param("GET", "/v2/models/{}", id="metadata"),
    pytest.param("GET", "/v2/models/{}/config", id="config"),
    pytest.param("GET", "/v2/models/good/versions/{}", id="version"),
    pytest.param("POST", "/v2/models/{}/infer", id="infer"),
    pytest.param("POST", "/v2/models/good/versions/{}/infer", id="infer-version"),
    pytest.param("POST", "/v1/models/{}:predict", id="predict"),
    pytest.param("POST", "/v2/repository/models/{}/load", id="load"),
    pytest.param("POST", "/v2/repository/models/{}/unload", id="unload"),
    pytest.param("POST", "/v2/repository/{}/models/good/load", id="load-from-another-repository"),
    pytest.param("POST", "/v2/systemsharedmemory/region/{}/register", id="shared-memory"),
    pytest.param("GET", "/static-offline-docs/{}", id="docs-page"),
]


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_a_name_that_means_a_folder_elsewhere_means_nothing(
    method: str, route: str, service: Foldserve, place: Path
) -> None:
    for case, name in NAMES.items():
        body = json.dumps(GOOD).encode() if method == "POST" else b""
        status, told = ask(service, method, route.format(name), body)
        # There is nothing to unload of a name that is not loaded, and that is no error (Triton).
        assert status in (400, 404, 405, 501) or (route.endswith("/unload") and (status, told) == (200, "{}")), case
        assert SECRET not in told, case
        assert str(place) not in told, case


# --- configurations -----------------------------------------------------------------------------------------------

CONFIG = {
    "name": "good",
    "platform": "onnxruntime_onnx",
    "max_batch_size": 4,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}],
}


@pytest.mark.parametrize("path", ["../../outside/1/model.onnx", "/etc/hostname", "a/b", "..", ".hidden", "a\0b"])
@pytest.mark.parametrize("key", ["default_model_filename", "label_filename"])
def test_a_configuration_that_a_client_sends_names_no_file_elsewhere(
    key: str, path: str, service: Foldserve, place: Path
) -> None:
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    (config if key == "default_model_filename" else config["output"][0])[key] = path
    body = json.dumps({"parameters": {"config": json.dumps(config)}}).encode()
    status, told = ask(service, "POST", "/v2/repository/models/good/load", body)
    assert (status, "must be a plain file name" in told) == (400, True)
    assert str(place) not in told


def test_files_do_not_travel_with_a_load(service: Foldserve, place: Path) -> None:
    for name in ("file:1/model.onnx", "file:../outside/x", "file:/etc/x"):
        body = json.dumps({"parameters": {name: "aGk="}}).encode()
        assert ask(service, "POST", "/v2/repository/models/good/load", body)[0] == 501
    assert not (place / "outside" / "x").exists()


# --- links and external data --------------------------------------------------------------------------------------


def _external(location: str) -> Callable[[Path, Path], object]:
    def make(model: Path, outside: Path) -> None:
        (model / "1").mkdir(parents=True)
        written = external_weight(model / "1", location.format(outside=outside))
        written.rename(model / "1" / "model.onnx")

    return make


def _linked(*parts: str) -> Callable[[Path, Path], object]:
    """The model's folder, or something in it, is a link to what lies outside."""

    def make(model: Path, outside: Path) -> None:
        link = model.joinpath(*parts)
        if parts and parts[0] != "1":
            save_model(model / "1" / "model.onnx", DOUBLE)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(outside.joinpath(*parts) if parts != ("config.json",) else outside / "labels.txt")

    return make


HOSTILE = [
    pytest.param(_linked(), "leads out of the model repository", id="model-s-folder"),
    pytest.param(_linked("1"), "leads out of the model repository", id="version-s-folder"),
    pytest.param(_linked("1", "model.onnx"), "leads out of the model repository", id="model-file"),
    pytest.param(_linked("config.json"), "leads out of the model repository", id="configuration"),
    pytest.param(_external("../../../outside/w.bin"), "cannot be loaded by ONNX Runtime", id="external-data-above"),
    pytest.param(_external("{outside}/w.bin"), "cannot be loaded by ONNX Runtime", id="external-data-absolute"),
]


@pytest.mark.parametrize(("make", "told"), HOSTILE)
def test_a_model_made_of_files_elsewhere_is_not_loaded(
    make: Callable[[Path, Path], object], told: str, service: Foldserve, place: Path
) -> None:
    model = place / "models" / "hostile"
    make(model, place / "outside")
    try:
        status, body = ask(service, "POST", "/v2/repository/models/hostile/load")
        assert (status, told in body) == (400, True), body
        assert SECRET not in body
        assert str(place) not in body
        assert ask(service, "GET", "/v2/models/hostile")[0] in (404, 503)
    finally:
        model.rename(place / f"was-hostile-{len(list(place.iterdir()))}")
        ask(service, "POST", "/v2/repository/models/hostile/unload")


def test_links_are_followed_out_where_the_operator_says_so(place: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "linked").symlink_to(place / "outside")
    with foldserve("--model-repository", tmp_path / "models", "--follow-links-out") as running:
        assert running.get("/v2/models/linked").json()["inputs"][0]["name"] == SECRET
