"""What a client may read of a reason why a model cannot be loaded; what all models that are loaded share."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from service import cpu_plan, loader, memory
from service.cpu_plan import CpuPlan
from service.discovery import discover_model
from service.errors import ModelRejected, QueueFull
from service.load_version import LoadedVersion
from service.loader import Loader, without_folder
from service.model import Model
from service.protocol import InferenceRequest, InputTensor
from service.settings import Settings
from tests.service.handmade import DOUBLE, publish, save_version

SRV = Settings(model_repository=Path("/srv/models"))
HERE = Settings(model_repository=Path("models"))
FILE = Settings(model=Path("/a/net.onnx"))


@pytest.mark.parametrize(
    ("settings", "reason", "told"),
    [
        pytest.param(SRV, "/srv/models/m/config.json: name", "m/config.json: name", id="file-in-it"),
        pytest.param(SRV, "folder '/srv/models' is gone", "folder the repository is gone", id="itself"),
        pytest.param(SRV, "/srv/models cannot be read", "the repository cannot be read", id="without-quotes"),
        pytest.param(SRV, "/srv/models2/x and b/srv/models/c", "models2/x and b/srv/models/c", id="beside-it"),
        pytest.param(HERE, "'models' holds 2 models/m", "the repository holds 2 m", id="relative"),
        pytest.param(HERE, "no models, submodels/x", "no models, submodels/x", id="a-word"),
        pytest.param(FILE, "/a/net.onnx, b/a/c", "net.onnx, b/a/c", id="one-file"),
        pytest.param(Settings(model=Path("net.onnx")), "net.onnx: bad.", "net.onnx: bad.", id="file-right-here"),
        pytest.param(Settings(model_repository=Path("/")), "/m/1 / x", "/m/1 / x", id="root"),
    ],
)  # fmt: skip
def test_the_server_s_folder_is_not_told(settings: Settings, reason: str, told: str) -> None:
    assert without_folder(settings, reason) == told


@pytest.mark.parametrize("is_published", [False, True])
def test_a_pointer_of_git_lfs_is_called_that(is_published: bool, tmp_path: Path) -> None:
    """As a clone without Git LFS has it; a published version's hashes would tell another story."""
    path = (publish(tmp_path, "m") if is_published else save_version(tmp_path, "m")) / "model.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 32719461\n")
    settings = Settings(model_repository=tmp_path)

    async def scenario() -> Model | str:
        loader = Loader(settings)
        try:
            return await loader.load(discover_model(settings, "m")[0])
        finally:
            loader.close()

    assert asyncio.run(scenario()) == "model.onnx is a Git LFS pointer, not the model itself; run `git lfs pull`"


@pytest.mark.parametrize(
    ("instances", "asked", "threads"),
    [(1, 0, 8), (2, 0, 4), (3, 0, 2), (16, 0, 1), (2, 6, 6)],
)
def test_runs_at_the_same_time_share_the_cores_unless_the_user_says_how_many_threads_each_has(
    instances: int, asked: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_version(tmp_path, "m", DOUBLE, config={"scheduler": {"instances": instances}})
    settings = Settings(model_repository=tmp_path, intra_op_threads=asked)
    given: list[int] = []

    def load(*_: object, intra_op_threads: int, **__: object) -> LoadedVersion:
        given.append(intra_op_threads)
        raise ModelRejected("only looking")

    monkeypatch.setattr(loader, "load_version", load)
    monkeypatch.setattr(cpu_plan, "read_plan", lambda _: CpuPlan(8, "affinity of 8"))

    async def scenario() -> None:
        loading = Loader(settings)
        assert await loading.load(discover_model(settings, "m")[0]) == "only looking"
        loading.close()

    asyncio.run(scenario())
    assert given == [threads]


def test_queues_of_all_models_together_hold_an_eighth_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 bytes, and a row of `a` or `b` has 8: two wait, and one more where nobody waits."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 8 * 20)
    for name in ("a", "b"):
        save_version(tmp_path, name, DOUBLE)
    row = InferenceRequest((InputTensor("x", "FP32", np.ones((1, 2), np.float32)),))

    async def scenario() -> list[list[object]]:
        loader = Loader(Settings(model_repository=tmp_path))
        models = []
        for name in ("a", "b"):
            model = await loader.load(discover_model(Settings(model_repository=tmp_path), name)[0])
            assert isinstance(model, Model)
            models.append(model)
        calls = [asyncio.gather(*(model.infer(row) for _ in range(4)), return_exceptions=True) for model in models]
        found = [list(await call) for call in calls]
        for model in models:
            await loader.end(model)
        loader.close()
        return found

    of_a, of_b = asyncio.run(asyncio.wait_for(scenario(), timeout=60))
    refused = [[isinstance(answer, QueueFull) for answer in answers] for answers in (of_a, of_b)]
    assert refused == [[False, False, True, True], [False, True, True, True]]
    assert "the server has room for 20" in str(of_b[1])
