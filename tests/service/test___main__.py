"""The command line: what cannot work is one line and exit code 2, before anything is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.__main__ import check_paths
from service.settings import Settings, SettingsError
from tests.end_to_end.running import run_command


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(("--port", "x"), "argument --port: 'x' is not a whole number", id="bad-value"),
        pytest.param(("--nonsense",), "unrecognized arguments: --nonsense", id="unknown-flag"),
        pytest.param(("--model-repository", "nowhere"), "there is no folder 'nowhere'", id="missing-repository"),
        pytest.param((), "there is no folder 'models'; name one with --model-repository DIR", id="no-default-folder"),
        pytest.param(
            ("--model-repository", "file"), "'file' cannot be read: Not a directory", id="repository-is-a-file"
        ),
        pytest.param(("--model", "nowhere.onnx"), "there is no file or folder 'nowhere.onnx'", id="missing-file"),
        pytest.param(("--model", "file/x.onnx"), "cannot be read: Not a directory", id="file-in-a-file"),
        pytest.param(("--model", "f", "--model-repository", "r"), "exclude each other", id="both"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    result = run_command("foldserve", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("foldserve: error: ")
    assert told in line


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_need_no_models(flag: str, tmp_path: Path) -> None:
    result = run_command("foldserve", flag, cwd=tmp_path)
    assert result.returncode == 0
    assert result.stderr == ""
    assert result.stdout.startswith("foldserve 0." if flag == "--version" else "usage: foldserve")


def test_an_empty_repository_is_no_mistake(tmp_path: Path) -> None:
    """It is served, and not ready: see service/served.py."""
    check_paths(Settings(model_repository=tmp_path))


def test_a_loop_of_links_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SettingsError, match=r"--model: .*loop' cannot be read: Too many levels of symbolic links"):
        check_paths(Settings(model=tmp_path / "loop"))
