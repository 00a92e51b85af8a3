"""What is freed goes back to the system; the proof with a model is in test_registry_loading.py."""

from __future__ import annotations

import ctypes

import pytest

from service import memory


@pytest.mark.parametrize("failure", [AttributeError("no malloc_trim"), OSError("no libc"), TypeError("no handle")])
def test_without_glibc_nothing_happens(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """musl, macOS and Windows refuse in these three ways."""
    tried = []

    def refuse(name: str | None) -> object:
        tried.append(name)
        raise failure

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    memory.give_back()
    assert tried == [None]


def test_it_can_be_asked_at_any_time() -> None:
    memory.give_back()
    memory.give_back()
