"""What models take is remembered by their content, for this machine and these versions; damage is measured again."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from service import measurements
from service.measurements import Measured, Memory, fingerprint, state_directory
from service.settings import Settings


def test_figures_are_remembered_for_a_machine_and_versions_of_tools(tmp_path: Path):
    Memory(tmp_path, "onnxruntime 1").remember("abc", 0.5)
    Memory(tmp_path, "onnxruntime 1").remember("def", 0.25)

    assert [Memory(tmp_path, "onnxruntime 1").row_s(content) for content in ("abc", "def", "ghi")] == [0.5, 0.25, None]
    assert Memory(tmp_path, "onnxruntime 2").row_s("abc") is None


@pytest.mark.parametrize("content", ["", "[]", "null", '{"x": 3}', "\0", '{"x": {"abc": "fast"}}', "[" * 100_000])
def test_a_damaged_memory_is_an_empty_one(content: str, tmp_path: Path):
    (tmp_path / "measured.json").write_text(content)
    memory = Memory(tmp_path)

    assert memory.row_s("abc") is None
    memory.remember("abc", 1.0)
    assert Memory(tmp_path).row_s("abc") == 1.0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    Memory(tmp_path / "state").remember("abc", 1.0)


def test_a_path_that_is_no_folder_is_no_error(tmp_path: Path):
    (tmp_path / "state").write_text("")
    Memory(tmp_path / "state").remember("abc", 1.0)


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"STATE_DIRECTORY": "/var/lib/foldserve:/other", "HOME": "/h"}, "/var/lib/foldserve"),
        ({"XDG_STATE_HOME": "/s", "HOME": "/h"}, "/s/foldserve"),
        ({"HOME": "/h"}, "/h/.local/state/foldserve"),
    ],
)
def test_where_the_memory_lies(environ: dict[str, str], folder: str):
    assert state_directory(environ) == Path(folder)


# --- all that is served -------------------------------------------------------------------------------------------

KNOWN = [Measured("model a version 1", 20e-6), Measured("model b version 1", None, "its 9 MiB are not read at once")]


def test_what_is_served_is_remembered_as_it_was_measured(tmp_path: Path):
    Memory(tmp_path).remember_models("seen", KNOWN)

    assert Memory(tmp_path).models("seen") == KNOWN
    assert Memory(tmp_path).models("other") is None


def test_what_could_not_be_read_is_not_remembered(tmp_path: Path):
    Memory(tmp_path).remember_models(None, KNOWN)

    assert Memory(tmp_path).models(None) is None
    assert not (tmp_path / "measured.json").exists()


NOBODY_RUNS = {"label": "m", "row_s": 1.0, "reason": "", "instances": 0}
SPELT = {"label": "m", "row_s": "fast", "reason": "", "instances": 1}


@pytest.mark.parametrize("rows", [1.0, [1], [{}], [SPELT], [NOBODY_RUNS], {"label": "m"}])
def test_damaged_rows_are_not_known(rows: object, tmp_path: Path):
    memory = Memory(tmp_path)
    memory._keep("seen", rows)

    assert Memory(tmp_path).models("seen") is None


def test_the_oldest_figures_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measurements, "_MOST_REMEMBERED", 2)
    for content in ("a", "b", "a", "c"):
        Memory(tmp_path).remember(content, 1.0)

    assert [Memory(tmp_path).row_s(content) for content in ("a", "b", "c")] == [1.0, None, 1.0]


def seen(root: Path) -> str | None:
    return fingerprint(Settings(model_repository=root))


def test_a_fingerprint_changes_with_any_name_and_any_content(tmp_path: Path):
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    found = [seen(tmp_path)]
    for content in ("x", "y", "x"):
        (folder / "model.onnx").write_text(content)
        found.append(seen(tmp_path))
    (folder / "model.onnx").rename(folder / "other.onnx")
    found.append(seen(tmp_path))

    assert found[1] == found[3]
    assert len({*found}) == 4
    assert None not in found


def test_a_fingerprint_looks_behind_links(tmp_path: Path):
    """As in a folder that Kubernetes has mounted: a new release is a new target of the same link."""
    for release in ("one", "two"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "model.onnx").write_text(release)
    root = tmp_path / "root"
    root.mkdir()
    (root / "m").symlink_to(tmp_path / "one")
    before = seen(root)
    (root / "m").unlink()
    (root / "m").symlink_to(tmp_path / "two")

    assert seen(root) != before


def test_a_circle_of_links_too_many_files_and_too_many_bytes_have_no_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("12345")
    assert seen(tmp_path) is not None
    monkeypatch.setattr(measurements, "_MOST_BYTES", 4)
    assert seen(tmp_path) is None
    monkeypatch.undo()
    monkeypatch.setattr(measurements, "_MOST_FILES", 10)
    (tmp_path / "again").symlink_to(tmp_path)
    assert seen(tmp_path) is None


def test_a_pipe_has_no_fingerprint_for_reading_it_may_never_end(tmp_path: Path):
    os.mkfifo(tmp_path / "model.onnx")
    assert seen(tmp_path) is None
