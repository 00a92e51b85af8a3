"""Loading and unloading while others answer: over real repositories, with real models."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import loader
from service.assignment import Assignment
from service.errors import LoadFailed, ModelNotReady, NotFound
from service.model_states import ModelStatus
from service.protocol import InferenceRequest, InputTensor, RepositoryIndexRow, TrafficReport
from service.registry import Registry
from service.settings import Settings
from service.version_states import ModelState
from tests.service.handmade import DOUBLE, save_model, save_version

LOADING, READY, UNLOADING, UNAVAILABLE = ModelState
NEGATE = "g (float[N,2] x) => (float[N,2] y) { y = Neg(x) }"


def running(test: Callable[[Registry], Awaitable[None]], **settings: Any) -> None:
    """Runs `test` on a registry that has loaded everything, and closes it."""

    async def scenario() -> None:
        registry = Registry(Settings(**settings))
        await registry.load_all()
        try:
            await test(registry)
        finally:
            await registry.close()

    asyncio.run(asyncio.wait_for(scenario(), timeout=60))


async def ask(registry: Registry, name: str = "m", value: float = 1) -> float:
    """The first output for a row of `value`s."""
    request = InferenceRequest((InputTensor("x", "FP32", np.full((1, 2), value, np.float32)),))
    return float((await registry.get(name).infer(request)).outputs[0].data[0, 0])


async def until_gone(registry: Registry, version: int) -> None:
    while any(status.version == version for status in registry.states()):
        await asyncio.sleep(0.001)


# --- load ---------------------------------------------------------------------------------------------------------


def test_load_takes_the_folder_as_it_is_now(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)

    async def test(registry: Registry) -> None:
        assert await ask(registry) == 2
        save_version(tmp_path, "m", NEGATE, version=2, config={"max_batch_size": 5})
        assert registry.metadata("m").versions == ("1",)
        await registry.load("m")
        assert await ask(registry) == -1
        assert registry.metadata("m").versions == ("2",)
        assert registry.configuration("m").max_batch_size == 5
        await until_gone(registry, 1)
        assert registry.states() == (ModelStatus("m", 2, READY),)
        with pytest.raises(NotFound, match="its versions are 2"):
            registry.get("m", "1")

    running(test, model_repository=tmp_path)


def test_a_version_whose_file_was_replaced_is_loaded_again(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)

    async def test(registry: Registry) -> None:
        save_version(tmp_path, "m", NEGATE)
        assert await ask(registry) == 2
        await registry.load("m")
        assert await ask(registry) == -1
        assert registry.states() == (ModelStatus("m", 1, READY),)

    running(test, model_repository=tmp_path)


def test_a_model_that_came_later_is_loaded_by_name(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)

    async def test(registry: Registry) -> None:
        with pytest.raises(NotFound, match=r"'late' is not in the repository; it holds m$"):
            registry.get("late")
        save_version(tmp_path, "late", NEGATE)
        with pytest.raises(
            NotFound, match="'late' is in the repository, but not loaded; POST /v2/repository/models/late/"
        ):
            registry.get("late")
        await registry.load("late")
        assert await ask(registry, "late") == -1

    running(test, model_repository=tmp_path)


def test_a_load_that_fails_leaves_what_served_and_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_version(tmp_path, "m", DOUBLE)

    async def test(registry: Registry) -> None:
        (save_version(tmp_path, "m", version=2) / "model.onnx").write_bytes(b"nonsense")
        told = r"'m' cannot be loaded: version 2: model\.onnx cannot be .*serves on"
        with pytest.raises(LoadFailed, match=told) as caught:
            await registry.load("m")
        (logged,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
        assert logged.startswith("model m version 2 cannot be loaded, what was loaded before serves on: model.onnx")
        assert str(tmp_path) not in str(caught.value)
        serving, failed = registry.states()
        assert serving == ModelStatus("m", 1, READY)
        assert (failed.version, failed.state) == (2, UNAVAILABLE)
        assert failed.reason.startswith("model.onnx cannot be loaded")
        assert registry.is_ready()
        assert await ask(registry) == 2
        save_version(tmp_path, "m", NEGATE, version=2)
        await registry.load("m")
        assert registry.states()[0] == ModelStatus("m", 2, READY)

    running(test, model_repository=tmp_path)


def _damage_model(folder: Path) -> None:
    (folder / "1" / "model.onnx").write_bytes(b"nonsense")


def _damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        pytest.param(_damage_model, "serves on; as it is on disk now: model.onnx cannot be loaded", id="its-file"),
        pytest.param(_damage_config, "serves on; model 'm' cannot be loaded: m/config.json", id="its-config"),
    ],
)
def test_version_that_cannot_be_loaded_again_tells_why_while_it_serves_on(
    damage: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    save_version(tmp_path, "m", DOUBLE)

    async def test(registry: Registry) -> None:
        damage(tmp_path / "m")
        with pytest.raises(LoadFailed):
            await registry.load("m")
        (status,) = registry.states()
        assert (status.state, registry.is_ready()) == (READY, True)
        assert status.reason.startswith(told)
        with pytest.raises(LoadFailed):
            await registry.load("m", {"config": '{"backend": "none"}'})
        assert registry.states() == (status,), "what a caller brings says nothing of what lies on disk"
        (tmp_path / "m" / "config.json").unlink(missing_ok=True)
        save_version(tmp_path, "m", NEGATE)
        await registry.load("m")
        assert registry.states() == (ModelStatus("m", 1, READY),)

    running(test, model_repository=tmp_path)


def test_one_version_that_fails_fails_the_whole_load(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE, config={"version_policy": {"latest": 2}})

    async def test(registry: Registry) -> None:
        (tmp_path / "m" / "config.json").write_text('{"name": "m", "version_policy": {"latest": 3}}')
        save_version(tmp_path, "m", NEGATE, version=2)
        (save_version(tmp_path, "m", version=3) / "model.onnx").write_bytes(b"nonsense")
        with pytest.raises(LoadFailed):
            await registry.load("m")
        assert registry.metadata("m").versions == ("1",)
        await registry.unload("m")
        with pytest.raises(LoadFailed):
            await registry.load("m")
        assert [status.state for status in registry.states()] == [UNAVAILABLE] * 3
        with pytest.raises(ModelNotReady, match="version 2 is UNAVAILABLE: another version could not be loaded"):
            registry.get("m", "2")

    running(test, model_repository=tmp_path)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        pytest.param('{"name": "other"}', "m/config.json: name is 'other'", id="config"),
        pytest.param('{"name": "m", "version_policy": {"latest": 0}}', "m/config.json: version_policy", id="policy"),
    ],
)
def test_a_bad_configuration_is_a_load_that_fails(config: str, reason: str, tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)

    async def test(registry: Registry) -> None:
        (tmp_path / "m" / "config.json").write_text(config)
        with pytest.raises(LoadFailed, match=reason):
            await registry.load("m")
        assert await ask(registry) == 2

    running(test, model_repository=tmp_path)


@pytest.mark.parametrize("name", ["no", "..", "../m", "m/1", "", ".m", "%2e%2e", "m\0", "x" * 5000])
def test_a_name_that_is_not_in_the_repository_is_not_found(name: str, tmp_path: Path) -> None:
    save_version(tmp_path / "models", "other", DOUBLE)
    save_version(tmp_path, "m", DOUBLE)

    async def test(registry: Registry) -> None:
        with pytest.raises(NotFound, match="there is no model"):
            await registry.load(name)
        assert registry.states() == (ModelStatus("other", 1, READY),)

    running(test, model_repository=tmp_path / "models")


def test_loads_of_one_name_happen_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_version(tmp_path, "m", DOUBLE)
    at_once = threading.Semaphore(1)
    overlaps = []
    load = loader.load_version

    def watched(*arguments: Any, **options: Any) -> Any:
        overlaps.append(not at_once.acquire(blocking=False))
        try:
            return load(*arguments, **options)
        finally:
            at_once.release()

    monkeypatch.setattr(loader, "load_version", watched)

    async def test(registry: Registry) -> None:
        await asyncio.gather(*(registry.load("m") for _ in range(4)), registry.unload("m"), registry.load("m"))
        assert await ask(registry) == 2

    running(test, model_repository=tmp_path)
    assert overlaps == [False] * 6


def test_what_was_taken_before_the_change_is_answered_by_what_took_it(tmp_path: Path) -> None:
    """Every request that is waiting when the new version takes over still gets its own, right answer."""
    save_version(tmp_path, "m", DOUBLE)

    async def test(registry: Registry) -> None:
        answers: dict[float, float] = {}
        model = registry.get("m")
        save_version(tmp_path, "m", NEGATE, version=2)

        def keep(key: float) -> Callable[[Any], None]:
            return lambda outcome: answers.update({key: float(outcome.outputs[0].data[0, 0])})

        def submit(count: int) -> None:
            for value in range(count):
                tensor = InputTensor("x", "FP32", np.full((1, 2), value, np.float32))
                model.begin(InferenceRequest((tensor,)), keep(value))

        prepared = await registry.prepare("m")
        submit(500)
        prepared.commit()
        await until_gone(registry, 1)
        assert answers == {value: 2 * value for value in range(500)}
        assert await ask(registry) == -1

    running(test, model_repository=tmp_path)


def test_what_is_prepared_answers_nobody_until_it_is_committed(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)

    async def test(registry: Registry) -> None:
        save_version(tmp_path, "m", NEGATE, version=2)
        prepared = await registry.prepare("m")
        assert await ask(registry) == 2
        assert registry.states() == (ModelStatus("m", 1, READY),)
        second = asyncio.ensure_future(registry.load("m"))
        await asyncio.sleep(0.05)
        assert not second.done()  # the name is locked
        prepared.commit()
        assert await ask(registry) == -1
        await second

    running(test, model_repository=tmp_path)


def test_what_is_prepared_and_aborted_is_gone_and_the_name_is_free_again(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)

    async def test(registry: Registry) -> None:
        save_version(tmp_path, "m", NEGATE, version=2)
        save_version(tmp_path, "late", NEGATE)
        await (await registry.prepare("m")).abort("another process could not load it")
        await (await registry.prepare("late")).abort("another process could not load it")
        assert await ask(registry) == 2
        assert registry.states() == (
            ModelStatus("m", 1, READY),
            ModelStatus("late", 1, UNAVAILABLE, "another process could not load it"),
        )
        await registry.load("late")
        assert await ask(registry, "late") == -1

    running(test, model_repository=tmp_path)


def test_requests_never_miss_during_many_reloads(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)

    async def test(registry: Registry) -> None:
        done = asyncio.Event()
        asked = 0

        async def keep_asking() -> None:
            nonlocal asked
            while not done.is_set():
                assert await ask(registry, value=3) == 6
                asked += 1
                await asyncio.sleep(0)

        askers = [asyncio.ensure_future(keep_asking()) for _ in range(4)]
        for _ in range(10):
            await registry.load("m")
        done.set()
        await asyncio.gather(*askers)
        assert asked > 10
        (counters,) = registry.statistics("m")
        assert counters.inference_stats.success.count == asked
        assert counters.inference_stats.fail.count == 0

    running(test, model_repository=tmp_path)


# --- unload -------------------------------------------------------------------------------------------------------


def test_an_unloaded_model_says_so_and_can_be_loaded_again(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    save_version(tmp_path, "n", DOUBLE)

    async def test(registry: Registry) -> None:
        await ask(registry)
        await registry.unload("m")
        assert registry.states() == (ModelStatus("m", 1, UNAVAILABLE, "unloaded"), ModelStatus("n", 1, READY))
        with pytest.raises(ModelNotReady, match=r"version 1 is UNAVAILABLE: unloaded; POST .* loads it$"):
            registry.get("m")
        await registry.load("m")
        assert await ask(registry) == 2
        assert registry.statistics("m")[0].inference_count == 2, "the counters belong to the version"

    running(test, model_repository=tmp_path)


def test_unloading_answers_what_was_taken_and_refuses_what_comes(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)

    async def test(registry: Registry) -> None:
        taken = [asyncio.ensure_future(ask(registry, value=value)) for value in range(100)]
        await asyncio.sleep(0)
        leaving = asyncio.ensure_future(registry.unload("m"))
        await asyncio.sleep(0)
        assert registry.states() == (ModelStatus("m", 1, UNLOADING, "unloading"),)
        with pytest.raises(ModelNotReady, match="version 1 is UNLOADING"):
            registry.get("m")
        await leaving
        assert await asyncio.gather(*taken) == [2 * value for value in range(100)]

    running(test, model_repository=tmp_path)


@pytest.mark.parametrize("name", ["no", "..", "x" * 5000])
def test_unloading_what_is_not_loaded_changes_nothing(name: str, tmp_path: Path) -> None:
    """As in Triton."""
    save_version(tmp_path, "m", DOUBLE)

    async def test(registry: Registry) -> None:
        await registry.unload(name)
        assert registry.states() == (ModelStatus("m", 1, READY),)

    running(test, model_repository=tmp_path)


def test_a_broken_model_can_be_put_aside(tmp_path: Path) -> None:
    """Then the server is ready again: somebody has decided that this model does not count."""
    save_version(tmp_path, "m", DOUBLE)
    (save_version(tmp_path, "broken") / "model.onnx").write_bytes(b"nonsense")

    async def test(registry: Registry) -> None:
        assert not registry.is_ready()
        await registry.unload("broken")
        assert registry.is_ready()

    running(test, model_repository=tmp_path)


# --- what the server tells of it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
def test_readiness_is_about_what_the_server_was_started_with(strict: bool, tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    save_version(tmp_path, "n", DOUBLE)

    async def test(registry: Registry) -> None:
        (save_version(tmp_path, "late") / "model.onnx").write_bytes(b"nonsense")
        load = asyncio.ensure_future(registry.load("late"))
        while not any(status.state is LOADING for status in registry.states()):
            await asyncio.sleep(0)
        assert registry.is_ready(), "the others answer while a new one loads"
        with pytest.raises(LoadFailed):
            await load
        assert registry.is_ready()
        await registry.unload("m")
        assert registry.is_ready()
        await registry.unload("n")
        assert not registry.is_ready(), "no request could be answered"

    running(test, model_repository=tmp_path, strict_readiness=strict)


def test_the_index_lists_versions_in_their_states_and_models_that_nobody_has_loaded(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    save_version(tmp_path, "n", DOUBLE)
    (save_version(tmp_path, "bad", version=7) / "model.onnx").write_bytes(b"")
    (tmp_path / "notes").mkdir()

    async def test(registry: Registry) -> None:
        save_version(tmp_path, "late", DOUBLE, version=3)
        await registry.unload("n")
        bad, *others = await registry.index()
        assert (bad.name, bad.version, bad.state) == ("bad", "7", "UNAVAILABLE")
        assert "model.onnx" in bad.reason
        assert others == [
            RepositoryIndexRow("late", None, "UNAVAILABLE", "not loaded"),
            RepositoryIndexRow("m", "1", "READY"),
            RepositoryIndexRow("n", "1", "UNAVAILABLE", "unloaded"),
        ]

    running(test, model_repository=tmp_path)


def test_a_single_file_is_unloaded_and_loaded_under_its_name(tmp_path: Path) -> None:
    path = save_model(tmp_path / "net.onnx", DOUBLE)

    async def test(registry: Registry) -> None:
        await registry.unload("net")
        assert registry.why_hopeless() == "", "it was unloaded on purpose: the server goes on"
        path.write_bytes(b"nonsense")
        with pytest.raises(LoadFailed):
            await registry.load("net")
        assert registry.why_hopeless() == ""
        save_model(path, NEGATE)
        await registry.load("net")
        assert await ask(registry, "net") == -1
        with pytest.raises(NotFound):
            await registry.load("other")

    running(test, model=path)


# --- start and stop -----------------------------------------------------------------------------------------------


def test_before_the_repository_is_read_and_after_the_end_nothing_is_loaded(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)

    async def scenario() -> None:
        registry = Registry(Settings(model_repository=tmp_path))
        for change in (registry.load, registry.unload):
            with pytest.raises(ModelNotReady, match="first scan of the model repository is not finished"):
                await change("m")
        await registry.load_all()
        await registry.close()
        for change in (registry.load, registry.unload):
            with pytest.raises(ModelNotReady, match="the server is stopping"):
                await change("m")

    asyncio.run(asyncio.wait_for(scenario(), timeout=60))


def test_a_stop_during_a_load_ends_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_version(tmp_path, "m", DOUBLE)
    begun, go_on = threading.Event(), threading.Event()
    load = loader.load_version

    async def scenario() -> None:
        registry = Registry(Settings(model_repository=tmp_path))
        await registry.load_all()

        def held(*arguments: Any, **options: Any) -> Any:
            begun.set()
            go_on.wait()
            return load(*arguments, **options)

        monkeypatch.setattr(loader, "load_version", held)
        loading = asyncio.ensure_future(registry.load("m"))
        while not begun.is_set():
            await asyncio.sleep(0)
        assert not registry.is_settled()
        await registry.close()
        go_on.set()
        with pytest.raises(ModelNotReady, match="the server is stopping"):
            await loading
        assert registry.is_settled()
        with pytest.raises(ModelNotReady, match="UNLOADING"):
            registry.get("m")

    asyncio.run(asyncio.wait_for(scenario(), timeout=60))


def test_a_load_that_was_given_up_is_known_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread cannot be interrupted, so the process must not wait for it at its end."""
    save_version(tmp_path, "m", DOUBLE)
    begun, go_on = threading.Event(), threading.Event()

    async def test(registry: Registry) -> None:
        load = loader.load_version

        def held(*arguments: Any, **options: Any) -> Any:
            begun.set()
            go_on.wait()
            return load(*arguments, **options)

        monkeypatch.setattr(loader, "load_version", held)
        loading = asyncio.ensure_future(registry.load("m"))
        while not begun.is_set():
            await asyncio.sleep(0)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert not registry.is_settled()
        go_on.set()

    running(test, model_repository=tmp_path)


# --- like another process -----------------------------------------------------------------------------------------


def test_a_registry_begins_with_what_another_serves_whatever_is_on_disk(tmp_path: Path) -> None:
    for name in ("m", "unloaded", "bad", "gone"):
        save_version(tmp_path, name, DOUBLE)
    (tmp_path / "bad" / "1" / "model.onnx").write_bytes(b"nonsense")

    async def test(first: Registry) -> None:
        await first.unload("unloaded")
        save_version(tmp_path, "m", NEGATE, version=2)
        save_version(tmp_path, "late", NEGATE)
        save_version(tmp_path, "bad", NEGATE)
        shutil.rmtree(tmp_path / "gone")
        second = Registry(Settings(model_repository=tmp_path))
        assignment = Assignment.from_json(json.loads(json.dumps(Assignment(first.assigned()).to_json())))
        await second.load_all(assignment)
        assert await ask(second) == 2
        gone = ModelStatus("gone", 1, UNAVAILABLE, "it is not on disk any more")
        assert second.states() == tuple(gone if status.name == "gone" else status for status in first.states())
        assert second.metadata("m").versions == ("1",)
        await second.close()

    running(test, model_repository=tmp_path)


def test_what_a_client_has_sent_with_its_load_goes_with_the_assignment(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    save_version(tmp_path, "m", DOUBLE, version=2)
    parameters = {
        "config": '{"max_batch_size": 5}',
        "version_policy": {"latest": 2},
        "traffic": {"canary": {"version": 2, "weight": 0.5}},
    }

    async def test(first: Registry) -> None:
        await first.load("m", parameters)
        assignment = Assignment(first.assigned()).with_model("m", first.assigned("m"), parameters)
        second = Registry(Settings(model_repository=tmp_path))
        await second.load_all(Assignment.from_json(json.loads(json.dumps(assignment.to_json()))))
        assert second.configuration("m").max_batch_size == 5
        assert second.metadata("m") == first.metadata("m")
        assert second.metadata("m").traffic == TrafficReport("1", "2", 0, 0.5, 0)
        await second.close()
        assert assignment.with_model("m", first.assigned("m")).parameters == {}

    running(test, model_repository=tmp_path)
