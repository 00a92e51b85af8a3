"""What a load call may bring in place of what lies on disk, and what becomes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.errors import MalformedRequest, ModelRejected, ServiceError
from service.overrides import NO_OVERRIDES, read_overrides
from service.repository import ModelConfig

CPU = ("CPUExecutionProvider",)
BOTH = {"latest": 2}
CANARY = {"canary": {"version": 2, "weight": 0.25}}
SHADOW = {"shadow": {"version": 2}}
ON_DISK = {"name": "m", "description": "on disk", "version_policy": {"all": True}, "traffic": SHADOW}


def config_of(values: dict[str, Any]) -> ModelConfig:
    return ModelConfig.model_validate_json(json.dumps(values))


def applied(**parameters: Any) -> ModelConfig:
    """What is loaded with where ON_DISK lies on disk. `config` is written as JSON in a string."""
    if "config" in parameters:
        parameters["config"] = json.dumps(parameters["config"])
    return read_overrides(parameters, "m", CPU).apply(lambda: config_of(ON_DISK))


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        pytest.param({}, ON_DISK, id="nothing"),
        pytest.param({"traffic": CANARY}, {**ON_DISK, "traffic": CANARY}, id="traffic"),
        pytest.param({"traffic": {}}, {**ON_DISK, "traffic": {}}, id="no-traffic"),
        pytest.param({"traffic": None}, ON_DISK, id="null-says-nothing"),
        pytest.param({"version_policy": BOTH}, {**ON_DISK, "version_policy": BOTH}, id="policy"),
        pytest.param(
            {"version_policy": {"specific": [1, 2]}, "traffic": CANARY},
            {**ON_DISK, "version_policy": {"specific": [1, 2]}, "traffic": CANARY},
            id="both-parts",
        ),
        pytest.param({"config": {"max_batch_size": 4}}, {"name": "m", "max_batch_size": 4}, id="config-alone"),
        pytest.param(
            {"config": {"version_policy": BOTH, "traffic": CANARY}},
            {"name": "m", "version_policy": BOTH, "traffic": CANARY},
            id="config-in-our-form",
        ),
        pytest.param(
            {"config": {"version_policy": {"all": True}}}, {"name": "m", "version_policy": {"all": True}}, id="our-all"
        ),
        pytest.param(
            {"config": {"version_policy": {"all": {}}}}, {"name": "m", "version_policy": {"all": True}}, id="triton-all"
        ),
        pytest.param(
            {"config": {"scheduler": {"max_queue_size": 3}}},
            {"name": "m", "scheduler": {"max_queue_size": 3}},
            id="our-scheduler",
        ),
        pytest.param(
            {"config": {"backend": "onnxruntime", "version_policy": {"latest": {"num_versions": 2}}},
             "traffic": CANARY},
            {"name": "m", "version_policy": BOTH, "traffic": CANARY},
            id="traffic-beside-triton-s-config",
        ),
    ],
)  # fmt: skip
def test_what_a_model_is_loaded_with(parameters: dict[str, Any], expected: dict[str, Any]) -> None:
    assert applied(**parameters).model_dump() == config_of(expected).model_dump()


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize(
    ("parameters", "kind", "told"),
    [
        pytest.param(
            {"traffic": {"canary": {"version": 2, "weight": 1.5}}}, MalformedRequest,
            "the request's parameters: traffic.canary.weight is 1.5; expected 1.0 or less", id="more-than-all",
        ),
        pytest.param(
            {"traffic": {"canary": {"version": 2, "weight": -1}}}, MalformedRequest,
            "the request's parameters: traffic.canary.weight is -1; expected 0.0 or more", id="less-than-none",
        ),
        pytest.param(
            {"traffic": {"canary": {"version": 2, "weight": float("nan")}}}, MalformedRequest,
            "traffic.canary.weight is nan", id="no-number",
        ),
        pytest.param(
            {"traffic": {"canary": {"version": 2**70, "weight": 1}}}, MalformedRequest,
            "traffic.canary.version is 1180591620717411303424", id="huge",
        ),
        pytest.param(
            {"traffic": {**CANARY, **SHADOW}}, MalformedRequest, "canary and shadow exclude each other", id="two-trials"
        ),
        pytest.param(
            {"traffic": {"split": {"1": 90}}}, MalformedRequest,
            "the request's parameters: traffic.split is no key here; known are canary, shadow", id="unknown",
        ),
        pytest.param({"traffic": {"canary": {"weight": 1}}}, MalformedRequest, "version is missing", id="no-version"),
        pytest.param(
            {"version_policy": {"all": {}}}, MalformedRequest,
            "the request's parameters: version_policy.all is an object; expected true or false", id="policy",
        ),
        pytest.param({"traffic": json.loads(nested(500))}, MalformedRequest, "the request's parameters", id="deep"),
        pytest.param(
            {"version_policy": {"latest": 1}}, ModelRejected,
            "the request's parameters: traffic puts version 2 on trial beside another, but version_policy does not "
            "load both; let it say all, latest 2 or more, or the two versions as specific", id="policy-against-disk",
        ),
        pytest.param(
            {"config": {}, "traffic": CANARY}, ModelRejected,
            "version_policy does not load both", id="traffic-against-config",
        ),
        pytest.param(
            {"config": {"traffic": CANARY}}, ModelRejected,
            "the configuration: traffic puts version 2 on trial beside another, but version_policy", id="alone",
        ),
        pytest.param(
            {"config": {"traffic": {}, "input": []}}, ModelRejected,
            "the configuration: input is no key here; known are name, ", id="two-forms-at-once",
        ),
        pytest.param(
            {"config": {"traffic": {}, "name": "n"}}, ModelRejected,
            "the configuration: name is 'n', but the model is 'm'; make them agree", id="another-name",
        ),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused_in_one_sentence(
    parameters: dict[str, Any], kind: type[ServiceError], told: str
) -> None:
    with pytest.raises(kind) as caught:
        applied(**parameters)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param('{"traffic": {}, "traffic": {}}', "'traffic' is given more than once", id="twice"),
        pytest.param(f'{{"traffic": {nested(500)}}}', "the configuration: ", id="deep"),
    ],
)
def test_text_that_means_nothing_is_refused(text: str, told: str) -> None:
    with pytest.raises(ModelRejected, match=told):
        read_overrides({"config": text}, "m", CPU)


def test_a_configuration_in_our_form_is_called_the_load_call_s_and_not_by_a_file_that_may_not_exist() -> None:
    config = applied(config={"scheduler": {}, "max_batch_size": 0})
    assert config.told_batch_size == "the load call's configuration sets max_batch_size to 0"
    assert applied(traffic={}).file_name == "config.json"


@pytest.mark.parametrize(
    ("parameters", "asks"),
    [
        pytest.param({"traffic": CANARY}, True, id="canary"),
        pytest.param({"traffic": SHADOW}, True, id="shadow"),
        pytest.param({"config": json.dumps({"version_policy": BOTH, "traffic": CANARY})}, True, id="config"),
        pytest.param({"traffic": {}}, False, id="none"),
        pytest.param({"version_policy": BOTH}, False, id="what-the-disk-says-does-not-count"),
    ],
)
def test_whether_a_client_asks_for_a_trial(parameters: dict[str, Any], asks: bool) -> None:
    assert read_overrides(parameters, "m", CPU).asks_for_a_trial is asks


@pytest.mark.parametrize("parameters", [None, {}, {"traffic": None, "config": None}])
def test_a_call_that_says_nothing_overrides_nothing(parameters: dict[str, Any] | None) -> None:
    assert read_overrides(parameters, "m", CPU) == NO_OVERRIDES
