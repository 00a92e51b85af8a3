"""Reading what stands beside a model: whether a file is there, and whether it says what it must."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import ModelRejected
from service.repository import VersionDirectory, model_names, read_config, read_report, strays, versions
from tests.service.handmade import publish


def test_every_directory_is_a_model_or_a_stray_unless_it_is_hidden(tmp_path: Path) -> None:
    for name in ("digits", "v1.2_b", ".publish-x", "sp ace", "-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "a file").touch()
    assert model_names(tmp_path) == ("digits", "v1.2_b")
    assert strays(tmp_path, of="models") == ("-x", "sp ace")


def test_every_directory_is_a_version_or_a_stray_unless_it_is_hidden(tmp_path: Path) -> None:
    for name in ("1", "20", "0", "03", "v5", "-1", ".publish-x"):
        (tmp_path / name).mkdir()
    assert [found.version for found in versions(tmp_path)] == [1, 20]
    assert strays(tmp_path, of="versions") == ("-1", "0", "03", "v5")


def test_no_config_is_the_default_one(tmp_path: Path) -> None:
    assert read_config(tmp_path / "m").max_batch_size is None


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(os.mkfifo, id="named-pipe"),
        pytest.param(Path.mkdir, id="folder"),
        pytest.param(lambda path: path.symlink_to("nowhere"), id="dangling-link"),
    ],
)
def test_a_config_that_is_no_file_is_rejected_rather_than_waited_for_or_ignored(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "config.json")
    with pytest.raises(ModelRejected, match=r"config\.json is not a regular file"):
        read_config(tmp_path)


def test_a_config_may_be_a_link_to_a_file(tmp_path: Path) -> None:
    """Kubernetes mounts a ConfigMap so."""
    (tmp_path / "data").write_text(json.dumps({"name": tmp_path.name, "max_batch_size": 3}))
    (tmp_path / "config.json").symlink_to("data")
    assert read_config(tmp_path).max_batch_size == 3


@pytest.mark.parametrize("missing", ["model.onnx", "golden.npz"])
def test_a_report_must_list_the_model_and_the_golden_samples_it_promises(missing: str, tmp_path: Path) -> None:
    folder = publish(tmp_path)
    version = VersionDirectory(folder, 1)
    report = json.loads((folder / "report.json").read_text())
    assert read_report(version) is not None
    del report["files"][missing]
    (folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(ModelRejected, match=rf"files lists .* but not {missing}; publish the version again"):
        read_report(version)
