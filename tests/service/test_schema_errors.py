"""A mistake in a file of ours is one line: key, found, expected; none of the words of what found it."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from service.repository import ModelConfig, VersionReport
from service.schema_errors import first_problem


def problem(text: str, schema: type[BaseModel] = ModelConfig) -> str:
    with pytest.raises(ValidationError) as caught:
        schema.model_validate_json(text)
    return first_problem(caught.value, schema)


@pytest.mark.parametrize(
    ("members", "told"),
    [
        pytest.param('"max_batch_size": -3', "max_batch_size is -3; expected 0 or more", id="below"),
        pytest.param('"max_batch_size": 2147483648', "max_batch_size is 2147483648; expected 2147483647 or less",
                     id="beyond-32-bits"),
        pytest.param('"scheduler": {"max_queue_size": 4294967296}',
                     "scheduler.max_queue_size is 4294967296; expected 4294967295 or less", id="beyond-uint32"),
        pytest.param('"scheduler": {"max_queue_delay_us": 18446744073709551616}',
                     "scheduler.max_queue_delay_us is 18446744073709551616; expected 18446744073709551615 or less",
                     id="beyond-uint64"),
        pytest.param('"inputs": [{"name": "x", "datatype": "FP32", "shape": [9223372036854775808]}]',
                     "inputs[0].shape[0] is 9223372036854775808; expected 9223372036854775807 or less",
                     id="beyond-int64"),
        pytest.param('"max_batch_size": "8"', "max_batch_size is '8'; expected a whole number", id="text-for-number"),
        pytest.param('"max_batch_size": 1.5', "max_batch_size is 1.5; expected a whole number", id="not-whole"),
        pytest.param('"max_batch_size": true', "max_batch_size is true; expected a whole number", id="bool-for-number"),
        pytest.param('"scheduler": {"instances": 0}', "scheduler.instances is 0; expected 1 or more", id="below-1"),
        pytest.param('"scheduler": {"instances": 65}', "scheduler.instances is 65; expected 64 or less", id="above"),
        pytest.param('"scheduler": {"exact_batches": 1}', "scheduler.exact_batches is 1; expected true or false",
                     id="number-for-bool"),
        pytest.param('"scheduler": 3', "scheduler is 3; expected an object", id="number-for-object"),
        pytest.param('"scheduler": {"priority_levels": 1}', "scheduler: default_priority is 0; with priority_levels 1 "
                     "it must be from 1 to 1", id="two-keys-that-disagree"),
        pytest.param('"inputs": {}', "inputs is an object; expected a list", id="object-for-list"),
        pytest.param('"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, -2]}]',
                     "inputs[0].shape[1] is -2; expected -1 or more", id="in-a-list"),
        pytest.param('"inputs": [{"name": "x", "shape": [1]}]', "inputs[0].datatype is missing", id="missing"),
        pytest.param('"inputs": [{"name": 1, "datatype": "FP32", "shape": [1]}]',
                     "inputs[0].name is 1; expected a string", id="number-for-text"),
        pytest.param('"outputs": [{"name": "y", "datatype": "F32", "shape": []}]',
                     "outputs[0].datatype: 'F32' is not a datatype; known are BOOL,", id="our-own-words"),
        pytest.param('"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "minimum": "a"}]',
                     "inputs[0].minimum is 'a'; expected a number", id="text-for-real-number"),
        pytest.param('"platform": "tensorrt"', "platform is 'tensorrt'; expected 'onnx_onnxv1'", id="choice"),
        pytest.param('"description": null', "description is null; expected a string", id="null"),
        pytest.param('"max_batchsize": 3', "max_batchsize is no key here; known are name, description, platform, max_"
                     "batch_size,", id="misspelt"),
        pytest.param('"scheduler": {"delay": 3}', "scheduler.delay is no key here; known are max_queue_size,",
                     id="misspelt-within"),
        pytest.param('"max_batch_size": 2, "inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}]',
                     "max_batch_size is 2, so the first dimension of input 'x' must be -1", id="as-a-whole"),
        pytest.param("", "the file is not JSON: ", id="syntax"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_configuration(members: str, told: str) -> None:
    assert problem('{"name": "m", ' + members + "}").startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "the file is a list; expected an object"),
        ('{"files": []}', "files is a list; expected an object"),
        ('{"files": {"m": {"bytes": 1, "sha256": "0"}}}', "files.m.sha256 is '0'; expected a text of the form ^"),
        ('{"files": {"m": {"byte": 1}}}', "files.m.sha256 is missing"),
        (
            '{"golden": {"samples": 1, "tolerance": {}, "x": 1}}',
            "golden.x is no key here; known are samples, tolerance",
        ),
    ],
)
def test_what_is_wrong_with_a_report(text: str, told: str) -> None:
    assert problem(text, VersionReport).startswith(told)
