"""What every test shares: where the checkout is, how hypothesis behaves. Fixtures of one part live beside its tests."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: the time one example takes says more about the machine's other work than about the code.
settings.register_profile("foldserve", deadline=None, print_blob=True)
settings.load_profile("foldserve")


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The folder that holds README.md, service/, training/ and models/."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def _what_lives_is_not_searched_for_garbage() -> None:
    """What earlier files have imported stays; with torch among it a full collection takes a second, and some tests need
    one after each step."""
    gc.collect()
    gc.freeze()
