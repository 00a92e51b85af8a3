"""A run that is stopped or killed at any step goes on to the same bits: weights, statistics and metrics."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.end_to_end.running import COMMANDS, PATIENCE_S, clean_environment, run_command
from training import checkpoint, datasets
from training.datasets.dataset import Dataset, Examples
from training.errors import UserError
from training.recipe import Recipe, Stopping
from training.recipe_sources import ask, find_recipe
from training.run_folder import CHECKPOINT, CURVES, METRICS, MODEL, REPORT, RunFolder, RunRefused
from training.train import TrainReport, train
from training.train_run import resume, start, start_asked

SETTINGS = ["epochs=2", "architecture.options.widths=[4,4,8,8,8,8]", "batch_size=128", "minimum_test_accuracy=0"]
STEPS = 22
TRIALS = 20


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return find_recipe("digits", SETTINGS)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return datasets.load("digits")


def digest(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (MODEL, METRICS, REPORT, CURVES)}


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a run that never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert start(recipe, folder).train.is_finished
    return digest(folder)


class Killed(BaseException):
    """What no code of ours catches."""


@pytest.fixture(scope="module")
def few(dataset: Dataset) -> Dataset:
    """So many that an epoch has 11 steps of 16 rows."""
    return replace(dataset, train=dataset.train.at(slice(176)))


@pytest.fixture(scope="module")
def small() -> Recipe:
    return find_recipe("digits", [*SETTINGS, "batch_size=16"])


def outcome(recipe: Recipe, dataset: Dataset, run: RunFolder) -> tuple[dict[str, torch.Tensor], bytes, TrainReport]:
    module, report = train(recipe, dataset, run=run)
    return module.state_dict(), (run.path / METRICS).read_bytes(), replace(report, seconds=0.0)


@pytest.fixture(scope="module")
def unbroken(
    small: Recipe, few: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, torch.Tensor], bytes, TrainReport]:
    run = RunFolder(tmp_path_factory.mktemp("runs") / "small")
    run.begin(small)
    return outcome(small, few, run)


@pytest.mark.parametrize("trial", range(TRIALS))
def test_a_run_that_was_killed_at_any_step_ends_in_the_same_bits(
    trial: int,
    small: Recipe,
    few: Dataset,
    unbroken: tuple[dict[str, torch.Tensor], bytes, TrainReport],
    tmp_path: Path,
):
    """Checkpoints are some steps apart, so what is lost is made again; some runs die twice."""
    chance = random.Random(trial)
    folder, now = tmp_path / "run", [0.0]
    RunFolder(folder).begin(small)
    for _ in range(1 + trial % 2):
        dies_at, steps = chance.randint(1, STEPS - 1), 0

        def dies(dies_at: int = dies_at) -> bool:
            nonlocal steps
            steps, now[0] = steps + 1, now[0] + 1.0
            if steps == dies_at:
                raise Killed
            return False

        run = RunFolder(folder, every_s=chance.choice([1.0, 3.0, 8.0]), clock=lambda: now[0])
        with contextlib.suppress(Killed):
            train(small, few, run=run, should_stop=dies)

    weights, metrics, report = outcome(small, few, RunFolder(folder))

    assert report.is_finished
    assert (metrics, report) == unbroken[1:]
    assert all(torch.equal(value, unbroken[0][name]) for name, value in weights.items())


@pytest.mark.parametrize(
    "setting",
    [
        ["optimiser.average=0.9"],
        ["optimiser.accumulate=2", "optimiser.clip_norm=1"],
        ["stopping.patience_epochs=1", "optimiser.learning_rate=0.3", "epochs=4", "optimiser.average=0.5"],
        ["optimiser.kind=adamw", "optimiser.learning_rate=0.01"],
        ["remedy=frozen:0.8", "optimiser.learning_rate=0.01"],
        ["remedy=renorm"],
    ],
    ids=["averages", "accumulation", "patience", "adamw", "frozen-statistics", "renorm"],
)
def test_whatever_a_step_carries_over_is_in_the_checkpoint(setting: list[str], few: Dataset, tmp_path: Path):
    settings = find_recipe("digits", [*SETTINGS, "batch_size=16", *setting])
    for name in ("whole", "broken"):
        RunFolder(tmp_path / name).begin(settings)
    steps, now = 0, 0.0

    def dies() -> bool:
        nonlocal steps, now
        steps, now = steps + 1, now + 1.0
        if steps == 8:
            raise Killed
        return False

    with contextlib.suppress(Killed):
        run = RunFolder(tmp_path / "broken", every_s=6.0, clock=lambda: now)
        train(settings, few, run=run, should_stop=dies)
    ends = [outcome(settings, few, RunFolder(tmp_path / name)) for name in ("whole", "broken")]

    assert ends[0][1:] == ends[1][1:]
    assert all(torch.equal(value, ends[0][0][name]) for name, value in ends[1][0].items())


def test_a_time_limit_stops_behind_a_step_and_the_run_can_be_gone_on_with(
    small: Recipe, few: Dataset, unbroken: tuple[dict[str, torch.Tensor], bytes, TrainReport], tmp_path: Path
):
    limited = small.model_copy(update={"stopping": Stopping(time_limit_s=10.0)})
    folder, now, steps = tmp_path / "run", itertools.count(), []
    RunFolder(folder).begin(limited)
    while not steps or steps[-1] < STEPS:
        report = train(limited, few, run=RunFolder(folder), clock=lambda: float(next(now)))[1]
        steps.append(report.steps)
        assert report.is_finished == (report.steps == STEPS)

    weights, metrics, _ = outcome(limited, few, RunFolder(folder))

    assert steps == [10, 20, 22]
    assert metrics == unbroken[1]
    assert all(torch.equal(value, unbroken[0][name]) for name, value in weights.items())


def started(folder: Path) -> subprocess.Popen[str]:
    """The real command, as soon as it has kept a checkpoint: one after each step."""
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    process = subprocess.Popen(
        [COMMANDS / "foldtrain", "train", "digits", "--out", folder, "--checkpoint-every-s", "0", *settings],
        env=clean_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    give_up = time.monotonic() + PATIENCE_S
    while not (folder / CHECKPOINT / "checkpoint.json").exists():
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.01)
    return process


def test_a_process_that_is_killed_is_gone_on_with_by_another(whole: dict[str, str], tmp_path: Path):
    folder = tmp_path / "run"
    process = started(folder)
    process.kill()
    process.communicate(timeout=PATIENCE_S)

    done = run_command("foldtrain", "resume", folder)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"trained: {STEPS} of {STEPS} steps")
    assert digest(folder) == whole


def test_ctrl_c_finishes_the_step_and_leaves_weights_and_a_run_to_go_on_with(whole: dict[str, str], tmp_path: Path):
    folder = tmp_path / "run"
    process = started(folder)
    process.send_signal(signal.SIGINT)
    told, errors = process.communicate(timeout=PATIENCE_S)

    assert (process.returncode, errors) == (0, "")
    if "stopped: " in told:  # on a machine so fast that the signal came behind the last step it is finished
        assert told.rstrip().endswith(f"go on: foldtrain resume {folder}")
    assert json.loads((folder / REPORT).read_text())["freeze"]["estimate"]["settled"]
    assert resume(folder).train.is_finished
    assert digest(folder) == whole


def test_a_finished_run_is_finished(recipe: Recipe, whole: dict[str, str], tmp_path: Path):
    start(recipe, tmp_path / "run")
    assert resume(tmp_path / "run").train.steps == STEPS
    assert digest(tmp_path / "run") == whole


def test_a_folder_that_is_not_empty_is_not_written_into(recipe: Recipe, tmp_path: Path):
    (tmp_path / "precious").write_text("")
    with pytest.raises(
        RunRefused, match=r"is not empty; go on with it \(foldtrain resume .*\), or name another folder"
    ):
        start(recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_other_data_than_the_run_began_with_is_refused(recipe: Recipe, dataset: Dataset, tmp_path: Path):
    run = RunFolder(tmp_path / "run", every_s=0.0)
    run.begin(recipe)
    train(recipe, dataset, run=run, should_stop=lambda: True)
    other = replace(dataset, train=Examples({"image": dataset.train.only + 1}, dataset.train.labels))
    with pytest.raises(RunRefused, match="was trained on other data than"):
        train(recipe, other, run=run)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory; .* is not the folder of a run"),
        ("{", "recipe.json: the file: Invalid JSON"),
        ('{"name": 3}', "recipe.json: name: Input should be a valid string"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(content: str | None, reason: str, tmp_path: Path):
    if content is not None:
        (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(UserError, match=reason) as caught:
        resume(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_leaves_no_folder_behind(tmp_path: Path) -> None:
    for mistake, told in {
        "architecture.norm=BN": "unknown normalisation 'BN'",
        "architecture.options.width=3": "cnn6 has no such option",
        "remedy=frozen:2": "the share of the steps is to be above 0",
    }.items():
        with pytest.raises(UserError, match=told):
            start_asked(ask("digits", overrides=[mistake]), tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("write", ["tell", "keep", "finish"])
def test_a_full_disk_is_one_line_that_says_how_to_go_on(
    write: str, small: Recipe, few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run", every_s=0)
    run.begin(small)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json if write == "tell" else checkpoint, "dumps" if write == "tell" else "write_whole", full)
    work: dict[str, Callable[[], object]] = {
        "tell": lambda: run.tell({"epoch": 1}),
        "keep": lambda: train(small, few, run=run),
        "finish": lambda: run.finish(torch.nn.Linear(1, 1), {}),
    }
    with pytest.raises(
        RunRefused, match=r"run: cannot be written: No space left on device; .*: foldtrain resume .*run$"
    ):
        work[write]()
