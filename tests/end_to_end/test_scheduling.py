"""Queueing, deadlines, cancellation and poison isolation through real sockets, with a model that takes its time.

What ran is told by the service's own counters: `inference_count` of the statistics extension counts rows that ran.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.queueing import Sender, body, infer, save_queueing_models, slow_always
from tests.end_to_end.running import Foldserve, foldserve
from tests.service.handmade import save_version

# Turns of the loop: short enough that loading measures all batch sizes, and long enough to queue behind.
SHORT, LONG = 10_000, 300_000


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foldserve]:
    repository = tmp_path_factory.mktemp("models")
    save_queueing_models(repository, slow_always(SHORT), slow_always(LONG))
    with foldserve("--model-repository", repository) as running:
        yield running


def counters(service: Foldserve, model: str = "slow") -> dict[str, Any]:
    (stats,) = service.get(f"/v2/models/{model}/stats").json()["model_stats"]
    return dict(stats)


def test_requests_that_wait_run_together(service: Foldserve) -> None:
    before = counters(service, "picky")
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda number: infer(service, [number, -number], number % 2, "picky"), range(12)))
    for number, answer in enumerate(answers):
        assert (answer.status, answer.json()["outputs"][0]["data"]) == (200, [-number if number % 2 else number])
    after = counters(service, "picky")
    assert after["inference_count"] - before["inference_count"] == 12
    assert after["execution_count"] - before["execution_count"] < 12


def test_only_the_guilty_request_of_a_batch_fails_with_its_own_message(service: Foldserve) -> None:
    """GatherElements with index 7 of 2: the whole batch fails, and is taken apart until the guilty one is alone."""
    indices = [0, 1, 0, 7, 1, 0, 1, 0, 1, 1]
    with ThreadPoolExecutor(len(indices)) as pool:
        answers = list(pool.map(lambda row: infer(service, [row[0], -row[0]], row[1], "picky"), enumerate(indices)))
    for number, (index, answer) in enumerate(zip(indices, answers, strict=True)):
        if index == 7:
            assert answer.status == 400
            assert "Out of range value in index tensor" in answer.json()["error"]
        else:
            assert (answer.status, answer.json()["outputs"][0]["data"]) == (200, [-number if index else number])


@pytest.mark.parametrize("chunked", [pytest.param(False, id="lane"), pytest.param(True, id="asgi-route")])
def test_a_caller_that_hangs_up_while_it_waits_is_not_computed_for(service: Foldserve, chunked: bool) -> None:
    before = counters(service)
    running = Sender(service, body([1, 2], 0), chunked=False)
    service.wait_until(lambda: _is_busy(service, before), "busy")
    gone = [Sender(service, body([3, 4], 0), chunked=chunked) for _ in range(5)]
    stays = Sender(service, body([5, 6], 0), chunked=chunked)
    for sender in gone:
        sender.hang_up()
    assert (running.status(), stays.status()) == (200, 200)
    after = counters(service)
    # Those who hung up may have been taken along before the server could notice: a run that had begun is not undone.
    assert 2 <= after["inference_count"] - before["inference_count"] <= 3


def _is_busy(service: Foldserve, before: dict[str, Any]) -> bool:
    """The request that was sent before has been taken, because a request of no time finds the instance occupied."""
    told = infer(service, [0, 0], timeout=1)
    return told.status == 503


def test_a_timeout_that_passes_in_the_queue_is_refused_in_time_and_never_runs(service: Foldserve) -> None:
    before = counters(service)
    running = Sender(service, body([1, 2], 0), chunked=False)
    service.wait_until(lambda: _is_busy(service, before), "busy")
    answer = infer(service, [3, 4], timeout=1000)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert re.search(r"the request allows \d+ [mu]s|timeout of \S+ s, \S+ s went by", answer.json()["error"])
    assert running.status() == 200
    assert counters(service)["inference_count"] - before["inference_count"] == 1


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(service: Foldserve) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda number: infer(service, [number, 0], model="small"), range(12)))
    refused = [answer for answer in answers if answer.status == 503]
    assert {answer.status for answer in answers} == {200, 503}
    for answer in refused:
        assert int(answer.headers["retry-after"]) >= 1
        assert "max_queue_size is 2" in answer.json()["error"]
    assert len(answers) - len(refused) == counters(service, "small")["inference_count"]


ENDLESS = """
g (int64 turns) => (float y) <bool go = {1}, float zero = {0.0}> {
  y = Loop (turns, go, zero) <body = walk (int64 n, bool c, float a) => (bool c2, float a2) {
    c2 = Identity(c)
    a2 = Sin(a)
  }>
}
"""


def test_what_is_not_answered_by_the_drain_limit_is_refused_through_both_doors(tmp_path: Path) -> None:
    """What runs is not waited for either: it would take hours."""
    save_version(tmp_path, "slow", ENDLESS)
    turns = {"name": "turns", "shape": [], "datatype": "INT64", "data": [10**12]}
    with foldserve("--model-repository", tmp_path, "--drain-limit-s", "0") as service:
        senders = [Sender(service, json.dumps({"inputs": [turns]}).encode(), chunked=number > 1) for number in range(4)]
        refused = json.dumps({"inputs": [turns], "parameters": {"timeout": 1}}).encode()
        service.wait_until(lambda: service.request("POST", "/v2/models/slow/infer", refused).status == 503, "busy")
        assert service.stop() == 0
        answers = [sender.answer() for sender in senders]
        log = service.log()
    for head, told in answers:
        assert head.startswith(b"HTTP/1.1 503 ")
        assert json.loads(told)["error"] == "model 'slow' version 1 is UNLOADING and takes no more requests"
    assert "the drain limit has passed: requests refused: 4" in log
    assert "Traceback" not in log
