"""The configuration in Triton's words, member by member; its JSON over HTTP is tested in test_perf_analyzer.py."""

from __future__ import annotations

import json

import pytest

from service.datatypes import DATATYPES
from service.model_config import data_type, describe_configuration
from service.protocol import (
    PLATFORM,
    DynamicBatching,
    ModelConfiguration,
    ModelMetadata,
    TensorMetadata,
    TensorReshape,
)
from service.repository import ModelConfig
from service.triton_keys import KEYS

X = TensorMetadata("x", "FP32", (-1, 3, 8, -1))
Y = TensorMetadata("y", "BYTES", (-1, 10))
METADATA = ModelMetadata("m", ("1",), PLATFORM, (X,), (Y,))


def describe(
    max_batch_size: int = 8, providers: tuple[str, ...] = ("CPUExecutionProvider",), **config: object
) -> ModelConfiguration:
    read = ModelConfig.model_validate_json(json.dumps({"name": "m", **config}))
    return describe_configuration(METADATA, read, max_batch_size=max_batch_size, providers=providers)


@pytest.mark.parametrize(
    ("max_batch_size", "dims"), [pytest.param(8, (3, 8, -1), id="rows"), pytest.param(0, (-1, 3, 8, -1), id="no-rows")]
)
def test_dims_leave_out_the_rows_when_there_are_rows(max_batch_size: int, dims: tuple[int, ...]) -> None:
    described = describe(max_batch_size)
    assert described.max_batch_size == max_batch_size
    assert described.input[0].dims == dims


@pytest.mark.parametrize(("max_batch_size", "on"), [(0, False), (1, False), (2, True)])
def test_dynamic_batching_is_there_only_when_rows_can_share_a_batch(max_batch_size: int, on: bool) -> None:
    assert isinstance(describe(max_batch_size).dynamic_batching, DynamicBatching) is on


def test_labels_are_named_by_their_file() -> None:
    output = {"name": "y", "datatype": "BYTES", "shape": (-1, 10), "labels": "labels.txt"}
    described = describe(outputs=(output,))
    assert described.output[0].label_filename == "labels.txt"
    assert described.input[0].label_filename is None


@pytest.mark.parametrize(("max_batch_size", "dims"), [(8, (2, 5)), (0, (-1, 2, 5))])
def test_a_shape_that_the_model_file_has_instead_leaves_out_the_rows_as_dims_do(
    max_batch_size: int, dims: tuple[int, ...]
) -> None:
    output = {"name": "y", "datatype": "BYTES", "shape": (-1, 10), "reshape": (-1, 2, 5)}
    described = describe(max_batch_size, outputs=(output,))
    assert described.output[0].reshape == TensorReshape(dims)
    assert described.input[0].reshape is None


@pytest.mark.parametrize(
    ("providers", "kind"),
    [
        pytest.param(("CPUExecutionProvider",), "KIND_CPU", id="cpu"),
        pytest.param(("CUDAExecutionProvider", "CPUExecutionProvider"), "KIND_GPU", id="cuda"),
    ],
)
def test_instances_are_of_the_kind_that_runs_the_model(providers: tuple[str, ...], kind: str) -> None:
    (group,) = describe(providers=providers, scheduler={"instances": 3}).instance_group
    assert (group.kind, group.count) == (kind, 3)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_has_a_name_in_tritons_schema(datatype: str) -> None:
    assert data_type(datatype) in KEYS["input.data_type"].type  # type: ignore[operator]
