from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.links import leads_out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in a repository, and something outside."""
    folder = tmp_path / "models" / "m"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").touch()
    (tmp_path / "models" / "n" / "1").mkdir(parents=True)
    (tmp_path / "outside" / "1").mkdir(parents=True)
    (tmp_path / "outside" / "1" / "model.onnx").touch()
    return folder


def _beside(folder: Path) -> None:
    """Through another model, which has the link that leads out."""
    (folder / "2").symlink_to("../n/1")
    (folder.parent / "n" / "1" / "model.onnx").symlink_to("/etc/hostname")


OUT = [
    pytest.param(lambda f: (f / "config.json").symlink_to("/etc/hostname"), "m/config.json", id="absolute"),
    pytest.param(lambda f: (f / "2").symlink_to("../../outside/1"), "m/2", id="version"),
    pytest.param(lambda f: (f / "1" / "golden.npz").symlink_to("../../../x"), "m/1/golden.npz", id="leads-nowhere"),
    pytest.param(lambda f: (f / "1" / "a").symlink_to("../../../models2"), "m/1/a", id="name-that-begins-alike"),
    pytest.param(_beside, "m/2/model.onnx", id="through-another-model"),
]


@pytest.mark.parametrize(("damage", "found"), OUT)
def test_a_link_that_leads_out_is_found_where_it_is(damage: Callable[[Path], Any], found: str, folder: Path) -> None:
    damage(folder)
    assert leads_out(folder.parent, folder) == Path(found)


def test_a_folder_that_is_itself_such_a_link_is_found(folder: Path) -> None:
    link = folder.parent / "linked"
    link.symlink_to(folder.parents[1] / "outside")
    assert leads_out(folder.parent, link) == Path("linked")


def _as_kubernetes_does(folder: Path) -> None:
    """Files are links to a folder that is a link to the newest."""
    (folder / "..2026").mkdir()
    (folder / "..2026" / "labels.txt").touch()
    (folder / "..data").symlink_to("..2026")
    (folder / "labels.txt").symlink_to("..data/labels.txt")


INSIDE = [
    pytest.param(lambda _: None, id="no-link"),
    pytest.param(_as_kubernetes_does, id="as-kubernetes-does"),
    pytest.param(lambda f: (f / "2").symlink_to("1"), id="version"),
    pytest.param(lambda f: (f / "2").symlink_to("../n/1"), id="another-model-s"),
    pytest.param(lambda f: (f / "2").symlink_to("../../models/m/1"), id="out-and-in-again"),
    pytest.param(lambda f: (f / "loop").symlink_to("loop"), id="to-itself"),
    pytest.param(lambda f: (f / "1" / "up").symlink_to(".."), id="in-a-circle"),
    pytest.param(lambda f: (f / ".cache").symlink_to("/etc"), id="invisible"),
]


@pytest.mark.parametrize("change", INSIDE)
def test_a_link_within_the_repository_is_as_good_as_a_copy(change: Callable[[Path], Any], folder: Path) -> None:
    change(folder)
    assert leads_out(folder.parent, folder) is None


def test_the_repository_may_be_behind_a_link_itself(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder.parent)
    assert leads_out(tmp_path / "link", tmp_path / "link" / "m") is None
