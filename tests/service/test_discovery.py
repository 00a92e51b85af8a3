"""What counts as a model on disk, and that no caller's name leads anywhere else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from service import discovery
from service.discovery import Listing, discover, discover_model, name_of_file, names_on_disk
from service.errors import ModelRejected
from service.settings import Settings
from tests.service.handmade import DOUBLE, LINEAR, save_model, save_version


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two models, a model without versions, and two folders that are none."""
    root = tmp_path / "models"
    for version in (1, 2):
        save_version(root, "m", DOUBLE, version=version)
    save_version(root, "n", LINEAR)
    for folder in ("empty", "notes", ".staging"):
        (root / folder).mkdir()
    (root / "empty" / "config.json").write_text('{"name": "empty"}')
    return root


def test_one_model_is_found_as_among_all(repository: Path) -> None:
    settings = Settings(model_repository=repository)
    everything = discover(settings)
    assert [(one.name, one.version and one.version.version) for one in everything] == [
        ("empty", None), ("m", 2), ("n", 1),
    ]  # fmt: skip
    assert [found for name in ("empty", "m", "n") for found in discover_model(settings, name)] == everything


def test_names_are_those_of_folders_that_hold_a_model(repository: Path) -> None:
    assert names_on_disk(Settings(model_repository=repository)) == ("empty", "m", "n")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param(".", id="the-repository"),
        pytest.param("..", id="its-parent"),
        pytest.param("../outside", id="beside-it"),
        pytest.param("m/../../outside", id="through-a-model"),
        pytest.param("m/1", id="below-a-model"),
        pytest.param(".staging", id="invisible"),
        pytest.param("%2e%2e", id="still-encoded"),
        pytest.param("m\0", id="nul"),
        pytest.param("notes", id="holds-no-model"),
        pytest.param("M", id="other-case"),
        pytest.param("x" * 5000, id="long"),
    ],
)
def test_a_name_that_the_repository_does_not_list_leads_nowhere(name: str, repository: Path) -> None:
    save_version(repository.parent, "outside", DOUBLE)
    assert discover_model(Settings(model_repository=repository), name) == []


def test_versions_may_be_chosen_by_number_and_have_the_file_that_the_configuration_names(repository: Path) -> None:
    """As a process does that is to serve what another one serves."""
    for version in (1, 2, 3):
        save_version(repository, "m", DOUBLE, version=version, config={"default_model_filename": "net.onnx"})
    found = discover_model(Settings(model_repository=repository), "m", numbers=frozenset({1, 2}))
    assert [one.version and (one.version.version, one.version.model_file) for one in found] == [
        (1, "net.onnx"),
        (2, "net.onnx"),
    ]


def test_a_name_is_looked_up_among_those_that_the_repository_holds_now(repository: Path) -> None:
    listing = Listing(Settings(model_repository=repository))
    names = ("m", "notes", "late", "..", "../models", "m/1", "", "m\0", "x" * 5000)
    assert [name for name in names if name in listing] == ["m"]
    save_version(repository, "late", DOUBLE)
    save_version(repository, "notes", DOUBLE)
    assert [name for name in names if name in listing] == ["m", "notes", "late"]
    shutil.rmtree(repository / "m")
    assert "m" not in listing
    shutil.rmtree(repository)
    assert "m" not in listing


def test_only_a_repository_that_has_changed_is_listed_again(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(repository, (1, 1))
    listing = Listing(Settings(model_repository=repository))
    assert "m" in listing
    monkeypatch.setattr(discovery, "model_names", lambda repository: pytest.fail("it was listed again"))
    assert "n" in listing
    assert "late" not in listing


def test_a_defect_of_ours_in_one_configuration_leaves_the_other_models(
    repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read = discovery.read_config

    def break_m(folder: Path, **options: Any) -> Any:
        return read(folder, **options) if folder.name != "m" else 1 // 0

    monkeypatch.setattr(discovery, "read_config", break_m)
    reasons = {found.name: found.reason for found in discover(Settings(model_repository=repository))}
    assert (reasons["m"], reasons["n"]) == ("internal error: ZeroDivisionError: integer division or modulo by zero", "")
    assert "Traceback" in caplog.text


def test_an_absolute_path_is_no_name(repository: Path) -> None:
    outside = save_version(repository.parent, "outside", DOUBLE).parent
    assert discover_model(Settings(model_repository=repository), str(outside)) == []


def test_a_single_file_has_one_name(tmp_path: Path) -> None:
    settings = Settings(model=save_model(tmp_path / "net.onnx", LINEAR))
    assert names_on_disk(settings) == ("net",)
    assert discover_model(settings, "net") == discover(settings)
    assert discover_model(settings, "model") == []


def test_a_repository_that_has_gone_is_told(tmp_path: Path) -> None:
    settings = Settings(model_repository=tmp_path / "gone")
    for ask in (lambda: names_on_disk(settings), lambda: discover_model(settings, "m")):
        with pytest.raises(ModelRejected, match="cannot be read: No such file or directory"):
            ask()
    assert discover(settings) == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        pytest.param("resnet18.onnx", "resnet18", id="stem"),
        pytest.param("a/b/resnet.v2.onnx", "resnet.v2", id="dot-in-the-stem"),
        pytest.param("my net (1).onnx", "my-net-1", id="illegal-characters"),
        pytest.param("-x-.onnx", "x", id="edges"),
        pytest.param("_private.onnx", "private", id="leading-underscore"),
        pytest.param("résumé.onnx", "r-sum", id="not-ascii"),
        pytest.param("日本.onnx", "model", id="nothing-left"),
        pytest.param("digits/model.onnx", "digits", id="folder"),
        pytest.param("digits/1/model.onnx", "digits", id="version-folder"),
        pytest.param("/model.onnx", "model", id="root"),
        pytest.param("/7/model.onnx", "model", id="version-in-the-root"),
    ],
)
def test_the_name_of_a_single_file(path: str, name: str) -> None:
    assert name_of_file(Path(path)) == name
