"""The file of keys: what it may say, what is told when it says something else, and that keys stay secret."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from service.api_keys import KeyFile, Keys, Scope, read_keys
from service.knobs import SettingsError

INFER = "infer-key-0123456789"
CONTROL = "control-key-0123456789"
BOTH = "both-key-0123456789=="


def opened(keys: Keys, key: str) -> set[Scope]:
    return set(keys.scopes_of(key.encode()))


def test_a_line_says_what_its_key_opens() -> None:
    keys = read_keys(f"# ours\n\ninfer: {INFER}\n  control:{CONTROL}  \ninfer , control: {BOTH}\nread: {'r' * 16}\n")
    assert opened(keys, INFER) == {Scope.INFER, Scope.READ}
    assert opened(keys, CONTROL) == {Scope.CONTROL, Scope.READ}
    assert opened(keys, BOTH) == {Scope.INFER, Scope.CONTROL, Scope.READ}
    assert opened(keys, "r" * 16) == {Scope.READ}


def test_a_scope_has_as_many_keys_as_are_listed() -> None:
    """So that a new one can be handed out before the old one is withdrawn."""
    keys = read_keys(f"infer: {INFER}\ninfer: {BOTH}")
    assert opened(keys, INFER) == opened(keys, BOTH) == {Scope.INFER, Scope.READ}


@pytest.mark.parametrize("key", ["", INFER[:-1], INFER + "x", INFER.upper(), f"infer: {INFER}", "\xff"])
def test_what_is_no_key_opens_nothing(key: str) -> None:
    assert opened(read_keys(f"infer: {INFER}"), key) == set()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("", "it lists no key", id="empty"),
        pytest.param("# infer: 0123456789abcdef", "it lists no key", id="comments-only"),
        pytest.param(f"infer: {INFER}\nSECRET-0123456789", "line 2 is not 'SCOPE: KEY'", id="no-scope"),
        pytest.param("admin: SECRET-0123456789", "line 1 is not 'SCOPE: KEY'", id="unknown-scope"),
        pytest.param(": SECRET-0123456789", "line 1 is not 'SCOPE: KEY'", id="empty-scope"),
        pytest.param("infer,: SECRET-0123456789", "line 1 is not 'SCOPE: KEY'", id="half-a-list"),
        pytest.param("infer: SECRET", "line 1: the key has 6 characters, at least 16 are needed", id="short"),
        pytest.param("infer: SECRET 0123456789", "line 1: a key is made of", id="space"),
        pytest.param("infer: SECRET-0123456789é", "line 1: a key is made of", id="beyond-ascii"),
        pytest.param("infer:", "line 1: a key is made of", id="no-key"),
        pytest.param("infer: SECRET-0123456789\ncontrol: SECRET-0123456789", "line 2 gives a key again", id="twice"),
    ],
)
def test_what_cannot_be_read_is_told_by_its_line_and_without_the_key(text: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_keys(text)
    assert str(caught.value).startswith(told)
    assert "SECRET" not in str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"infer: {INFER}\n")
    path.chmod(0o600)
    return path


def test_a_file_that_others_may_read_is_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    KeyFile(path)
    assert not caplog.records
    path.chmod(0o644)
    KeyFile(path)
    assert "can be read by every user of this machine; chmod o-r it" in caplog.text


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(None, "cannot be read: No such file", id="missing"),
        pytest.param(b"\xff\xfe", "not text in UTF-8", id="binary"),
        pytest.param(b"#" * 2**21, "longer than 1048576 bytes", id="long"),
        pytest.param(b"infer", "line 1 is not", id="malformed"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_by_its_name(content: bytes | None, told: str, path: Path) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match="--api-key-file: ") as caught:
        KeyFile(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_pipe_is_not_waited_for(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SettingsError, match="not a regular file"):
        KeyFile(path)


def test_a_file_that_changes_is_read_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file = KeyFile(path)
    assert file.refresh() is False
    new = path.with_name("new")
    new.write_text(f"infer: {CONTROL}\n")
    new.replace(path)
    assert file.refresh() is True
    assert opened(file.keys, INFER) == set()
    assert opened(file.keys, CONTROL) == {Scope.INFER, Scope.READ}
    assert file.refresh() is False
    assert CONTROL not in caplog.text


def test_a_file_that_breaks_or_goes_leaves_the_keys_as_they_are(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = KeyFile(path)
    path.write_text("nonsense")
    assert [file.refresh() for _ in range(3)] == [False] * 3
    path.unlink()
    assert [file.refresh() for _ in range(3)] == [False] * 3
    assert opened(file.keys, INFER) == {Scope.INFER, Scope.READ}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2, "each state once, not each second"
    assert all("the keys stay as they were" in line for line in told)
    path.write_text(f"infer: {CONTROL}\n")
    assert file.refresh() is True
