"""An unmodified tritonclient, blocking and asyncio, against the real command: all that it can ask about models."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as blocking
import tritonclient.http.aio as asynchronous
from tritonclient.utils import InferenceServerException

from service.protocol import SERVER_EXTENSIONS
from tests.end_to_end.running import PATIENCE_S, Foldserve, foldserve
from tests.service.handmade import DOUBLE, save_version

NEGATE = "g (float[N,2] x) => (float[N,2] y) { y = Neg(x) }"


class Client:
    """Both clients under one set of blocking calls: their methods have the same names."""

    def __init__(self, address: str, kind: str) -> None:
        self._address = address
        self._kind = kind

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._kind == "blocking":
                with blocking.InferenceServerClient(
                    self._address, connection_timeout=PATIENCE_S, network_timeout=PATIENCE_S
                ) as client:
                    return getattr(client, name)(*arguments, **options)

            async def ask() -> Any:
                async with asynchronous.InferenceServerClient(self._address) as client:
                    answer = getattr(client, name)(*arguments, **options)
                    return await answer if inspect.isawaitable(answer) else answer

            with warnings.catch_warnings():
                # It leaves answers unread whose status is all that it wants, and aiohttp complains of that.
                warnings.simplefilter("ignore", ResourceWarning)
                answer = asyncio.run(asyncio.wait_for(ask(), PATIENCE_S))
                gc.collect()
            return answer

        return call

    def double(self, model: str, *rows: float, version: str = "") -> list[float]:
        """The first column of the answer for rows of equal values."""
        tensor = blocking.InferInput("x", [len(rows), 2], "FP32")
        tensor.set_data_from_numpy(np.array([[row, row] for row in rows], np.float32))
        result = self.infer(model, [tensor], model_version=version)
        return [float(row[0]) for row in result.as_numpy("y")]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`m` in versions 1 and 2, both served. What a test changes, it makes itself, under a name of its own."""
    root = tmp_path_factory.mktemp("models")
    save_version(root, "m", DOUBLE)
    save_version(root, "m", NEGATE, version=2, config={"version_policy": {"latest": 2}, "max_batch_size": 8})
    return root


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[Foldserve]:
    with foldserve("--model-repository", repository) as running:
        yield running


@pytest.fixture(params=["blocking", "asyncio"])
def client(request: pytest.FixtureRequest, service: Foldserve) -> Client:
    return Client(service.address, request.param)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model's name that no other test uses."""
    return re.sub("[^a-z_]+", "-", request.node.name).strip("-")


def test_health_metadata_and_configuration(client: Client) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is True
    assert client.get_server_metadata()["extensions"] == list(SERVER_EXTENSIONS)
    ready = {
        (name, version): client.is_model_ready(name, version)
        for name, version in (("m", ""), ("m", "1"), ("m", "2"), ("m", "3"), ("none", ""))
    }
    assert ready == {("m", ""): True, ("m", "1"): True, ("m", "2"): True, ("m", "3"): False, ("none", ""): False}
    assert client.get_model_metadata("m")["versions"] == ["1", "2"]
    for version in ("", "1", "2"):
        config = client.get_model_config("m", version)
        assert (config["name"], config["max_batch_size"], config["input"][0]["dims"]) == ("m", 8, [2])
        assert config["version_policy"] == {"latest": {"num_versions": 2}}


def test_statistics_tell_versions_apart(client: Client, repository: Path, name: str) -> None:
    save_version(repository, name, DOUBLE)
    save_version(repository, name, NEGATE, version=2, config={"version_policy": {"all": True}})
    client.load_model(name)
    assert client.double(name, 1, 2, 3) == [-1, -2, -3]
    assert client.double(name, 5, version="1") == [10]

    def counts(*which: str) -> dict[tuple[str, str], tuple[int, int]]:
        return {
            (one["name"], one["version"]): (one["inference_count"], one["inference_stats"]["success"]["count"])
            for one in client.get_inference_statistics(*which)["model_stats"]
        }

    assert counts(name, "1") == {(name, "1"): (1, 1)}
    assert counts(name) == {(name, "1"): (1, 1), (name, "2"): (3, 1)}
    assert counts().items() >= {(name, "1"): (1, 1), (name, "2"): (3, 1), ("m", "2"): (0, 0)}.items()


def states(client: Client, name: str) -> dict[str | None, tuple[str, str]]:
    rows = client.get_model_repository_index()
    return {row.get("version"): (row["state"], row["reason"]) for row in rows if row["name"] == name}


def test_models_are_listed_loaded_and_unloaded(client: Client, repository: Path, name: str) -> None:
    save_version(repository, name, DOUBLE, version=4)
    assert states(client, name) == {None: ("UNAVAILABLE", "not loaded")}
    client.load_model(name)
    assert states(client, name) == {"4": ("READY", "")}
    assert client.double(name, 4) == [8]
    client.unload_model(name)
    client.unload_model(name, unload_dependents=True)
    client.unload_model("none")
    assert states(client, name) == {"4": ("UNAVAILABLE", "unloaded")}
    assert client.is_model_ready(name) is False
    assert client.is_server_ready() is True
    with pytest.raises(InferenceServerException, match="is not ready: version 4 is UNAVAILABLE: unloaded"):
        client.double(name, 1)
    client.load_model(name)
    assert client.double(name, 1) == [2]


def test_a_new_version_is_served_once_loaded_and_a_broken_one_is_not(
    client: Client, repository: Path, name: str
) -> None:
    save_version(repository, name, DOUBLE)
    client.load_model(name)
    (save_version(repository, name, version=2) / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(
        InferenceServerException, match=r"cannot be loaded: version \d+: model\.onnx .*; what was loaded before"
    ):
        client.load_model(name)
    assert client.double(name, 1) == [2]
    save_version(repository, name, NEGATE, version=2)
    client.load_model(name)
    assert client.double(name, 1) == [-1]
    assert client.get_model_metadata(name)["versions"] == ["2"]


def test_a_configuration_can_be_sent_along(client: Client, repository: Path, name: str) -> None:
    """What Model Analyzer does: it reads a configuration, changes it, and loads the model with it."""
    save_version(repository, name, DOUBLE)
    client.load_model(name)
    config = client.get_model_config(name)
    config["max_batch_size"] = 3
    config["instance_group"] = [{"count": 2}]
    client.load_model(name, config=json.dumps(config))
    changed = client.get_model_config(name)
    assert (changed["max_batch_size"], changed["instance_group"][0]["count"]) == (3, 2)
    with pytest.raises(InferenceServerException, match="4 rows"):
        client.double(name, 1, 2, 3, 4)
    with pytest.raises(InferenceServerException, match="sequence_batching is not served"):
        client.load_model(name, config=json.dumps({**config, "sequence_batching": {}}))
    assert client.double(name, 1, 2, 3) == [2, 4, 6]
    client.load_model(name)
    assert client.double(name, 1, 2, 3, 4) == [2, 4, 6, 8]


def test_names_are_the_same_on_both_sides(client: Client, repository: Path, name: str) -> None:
    """The client percent-encodes a name, the server decodes it."""
    dotted = f"{name}.b_c-1"
    save_version(repository, dotted, DOUBLE)
    client.load_model(dotted)
    assert client.double(dotted, 1) == [2]
    assert client.get_model_config(dotted)["name"] == dotted
    for bad in ("../outside", "a b", "ä", "%2e"):
        with pytest.raises(InferenceServerException, match="there is no "):
            client.load_model(bad)


def test_files_are_not_taken(service: Foldserve) -> None:
    """Only over plain HTTP: load_model of tritonclient 2.60 fails on its own `files`, whose base64 is not text."""
    body = json.dumps({"parameters": {"config": "{}", "file:1/model.onnx": "aGVsbG8="}}).encode()
    answer = service.request("POST", "/v2/repository/models/m/load", body)
    assert (answer.status, list(answer.json())) == (501, ["error"])
