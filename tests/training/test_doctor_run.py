"""`foldtrain doctor RUN`: a run's folder is all that has to be named, whether the run has ended or was killed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from training import __main__ as command
from training import datasets
from training.datasets.dataset import Dataset
from training.doctor import doctor
from training.recipe import RECIPES, Recipe
from training.run_folder import CHECKPOINT, MODEL, REPORT, RunFolder
from training.train import train
from training.train_run import start
from training.trained_run import open_run

STEPS = 11


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return RECIPES["digits"].model_copy(update={"epochs": 1, "batch_size": 128, "minimum_test_accuracy": 0.0})


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return datasets.load("digits")


@pytest.fixture(scope="module")
def ended(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ended"
    assert start(recipe, folder).train.steps == STEPS
    return folder


class Killed(BaseException):
    """What no code of ours catches."""


@pytest.fixture(scope="module")
def killed(recipe: Recipe, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Behind its sixth step; each is kept."""
    folder, asked = tmp_path_factory.mktemp("runs") / "killed", iter(range(STEPS))
    run = RunFolder(folder, every_s=0)
    run.begin(recipe)

    def kill() -> bool:
        if next(asked) == 6:
            raise Killed
        return False

    with pytest.raises(Killed):
        train(recipe, dataset, run=run, should_stop=kill)
    return folder


def test_a_run_that_has_ended_is_examined_with_its_data_and_its_training(ended: Path, capsys) -> None:
    code = command.main(["doctor", str(ended)])

    told = capsys.readouterr().out
    assert told.startswith(f"{ended / MODEL}, step {STEPS} of {STEPS}: BatchNorm layers with running statistics: 7; ")
    assert "1437 rows in 23 batches" in told
    # Of a training of which all is known, only what it does not have cannot be asked.
    assert {line.split()[2] for line in told.splitlines() if line.startswith("not made")} == {"H10", "H12"}
    assert " 0 red, " in f" {told.splitlines()[-1]}"
    assert code == 0


def test_population_statistics_of_the_end_do_not_drift(ended: Path) -> None:
    assert [one for one in doctor(ended).diagnosis.findings if one.check == "H6"] == []


def test_a_killed_run_is_examined_as_its_last_checkpoint_has_it(killed: Path, capsys) -> None:
    code = command.main(["doctor", str(killed), "--json", str(killed.parent / "told.json")])

    told = capsys.readouterr().out
    assert told.startswith(f"{killed / CHECKPOINT}, step 6 of {STEPS}: ")
    # Six batches leave half of the initial 0 and 1 in the averages.
    assert code == 1
    assert "red     H5" in told


def test_a_checkpoint_that_is_newer_than_the_end_wins(ended: Path, killed: Path, tmp_path: Path) -> None:
    """A run that was stopped by Ctrl-C, gone on with, and killed."""
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    shutil.copy(ended / MODEL, folder / MODEL)
    (folder / REPORT).write_text('{"train": {"steps": 3}}')

    assert open_run(folder).steps == 6

    (folder / REPORT).write_text('{"train": {"steps": 11}}')
    assert open_run(folder).weights == folder / MODEL


def test_other_data_may_be_given(ended: Path, dataset: Dataset, tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "faint.npz", image=0.2 * dataset.test.only)

    assert command.main(["doctor", str(ended), "--data", str(tmp_path / "faint.npz")]) == 1
    assert "red     H6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "arguments", "told"),
    [
        pytest.param((), ("--model", "py:a:b"), "a run knows its network and its training", id="a model beside it"),
        pytest.param((MODEL, CHECKPOINT), (), "holds neither model.safetensors nor a checkpoint", id="no weights"),
        pytest.param(("recipe.json",), (), "is not the folder of a run", id="no run"),
    ],
)
def test_what_cannot_be_examined_is_one_line(
    ended: Path, tmp_path: Path, spoil: tuple[str, ...], arguments: tuple[str, ...], told: str, capsys
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    for name in spoil:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    assert command.main(["doctor", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_checkpoint_file_needs_its_network_named(ended: Path, capsys) -> None:
    assert command.main(["doctor", str(ended / MODEL)]) == 2
    assert "name the network with --model SPEC" in capsys.readouterr().err
