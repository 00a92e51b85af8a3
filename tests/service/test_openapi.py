from __future__ import annotations

import json
import re
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI

from service.datatypes import DATATYPES
from service.decode import decode_request
from service.openapi import GENERIC_MODEL, describe_infer, example_request
from service.protocol import PLATFORM, ModelMetadata, TensorMetadata
from service.validate import validate_request

PATHS = ("/v2/models/{model_name}/infer", "/v2/models/{model_name}/versions/{version}/infer")


def model(name: str, *inputs: TensorMetadata, versions: tuple[str, ...] = ("1",)) -> ModelMetadata:
    return ModelMetadata(name, versions, PLATFORM, inputs, (TensorMetadata("y", "FP32", (-1,)),))


def examples_of(document: dict[str, Any]) -> dict[str, Any]:
    body = document["paths"][PATHS[0]]["post"]["requestBody"]
    return {name: one["value"] for name, one in body["content"]["application/json"]["examples"].items()}


def prefilled(document: dict[str, Any], path: str) -> dict[str, str]:
    parameters = document["paths"][path]["post"]["parameters"]
    return {one["name"]: one["example"] for one in parameters if "example" in one}


@pytest.mark.parametrize("datatype", [name for name, row in DATATYPES.items() if row.in_json])
def test_example_is_a_request_that_the_model_accepts(datatype: str) -> None:
    shown = model("m", TensorMetadata("a", datatype, (-1, 2, -1)), TensorMetadata("b", "FP32", (-1,)))
    request = decode_request(json.dumps(example_request(shown)).encode(), None)
    assert validate_request(request, shown, 8) == 1


def test_examples_are_those_of_the_models_that_are_ready() -> None:
    image = model("image", TensorMetadata("x", "FP32", (-1, 1, 2, 2)), versions=("3", "12"))
    text = model("text", TensorMetadata("t", "BYTES", (-1,)))
    document = describe_infer({}, PATHS, [image, text])
    assert examples_of(document) == {
        "image": {"inputs": [{"name": "x", "shape": [1, 1, 2, 2], "datatype": "FP32", "data": [0, 1, 2, 3]}]},
        "text": {"inputs": [{"name": "t", "shape": [1], "datatype": "BYTES", "data": ["text"]}]},
    }
    assert prefilled(document, PATHS[0]) == {"model_name": "image"}
    assert prefilled(document, PATHS[1]) == {"model_name": "image", "version": "12"}


@pytest.mark.parametrize(
    "hidden",
    [
        pytest.param([], id="none-is-ready"),
        pytest.param([model("large", TensorMetadata("x", "FP32", (-1, 3, 224, 224)))], id="too-large-to-read"),
        pytest.param([model("half", TensorMetadata("x", "FP16", (-1, 2)))], id="no-json-form"),
    ],
)
def test_generic_example_stands_in(hidden: list[ModelMetadata]) -> None:
    assert examples_of(describe_infer({}, PATHS, hidden)) == {"digits": example_request(GENERIC_MODEL)}


def test_what_was_described_before_is_kept() -> None:
    before = {
        "info": {"title": "T"},
        "paths": {
            "/v2": {"get": {"summary": "S"}},
            "/m/{model_name}": {"get": {"parameters": [{"name": "model_name"}]}},
        },
        "components": {"schemas": {"Mine": {}}, "securitySchemes": {}},
    }
    document = describe_infer(before, PATHS, [])
    assert document["info"] == {"title": "T"}
    assert document["paths"]["/v2"] == {"get": {"summary": "S"}}
    assert document["paths"]["/m/{model_name}"] == {
        "get": {"parameters": [{"name": "model_name", "example": "digits"}]}
    }
    assert {"Mine", "InferenceRequest"} <= document["components"]["schemas"].keys()
    assert "securitySchemes" in document["components"]
    assert "example" not in json.dumps(before)


@pytest.mark.parametrize("path", PATHS)
def test_every_form_of_a_body_and_every_header_that_is_read_is_described(path: str) -> None:
    operation = describe_infer({}, PATHS, [])["paths"][path]["post"]
    assert list(operation["requestBody"]["content"]) == [
        "application/json",
        "application/octet-stream",
        "application/x-npy",
    ]
    headers = {one["name"]: one for one in operation["parameters"] if one["in"] == "header"}
    assert list(headers) == ["Inference-Header-Content-Length", "Content-Encoding", "Accept-Encoding"]
    assert headers["Inference-Header-Content-Length"]["schema"] == {"type": "integer", "minimum": 0}
    assert headers["Content-Encoding"]["schema"]["enum"] == ["gzip", "deflate", "identity"]
    answer = operation["responses"]["200"]
    assert list(answer["headers"]) == ["Inference-Header-Content-Length", "Content-Encoding"]
    assert list(answer["content"]) == ["application/json", "application/octet-stream"]


def test_document_is_valid_openapi_and_refers_to_nothing_that_is_missing() -> None:
    info = {"openapi": "3.1.0", "info": {"title": "T", "version": "1"}, "paths": {}}
    errors = {"components": {"schemas": {"ErrorResponse": {"type": "object"}}}}  # FastAPI's part
    document = describe_infer(info | errors, PATHS, [])
    OpenAPI.model_validate(document)
    text = json.dumps(document)
    refers_to = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert refers_to == document["components"]["schemas"].keys()


def test_datatypes_of_the_schema_are_those_of_the_table() -> None:
    schemas = describe_infer({}, PATHS, [])["components"]["schemas"]
    assert schemas["RequestInput"]["properties"]["datatype"]["enum"] == list(DATATYPES)
