"""States, version choice and readiness over real repositories."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import loader
from service.errors import ModelNotReady, NotFound
from service.model_states import ModelStatus
from service.protocol import InferenceRequest, InputTensor, RepositoryIndexRow
from service.registry import Registry
from service.settings import Settings
from service.version_states import ModelState
from tests.service.handmade import DOUBLE, FIXED, LINEAR, publish, save_model, save_version

LOADING, READY, UNLOADING, UNAVAILABLE = ModelState


def loaded(test: Callable[[Registry], Awaitable[None]], **settings: Any) -> None:
    """Runs `test` on a registry that has loaded everything, and closes it."""

    async def scenario() -> None:
        registry = Registry(Settings(**settings))
        await registry.load_all()
        try:
            await test(registry)
        finally:
            await registry.close()

    asyncio.run(asyncio.wait_for(scenario(), timeout=60))


def states_of(**settings: Any) -> dict[tuple[str, int | None], ModelState]:
    found: dict[tuple[str, int | None], ModelState] = {}

    async def test(registry: Registry) -> None:
        found.update({(status.name, status.version): status.state for status in registry.states()})

    loaded(test, **settings)
    return found


def test_one_bad_model_does_not_touch_the_others(tmp_path: Path) -> None:
    publish(tmp_path, "good")
    (save_version(tmp_path, "bad") / "model.onnx").write_bytes(b"nonsense")
    save_version(tmp_path, "worse", config={"max_batch_size": -1})

    async def test(registry: Registry) -> None:
        by_name = {status.name: status for status in registry.states()}
        assert by_name["good"] == ModelStatus("good", 1, READY)
        assert by_name["bad"].state is UNAVAILABLE
        assert "cannot be loaded" in by_name["bad"].reason
        assert by_name["worse"].state is UNAVAILABLE
        assert "worse/config.json: max_batch_size is -1; expected 0 or more" in by_name["worse"].reason
        assert str(tmp_path) not in "".join(status.reason for status in registry.states())
        answer = await registry.get("good").infer(
            InferenceRequest((InputTensor("x", "FP32", np.ones((1, 2), np.float32)),))
        )
        np.testing.assert_array_equal(answer.outputs[0].data, [[5, 7, 9]])
        with pytest.raises(ModelNotReady, match=r"model 'bad' is not ready: version 1 is UNAVAILABLE: .*model\.onnx.*; "
                           r"when that is mended, POST /v2/repository/models/bad/load loads it$"):  # fmt: skip
            registry.get("bad")

    loaded(test, model_repository=tmp_path)


def test_the_latest_version_is_loaded_by_default_and_more_when_the_policy_says_so(tmp_path: Path) -> None:
    for version in (1, 2, 10):
        save_version(tmp_path, "m", DOUBLE, version=version)
    assert states_of(model_repository=tmp_path) == {("m", 10): READY}
    save_version(tmp_path, "m", DOUBLE, config={"version_policy": {"latest": 2}})
    assert states_of(model_repository=tmp_path) == {("m", 2): READY, ("m", 10): READY}


def test_a_version_is_answered_by_itself_and_none_by_the_highest_that_is_ready(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        save_version(tmp_path, "m", DOUBLE, version=version, config={"version_policy": {"latest": 3}})
    (tmp_path / "m" / "3" / "model.onnx").write_bytes(b"")

    async def test(registry: Registry) -> None:
        assert registry.get("m").version == 2
        assert registry.get("m", "1").version == 1
        assert registry.metadata("m").versions == ("1", "2")
        with pytest.raises(ModelNotReady, match=r"version 3 is UNAVAILABLE"):
            registry.get("m", "3")
        for unknown in ("4", "0", "01", "-1", "x", "", "1.0", "9" * 40, "²"):
            with pytest.raises(NotFound, match=r"its versions are 1, 2, 3"):
                registry.get("m", unknown)

    loaded(test, model_repository=tmp_path)


def test_an_unknown_name_is_told_what_there_is_in_a_bounded_text(tmp_path: Path) -> None:
    for number in range(12):
        save_version(tmp_path, f"m{number:02}", DOUBLE)

    async def test(registry: Registry) -> None:
        with pytest.raises(NotFound, match=r"model 'x' is not in the repository; it holds m00, .*m09 and 2 more"):
            registry.get("x")
        with pytest.raises(NotFound) as caught:
            registry.get("x" * 100_000)
        assert len(str(caught.value)) < 500

    loaded(test, model_repository=tmp_path)


@pytest.mark.parametrize(
    ("good", "bad", "strict", "ready"),
    [
        pytest.param(2, 0, True, True, id="strict-all-ready"),
        pytest.param(1, 1, True, False, id="strict-one-unavailable"),
        pytest.param(1, 1, False, True, id="lenient-one-ready"),
        pytest.param(0, 1, False, False, id="lenient-none-ready"),
        pytest.param(0, 0, True, False, id="strict-empty"),
        pytest.param(0, 0, False, False, id="lenient-empty"),
    ],
)
def test_server_readiness(good: int, bad: int, strict: bool, ready: bool, tmp_path: Path) -> None:
    for number in range(good):
        save_version(tmp_path, f"good{number}", DOUBLE)
    for number in range(bad):
        (save_version(tmp_path, f"bad{number}") / "model.onnx").write_bytes(b"")

    async def test(registry: Registry) -> None:
        assert registry.is_ready() is ready

    loaded(test, model_repository=tmp_path, strict_readiness=strict)


@pytest.mark.parametrize("strict", [True, False])
def test_while_models_load_the_loop_answers_and_the_server_is_not_ready(strict: bool, tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)

    async def scenario() -> None:
        registry = Registry(Settings(model_repository=tmp_path, strict_readiness=strict))
        with pytest.raises(ModelNotReady, match="first scan of the model repository is not finished"):
            registry.get("m")
        scanning = "the first scan of the model repository is not finished"
        assert await registry.index() == [RepositoryIndexRow("m", None, "LOADING", scanning)]
        assert not registry.is_scanned()
        loading = asyncio.ensure_future(registry.load_all())
        while not registry.states():
            assert not registry.is_ready()
            await asyncio.sleep(0)
        assert registry.states() == (ModelStatus("m", 1, LOADING),)
        assert not registry.is_ready()
        with pytest.raises(ModelNotReady, match="version 1 is LOADING"):
            registry.get("m")
        turns = 0
        while not loading.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns > 1, "loading held the loop"
        assert registry.is_ready()
        await registry.close()
        assert registry.states() == (ModelStatus("m", 1, UNLOADING, "the server is stopping"),)
        with pytest.raises(ModelNotReady, match="UNLOADING"):
            registry.get("m")

    asyncio.run(asyncio.wait_for(scenario(), timeout=60))


def test_what_is_no_model_is_ignored_and_what_is_an_empty_one_is_unavailable(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / ".staging").mkdir()
    (tmp_path / "m" / "draft").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text('{"name": "empty"}')
    (tmp_path / "hollow" / "1").mkdir(parents=True)
    assert states_of(model_repository=tmp_path) == {
        ("m", 1): READY, ("empty", None): UNAVAILABLE, ("hollow", 1): UNAVAILABLE,
    }  # fmt: skip


def test_a_file_that_the_system_refuses_to_look_at_is_a_reason_not_a_defect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A name that is too long stands for every other refusal of the system; permissions would not stop root."""
    output = {"name": "y", "datatype": "FP32", "shape": [-1, 3], "labels": "l" * 300}
    save_version(tmp_path, "m", LINEAR, config={"outputs": [output]})

    async def test(registry: Registry) -> None:
        (status,) = registry.states()
        assert status.reason == f"m/1/{'l' * 300} cannot be read: File name too long"

    loaded(test, model_repository=tmp_path)
    assert "Traceback" not in caplog.text


def test_only_a_single_file_can_be_hopeless(tmp_path: Path) -> None:
    (save_version(tmp_path, "m") / "model.onnx").write_bytes(b"nonsense")
    told = []

    async def test(registry: Registry) -> None:
        told.append(registry.why_hopeless())

    loaded(test, model_repository=tmp_path)
    loaded(test, model=save_model(tmp_path / "good.onnx", LINEAR))
    loaded(test, model=tmp_path / "m" / "1" / "model.onnx")
    assert told[:2] == ["", ""]
    assert "model.onnx cannot be loaded" in told[2]


def test_a_missing_provider_makes_every_model_unavailable(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)

    async def test(registry: Registry) -> None:
        (status,) = registry.states()
        assert status.state is UNAVAILABLE
        assert "CUDAExecutionProvider" in status.reason

    loaded(test, model_repository=tmp_path, providers=("CUDAExecutionProvider",))


def test_a_defect_of_ours_is_logged_and_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_version(tmp_path, "m", DOUBLE)
    save_version(tmp_path, "n", FIXED)
    load = loader.load_version

    def break_n(version: Any, config: Any, **options: Any) -> Any:
        if config.name == "n":
            raise ZeroDivisionError("oops")
        return load(version, config, **options)

    monkeypatch.setattr(loader, "load_version", break_n)
    with caplog.at_level(logging.ERROR):
        assert states_of(model_repository=tmp_path) == {("m", 1): READY, ("n", 1): UNAVAILABLE}
    assert "Traceback" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_single_file_is_served_under_its_own_name(tmp_path: Path) -> None:
    """Whatever else lies in its folder belongs to something else."""
    path = save_model(tmp_path / "My net (v2).onnx", LINEAR)
    (tmp_path / "report.json").write_text("not ours")
    (tmp_path / "golden.npz").write_text("not ours")

    async def test(registry: Registry) -> None:
        assert registry.states() == (ModelStatus("My-net-v2", 1, READY),)
        assert registry.metadata("My-net-v2").versions == ("1",)
        assert registry.is_ready()

    loaded(test, model=path)


def test_a_published_file_served_alone_is_still_checked(tmp_path: Path) -> None:
    folder = publish(tmp_path, "linear")

    async def ready(registry: Registry) -> None:
        assert registry.get("linear").report.golden.startswith("3 samples")

    loaded(ready, model=folder / "model.onnx")
    (folder / "golden.npz").unlink()

    async def rejected(registry: Registry) -> None:
        with pytest.raises(ModelNotReady, match=r"golden\.npz is missing"):
            registry.get("linear")

    loaded(rejected, model=folder / "model.onnx")
