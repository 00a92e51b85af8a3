"""How many workers the real command chooses, and that measuring for it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from service.cpu_plan import plan, read_limits
from tests.end_to_end.queueing import slow_always
from tests.end_to_end.running import PATIENCE_S, Foldserve, foldserve
from tests.service.handmade import DOUBLE, save_version

CORES = plan(read_limits()).cores

pytestmark = pytest.mark.skipif(CORES < 2, reason="on one core there is one worker, and nothing is measured")


@pytest.fixture
def chosen(tmp_path: Path) -> Mapping[str, str]:
    """The environment of a server that chooses, and has measured nothing yet."""
    return {"FOLDSERVE_WORKERS": "0", "STATE_DIRECTORY": str(tmp_path / "state")}


@pytest.fixture
def stuck(tmp_path: Path) -> Path:
    """A repository whose model cannot be measured to an end: somebody else is still to write its report."""
    folder = save_version(tmp_path / "stuck", "m", DOUBLE)
    os.mkfifo(folder / "report.json")
    return tmp_path / "stuck"


def test_a_short_model_has_a_worker_on_each_core_and_a_long_one_all_cores(
    tmp_path: Path, chosen: Mapping[str, str]
) -> None:
    save_version(tmp_path / "short", "m", DOUBLE)
    save_version(tmp_path / "long", "m", slow_always(100_000))
    workers = min(CORES, 8)
    for start in ("measured", "remembered"):
        with foldserve("--model-repository", tmp_path / "short", environment=chosen) as service:
            assert f"{workers} workers serve: a row takes " in service.log(), start
            told = service.get("/v2/models/m/config").json()["parameters"]["cpu_plan"]["string_value"]
            assert told.startswith(f"{workers} workers x 1 instance x 1 intra-op thread; ")
        with foldserve("--model-repository", tmp_path / "long", environment=chosen) as service:
            assert "1 process serves: model m version 1 takes " in service.log(), start


def probe_of(service: Foldserve) -> int:
    """The process that measures, as soon as there is one."""
    path = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children")
    while not (children := path.read_text().split()):
        assert service.process.poll() is None, service.log()
        time.sleep(0.01)
    return int(children[0])


def is_there(pid: int) -> bool:
    """Zombies are not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_ends_while_it_measures_leaves_no_process_behind(
    number: signal.Signals, stuck: Path, chosen: Mapping[str, str]
) -> None:
    with foldserve("--model-repository", stuck, environment=chosen, wait="nothing") as service:
        probe = probe_of(service)
        assert service.stop(number) == (0 if number is signal.SIGTERM else -number)
        give_up = time.monotonic() + PATIENCE_S
        while is_there(probe):
            assert time.monotonic() < give_up
            time.sleep(0.02)


def test_ctrl_c_while_measuring_says_nothing(stuck: Path, chosen: Mapping[str, str]) -> None:
    with foldserve("--model-repository", stuck, environment=chosen, wait="nothing") as service:
        probe = probe_of(service)
        os.kill(probe, signal.SIGINT)  # a terminal sends it to all
        assert service.stop(signal.SIGINT) == 0
        assert "Traceback" not in service.log()
