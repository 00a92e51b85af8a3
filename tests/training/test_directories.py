"""Lock, staging, exchange: what publish relies on the operating system for."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training import directories

HOLDER = """
import sys, time
from pathlib import Path
from training.directories import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


def put(root: Path, **files: str) -> Path:
    root.mkdir(parents=True)
    for name, text in files.items():
        (root / name).write_text(text)
    return root


def test_a_lock_leaves_nothing_behind(tmp_path) -> None:
    with directories.exclusive(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [directories.LOCK_FILE]
    assert list(tmp_path.iterdir()) == []


def test_a_held_lock_is_waited_for_and_then_named(tmp_path) -> None:
    with (
        directories.exclusive(tmp_path),
        pytest.raises(directories.Busy) as caught,
        directories.exclusive(tmp_path, 0.0),
    ):
        pytest.fail("two holders of one lock")

    assert str(tmp_path / directories.LOCK_FILE) in str(caught.value)


def test_the_lock_of_a_killed_process_is_free(tmp_path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(directories.Busy), directories.exclusive(tmp_path, 0.0):
            pytest.fail("the other process holds it")
        holder.send_signal(signal.SIGKILL)
    with directories.exclusive(tmp_path, 0.0):
        pass


def test_a_lock_on_a_file_that_was_unlinked_meanwhile_does_not_count(tmp_path) -> None:
    """Whoever waited with the old file open must not believe to hold the new one."""
    path = tmp_path / directories.LOCK_FILE
    real_flock = fcntl.flock

    def unlinked_first(descriptor: int, operation: int) -> None:
        path.unlink()
        real_flock(descriptor, operation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", unlinked_first)
        assert directories._try_lock(path) is None


def test_staging_is_invisible_and_removed_even_after_an_exception(tmp_path) -> None:
    with pytest.raises(RuntimeError), directories.staging(tmp_path) as path:
        put(path / "inner", file="x")
        assert path.name.startswith(".")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_stale_staging_is_removed_and_nothing_else(tmp_path) -> None:
    put(tmp_path / f"{directories.STAGING_PREFIX}abc" / "digits", half="x")
    put(tmp_path / "digits", whole="x")
    put(tmp_path / ".git", config="x")

    directories.remove_stale_staging(tmp_path)

    assert tree(tmp_path) == {"digits/whole": "x", ".git/config": "x"}


@pytest.fixture(params=["renameat2", "two renames"])
def exchange(request, monkeypatch) -> str:
    """Both ways to swap; the second is what a kernel or file system without renameat2 gets."""
    if request.param == "two renames":
        monkeypatch.setattr(directories, "_exchanged", lambda first, second: False)
    elif not sys.platform.startswith("linux"):
        pytest.skip("renameat2 is Linux")
    return request.param


def test_swap_exchanges_two_directories(exchange, tmp_path) -> None:
    staged, live = put(tmp_path / "staging" / "1", f="new"), put(tmp_path / "model" / "1", f="old")

    directories.swap(staged, live)

    assert tree(tmp_path) == {"staging/1/f": "old", "model/1/f": "new"}


def test_the_exchange_is_one_system_call_here(tmp_path) -> None:
    """If this fails, the file system of the test's directory has no RENAME_EXCHANGE, and the fallback is in use."""
    assert directories._exchanged(put(tmp_path / "a", f="1"), put(tmp_path / "b", f="2"))
    assert tree(tmp_path) == {"a/f": "2", "b/f": "1"}


def test_an_exchange_that_fails_for_another_reason_says_so(tmp_path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        directories._exchanged(put(tmp_path / "a"), tmp_path / "absent")

    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename2 == str(tmp_path / "absent")


def test_a_failed_second_rename_puts_the_old_one_back(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(directories, "_exchanged", lambda first, second: False)
    live = put(tmp_path / "model" / "1", f="old")

    with pytest.raises(FileNotFoundError):
        directories.swap(tmp_path / "absent", live)

    assert tree(tmp_path) == {"model/1/f": "old"}


@pytest.mark.parametrize("step", ["before", "between", "after"])
def test_a_swap_killed_at_any_rename_loses_nothing(step, monkeypatch, tmp_path) -> None:
    """The fallback's states on disk after a kill, and what the next publish makes of them."""
    staged, live = put(tmp_path / "staging" / "1", f="new"), put(tmp_path / "model" / "1", f="old")
    set_aside = live.with_name(directories.SET_ASIDE_PREFIX + live.name)
    if step != "before":
        live.rename(set_aside)
    if step == "after":
        staged.rename(live)

    directories.restore_set_aside(live.parent)

    assert (live / "f").read_text() == ("new" if step == "after" else "old")
    assert [path.name for path in live.parent.iterdir()] == ["1"]


def test_sync_tree_reaches_every_file_and_directory(monkeypatch, tmp_path) -> None:
    put(tmp_path / "a" / "b", f="x")
    put(tmp_path / "c", g="x")
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
    )

    directories.sync_tree(tmp_path)

    assert sorted(synced) == sorted(map(str, [tmp_path, *tmp_path.rglob("*")]))
    assert synced[-1] == str(tmp_path), "children before their directory"
