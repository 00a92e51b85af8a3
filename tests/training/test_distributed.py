"""Two processes under torchrun, with uneven batches, compute what one process with all rows does."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import HashStore

from tests.training.two_processes import STEPS, network, work
from training.bn.replacing import replace
from training.distributed import CannotDistribute, Processes, joined

TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}
PATIENCE_S = 100.0


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", "-m", "tests.training.two_processes",
        str(folder),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE_S, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [torch.load(folder / f"{rank}-of-2.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, threads = tmp_path_factory.mktemp("one"), torch.get_num_threads()
    torch.set_num_threads(1)
    work(Processes(), folder)
    torch.set_num_threads(threads)
    return torch.load(folder / "0-of-1.pt", weights_only=True)


def test_answers_are_those_of_one_process_with_all_rows(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    for step in range(STEPS):
        together = torch.cat([each["found"][f"answers {step}"] for each in two])
        torch.testing.assert_close(together, one["found"][f"answers {step}"], **TOLERANCE)


@pytest.mark.parametrize("kind", ["gradient", "buffer"])
def test_gradients_and_running_statistics_are_those_of_one_process(
    kind: str, one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    names = [name for name in one["found"] if name.startswith(kind)]
    assert len(names) == STEPS * {"gradient": 9, "buffer": 6}[kind]
    for name in names:
        for each in two:
            torch.testing.assert_close(each["found"][name], one["found"][name], **TOLERANCE)


def test_population_statistics_and_weights_of_the_end_are_those_of_one_process(
    one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    for each in two:
        torch.testing.assert_close(each["end"], one["end"], **TOLERANCE)


def test_both_processes_hold_the_same_bits_also_in_the_exported_file(two: list[dict[str, Any]]) -> None:
    left, right = two
    assert all(torch.equal(left["end"][name], right["end"][name]) for name in left["end"])
    assert left["exported"] == right["exported"]
    assert (left["norms left"], right["norms left"]) == (0, 0)


def test_the_first_process_speaks_for_all_and_what_all_say_is_added_up(
    one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    assert one["agreed"] == {"of first": 0, "sum": [1.0, 0.5], "refused": "process 0 refuses", "not the same": ""}
    for each in two:
        assert each["agreed"] == {
            "of first": 0,
            "sum": [3.0, 1.0],
            "refused": "process 0 refuses",
            "not the same": "process 1 holds other rank than process 0, expected the same in all",
        }


def test_a_line_to_which_several_come_is_told_by_the_first_of_them() -> None:
    store, said = HashStore(), []
    for rank, line in [(1, "no disk"), (0, "no disk"), (0, "no data"), (2, "no disk")]:
        Processes(rank, 3, store).tell(line, lambda rank=rank, line=line: said.append((rank, line)))
    Processes().tell("alone", lambda: said.append((0, "alone")))

    assert said == [(1, "no disk"), (0, "no data"), (0, "alone")]


def test_alone_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    module = network()
    with joined() as processes:
        processes.prepare(module)
        processes.finish(module)

        assert (processes.rank, processes.count, processes.is_first) == (0, 1, True)
        assert torch.equal(processes.share(torch.arange(5)), torch.arange(5))
    assert type(module[1]) is nn.BatchNorm1d


def test_parts_of_a_batch_differ_by_one_row_at_most() -> None:
    parts = [Processes(rank, 3).share(torch.arange(8)) for rank in range(3)]

    assert torch.equal(torch.cat(parts), torch.arange(8))
    assert [len(part) for part in parts] == [3, 3, 2]


@pytest.mark.parametrize("norm", ["ghost:2", "renorm", "masked", "frozen"])
def test_what_would_learn_from_one_process_alone_is_refused(norm: str) -> None:
    with pytest.raises(CannotDistribute, match=r"layer .1. is a .*, whose statistics would differ between the 2 proc"):
        Processes(0, 2).prepare(replace(network(), norm))


def test_layers_without_statistics_are_refused() -> None:
    with pytest.raises(CannotDistribute, match="layer '0' keeps no running statistics"):
        Processes(0, 2).prepare(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)))


def test_an_environment_that_torchrun_did_not_make_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(CannotDistribute, match="WORLD_SIZE='two' in the environment is no number"), joined():
        pass
