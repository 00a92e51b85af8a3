"""What polling asks for as files come, change and go: a real folder, and looks that a test takes one by one."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from service.errors import LoadFailed, ModelNotReady, NotFound
from service.polling import Poller
from service.settings import Settings
from tests.service.handmade import DOUBLE, LINEAR, save_model, save_version


class Recorder:
    """A control that remembers what it was asked for; `fails` is raised instead."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails: Exception | None = None

    async def load(self, name: str) -> None:
        self.asked.append(f"load {name}")
        if self.fails:
            raise self.fails

    async def unload(self, name: str) -> None:
        self.asked.append(f"unload {name}")

    def take(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked


class Watched:
    """A repository with model `m`, version 1, that somebody has begun to watch."""

    def __init__(self, root: Path, **settings: Path | str) -> None:
        self.root = root
        self.control = Recorder()
        self.poller = Poller(Settings(**(settings or {"model_repository": root})), self.control)  # type: ignore[arg-type]

    async def looks(self, count: int = 1) -> list[str]:
        """What is asked for in so many looks."""
        for _ in range(count):
            await self.poller.step()
            await self.poller.settle()
        return self.control.take()


def watching(test: Callable[[Watched], Awaitable[None]], watched: Watched) -> None:
    async def begin_and_test() -> None:
        await watched.poller.begin()
        await test(watched)

    asyncio.run(begin_and_test())


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    save_version(tmp_path, "m", LINEAR)
    return Watched(tmp_path)


def save_again(path: Path, content: bytes) -> None:
    """In place, as `cp` does; where the size is the same, at another time."""
    path.write_bytes(content)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 10**9))


def test_nothing_happens_where_nothing_changes(watched: Watched) -> None:
    async def test(watched: Watched) -> None:
        assert await watched.looks(3) == []

    watching(test, watched)


def _new_model(root: Path) -> None:
    save_version(root, "n")


def _new_version(root: Path) -> None:
    save_version(root, "m", version=2)


def _published_by_rename(root: Path) -> None:
    save_version(root / ".staging", "m", version=2)
    (root / ".staging" / "m" / "2").rename(root / "m" / "2")


def _config(root: Path) -> None:
    (root / "m" / "config.json").write_text(json.dumps({"name": "m", "max_batch_size": 4}))


def _labels(root: Path) -> None:
    (root / "m" / "labels.txt").write_text("a\n")


def _golden(root: Path) -> None:
    (root / "m" / "1" / "golden.npz").write_bytes(b"PK")


def _model_in_place(root: Path) -> None:
    path = root / "m" / "1" / "model.onnx"
    save_again(path, path.read_bytes())


def _model_of_several_files(root: Path) -> None:
    (root / "m" / "1" / "weights").mkdir()
    (root / "m" / "1" / "weights" / "data").write_bytes(b"0")


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        pytest.param(_new_model, "load n", id="new-model"),
        pytest.param(_new_version, "load m", id="new-version"),
        pytest.param(_published_by_rename, "load m", id="version-published-by-rename"),
        pytest.param(_config, "load m", id="config"),
        pytest.param(_labels, "load m", id="labels"),
        pytest.param(_golden, "load m", id="golden"),
        pytest.param(_model_in_place, "load m", id="model-of-the-same-size"),
        pytest.param(_model_of_several_files, "load m", id="file-in-a-folder"),
    ],
)
def test_change_is_acted_upon_once_at_the_second_look(
    change: Callable[[Path], None], asked: str, watched: Watched
) -> None:
    async def test(watched: Watched) -> None:
        change(watched.root)
        assert await watched.looks() == []
        assert await watched.looks() == [asked]
        assert await watched.looks(3) == []

    watching(test, watched)


def test_version_that_is_still_being_copied_is_left_alone(watched: Watched) -> None:
    async def test(watched: Watched) -> None:
        folder = watched.root / "m" / "2"
        folder.mkdir()
        for size in range(1, 5):
            (folder / "model.onnx").write_bytes(b"." * size)
            assert await watched.looks() == []
        assert await watched.looks() == ["load m"]

    watching(test, watched)


def test_removed_version_leaves_the_others_and_the_last_one_takes_the_model_with_it(watched: Watched) -> None:
    save_version(watched.root, "m", version=2)

    async def test(watched: Watched) -> None:
        shutil.rmtree(watched.root / "m" / "2")
        assert await watched.looks(3) == ["load m"]
        shutil.rmtree(watched.root / "m" / "1")
        assert await watched.looks(3) == ["unload m"]
        shutil.rmtree(watched.root / "m")
        assert await watched.looks(3) == []
        save_version(watched.root, "m")
        assert await watched.looks(3) == ["load m"]

    watching(test, watched)


@pytest.mark.parametrize(
    ("policy", "changed", "asked"),
    [
        pytest.param({}, 1, [], id="latest-is-another"),
        pytest.param({}, 2, ["load m"], id="latest"),
        pytest.param({"latest": 2}, 1, ["load m"], id="latest-two"),
        pytest.param({"all": True}, 1, ["load m"], id="all"),
        pytest.param({"specific": [1]}, 2, [], id="specific-is-another"),
        pytest.param({"specific": [1]}, 1, ["load m"], id="specific"),
    ],
)
def test_files_of_a_version_that_the_policy_leaves_out_do_not_count(
    policy: dict[str, object], changed: int, asked: list[str], watched: Watched
) -> None:
    save_version(watched.root, "m", version=2, config={"version_policy": policy})

    async def test(watched: Watched) -> None:
        path = watched.root / "m" / str(changed) / "model.onnx"
        save_again(path, b"other")
        assert await watched.looks(3) == asked
        shutil.rmtree(path.parent)
        assert await watched.looks(3) == asked

    watching(test, watched)


@pytest.mark.parametrize("failure", [LoadFailed("m cannot be loaded: damaged"), NotFound("m"), ZeroDivisionError()])
def test_what_failed_is_told_once_and_tried_again_when_it_changes(
    failure: Exception, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(watched: Watched) -> None:
        watched.control.fails = failure
        save_version(watched.root, "m", version=2)
        assert await watched.looks(5) == ["load m"]
        assert [record.levelno >= logging.WARNING for record in caplog.records] == [True]
        save_version(watched.root, "m", DOUBLE, version=2)
        assert await watched.looks(5) == ["load m"]

    watching(test, watched)


def test_server_that_starts_is_asked_again(watched: Watched) -> None:
    async def test(watched: Watched) -> None:
        watched.control.fails = ModelNotReady("the first scan is not finished")
        save_version(watched.root, "m", version=2)
        assert await watched.looks(4) == ["load m"] * 3
        watched.control.fails = None
        assert await watched.looks(4) == ["load m"]

    watching(test, watched)


def test_disk_that_fails_is_told_once_and_takes_no_model_away(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def test(watched: Watched) -> None:
        away = watched.root.with_name("away")
        watched.root.rename(away)
        assert await watched.looks(4) == []
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        away.rename(watched.root)
        assert await watched.looks(4) == []
        assert caplog.records[-1].getMessage() == "the model repository can be looked at again"
        save_version(watched.root, "m", version=2)
        assert await watched.looks(4) == ["load m"]

    watching(test, watched)


def test_folder_that_cannot_be_read_holds_up_no_other(
    watched: Watched, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, whom no permission stops: so the error is made."""
    save_version(watched.root, "n")
    scandir = os.scandir

    def fail(path: Path) -> object:
        if Path(path).name == "n":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    async def test(watched: Watched) -> None:
        monkeypatch.setattr(os, "scandir", fail)
        save_version(watched.root, "m", version=2)
        assert await watched.looks(4) == ["load m"]
        assert sum("Permission denied" in record.getMessage() for record in caplog.records) == 1
        monkeypatch.undo()
        assert await watched.looks(4) == []

    watching(test, watched)


def test_model_that_loads_holds_up_no_other(watched: Watched) -> None:
    class Slow(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.may_end = asyncio.Event()

        async def load(self, name: str) -> None:
            await super().load(name)
            if name == "m":
                await self.may_end.wait()

    async def test(watched: Watched) -> None:
        watched.control = slow = Slow()
        watched.poller._control = slow
        for name in ("m", "n"):
            save_version(watched.root, name, version=2)
        for _ in range(4):
            await watched.poller.step()
            await asyncio.sleep(0.01)  # threads
        assert sorted(slow.take()) == ["load m", "load n"]
        save_version(watched.root, "m", version=3)
        for _ in range(4):
            await watched.poller.step()
        assert slow.take() == [], "one load of a name at a time"
        slow.may_end.set()
        assert await watched.looks(3) == ["load m"]

    watching(test, watched)


@pytest.mark.parametrize("beside", ["", "_data"], ids=["the-file", "its-external-data"])
def test_single_file_is_watched(beside: str, tmp_path: Path) -> None:
    path = save_model(tmp_path / "one.onnx", LINEAR)
    (tmp_path / "one.onnx_data").write_bytes(b"weights")

    async def test(watched: Watched) -> None:
        save_again(tmp_path / "other.onnx", b"nobody's")
        assert await watched.looks(3) == []
        save_again(path.with_name(path.name + beside), b"other")
        assert await watched.looks(3) == ["load one"]
        path.unlink()
        assert await watched.looks(3) == ["unload one"]

    watching(test, Watched(tmp_path, model=path))


def test_single_folder_is_watched_under_the_name_it_was_given(tmp_path: Path) -> None:
    save_version(tmp_path, "m")

    async def test(watched: Watched) -> None:
        save_version(tmp_path, "m", version=2)
        assert await watched.looks(3) == ["load given"]

    watching(test, Watched(tmp_path, model=tmp_path / "m", model_name="given"))


def test_what_a_client_has_loaded_is_no_change_any_more_but_what_comes_behind_it_is(watched: Watched) -> None:
    """Loaded once more it would lose what came with the call: a canary of a tenth would answer everybody."""

    async def test(watched: Watched) -> None:
        _new_version(watched.root)
        await watched.poller.step()
        async with watched.poller.acted_upon("m"):
            assert await watched.looks(3) == []
        assert await watched.looks(3) == []
        _config(watched.root)
        assert await watched.looks(2) == ["load m"]

    watching(test, watched)


def test_what_a_client_could_not_load_is_a_change_still(watched: Watched) -> None:
    async def test(watched: Watched) -> None:
        _new_version(watched.root)
        with pytest.raises(LoadFailed):
            async with watched.poller.acted_upon("m"):
                raise LoadFailed("its parameters are wrong")
        assert await watched.looks(2) == ["load m"]

    watching(test, watched)


def test_a_client_that_loads_waits_for_what_polling_has_begun(watched: Watched) -> None:
    """Or the end of that would be taken for what lies there now."""

    async def test(watched: Watched) -> None:
        _new_version(watched.root)
        await watched.poller.step()
        await watched.poller.step()
        _config(watched.root)
        async with watched.poller.acted_upon("m"):
            assert watched.control.take() == ["load m"]
        assert await watched.looks(3) == []

    watching(test, watched)


def test_run_looks_at_intervals_until_it_is_cancelled(watched: Watched) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 4:
            await asyncio.Event().wait()

    async def test() -> None:
        settings = Settings(model_repository=watched.root, repository_poll_s=2.5)
        poller = Poller(settings, watched.control, sleep=sleep)
        await poller.begin()
        save_version(watched.root, "m", version=2)
        running = asyncio.create_task(poller.run())
        while len(slept) < 4:
            await asyncio.sleep(0)
        await poller.settle()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(test())
    assert slept == [2.5] * 4
    assert watched.control.asked == ["load m"]
