"""What loading decides for a version beyond its files: how many threads its runs get."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from service.errors import ModelRejected
from service.load_version import LoadedVersion, load_version, threads_pay
from service.repository import VersionDirectory, read_config
from service.reshape import open_session
from service.session import Session
from tests.service.handmade import LINEAR, save_version


def loaded(folder: Path, clock: Callable[[], float], may_use_fewer: bool) -> LoadedVersion:
    return load_version(
        VersionDirectory(folder, 1),
        read_config(folder.parent),
        providers=("CPUExecutionProvider",),
        intra_op_threads=2,
        may_use_fewer=may_use_fewer,
        clock=clock,
    )


@pytest.mark.parametrize(
    ("run_s", "may_use_fewer", "threads"),
    [
        pytest.param(1e-5, True, 1, id="short runs that two threads do not make shorter"),
        pytest.param(1e-5, False, 2, id="as it was told"),
        pytest.param(1e-2, True, 2, id="longer runs are worth all cores"),
    ],
)
def test_threads(tmp_path: Path, run_s: float, may_use_fewer: bool, threads: int) -> None:
    ticks = count()
    # Every run takes as long, with one thread and with two.
    version = loaded(save_version(tmp_path, "m", LINEAR), lambda: run_s * next(ticks), may_use_fewer)
    assert version.report.intra_op_threads == threads
    assert version.report.latency_s[1] == pytest.approx(run_s)


def test_a_second_session_that_cannot_be_made_leaves_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory_for_two(*args: Any, intra_op_threads: int, **options: Any) -> Session:
        if intra_op_threads == 1:
            raise ModelRejected("bad allocation")
        return open_session(*args, intra_op_threads=intra_op_threads, **options)

    monkeypatch.setattr("service.load_version.open_session", no_memory_for_two)
    ticks = count()
    version = loaded(save_version(tmp_path, "m", LINEAR), lambda: 1e-5 * next(ticks), may_use_fewer=True)
    assert version.report.intra_op_threads == 2


@pytest.mark.parametrize(
    ("all_s", "alone_s", "pay"),
    [
        ({1: 5e-6, 64: 20e-6}, {1: 5e-6, 64: 12e-6}, False),
        ({1: 5e-6, 64: 10e-6}, {1: 5e-6, 64: 12e-6}, False),  # not worth a core
        ({1: 9e-6, 64: 6e-6}, {1: 5e-6, 64: 12e-6}, True),
        ({1: 5e-6, 32: 6e-6, 64: 6e-6}, {1: 5e-6, 32: 7e-6}, False),  # there was no time for more of the second
    ],
)
def test_threads_pay_where_they_make_the_largest_batch_much_shorter(
    all_s: dict[int, float], alone_s: dict[int, float], pay: bool
) -> None:
    assert threads_pay(all_s, alone_s) is pay
