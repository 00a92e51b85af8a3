"""What `--model PATH` and `--model-name` find in a mount, and what they refuse to guess."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from service.discovery import discover, discover_model, names_on_disk
from service.errors import ModelRejected
from service.overrides import read_overrides
from service.settings import Settings
from service.single_model import locate, name_of_folder


def make(root: Path, *names: str) -> Path:
    """Empty files, and folders where a name ends in a slash."""
    root.mkdir(exist_ok=True)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.touch()
    return root


@pytest.mark.parametrize(
    ("inside", "found"),
    [
        pytest.param(["model.onnx"], "model.onnx", id="bare-file"),
        pytest.param(["resnet.onnx", "resnet.onnx.data", "README.md"], "resnet.onnx", id="file-of-any-name"),
        pytest.param(["model.onnx", "golden.npz", "report.json"], "model.onnx", id="a-version-s-folder"),
        pytest.param(["model.onnx/model.onnx", "model.onnx/weights"], "model.onnx/model.onnx", id="several-files"),
        pytest.param(["1/model.onnx"], ".", id="one-version"),
        pytest.param(["1/model.onnx", "12/model.onnx", "config.pbtxt"], ".", id="a-model-s-folder"),
        pytest.param(["resnet/1/model.onnx"], "resnet", id="a-repository-of-one-model"),
        pytest.param(["resnet/1/model.onnx", "notes/", "docs/readme"], "resnet", id="and-folders-that-are-none"),
        pytest.param(["._model.onnx", ".cache/", "a.onnx"], "a.onnx", id="hidden-files-do-not-count"),
        pytest.param(["model.onnx", "config.json"], "model.onnx", id="a-config-of-another-tool"),
    ],
)
def test_a_mount_of_any_shape_holds_one_model(inside: Sequence[str], found: str, tmp_path: Path) -> None:
    root = make(tmp_path / "models", *inside)
    assert locate(root) == root / found


@pytest.mark.parametrize(
    ("inside", "told"),
    [
        pytest.param([], r"has no \.onnx file, no version .* and no model: it is empty", id="empty"),
        pytest.param(["model.pt", "0/"], r"and no model: it holds 0, model\.pt", id="nothing-of-ours"),
        pytest.param(["onnx/model.onnx"], r"and no model: it holds onnx", id="deeper-than-we-look"),
        pytest.param(["a.onnx", "b.onnx"], r"holds a\.onnx, b\.onnx; name the one that is meant", id="two-files"),
        pytest.param(["1/model.onnx", "a.onnx"], r"holds both versions \(1\) and a\.onnx", id="versions-and-a-file"),
        pytest.param(
            ["a/1/", "b/1/"], r"is a repository of 2 models \(a, b\); serve them all with --model-repo", id="repository"
        ),
        pytest.param([f"{n}.onnx" for n in range(9)], r"0\.onnx, .*4\.onnx and 4 more", id="many"),
    ],
)
def test_what_would_have_to_be_guessed_is_refused_with_what_there_is(
    inside: Sequence[str], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelRejected, match=told):
        locate(make(tmp_path / "models", *inside))


def test_what_is_no_folder_is_left_to_those_who_open_it(tmp_path: Path) -> None:
    assert locate(tmp_path / "nowhere.onnx") == tmp_path / "nowhere.onnx"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    root = make(tmp_path / "models")
    root.chmod(0)
    with pytest.raises(ModelRejected, match="cannot be read: Permission denied"):
        locate(root)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        pytest.param("/mnt/models", "models", id="folder"),
        pytest.param("a/resnet/3", "resnet", id="a-version"),
        pytest.param("a/resnet/model.onnx", "resnet", id="a-folder-of-files"),
        pytest.param("/", "model", id="root"),
        pytest.param("/_x y", "x-y", id="illegal-characters"),
    ],
)
def test_a_folder_s_name_is_made_legal(path: str, name: str) -> None:
    assert name_of_folder(Path(path)) == name


@pytest.mark.parametrize(
    "inside", [["model.onnx"], ["1/model.onnx"], ["m/1/model.onnx"]], ids=["file", "versions", "repo"]
)
@pytest.mark.parametrize("knob", ["model", "model_repository"])
def test_a_given_name_is_the_served_one_whatever_the_mount_looks_like(
    knob: str, inside: Sequence[str], tmp_path: Path
) -> None:
    """KServe gives one command line to all of a runtime's users: --model_name={{.Name}} --model_dir=/mnt/models."""
    mount: dict[str, Any] = {knob: make(tmp_path / "models", *inside)}
    settings = Settings(**mount, model_name="served")
    (found,) = discover(settings)
    assert (found.name, found.reason) == ("served", "")
    assert found.config is not None
    assert found.config.name == "served"
    assert found.version is not None
    assert found.version.model_path.is_file()
    assert names_on_disk(settings) == ("served",)
    assert discover_model(settings, "served") == [found]
    assert discover_model(settings, "m") == []


def test_a_load_call_may_bring_the_configuration_of_a_model_that_is_served_alone(tmp_path: Path) -> None:
    parameters = {"version_policy": {"all": True}, "traffic": {"canary": {"version": 2, "weight": 0.5}}}
    overrides = read_overrides(parameters, "served", ())
    folder = Settings(model=make(tmp_path / "m", "1/model.onnx", "2/model.onnx"), model_name="served")
    assert [one.version and one.version.version for one in discover_model(folder, "served", overrides)] == [1, 2]
    file = Settings(model=make(tmp_path / "n", "net.onnx") / "net.onnx", model_name="served")
    for settings in (folder, file):
        configs = [one.config for one in discover_model(settings, "served", overrides)]
        assert {config and config.traffic for config in configs} == {overrides.parts.traffic}


def test_without_a_given_name_the_configuration_s_counts_and_then_the_folder_s(tmp_path: Path) -> None:
    root = make(tmp_path / "models", "1/model.onnx", "2/model.onnx")
    assert [found.name for found in discover(Settings(model=root))] == ["models"]
    (root / "config.pbtxt").write_text('name: "resnet" version_policy { all {} }')
    assert [(found.name, found.version and found.version.version) for found in discover(Settings(model=root))] == [
        ("resnet", 1), ("resnet", 2),
    ]  # fmt: skip


def test_a_mount_that_cannot_be_served_is_one_unavailable_model_whose_reason_tells_no_path(tmp_path: Path) -> None:
    (found,) = discover(Settings(model=make(tmp_path / "models"), model_name="served"))
    assert (found.name, found.version, found.config) == ("served", None, None)
    assert found.reason == "models has no .onnx file, no version (a folder named 1, 2, ...) and no model: it is empty"


def test_a_version_that_is_asked_for_and_missing_is_told(tmp_path: Path) -> None:
    root = make(tmp_path / "models", "m/1/model.onnx", "m/2/model.onnx")
    (root / "m" / "config.pbtxt").write_text("version_policy { specific { versions: [2, 5] } }")
    there, missing = discover(Settings(model_repository=root))
    assert there.version is not None
    assert there.version.version == 2
    assert missing.reason == "version_policy asks for version 5, which has no folder; there are 1, 2"


def test_a_model_that_is_taken_for_a_repository_gets_a_hint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make(tmp_path / "models", "1/model.onnx")
    assert discover(Settings(model_repository=root)) == []
    assert caplog.messages[-1] == f"{root} is no repository, but looks like a model: serve it with --model"
    caplog.clear()
    assert discover(Settings(model_repository=make(tmp_path / "empty"))) == []
    assert caplog.messages == []


def test_a_triton_configuration_that_belongs_elsewhere_is_not_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    locate(make(tmp_path / "models", "model.onnx", "config.pbtxt"))
    assert caplog.messages == [
        "config.pbtxt is not read: it belongs one folder above a version, as in NAME/1/model.onnx"
    ]
