"""Several worker processes are one server: the real command, real sockets, and processes that die at bad moments."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.asking import asking
from tests.end_to_end.processes import children
from tests.end_to_end.running import PATIENCE_S, Answer, Foldserve, foldserve, run_command
from tests.service.handmade import DOUBLE, save_model, save_version

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found in /proc")

TRIPLE = DOUBLE.replace("2.0", "3.0")
LOAD, UNLOAD, INDEX = "/v2/repository/models/m/load", "/v2/repository/models/m/unload", "/v2/repository/index"
X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
CONNECTIONS = 100
"""Fresh ones: that all of them come to one of two workers is as likely as 2 to the -99."""


def workers_of(service: Foldserve) -> list[int]:
    """Process ids of the supervisor's children, oldest first."""
    return children(service.process.pid)


def readers_of(pipe: Path, service: Foldserve) -> int:
    """How many workers have it open."""

    def reads(pid: int) -> bool:
        with contextlib.suppress(OSError):  # it has ended
            return any(file.readlink() == pipe for file in Path(f"/proc/{pid}/fd").iterdir())
        return False

    return sum(map(reads, workers_of(service)))


def answers(service: Foldserve, connections: int = CONNECTIONS) -> Counter[Any]:
    """What as many fresh connections are told: the first number, or status and the beginning of the error."""

    def told(answer: Answer) -> Any:
        return answer.json()["outputs"][0]["data"][0] if answer.status == 200 else answer.status

    return Counter(told(service.infer("m", X)) for _ in range(connections))


def states(service: Foldserve) -> Counter[Any]:
    return Counter(
        tuple((row["version"], row["state"]) for row in service.request("POST", INDEX).json()) for _ in range(20)
    )


def replace_one(service: Foldserve) -> None:
    """Kills the oldest worker; returns when another one has loaded its models in its place."""
    ready = service.log().count("READY in")
    os.kill(workers_of(service)[0], signal.SIGKILL)
    service.wait_until(lambda: service.log().count("READY in") > ready and len(workers_of(service)) == 2, "complete")


@contextmanager
def two_workers(repository: Path, *arguments: str) -> Iterator[Foldserve]:
    with foldserve("--model-repository", repository, "--workers", "2", *arguments) as service:
        yield service
        assert "Traceback" not in service.log()


# --- one server ---------------------------------------------------------------------------------------------------


def test_load_and_unload_and_the_index_speak_for_all_workers(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path) as service:
        assert len(workers_of(service)) == 2
        assert answers(service) == {2: CONNECTIONS}

        save_version(tmp_path, "m", TRIPLE, version=2)
        assert service.request("POST", LOAD).status == 200
        assert answers(service) == {3: CONNECTIONS}
        assert states(service) == {(("2", "READY"),): 20}

        (tmp_path / "m" / "2" / "model.onnx").write_bytes(b"nonsense")
        refused = service.request("POST", LOAD)
        assert refused.status == 400
        assert re.search(
            r"'m' cannot be loaded: version 2: model\.onnx cannot .*what was loaded before serves on",
            refused.json()["error"],
        )
        assert answers(service) == {3: CONNECTIONS}
        assert service.is_ready()

        assert service.request("POST", UNLOAD).status == 200
        assert answers(service) == {503: CONNECTIONS}
        assert states(service) == {(("2", "UNAVAILABLE"),): 20}
        assert Counter(service.is_ready() for _ in range(20)) == {False: 20}


def test_readiness_has_changed_in_every_worker_when_a_load_or_an_unload_returns(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path) as service:
        for _ in range(5):
            assert service.request("POST", UNLOAD).status == 200
            assert {service.is_ready() for _ in range(8)} == {False}
            assert service.request("POST", LOAD).status == 200
            assert {service.is_ready() for _ in range(8)} == {True}


def test_a_model_that_can_be_loaded_in_one_worker_only_is_loaded_in_none(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path) as service:
        asking, told, let_go = slow_load(service, tmp_path)
        let_go(2)  # what one reads of a pipe, the other does not
        asking.join(PATIENCE_S)
        assert told[0].status == 400
        assert service.log().count("model m version 2 READY") == 1
        assert "report.json" in told[0].json()["error"]
        assert answers(service) == {2: CONNECTIONS}
        assert states(service) == {(("1", "READY"), ("2", "UNAVAILABLE")): 20}


def test_readiness_waits_for_every_worker_and_liveness_for_none(tmp_path: Path) -> None:
    report = save_version(tmp_path, "m", DOUBLE) / "report.json"
    os.mkfifo(report)
    with foldserve("--model-repository", tmp_path, "--workers", "2", wait="live") as service:
        service.wait_until(lambda: service.log().count("computing on") == 2, "loading in both workers")
        assert {service.get("/v2/health/ready").status for _ in range(20)} == {503}
        with report.open("w") as pipe:
            service.wait_until(lambda: readers_of(report, service) == 2, "reading")
            report.unlink()
            pipe.write("{}")
        service.wait_until(lambda: "UNAVAILABLE" in service.log(), "told that one could not read it")
        assert not any(service.is_ready() for _ in range(20))


def counted(service: Foldserve) -> tuple[int, float]:
    """Requests answered, as the statistics and as the metrics have it."""
    statistics = service.get("/v2/models/m/stats").json()["model_stats"][0]
    metrics = service.get("/metrics").body.decode()
    (value,) = re.findall(r'^nv_inference_request_success\{model="m",version="1"\} (\S+)$', metrics, re.M)
    return statistics["inference_stats"]["success"]["count"], float(value)


def test_statistics_and_metrics_are_sums_of_all_workers_those_that_died_included(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path) as service:
        for expected in (CONNECTIONS, 2 * CONNECTIONS, 3 * CONNECTIONS):
            answers(service)
            assert {counted(service) for _ in range(10)} == {(expected, expected)}
            replace_one(service)
            assert {counted(service) for _ in range(10)} == {(expected, expected)}


def test_a_canary_is_counted_over_all_workers(tmp_path: Path) -> None:
    config = {"version_policy": {"all": True}, "traffic": {"canary": {"version": 2, "weight": 0.25}}}
    save_version(tmp_path, "m", DOUBLE, config=config)
    save_version(tmp_path, "m", TRIPLE, version=2)
    with two_workers(tmp_path) as service:
        found = answers(service)
        assert set(found) == {2, 3}
        told = [service.get("/v2/models/m").json()["traffic"] for _ in range(10)]
        assert {(one["requests"], one["on_trial"]) for one in told} == {(CONNECTIONS, found[3])}
        # Each worker rounds its share down.
        assert CONNECTIONS // 4 - 1 <= found[3] <= CONNECTIONS // 4


def told_of_traffic(service: Foldserve) -> list[Any]:
    """Weight and version on trial as several connections are told, which do not all come to one worker; None: no
    trial."""
    found = [service.get("/v2/models/m").json().get("traffic") for _ in range(20)]
    return [one and (one["version_on_trial"], one["weight"]) for one in found]


def test_a_canary_of_a_load_call_is_in_every_worker_and_in_those_that_come_later(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    save_version(tmp_path, "m", TRIPLE, version=2)
    both = {"version_policy": {"latest": 2}}
    canary = {"traffic": {"canary": {"version": 2, "weight": 0.25}}}
    with two_workers(tmp_path, "--repository-poll-s", "0.1", "--drain-grace-s", "0") as service:
        assert service.post(LOAD, {"parameters": {**both, **canary}}).status == 200
        assert told_of_traffic(service) == [("2", 0.25)] * 20
        first = answers(service)
        # Each worker rounds its share down.
        assert CONNECTIONS // 4 - 1 <= first[3] <= CONNECTIONS // 4
        assert first[2] + first[3] == CONNECTIONS

        unknown = {"traffic": {"canary": {"version": 9, "weight": 0.5}}}
        refused = service.post(LOAD, {"parameters": {**both, **unknown}})
        assert (refused.status, refused.json()["error"]) == (
            400,
            "model 'm' cannot be loaded: traffic puts version 9 on trial, which is not among those to be loaded: 1, 2",
        )
        assert told_of_traffic(service) == [("2", 0.25)] * 20

        replace_one(service)
        assert told_of_traffic(service) == [("2", 0.25)] * 20
        before = set(workers_of(service))
        service.process.send_signal(signal.SIGHUP)
        service.wait_until(lambda: not before & set(workers_of(service)) and len(workers_of(service)) == 2, "restarted")
        assert told_of_traffic(service) == [("2", 0.25)] * 20
        later = answers(service)
        assert set(later) == {2, 3}
        told = service.get("/v2/models/m").json()["traffic"]
        assert (told["requests"], told["on_trial"]) == (2 * CONNECTIONS, first[3] + later[3])

        config = json.dumps({**both, "traffic": {"shadow": {"version": 1}}})
        assert service.post(LOAD, {"parameters": {"config": config}}).status == 200
        assert answers(service) == {3: CONNECTIONS}
        assert service.request("POST", LOAD).status == 200
        assert told_of_traffic(service) == [None] * 20
        replace_one(service)
        assert (told_of_traffic(service), answers(service)) == ([None] * 20, {3: CONNECTIONS})


def test_a_canary_of_a_load_call_that_one_worker_cannot_load_is_in_none(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    parameters = {"version_policy": {"all": True}, "traffic": {"canary": {"version": 2, "weight": 0.5}}}
    with two_workers(tmp_path) as service:
        asking, told, let_go = slow_load(service, tmp_path, parameters)
        let_go(2)  # what one reads of a pipe, the other does not
        asking.join(PATIENCE_S)
        assert told[0].status == 400
        assert told_of_traffic(service) == [None] * 20
        assert answers(service) == {2: CONNECTIONS}


def test_shared_memory_is_registered_in_every_worker_and_in_those_that_come_later(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    memory = SharedMemory(create=True, size=8)
    try:
        memory.buf[:8] = struct.pack("<2f", 1, 2)
        with two_workers(tmp_path, "--system-shared-memory") as service:
            path = "/v2/systemsharedmemory/region/r/register"
            assert service.post(path, {"key": f"/{memory.name}", "byte_size": 8}).status == 200
            asked = {**X, "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8}}
            del asked["data"]
            for _ in range(2):
                assert Counter(service.infer("m", asked).status for _ in range(40)) == {200: 40}
                assert "already in manager" in service.post(path, {"key": memory.name, "byte_size": 8}).json()["error"]
                replace_one(service)
            assert service.request("POST", "/v2/systemsharedmemory/unregister").status == 200
            assert Counter(service.infer("m", asked).status for _ in range(40)) == {400: 40}
    finally:
        memory.close()
        memory.unlink()


# --- deaths -------------------------------------------------------------------------------------------------------


def test_a_worker_killed_in_the_middle_of_a_load_undoes_it_everywhere(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path) as service:
        before = {pid: len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in workers_of(service)}
        asking, told, let_go = slow_load(service, tmp_path)
        # Not the one that holds the connection: it could only break.
        victim = min(before, key=lambda pid: len(list(Path(f"/proc/{pid}/fd").iterdir())) - before[pid])
        os.kill(victim, signal.SIGKILL)
        service.wait_until(lambda: "was killed by SIGKILL" in service.log(), "told of the death")
        let_go(1)
        asking.join(PATIENCE_S)
        assert told[0].status == 503
        assert "a worker process ended meanwhile, so nothing was changed" in told[0].json()["error"]
        service.wait_until(lambda: service.log().count("version 1 READY") == 3, "complete again")
        assert answers(service) == {2: CONNECTIONS}
        assert service.request("POST", LOAD).status == 200
        assert answers(service) == {3: CONNECTIONS}


def slow_load(
    service: Foldserve, repository: Path, parameters: dict[str, Any] | None = None
) -> tuple[threading.Thread, list[Answer], Callable[[int], None]]:
    """A load of a second version that has begun in both workers, and goes on when the last is called with how many of
    them are there: then one reads a report that says that all is well."""
    report = save_version(repository, "m", TRIPLE, version=2) / "report.json"
    os.mkfifo(report)  # opening it waits for a writer
    told: list[Answer] = []
    asking = threading.Thread(target=lambda: told.append(service.post(LOAD, {"parameters": parameters})))
    asking.start()
    loading = re.compile(r"asked to load version (1, )?2")
    service.wait_until(lambda: len(loading.findall(service.log())) == 2, "loading in both workers")

    def let_go(readers: int) -> None:
        model = (report.parent / "model.onnx").read_bytes()
        record = {"sha256": hashlib.sha256(model).hexdigest(), "bytes": len(model)}
        with report.open("w") as pipe:
            service.wait_until(lambda: readers_of(report, service) == readers, "reading")
            report.unlink()
            pipe.write(json.dumps({"files": {"model.onnx": record}}))

    return asking, told, let_go


def test_a_dead_worker_is_replaced_by_one_that_serves_the_same(tmp_path: Path) -> None:
    """Not what is on disk by now."""
    save_version(tmp_path, "m", DOUBLE)
    save_version(tmp_path, "gone", DOUBLE)
    with two_workers(tmp_path) as service:
        assert service.request("POST", "/v2/repository/models/gone/unload").status == 200
        save_version(tmp_path, "m", TRIPLE, version=2)
        for _ in range(2):
            replace_one(service)
            assert answers(service) == {2: CONNECTIONS}
        assert {service.infer("gone", X).status for _ in range(40)} == {503}


def test_what_is_loaded_while_a_worker_is_being_replaced_is_loaded_in_the_new_one_as_well(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path) as service:
        save_version(tmp_path, "m", TRIPLE, version=2)
        os.kill(workers_of(service)[1], signal.SIGKILL)
        service.wait_until(lambda: "was killed by SIGKILL" in service.log(), "told of the death")
        assert service.request("POST", LOAD).status == 200
        assert "[2] computing" not in service.log().partition("SIGKILL")[2]  # it has not even begun
        service.wait_until(lambda: service.log().count("version 2 READY") == 2, "complete")
        assert answers(service) == {3: CONNECTIONS}
        assert states(service) == {(("2", "READY"),): 20}


def test_workers_with_nothing_to_load_listen_as_well(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path) as service:
        assert service.request("POST", UNLOAD).status == 200
        for pid in (before := workers_of(service)):
            os.kill(pid, signal.SIGKILL)
        service.wait_until(lambda: not set(before) & set(workers_of(service)), "replaced")
        assert answers(service) == {503: CONNECTIONS}
        service.wait_until(lambda: service.request("POST", LOAD).status == 200, "loaded")
        assert answers(service) == {2: CONNECTIONS}


def test_a_worker_that_cannot_load_what_the_others_serve_answers_nobody(tmp_path: Path) -> None:
    folder = save_version(tmp_path, "m", DOUBLE)
    save_version(tmp_path, "other", DOUBLE)
    with two_workers(tmp_path, "--no-strict-readiness") as service:
        folder.rename(tmp_path / "away")
        os.kill(workers_of(service)[0], signal.SIGKILL)
        service.wait_until(lambda: "cannot load m version 1, which the others serve" in service.log(), "told")
        assert answers(service) == {2: CONNECTIONS}
        (tmp_path / "away").rename(folder)
        service.wait_until(lambda: service.log().count("model m version 1 READY") == 3, "complete again")
        assert answers(service) == {2: CONNECTIONS}


def test_what_a_killed_worker_has_answered_has_been_counted(tmp_path: Path) -> None:
    """Under load: and of what it had in hand and never answered, no more than that is counted."""
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path) as service:
        with asking(service, "m", X, 6) as clients:
            for kills in (1, 2):
                answered = sum(client.answers.total() for client in clients)
                service.wait_until(
                    lambda before=answered: sum(client.answers.total() for client in clients) > before + 100, "asked"
                )
                os.kill(workers_of(service)[0], signal.SIGKILL)
                service.wait_until(lambda kills=kills: service.log().count("READY in") == 2 + kills, "replaced")
        answered = sum(client.answers.total() for client in clients)
        lost = sum(len(client.lost) for client in clients)
        (statistics,) = service.get("/v2/models/m/stats").json()["model_stats"]
        assert answered <= statistics["inference_count"] <= answered + lost
        assert answered <= statistics["inference_stats"]["success"]["count"] <= answered + lost


def test_a_lone_file_that_has_gone_does_not_stop_those_that_have_it(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx", DOUBLE)
    with foldserve("--model", path, "--workers", "2") as service:
        path.unlink()
        os.kill(workers_of(service)[0], signal.SIGKILL)
        service.wait_until(lambda: "cannot load what the others serve" in service.log(), "told")
        assert answers(service) == {2: CONNECTIONS}


def test_more_workers_may_be_leaving_than_there_are_to_be(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path, "--drain-grace-s", "2") as service:
        for count in (4, 6):  # versions that have become READY so far
            for pid in workers_of(service)[-2:]:
                os.kill(pid, signal.SIGTERM)
            service.wait_until(lambda count=count: service.log().count("READY in") == count, "replaced")
        service.wait_until(lambda: len(workers_of(service)) == 2, "rid of those that left")
        assert answers(service) == {2: CONNECTIONS}


def test_a_worker_that_is_killed_while_it_leaves_is_replaced_once(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path, "--drain-grace-s", "1") as service:
        victim = workers_of(service)[0]
        os.kill(victim, signal.SIGTERM)
        os.kill(victim, signal.SIGKILL)
        service.wait_until(lambda: service.log().count("READY in") == 3, "replaced")
        time.sleep(0.5)  # for another one that ought not to come
        assert len(workers_of(service)) == 2


def test_polling_forgets_nothing_with_a_worker(tmp_path: Path) -> None:
    """What a client has unloaded stays so, and what came while all were replaced is loaded."""
    save_version(tmp_path, "m", DOUBLE)
    save_version(tmp_path, "other", DOUBLE)
    with two_workers(tmp_path, "--repository-poll-s", "0.2", "--drain-grace-s", "0") as service:
        save_version(tmp_path, "other", TRIPLE, version=2)
        service.wait_until(lambda: service.log().count("other version 2 READY") == 2, "loaded by polling")
        assert service.request("POST", "/v2/repository/models/other/unload").status == 200
        before = set(workers_of(service))
        service.process.send_signal(signal.SIGHUP)
        save_version(tmp_path, "m", TRIPLE, version=2)
        service.wait_until(lambda: not before & set(workers_of(service)), "restarted")
        service.wait_until(lambda: answers(service, 5) == {3: 5}, "up to date")
        assert {service.infer("other", X).status for _ in range(20)} == {503}


def test_a_restart_that_is_asked_for_during_one_comes_behind_it(tmp_path: Path) -> None:
    """A certificate that was renewed twice: who has been replaced before the second time has read the first one."""
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path) as service:
        before = set(workers_of(service))
        service.process.send_signal(signal.SIGHUP)
        service.wait_until(lambda: bool(set(workers_of(service)) - before), "being restarted")
        there_then = set(workers_of(service))
        service.process.send_signal(signal.SIGHUP)
        service.wait_until(
            lambda: not there_then & set(workers_of(service)) and len(workers_of(service)) == 2, "restarted again"
        )
        assert service.is_ready()


def test_connections_that_come_while_a_worker_is_replaced_are_answered(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path) as service:
        ready = service.log().count("READY in")
        os.kill(workers_of(service)[-1], signal.SIGKILL)
        while service.log().count("READY in") == ready:
            assert answers(service, 1) == {2: 1}


def test_workers_that_lose_their_supervisor_end(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with foldserve("--model-repository", tmp_path, "--workers", "2") as service:
        left = workers_of(service)
        service.process.kill()
        service.process.wait()
        give_up = time.monotonic() + PATIENCE_S
        while any(Path(f"/proc/{pid}").exists() for pid in left):
            assert time.monotonic() < give_up
            time.sleep(0.02)


# --- ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_every_process(number: signal.Signals, tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path) as service:
        left = workers_of(service)
        assert service.stop(number) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in left)
        assert service.log().rstrip().endswith("stopped")


def test_a_stop_ends_workers_that_have_hardly_begun(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with foldserve("--model-repository", tmp_path, "--workers", "2", wait="nothing") as service:
        service.wait_until(lambda: len(workers_of(service)) == 2, "starting workers")
        left = workers_of(service)
        assert service.stop() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in left)
        assert "Traceback" not in service.log()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_a_terminal_tells_every_process_workers_leave_to_the_supervisor(
    number: signal.Signals, tmp_path: Path
) -> None:
    """In the middle of their imports already."""
    save_version(tmp_path, "m", DOUBLE)
    with foldserve("--model-repository", tmp_path, "--workers", "2", wait="nothing") as service:
        service.wait_until(lambda: len(workers_of(service)) == 2, "starting workers")
        began = workers_of(service)
        service.wait_until(lambda: all("numpy" in Path(f"/proc/{pid}/maps").read_text() for pid in began), "importing")
        for pid in began:
            os.kill(pid, number)
        service.wait_until_ready()
        assert workers_of(service) == began
        assert "Traceback" not in service.log()


def test_a_second_signal_ends_the_grace_of_all_workers(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    forever = str(int(2 * PATIENCE_S))
    with two_workers(tmp_path, "--drain-grace-s", forever, "--drain-limit-s", forever) as service:
        service.process.send_signal(signal.SIGTERM)
        service.wait_until(lambda: service.get("/v2/health/ready").status == 503, "not ready")
        assert answers(service, 10) == {2: 10}
        assert service.stop() == 0


@pytest.mark.parametrize("reaches_all", [False, True])
def test_a_rolling_restart_replaces_every_worker_and_loses_no_request(reaches_all: bool, tmp_path: Path) -> None:
    """reaches_all: the signal is sent to every process, as a terminal does that is closed."""
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path, "--drain-grace-s", "1") as service, asking(service, "m", X, 4) as clients:
        before = set(workers_of(service))
        for pid in before if reaches_all else ():
            os.kill(pid, signal.SIGHUP)
        service.process.send_signal(signal.SIGHUP)

        def all_are_new() -> bool:
            assert service.is_ready()
            assert answers(service, 1) == {2: 1}
            return not before & set(workers_of(service)) and len(workers_of(service)) == 2

        service.wait_until(all_are_new, "restarted")
        assert [client.lost for client in clients] == [[]] * 4
        assert all(client.told_to_close for client in clients)


def test_a_worker_that_is_told_to_end_is_replaced_and_loses_no_request(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path, "--drain-grace-s", "1") as service, asking(service, "m", X, 4) as clients:
        before = workers_of(service)
        os.kill(before[0], signal.SIGTERM)

        def is_complete() -> bool:
            assert service.is_ready()
            now = workers_of(service)
            return before[0] not in now and len(now) == 2

        service.wait_until(is_complete, "complete again")
        service.wait_until(lambda: service.log().count("READY in") == 3, "loaded again")
        assert [client.lost for client in clients] == [[]] * 4


def test_a_stop_in_the_middle_of_a_restart_is_in_order(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path, "--drain-grace-s", "2") as service:
        service.process.send_signal(signal.SIGHUP)
        service.wait_until(lambda: service.log().count("READY in") == 3, "half restarted")
        assert service.stop() == 0


@pytest.mark.parametrize("reaches_all", [False, True])
def test_a_stop_under_load_loses_no_request(reaches_all: bool, tmp_path: Path) -> None:
    """reaches_all: the signal is sent to every process, as systemd does."""
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path, "--drain-grace-s", "1") as service, asking(service, "m", X, 4) as clients:
        for pid in workers_of(service) if reaches_all else ():
            os.kill(pid, signal.SIGTERM)
        service.process.send_signal(signal.SIGTERM)
        service.wait_until(lambda: service.get("/v2/health/ready").status == 503, "not ready")
        assert service.infer("m", X).status == 200
        assert service.process.wait(PATIENCE_S) == 0
        for client in clients:
            client.join(PATIENCE_S)
        assert [client.lost for client in clients] == [[]] * 4


# --- refusals -----------------------------------------------------------------------------------------------------


def test_a_port_that_another_server_with_workers_has_is_refused(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with two_workers(tmp_path) as service:
        port = service.address.rpartition(":")[2]
        for workers in ("1", "2"):
            done = run_command("foldserve", "--model-repository", tmp_path, "--port", port, "--workers", workers)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr.endswith("choose another --host or --port\n")


def test_standard_files_that_are_closed_hinder_neither_a_start_nor_a_restart(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    closed = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")
    with foldserve("--model-repository", tmp_path, "--workers", "2", launcher=closed) as service:
        before = set(workers_of(service))
        service.process.send_signal(signal.SIGHUP)
        service.wait_until(lambda: not before & set(workers_of(service)), "restarted")
        assert answers(service) == {2: CONNECTIONS}


def test_a_lone_model_that_cannot_be_served_ends_all(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    done = run_command("foldserve", "--model", tmp_path / "bad.onnx", "--workers", "2", "--port", "0")
    assert done.returncode == 2
    assert "foldserve: error: bad.onnx cannot be loaded" in done.stderr.splitlines()[-1]
