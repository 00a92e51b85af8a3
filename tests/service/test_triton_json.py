"""A configuration as JSON means what it means as config.pbtxt; only the spelling differs."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import MalformedRequest, ModelRejected
from service.repository import ModelConfig
from service.triton_json import read_configuration

CPU = ("CPUExecutionProvider",)
X = {"name": "x", "data_type": "TYPE_FP32", "dims": [3, -1]}
OURS = {"name": "x", "datatype": "FP32", "shape": (-1, 3, -1)}


def read(tree: Any) -> ModelConfig:
    return read_configuration(json.dumps(tree), "m", CPU)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        pytest.param({}, {}, id="nothing-said"),
        pytest.param({"name": "m", "backend": "onnxruntime", "max_batch_size": None}, {}, id="null-is-the-default"),
        pytest.param({"max_batch_size": 4, "input": [X]}, {"max_batch_size": 4, "inputs": (OURS,)}, id="tensors"),
        pytest.param({"maxBatchSize": 4}, {"max_batch_size": 4}, id="camel-case"),
        pytest.param(
            {"maxBatchSize": "4", "input": [{"name": "x", "dataType": "TYPE_FP32", "dims": ["3", "-1"]}]},
            {"max_batch_size": 4, "inputs": (OURS,)},
            id="numbers-in-strings",
        ),
        pytest.param(
            {"max_batch_size": 4, "input": [{**X, "data_type": 11}]},
            {"max_batch_size": 4, "inputs": (OURS,)},
            id="enum-by-number",
        ),
        pytest.param({"version_policy": {"all": {}}}, {"version_policy": {"all": True}}, id="an-empty-message-counts"),
        pytest.param(
            {"version_policy": {"specific": {"versions": [3, 1]}}}, {"version_policy": {"specific": (3, 1)}}, id="list"
        ),
        pytest.param(
            {"output": [{"name": 'ä"\\\n', "data_type": "TYPE_STRING", "dims": [2], "label_filename": "l.txt"}]},
            {"outputs": ({"name": 'ä"\\\n', "datatype": "BYTES", "shape": (2,), "labels": "l.txt"},)},
            id="any-character",
        ),
        pytest.param(
            {"max_batch_size": 4, "input": [{**X, "dims": []}]},
            {"max_batch_size": 4, "inputs": ({**OURS, "shape": (-1,)},)},
            id="an-empty-list-of-dims-is-what-our-own-configuration-says-of-rows-of-single-numbers",
        ),
        pytest.param(
            {"input": [{**X, "reshape": {"shape": [1, 3, -1]}}]},
            {"max_batch_size": None, "inputs": ({**OURS, "shape": (3, -1), "reshape": (1, 3, -1)},)},
            id="reshape",
        ),
        pytest.param(
            {"batch_input": [], "cc_model_filenames": {}, "parameters": {}, "model_warmup": []}, {}, id="empty-lists"
        ),
        pytest.param(
            {"instance_group": [{"count": 2, "kind": "KIND_CPU"}], "dynamic_batching": {"priority_levels": 2,
             "default_priority_level": 1, "default_queue_policy": {"allow_timeout_override": False}}},
            {"scheduler": {"instances": 2, "priority_levels": 2, "default_priority": 1,
                           "allow_timeout_override": False}},
            id="scheduling",
        ),
    ],
)  # fmt: skip
def test_what_is_taken(tree: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read(tree).model_dump() == ModelConfig.model_validate({"name": "m", **expected}).model_dump()


def test_messages_call_it_the_load_call_s_and_not_by_a_file_that_may_not_exist() -> None:
    assert read({"max_batch_size": 0}).told_batch_size == "the load call's configuration sets max_batch_size to 0"
    assert read({"input": [X], "output": [X]}).told_batch_size == (
        "the load call's configuration does not set max_batch_size, which means 0 in Triton"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", "the configuration is not JSON in a string", id="empty"),
        pytest.param("{", "the configuration is not JSON in a string", id="not-json"),
        pytest.param("[]", "the configuration is an array, expected an object", id="array"),
        pytest.param('{"a: 1 b": 1}', "the configuration: 'a: 1 b' is no key", id="key-that-is-text"),
        pytest.param('{"input": [[1]]}', "the configuration: input holds an array", id="list-in-a-list"),
        pytest.param('{"x":' * 500 + "1" + "}" * 500, "nested too deeply", id="deep"),
    ],
)
def test_what_is_no_configuration(text: str, problem: str) -> None:
    with pytest.raises(MalformedRequest, match=problem):
        read_configuration(text, "m", CPU)


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        pytest.param({"name": "other"}, "the configuration: name is 'other', but the model is 'm'", id="name"),
        pytest.param({"max_batch": 3}, "the configuration: max_batch is no key", id="unknown-key"),
        pytest.param({"sequence_batching": {}}, "the configuration: sequence_batching is not served", id="refused"),
        pytest.param({"max_batch_size": 1.5}, "the configuration: max_batch_size is", id="not-whole"),
        pytest.param({"max_batch_size": True}, "the configuration: max_batch_size is", id="boolean"),
        pytest.param(
            {"max_batch_size": -1}, "the configuration: max_batch_size is -1; expected 0 or more", id="negative"
        ),
        pytest.param(
            {"instance_group": [{"count": 65}]},
            "the configuration: instance_group.count is 65; expected 64",
            id="too-many",
        ),
        pytest.param({"input": [X, X]}, "the configuration: an input is named twice", id="twice"),
        pytest.param({"input": [{**X, "data_type": "FP32"}]}, "the configuration: input.data_type is", id="enum"),
    ],
)
def test_what_is_not_served(tree: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelRejected) as caught:
        read(tree)
    assert str(caught.value).startswith(problem)
    assert "line " not in str(caught.value), "there are no lines that its sender knows of"


def test_what_changes_no_answer_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read({"parameters": {"intra_op_thread_count": {"string_value": "4"}}, "optimization": {"priority": 1}})
    assert len(caplog.records) == 2
    assert "parameters 'intra_op_thread_count'" in caplog.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["name", "max_batch_size", "input", "output", "dims", "version_policy", "parameters"])
        | st.text(max_size=8),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(JSON)
def test_any_json_is_a_configuration_or_one_named_error(tree: Any) -> None:
    try:
        config = read(tree)
    except (MalformedRequest, ModelRejected) as error:
        assert str(error).startswith("the configuration")
    else:
        assert config.name == "m"
