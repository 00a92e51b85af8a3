"""Whole networks, exported in the background and folded once for all tests that ask about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import cache

import onnx_ir as ir
import pytest

from training.fold import FoldReport, fold

Key = tuple[str, bool]  # exporting.Key; that file imports torch, which most tests here do without


@pytest.fixture(scope="session")
def exports(request: pytest.FixtureRequest) -> Iterator[Mapping[Key, Future]]:
    """Those that this run's tests name by their parameter `key`, under way from the first test that needs one."""
    from tests.training.fold.architectures.exporting import exporting

    parameters = (item.callspec.params for item in request.session.items if hasattr(item, "callspec"))
    with exporting(given["key"] for given in parameters if "key" in given) as futures:
        yield futures


@pytest.fixture(scope="session")
def folding(exports: Mapping[Key, Future]) -> Callable[[Key], tuple[ir.Model, FoldReport]]:
    @cache
    def folded(key: Key) -> tuple[ir.Model, FoldReport]:
        return fold(exports[key].result().model, profile="generic")

    return folded
