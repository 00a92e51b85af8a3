"""`torchrun ... -m training train` and `resume`: two processes make one process's run, and stop and fail as one."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.end_to_end.running import PATIENCE_S, clean_environment
from training import checkpoint, datasets
from training.__main__ import BAD_INPUT
from training.datasets.dataset import Dataset
from training.distributed import CannotDistribute, Processes
from training.freeze import freeze_statistics
from training.networks import opened_network
from training.recipe import Recipe
from training.run_folder import CHECKPOINT, MODEL, RunFolder
from training.train import Fit, train

TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}

NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
            nn.Linear(144, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3),
        )
        self.unused = nn.Linear(2, 2)
        self.double()

    def forward(self, images):
        return self.used(images.double())
"""
"""In float64, so that nothing but a mistake can differ by more than 1e-6 after several steps: in float32 the order in
which rows are summed has moved momentum by 1.6e-6 after seven, and by more where a ReLU is near its edge."""

SETTINGS = """
name: tiny
description: ""
data: {source: "npz:FOLDER/data.npz", shift_pixels: 1}
architecture: {model: "file:FOLDER/net.py:Net"}
optimiser: {kind: sgd, learning_rate: 0.01, weight_decay: 0.1, warmup_fraction: 0,
            accumulate: 2, clip_norm: 1, average: 0.9}
stopping: {patience_epochs: 100000}
epochs: 100000
batch_size: 5
device: cpu
precision: float32
"""
"""With all that a step can do, and more steps than are ever made. An epoch has four, of 10 or 11 rows in batches of 5
or 6: the processes' parts are as uneven as they come."""

EPOCH = 4


@dataclass(frozen=True)
class Scene:
    """What all tests look at.

    stopped: the folder as two processes left it when one of them was asked to stop, and what they said; killed: as two
    others left it, which had gone on with it until one was killed; code: what torchrun then ended with.
    """

    recipe: Recipe
    dataset: Dataset
    stopped: Path
    said: tuple[str, str]
    killed: Path
    code: int
    workers: list[int]
    refused: tuple[str, str]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextlib.contextmanager
def two(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`foldtrain`, twice."""
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", "-m", "training",
    ]  # fmt: skip
    process = subprocess.Popen(
        [*launcher, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=clean_environment({"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}),
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.terminate()  # it ends those that it has started


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.01)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """By their rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks |= {int(word.removeprefix(b"RANK=")): int(child) for word in words if word.startswith(b"RANK=")}
    return [ranks[rank] for rank in sorted(ranks)]


def kept_at(folder: Path) -> int:
    """The step of the last checkpoint; 0 before there is one."""
    path = folder / CHECKPOINT / checkpoint.INDEX
    return int(json.loads(path.read_bytes())["step"]) if path.exists() else 0


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("processes")
    run = folder / "run"
    write_what_is_learnt(folder)
    with (
        two("train", folder / "tiny.yaml", "--out", run, "--checkpoint-every-s", "0") as process,
        two("build", "digits", "--repository", folder / "models") as other,
    ):
        until(lambda: kept_at(run) > EPOCH, process)
        os.kill(workers_of(process)[1], signal.SIGINT)
        said, refused = (one.communicate(timeout=PATIENCE_S) for one in (process, other))
        assert process.returncode == 0, said[1][-3000:]
    shutil.copytree(run, folder / "stopped")
    with two("resume", run, "--checkpoint-every-s", "0") as process:
        until(lambda: kept_at(run) > kept_at(folder / "stopped"), process)
        workers = workers_of(process)
        os.kill(workers[1], signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
    recipe = RunFolder(run).recipe()
    dataset = datasets.load(recipe.data.source, recipe.data.options())
    return Scene(recipe, dataset, folder / "stopped", said, run, process.returncode, workers, refused)


def write_what_is_learnt(folder: Path) -> None:
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 3, 57)
    images = (chance.integers(0, 128, (57, 1, 8, 8)) + 40 * labels[:, None, None, None]).astype(np.float32)
    np.savez(folder / "data.npz", x=images, y=labels)
    (folder / "net.py").write_text(NETWORK)
    (folder / "tiny.yaml").write_text(SETTINGS.replace("FOLDER", str(folder)))


def alone(scene: Scene, folder: Path, steps: int) -> nn.Module:
    """The run in `folder` after so many steps, its statistics frozen; what is missing is made by this process."""
    run = RunFolder(folder)
    if not folder.exists():
        run.begin(scene.recipe)
    missing = steps - kept_at(folder)
    made = itertools.count(1)
    module, report = train(scene.recipe, scene.dataset, run=run, should_stop=lambda: next(made) >= missing)
    assert report.steps == steps
    freeze_statistics(module, scene.recipe, scene.dataset)
    return module


def close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


def test_weights_and_statistics_are_those_of_one_process(scene: Scene, tmp_path: Path) -> None:
    expected = alone(scene, tmp_path / "run", kept_at(scene.stopped))

    close(load_file(scene.stopped / MODEL), expected.state_dict())


def test_gradients_and_averages_in_the_checkpoint_are_those_of_one_process(scene: Scene, tmp_path: Path) -> None:
    """Momentum is the sum of all gradients so far."""
    alone(scene, tmp_path / "run", kept_at(scene.stopped))
    found, expected = (checkpoint.load(folder / CHECKPOINT) for folder in (scene.stopped, tmp_path / "run"))

    close(found.module, expected.module)
    close(found.extra, expected.extra)
    assert found.optimiser["param_groups"] == expected.optimiser["param_groups"]
    assert found.optimiser["state"].keys() == expected.optimiser["state"].keys()
    for number, state in expected.optimiser["state"].items():
        close(found.optimiser["state"][number], state)


def test_metrics_are_of_all_rows(scene: Scene, tmp_path: Path) -> None:
    alone(scene, tmp_path / "run", kept_at(scene.stopped))
    found, expected = (RunFolder(folder).metrics() for folder in (scene.stopped, tmp_path / "run"))

    assert len(found) >= 1
    assert found == [pytest.approx(line, rel=1e-6) for line in expected]


def test_the_wish_of_one_process_stops_both_and_one_tells_of_it(scene: Scene) -> None:
    told, errors = scene.said

    assert [line.partition(":")[0] for line in told.splitlines()] == [
        "train", "stopped", "accuracy", "frozen", "weights", "curves", "go on",
    ]  # fmt: skip
    assert errors == ""


def test_one_process_goes_on_where_two_stopped(scene: Scene, tmp_path: Path) -> None:
    shutil.copytree(scene.stopped, tmp_path / "on")
    steps = kept_at(scene.stopped) + EPOCH

    found, expected = (alone(scene, tmp_path / name, steps) for name in ("on", "whole"))

    close(found.state_dict(), expected.state_dict())


def test_where_one_process_is_killed_none_is_left_and_the_run_can_be_gone_on_with(scene: Scene, tmp_path: Path) -> None:
    assert scene.code != 0
    assert [pid for pid in scene.workers if Path(f"/proc/{pid}").exists()] == []
    steps = kept_at(scene.killed) + 1

    found, expected = (alone(scene, folder, steps) for folder in (scene.killed, tmp_path / "whole"))

    close(found.state_dict(), expected.state_dict())


def test_a_command_for_one_process_is_refused_in_one_line(scene: Scene) -> None:
    lines = [line for line in scene.refused[1].splitlines() if line.startswith("foldtrain")]

    assert len(lines) == 1
    assert lines[0].startswith("foldtrain: error: only train and resume make use of several processes")
    assert f"exitcode: {BAD_INPUT}" in scene.refused[1]


@pytest.mark.parametrize("remedy", ["ghost:2", "renorm"])
def test_a_remedy_that_learns_from_one_process_alone_is_refused(remedy: str, scene: Scene) -> None:
    recipe = scene.recipe.model_copy(update={"remedy": remedy})

    with (
        opened_network(recipe, scene.dataset) as network,
        pytest.raises(CannotDistribute, match=r"layer 'body.used.1' is a .*, whose statistics would differ between"),
    ):
        Fit(network, recipe, scene.dataset, None, Processes(0, 2))


def test_a_device_that_processes_do_not_share_is_refused(scene: Scene) -> None:
    recipe = scene.recipe.model_copy(update={"device": "cuda"})

    with pytest.raises(CannotDistribute, match="device=cuda: 2 processes learn together on the CPU only"):
        train(recipe, scene.dataset, processes=Processes(0, 2))
