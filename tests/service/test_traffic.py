"""Canary and shadow: real versions in a real registry, asked one by one."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import LoadFailed, ModelNotReady, ModelRejected
from service.metrics import read_metrics
from service.prometheus_text import write_lines
from service.protocol import InferenceRequest, InferenceResponse, InputTensor, RequestedOutput, ShadowReport
from service.protocol import TrafficReport as Report
from service.registry import Registry
from service.repository import read_config
from service.settings import Settings
from service.traffic import differences
from tests.service.handmade import DOUBLE, PICKY, save_version

NEARLY = "g (float[N,2] x) => (float[N,2] y) { c = Constant<value_float=2.5>() y = Mul(x, c) }"
OTHER = "g (float[N,2] z) => (float[N,2] y) { y = Neg(z) }"
BOTH = {"version_policy": {"latest": 2}}


def save(repository: Path, second: str, **config: Any) -> None:
    save_version(repository, "m", DOUBLE)
    save_version(repository, "m", second, version=2, config={**BOTH, **config})


def serving(test: Callable[[Registry], Awaitable[None]], repository: Path) -> None:
    async def load_and_test() -> None:
        registry = Registry(Settings(model_repository=repository))
        await registry.load_all()
        try:
            await test(registry)
        finally:
            await registry.close()

    asyncio.run(asyncio.wait_for(load_and_test(), 60))


async def ask(registry: Registry, *values: float, version: str | None = None, classes: int | None = None) -> Any:
    """The answer's version and first value."""
    answered: asyncio.Future[InferenceResponse | Exception] = asyncio.get_running_loop().create_future()
    x = np.array([values or (1.0, 1.0)], np.float32)
    outputs = (RequestedOutput("y", classes=classes),) if classes else ()
    request = InferenceRequest((InputTensor("x", "FP32", x),), outputs)
    registry.get("m", version).begin(request, answered.set_result)
    answer = await answered
    assert isinstance(answer, InferenceResponse)
    return answer.model_version, answer.outputs[0].data[0].flat[0]


def report(registry: Registry) -> Report:
    found = registry.metadata("m").traffic
    assert found is not None
    return found


async def shadow_of(registry: Registry, done: int) -> ShadowReport:
    """The report, when so many answers have been looked at, one way or another."""
    while True:
        found = report(registry).shadow
        assert found is not None
        if found.compared + found.dropped + found.failed >= done:
            return found
        await asyncio.sleep(0.001)


# --- canary -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0, 0.1, 1 / 3, 0.5, 0.99, 1])
def test_canary_answers_its_share_exactly_and_evenly(weight: float, tmp_path: Path) -> None:
    save(tmp_path, NEARLY, traffic={"canary": {"version": 2, "weight": weight}})

    async def test(registry: Registry) -> None:
        counts: Counter[str] = Counter()
        for asked in range(1, 101):
            version, value = await ask(registry)
            assert value == {"1": 2, "2": 2.5}[version]
            counts[version] += 1
            assert abs(counts["2"] - weight * asked) <= 1
        assert report(registry) == Report("1", "2", 100, weight, counts["2"])

    serving(test, tmp_path)


def test_request_that_names_a_version_goes_to_it_and_is_not_counted(tmp_path: Path) -> None:
    save(tmp_path, NEARLY, traffic={"canary": {"version": 2, "weight": 0.5}})

    async def test(registry: Registry) -> None:
        for version in ("1", "2"):
            assert (await ask(registry, version=version))[0] == version
        assert report(registry).requests == 0
        assert registry.metadata("m", "1").traffic is None

    serving(test, tmp_path)


def test_version_on_trial_does_not_answer_alone(tmp_path: Path) -> None:
    save(tmp_path, NEARLY, traffic={"canary": {"version": 2, "weight": 0.5}})
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(b"nonsense")

    async def test(registry: Registry) -> None:
        with pytest.raises(ModelNotReady, match=r"version 1 is UNAVAILABLE: model\.onnx cannot"):
            registry.get("m")
        assert (await ask(registry, version="2"))[0] == "2"

    serving(test, tmp_path)


@pytest.mark.parametrize("trial", [OTHER, PICKY], ids=["other-name", "one-more-input"])
def test_version_with_another_signature_is_asked_nothing(trial: str, tmp_path: Path) -> None:
    save(tmp_path, trial, traffic={"canary": {"version": 2, "weight": 1}})

    async def test(registry: Registry) -> None:
        assert (await ask(registry))[0] == "1"
        assert registry.metadata("m").traffic is None

    serving(test, tmp_path)


def test_trial_begins_and_ends_with_a_load_and_counts_on_while_nothing_changes(tmp_path: Path) -> None:
    save(tmp_path, NEARLY)

    async def test(registry: Registry) -> None:
        assert (await ask(registry))[0] == "2"
        traffic = {"canary": {"version": 2, "weight": 1}}
        (tmp_path / "m" / "config.json").write_text(json.dumps({"name": "m", **BOTH, "traffic": traffic}))
        await registry.load("m")
        await ask(registry)
        assert report(registry).requests == 1
        registry._refresh("m")
        assert report(registry).requests == 1
        (tmp_path / "m" / "config.json").write_text(json.dumps({"name": "m", **BOTH}))
        await registry.load("m")
        assert registry.metadata("m").traffic is None

    serving(test, tmp_path)


# --- a trial that a load call asks for ----------------------------------------------------------------------------


def test_trial_of_a_load_call_lasts_until_the_next_load(tmp_path: Path) -> None:
    save(tmp_path, NEARLY, scheduler={"max_queue_size": 7})

    async def test(registry: Registry) -> None:
        await registry.load("m", {"traffic": {"canary": {"version": 2, "weight": 0.5}}})
        answers = [await ask(registry) for _ in range(4)]
        assert [version for version, _ in answers] == ["1", "2", "1", "2"]
        assert report(registry) == Report("1", "2", 4, 0.5, 2)
        batching = registry.configuration("m").dynamic_batching
        assert batching is not None
        assert batching.default_queue_policy.max_queue_size == 7, "the rest is as on disk"
        await registry.load("m", {"traffic": {"shadow": {"version": 1}}})
        assert (await ask(registry))[0] == "2"
        await shadow_of(registry, 1)
        await registry.load("m")
        assert registry.metadata("m").traffic is None

    serving(test, tmp_path)


def test_load_call_may_bring_the_versions_that_it_tries(tmp_path: Path) -> None:
    """Without a configuration only the highest is loaded."""
    save_version(tmp_path, "m", DOUBLE)
    save_version(tmp_path, "m", NEARLY, version=2)
    traffic = {"canary": {"version": 2, "weight": 0}}

    async def test(registry: Registry) -> None:
        await registry.load("m", {"version_policy": {"specific": [1, 2]}, "traffic": traffic})
        assert (registry.metadata("m").versions, (await ask(registry))[0]) == (("1", "2"), "1")
        await registry.load("m", {"config": json.dumps({"version_policy": {"all": True}, "traffic": traffic})})
        assert (registry.metadata("m").versions, (await ask(registry))[0]) == (("1", "2"), "1")
        await registry.load("m")
        assert (registry.metadata("m").versions, (await ask(registry))[0]) == (("2",), "2")

    serving(test, tmp_path)


def canary_of(version: int, **others: Any) -> dict[str, Any]:
    return {"traffic": {"canary": {"version": version, "weight": 0.5}}, **others}


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        pytest.param(
            canary_of(9),
            "traffic puts version 9 on trial, which is not among those to be loaded: 1, 2, 3", id="not-there",
        ),
        pytest.param(canary_of(1), "version 1 has other inputs or outputs than 3", id="unlike"),
        pytest.param(
            canary_of(1, version_policy={"latest": 2}),
            "traffic puts version 1 on trial, which is not among those to be loaded: 2, 3", id="not-loaded",
        ),
        pytest.param(
            {"config": json.dumps({"version_policy": {"all": True}, **canary_of(9)})},
            "traffic puts version 9 on trial, which is not among those to be loaded: 1, 2, 3", id="not-there-in-config",
        ),
        pytest.param(
            canary_of(9, version_policy={"specific": [1, 9]}),
            "version_policy asks for version 9, which has no folder; there are 1, 2, 3", id="no-folder",
        ),
    ],
)  # fmt: skip
def test_trial_that_would_not_take_place_is_refused_and_changes_nothing(
    parameters: dict[str, Any], told: str, tmp_path: Path
) -> None:
    save(tmp_path, NEARLY, version_policy={"all": True})
    save_version(tmp_path, "m", OTHER, version=3)

    async def test(registry: Registry) -> None:
        before = registry.states()
        with pytest.raises(LoadFailed) as caught:
            await registry.load("m", parameters)
        assert str(caught.value).startswith(f"model 'm' cannot be loaded: {told}")
        assert registry.states() == before

    serving(test, tmp_path)


def test_version_that_is_all_there_is_cannot_be_tried(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)

    async def test(registry: Registry) -> None:
        with pytest.raises(LoadFailed, match=r"on trial, but there is no other one to answer beside it$"):
            await registry.load("m", canary_of(1, version_policy={"all": True}))
        assert (await ask(registry))[0] == "1"

    serving(test, tmp_path)


def test_a_canary_is_told_to_prometheus(tmp_path: Path) -> None:
    save(tmp_path, NEARLY, traffic={"canary": {"version": 2, "weight": 0.25}})

    async def test(registry: Registry) -> None:
        for _ in range(8):
            await ask(registry, 1.0, 0.0)
        pair = 'model="m",version="1",on_trial="2",kind="canary"'
        assert [line for line in write_lines(read_metrics(registry)) if line and pair in line] == [
            f"foldserve_trial_requests_total{{{pair}}} 8",
            f"foldserve_canary_requests_total{{{pair}}} 2",
        ]

    serving(test, tmp_path)


# --- shadow -------------------------------------------------------------------------------------------------------


def test_shadow_is_compared_and_never_returned(tmp_path: Path) -> None:
    save(tmp_path, NEARLY, traffic={"shadow": {"version": 2, "tolerance": 0.1}})

    async def test(registry: Registry) -> None:
        for done, value in enumerate((0.01, 4.0, 2.0), 1):
            assert await ask(registry, value, 0) == ("1", pytest.approx(2 * value))
            await shadow_of(registry, done)
        assert report(registry) == Report("1", "2", 3, shadow=await shadow_of(registry, 3))
        assert await shadow_of(registry, 3) == ShadowReport(0.1, 3, 2, 0, 0, 2.0, pytest.approx(0.25))
        pair = 'model="m",version="1",on_trial="2",kind="shadow"'
        assert [line for line in write_lines(read_metrics(registry)) if line and pair in line] == [
            f"foldserve_trial_requests_total{{{pair}}} 3",
            f"foldserve_shadow_compared_total{{{pair}}} 3",
            f"foldserve_shadow_differing_total{{{pair}}} 2",
            f"foldserve_shadow_dropped_total{{{pair}}} 0",
            f"foldserve_shadow_failed_total{{{pair}}} 0",
            f'foldserve_shadow_largest_difference{{{pair},difference="absolute"}} 2',
            f'foldserve_shadow_largest_difference{{{pair},difference="relative"}} 0.25',
        ]

    serving(test, tmp_path)


def test_shadow_that_agrees_differs_in_nothing(tmp_path: Path) -> None:
    save(tmp_path, DOUBLE, traffic={"shadow": {"version": 2}}, scheduler={"priority_levels": 3, "default_priority": 1})

    async def test(registry: Registry) -> None:
        await ask(registry, math.nan, math.inf)
        assert await shadow_of(registry, 1) == ShadowReport(1e-4, 1, 0, 0, 0, 0.0, 0.0)

    serving(test, tmp_path)


def test_shadow_that_is_busy_is_not_asked(tmp_path: Path) -> None:
    save(tmp_path, DOUBLE, traffic={"shadow": {"version": 2}})

    async def test(registry: Registry) -> None:
        answers = await asyncio.gather(*(ask(registry) for _ in range(20)))
        assert {version for version, _ in answers} == {"1"}
        found = await shadow_of(registry, 20)
        assert (found.compared + found.dropped, found.failed) == (20, 0)
        assert found.dropped > 0
        statistics = {one.version: one.inference_stats.success.count for one in registry.statistics("m")}
        assert statistics == {"1": 20, "2": found.compared}

    serving(test, tmp_path)


def test_shadow_that_fails_costs_nobody_anything(tmp_path: Path) -> None:
    save(tmp_path, DOUBLE, traffic={"shadow": {"version": 2}})

    async def test(registry: Registry) -> None:
        await registry.get("m", "2").close()
        for done in (1, 2):
            assert (await ask(registry))[0] == "1"
            found = await shadow_of(registry, done)
            assert (found.compared, found.dropped, found.failed) == (0, done, 0)

    serving(test, tmp_path)


def test_ranked_classes_are_not_compared(tmp_path: Path) -> None:
    save(tmp_path, NEARLY, traffic={"shadow": {"version": 2}})

    async def test(registry: Registry) -> None:
        assert (await ask(registry, classes=1))[1].startswith(b"2.0")
        found = await shadow_of(registry, 1)
        assert (found.compared, found.differing, found.failed) == (1, 0, 0)

    serving(test, tmp_path)


@pytest.mark.parametrize(
    ("told", "other", "found"),
    [
        pytest.param([1.0, 2.0], [1.0, 2.0], (False, 0.0, 0.0), id="same"),
        pytest.param([1.0, -2.0], [1.0, -2.5], (True, 0.5, 0.25), id="beyond"),
        pytest.param([0.0], [0.05], (False, 0.05, 0.0), id="within-and-zero"),
        pytest.param([math.nan, math.inf], [math.nan, math.inf], (False, 0.0, 0.0), id="no-numbers"),
        pytest.param([math.inf, 1.0], [-math.inf, 1.0], (True, 0.0, 0.0), id="other-infinity"),
        pytest.param([math.nan], [1.0], (True, 0.0, 0.0), id="not-a-number"),
        pytest.param([], [], (False, 0.0, 0.0), id="none"),
        pytest.param([[1.0]], [1.0], (True, 0.0, 0.0), id="other-shape"),
        pytest.param([2**63 - 1], [0], (True, float(2**63), 1.0), id="integers"),
        pytest.param([True], [False], (True, 1.0, 1.0), id="bool"),
        pytest.param([b"a"], [b"b"], (True, 0.0, 0.0), id="other-text"),
        pytest.param([b"a"], [b"a"], (False, 0.0, 0.0), id="text"),
    ],
)
def test_differences(told: list[Any], other: list[Any], found: tuple[bool, float, float]) -> None:
    kind: Any = object if told and isinstance(told[0], bytes) else None
    arrays = [{"y": np.array(values, kind)} for values in (told, other)]
    assert differences(arrays[0], arrays[1], 0.1) == pytest.approx(found)


# --- what config.json may say -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "told"),
    [
        pytest.param({"canary": {"version": 2, "weight": 2}}, "weight", id="weight"),
        pytest.param({"canary": {"version": 0, "weight": 0.5}}, "version", id="version"),
        pytest.param({"canary": {"version": 2, "weight": 1}, "shadow": {"version": 2}}, "exclude", id="both"),
        pytest.param({"shadow": {"version": 2, "tolerance": -1}}, "tolerance", id="tolerance"),
        pytest.param({"mirror": {"version": 2}}, "mirror", id="unknown"),
    ],
)
def test_traffic_that_means_nothing_is_refused(config: dict[str, Any], told: str, tmp_path: Path) -> None:
    save(tmp_path, NEARLY, traffic=config)
    with pytest.raises(ModelRejected, match=told):
        read_config(tmp_path / "m")


@pytest.mark.parametrize(
    ("policy", "fits"),
    [
        pytest.param({}, False, id="latest"),
        pytest.param({"latest": 2}, True, id="latest-two"),
        pytest.param({"all": True}, True, id="all"),
        pytest.param({"specific": [2]}, False, id="alone"),
        pytest.param({"specific": [1, 3]}, False, id="two-others"),
        pytest.param({"specific": [1, 2]}, True, id="both"),
    ],
)
def test_version_policy_has_to_load_both_versions(policy: dict[str, Any], fits: bool, tmp_path: Path) -> None:
    save_version(tmp_path, "m", config={"version_policy": policy, "traffic": {"shadow": {"version": 2}}})
    if fits:
        assert read_config(tmp_path / "m").traffic.shadow is not None
        return
    with pytest.raises(ModelRejected, match="version_policy does not load both"):
        read_config(tmp_path / "m")
