"""Fixtures of the end-to-end tests: digits the shipped model never saw, a running service, a repository to damage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.material import DIGITS, copy_model
from tests.end_to_end.running import Foldserve, foldserve
from training import datasets
from training.datasets.dataset import Examples
from training.recipe import RECIPES


@pytest.fixture(scope="session")
def held_out() -> Examples:
    """The recipe's test split: real digits that decided neither a weight nor a setting."""
    data = RECIPES[DIGITS].data
    return datasets.load(data.source, data.options()).test


@pytest.fixture(scope="module")
def service(checkout: Path) -> Iterator[Foldserve]:
    """`foldserve` on the shipped models; shared by the tests of one file, which only ask it questions."""
    with foldserve("--model-repository", checkout / "models") as running:
        yield running


@pytest.fixture
def repository(checkout: Path, tmp_path: Path) -> Path:
    """A repository of two models to damage: `digits` as shipped, and `healthy`, the same under another name."""
    root = tmp_path / "repository"
    copy_model(checkout / "models" / DIGITS, root / DIGITS)
    copy_model(checkout / "models" / DIGITS, root / "healthy")
    return root
