"""Describes the infer route for /openapi.json and /docs, with an example that fits the models that are loaded.

FastAPI derives the description of every other route from the protocol's dataclasses; the infer route passes it by, so
its schema is written here, from the same table of datatypes. Knows no framework and no registry.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from service.compression import ACCEPTED
from service.datatypes import DATATYPES, Datatype
from service.decode import HEADER_LENGTH
from service.npy import MEDIA_TYPE
from service.protocol import ModelMetadata, TensorMetadata

Schema = dict[str, Any]

TAG = "Open Inference Protocol v2"

# Beyond this an example is no longer read by anybody, and makes the page slow: 64x64 RGB still fits.
_MAX_EXAMPLE_ELEMENTS = 3 * 64 * 64

GENERIC_MODEL = ModelMetadata(
    name="digits",
    versions=("1",),
    platform="onnx_onnxv1",
    inputs=(TensorMetadata("image", "FP32", (-1, 1, 8, 8)),),
    outputs=(TensorMetadata("logits", "FP32", (-1, 10)),),
)
"""Stands in while no model is ready, or none has inputs that an example can show."""


def describe_infer(document: Schema, paths: Iterable[str], models: Sequence[ModelMetadata]) -> Schema:
    """`document` with the infer routes and their schemas added, and examples for `models` (those that are READY).

    The first model whose inputs can be shown is also what /docs offers for `model_name` and `version`.
    """
    shown = [model for model in models if can_be_shown(model)] or [GENERIC_MODEL]
    schemas = {**document.get("components", {}).get("schemas", {}), **_SCHEMAS}
    described = dict(document.get("paths", {}))
    for path in paths:
        described[path] = {"post": _operation(path, shown)}
    prefilled = {"model_name": shown[0].name, "version": shown[0].versions[-1]}
    return {
        **document,
        "paths": {path: _prefill(item, prefilled) for path, item in described.items()},
        "components": {**document.get("components", {}), "schemas": schemas},
    }


def example_request(model: ModelMetadata) -> Schema:
    """A request of one row that the model accepts, all in JSON. Dimensions that the request chooses are 1.

    Floats count from 0 to 16 and begin again, so that the answer depends on something; whole numbers are 0, because
    they may be an index into a table of unknown length.
    """
    return {
        "inputs": [
            {
                "name": tensor.name,
                "shape": list(_example_shape(tensor)),
                "datatype": tensor.datatype,
                "data": _example_data(DATATYPES[tensor.datatype], math.prod(_example_shape(tensor))),
            }
            for tensor in model.inputs
        ]
    }


def _example_shape(tensor: TensorMetadata) -> tuple[int, ...]:
    return tuple(1 if dimension == -1 else dimension for dimension in tensor.shape)


def _example_data(datatype: Datatype, count: int) -> list[Any]:
    match datatype.dtype.kind:
        case "f":
            return [index % 17 for index in range(count)]
        case "O":
            return ["text"] * count
        case "b":
            return [False] * count
        case _:
            return [0] * count


def can_be_shown(model: ModelMetadata) -> bool:
    """Whether an example of it fits a page, and JSON."""
    elements = sum(math.prod(_example_shape(tensor)) for tensor in model.inputs)
    return elements <= _MAX_EXAMPLE_ELEMENTS and all(
        DATATYPES[tensor.datatype].in_json for tensor in (*model.inputs, *model.outputs)
    )


def _prefill(path_item: Schema, values: dict[str, str]) -> Schema:
    """Path parameters that "Try it out" fills in by itself."""
    filled = {}
    for method, operation in path_item.items():
        parameters = [
            {**parameter, "example": values[parameter["name"]]} if parameter["name"] in values else parameter
            for parameter in operation.get("parameters", [])
        ]
        filled[method] = {**operation, "parameters": parameters} if parameters else operation
    return filled


# --- the operation ------------------------------------------------------------------------------------------------


def _operation(path: str, models: Sequence[ModelMetadata]) -> Schema:
    has_version = "{version}" in path
    return {
        "tags": [TAG],
        "summary": "Run one version of a model" if has_version else "Run a model",
        "description": _DESCRIPTION,
        "operationId": "version_infer" if has_version else "model_infer",
        "parameters": [_MODEL_NAME, *([_VERSION] if has_version else []), *_REQUEST_HEADERS],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _reference("InferenceRequest"), "examples": _examples(models)},
                "application/octet-stream": _BINARY,
                MEDIA_TYPE.decode("ascii"): _NPY,
            },
        },
        "responses": _RESPONSES,
    }


def _examples(models: Sequence[ModelMetadata]) -> Schema:
    return {
        model.name: {"summary": f"one row for model {model.name}", "value": example_request(model)} for model in models
    }


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _path_parameter(name: str, description: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}


_MODEL_NAME = _path_parameter("model_name", "The model's name.")
_VERSION = _path_parameter("version", "A version: a positive integer.")


def _header(name: str, description: str, schema: Schema) -> Schema:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


_CODINGS = ACCEPTED.split(", ")
_REQUEST_HEADERS = (
    _header(
        HEADER_LENGTH,
        "With binary tensors behind the JSON: the length of the JSON in bytes, before any Content-Encoding. 0: the "
        "body is the raw bytes of the model's only input. Leave it out when the body is all JSON, or a .npy file.",
        {"type": "integer", "minimum": 0},
    ),
    _header("Content-Encoding", "What the body is packed in, one coding.", {"type": "string", "enum": _CODINGS}),
    _header(
        "Accept-Encoding",
        f"What the answer may be packed in ({ACCEPTED}), with weights if need be. Short answers, and those that would "
        "hardly shrink, come as they are.",
        {"type": "string"},
    ),
)
_ANSWER_HEADER_LENGTH: Schema = {
    "description": "Length of the JSON part in bytes. Only with binary outputs.",
    "schema": {"type": "integer"},
}
_ANSWER_CODING: Schema = {
    "description": "What the body is packed in; absent when it is not.",
    "schema": {"type": "string", "enum": [coding for coding in _CODINGS if coding != "identity"]},
}
_BINARY: Schema = {
    "schema": {
        "type": "string",
        "format": "binary",
        "description": f"JSON, then binary tensors. In a request also one raw tensor, with {HEADER_LENGTH}: 0.",
    }
}
_NPY: Schema = {
    "schema": {
        "type": "string",
        "format": "binary",
        "description": "The model's only input as numpy.save writes it; a single row may lack its batch dimension.",
    }
}

_DESCRIPTION = """Tensors travel as JSON, or behind the JSON in binary (little-endian, row-major, without gaps): then
an input has `parameters.binary_data_size` instead of `data`, and the header says how long the JSON is. Outputs come in
binary when asked for, with `parameters.binary_data` on an output or `parameters.binary_data_output` on the request.
A model with one input also takes its raw bytes alone (one row, answered in binary), or a .npy file (answered as JSON).
No Content-Type is needed."""

_ERRORS = {
    "400": "The request is malformed or does not fit the model; the text says what was found and what is expected.",
    "404": "There is no such model or version.",
    "413": "The body is longer than this server takes.",
    "415": "The body has a Content-Encoding that this server does not take.",
    "500": "The model or the server failed.",
    "503": "The model is not ready, or its queue is full: then Retry-After says in how many seconds to try again.",
}

_RESPONSES: Schema = {
    "200": {
        "description": "The outputs. With binary outputs: JSON, then the tensors, and the header says where.",
        "headers": {HEADER_LENGTH: _ANSWER_HEADER_LENGTH, "Content-Encoding": _ANSWER_CODING},
        "content": {
            "application/json": {"schema": _reference("InferenceResponse")},
            "application/octet-stream": _BINARY,
        },
    },
    **{
        status: {
            "description": description,
            "content": {"application/json": {"schema": _reference("ErrorResponse")}},
        }
        for status, description in _ERRORS.items()
    },
}


# --- schemas ------------------------------------------------------------------------------------------------------


def _object(required: Sequence[str], properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


_NAME: Schema = {"type": "string"}
_SHAPE: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_DATATYPE: Schema = {"type": "string", "enum": list(DATATYPES)}
_PARAMETERS: Schema = {
    "type": "object",
    "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]},
}
_DATA: Schema = {
    "type": "array",
    "items": {},
    "description": "Numbers, booleans or strings: row-major and flat, or nested like the shape.",
}

_SCHEMAS: Schema = {
    "InferenceRequest": _object(
        ["inputs"],
        {
            "id": {"type": "string", "description": "Comes back in the answer."},
            "parameters": _PARAMETERS,
            "inputs": {"type": "array", "items": _reference("RequestInput")},
            "outputs": {
                "type": "array",
                "items": _reference("RequestedOutput"),
                "description": "What to answer; all outputs when left out.",
            },
        },
    ),
    "RequestInput": _object(
        ["name", "shape", "datatype"],
        {"name": _NAME, "shape": _SHAPE, "datatype": _DATATYPE, "parameters": _PARAMETERS, "data": _DATA},
    ),
    "RequestedOutput": _object(["name"], {"name": _NAME, "parameters": _PARAMETERS}),
    "InferenceResponse": _object(
        ["model_name", "model_version", "outputs"],
        {
            "model_name": _NAME,
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": _reference("ResponseOutput")},
        },
    ),
    "ResponseOutput": _object(
        ["name", "shape", "datatype"],
        {
            "name": _NAME,
            "shape": _SHAPE,
            "datatype": _DATATYPE,
            "parameters": _PARAMETERS,
            "data": {**_DATA, "description": "Row-major and flat."},
        },
    ),
}
