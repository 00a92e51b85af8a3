"""How many workers: by cores, and by what the models take; measured once a machine and model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from service import probe, worker_plan
from service.cpu_plan import CpuPlan
from service.measurements import Measured, Memory, content_of
from service.settings import Settings
from service.worker_plan import WorkerPlan, choose, plan
from tests.service.handmade import DOUBLE, save_model, save_version

SHORT, OTHER = Measured("model a version 1", 20e-6), Measured("model b version 1", 900e-6)
LONG = Measured("model c version 2", 0.02)
UNKNOWN = Measured("model d version 1", None, "what it takes could not be measured")

TWICE = Measured("model e version 1", 10e-6, instances=2)

CASES = {
    "one for each core": (4, [SHORT], 4),
    "as many short ones as one likes": (8, [SHORT, OTHER], 8),
    "one that is worth all cores": (8, [SHORT, LONG, OTHER], 1),
    "one of which nothing is known": (8, [SHORT, UNKNOWN], 1),
    "one that has two instances": (8, [SHORT, TWICE], 4),
    "one that has more instances than there are cores": (8, [Measured("model f version 1", 1e-6, instances=16)], 1),
    "nothing to serve": (8, [], 1),
    "two cores": (2, [SHORT], 2),
    "one core": (1, [SHORT], 1),
    "more cores than anybody has measured": (128, [SHORT], 8),
}


@pytest.mark.parametrize(("cores", "models", "workers"), CASES.values(), ids=CASES.keys())
def test_workers_by_cores_and_models(cores: int, models: list[Measured], workers: int):
    assert choose(CpuPlan(cores, "affinity"), models).workers == workers


def test_threads_that_the_user_asks_for_count():
    assert [choose(CpuPlan(8, "affinity"), [TWICE], threads).workers for threads in (1, 2, 4, 8)] == [4, 2, 1, 1]


@pytest.mark.parametrize(
    ("cores", "models", "reason"),
    [
        (8, [SHORT, OTHER], "a row takes 900 us at most, so one for each of 8 cores"),
        (64, [SHORT], "a row takes 20 us at most, so the most there may be, 8, of 64 cores"),
        (
            8,
            [SHORT, TWICE],
            "a row takes 20 us at most, so one for every 2, the threads that run at once in each, of 8 cores",
        ),
        (8, [SHORT, LONG], "model c version 2 takes 20 ms a row on one core, so runs use all"),
        (8, [UNKNOWN], "model d version 1: what it takes could not be measured"),
        (1, [SHORT], "1 core, cgroup quota of 1.5 cores"),
        (8, [], "there is no model yet"),
    ],
)
def test_a_plan_says_why(cores: int, models: list[Measured], reason: str):
    assert choose(CpuPlan(cores, "cgroup quota of 1.5 cores"), models).reason == reason


# --- measuring, in a process of its own ---------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    return tmp_path / "state" / "measured.json"


def planned(repository: Path, *flags: str, cores: int = 8) -> WorkerPlan:
    argv = ["--model-repository", str(repository), *flags]
    return plan(CpuPlan(cores, "affinity"), Settings.from_command_line(argv, {}), argv)


def test_the_models_of_the_repository_are_measured_and_the_bad_ones_take_no_time(tmp_path: Path, state: Path):
    save_version(tmp_path / "r", "m", DOUBLE)
    (save_version(tmp_path / "r", "bad", DOUBLE) / "model.onnx").write_bytes(b"nonsense")

    found = planned(tmp_path / "r")

    assert found.workers == 8
    assert found.reason.startswith("a row takes ")
    (remembered,) = json.loads(state.read_text()).values()
    assert [key for key, value in remembered.items() if isinstance(value, float)] == [
        content_of(tmp_path / "r" / "m" / "1" / "model.onnx")
    ]


def test_what_was_measured_is_believed_the_next_time(tmp_path: Path, state: Path):
    save_version(tmp_path / "r", "m", DOUBLE)
    planned(tmp_path / "r")
    text = json.loads(state.read_text())
    state.write_text(json.dumps({machine: dict.fromkeys(rows, 0.5) for machine, rows in text.items()}))

    assert planned(tmp_path / "r").reason == "model m version 1 takes 500 ms a row on one core, so runs use all"


def test_nothing_is_started_to_measure_what_has_not_changed(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = save_version(tmp_path / "r", "m", DOUBLE)
    found = planned(tmp_path / "r")
    measuring = worker_plan.subprocess.run
    monkeypatch.setattr(worker_plan.subprocess, "run", lambda *_, **__: pytest.fail("measured"))
    assert planned(tmp_path / "r") == found

    monkeypatch.setattr(worker_plan.subprocess, "run", measuring)
    (folder / "model.onnx").write_bytes(b"nonsense")
    assert planned(tmp_path / "r").reason.startswith("a row takes 0 us at most")


def test_a_model_s_instances_and_the_threads_of_a_run_take_cores_from_workers(tmp_path: Path, state: Path):
    save_version(tmp_path / "r", "m", DOUBLE, config={"scheduler": {"instances": 2}})

    for _ in ("measured", "remembered"):
        assert planned(tmp_path / "r").workers == 4
        assert planned(tmp_path / "r", "--intra-op-threads", "2").workers == 2


def test_a_pipe_is_not_waited_for(tmp_path: Path, state: Path):
    os.mkfifo(save_version(tmp_path / "r", "m", DOUBLE) / "pipe")
    (tmp_path / "r" / "m" / "1" / "pipe").rename(tmp_path / "r" / "m" / "1" / "model.onnx")

    assert planned(tmp_path / "r") == WorkerPlan(
        1, "model m version 1: what it takes could not be measured: it is no ordinary file"
    )


def test_what_is_too_large_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probe, "LARGEST_BYTES", 10)
    path = save_model(tmp_path / "m.onnx", DOUBLE)
    settings = Settings(model=path)
    (found,) = probe.discover(settings)

    measured = probe.measure(settings, found, Memory(tmp_path))

    assert (measured.row_s, measured.reason) == (None, "its 0 MiB are not read at once, so runs use all cores")


def test_few_cores_and_accelerators_need_no_measurement(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_plan.subprocess, "run", lambda *_, **__: pytest.fail("measured"))

    assert plan(CpuPlan(1, "affinity of 1"), Settings(), []) == WorkerPlan(1, "1 core, affinity of 1")
    gpu = Settings(providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert plan(CpuPlan(64, "affinity"), gpu, []).workers == 1


def test_a_measurement_that_fails_leaves_one_process_and_the_reason(state: Path):
    failed = plan(CpuPlan(8, "affinity"), Settings(), ["--no-such-flag"])

    assert failed.workers == 1
    assert failed.reason.startswith("the models could not be measured: ")
