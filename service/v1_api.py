"""The V1 protocol's routes (TensorFlow Serving, KServe), for those who know no other; KServe's client begins with it.

    POST /v1/models/{m}[/versions/{v}]:predict   v1_predict.py says what goes in and comes out
    GET  /v1/models                              KServe: {"models": [names]}
    GET  /v1/models/{m}[/versions/{v}]           KServe's and TensorFlow Serving's answer in one; 503 when not ready
    GET  /                                       KServe's liveness: {"status": "alive"}

What else their users try is refused with the way that leads on: 501 for other verbs (:classify, :regress, :explain),
404 for .../metadata. A prediction passes the same limits, checks, queue and cancellation as V2's infer, through the
same raw ASGI route.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Response
from starlette.requests import Request
from starlette.routing import Route

from service.answers import Answer, answer_error
from service.decode import LONG_JSON_BYTES
from service.errors import ModelNotReady, NotFound, NotSupported, quoted, status_of
from service.http_api import InferRoute, ModelName, Version
from service.infer import Encode, InferHead, answer_with, begin_expanded, begin_long
from service.json_tensors import Pause
from service.model import Model
from service.model_states import ModelStatus
from service.off_loop import Cancel, pause
from service.openapi import GENERIC_MODEL, can_be_shown, example_request
from service.protocol import ErrorResponse, InferenceRequest, ModelMetadata
from service.refusal_lines import RefusalLines
from service.registry import Registry
from service.request_body import Body
from service.stages import Stages
from service.v1_predict import decode_predict, encode_predictions
from service.version_states import ModelState

TAG = "V1 protocol"

PREDICT_PATHS = ("/v1/models/{model_name}:predict", "/v1/models/{model_name}/versions/{version}:predict")


# --- predictions --------------------------------------------------------------------------------------------------


def begin_predict(
    registry: Registry,
    head: InferHead,
    body: Body,
    reply: Callable[[Answer], object],
    *,
    max_body_bytes: int,
    make_stages: Callable[[float], Stages] = Stages,
) -> Cancel | None:
    """As `begin_infer`, for `POST ...:predict`; see there."""
    stages = make_stages(time.monotonic())

    def read(model: Model, body: Body, pause: Pause | None = None) -> tuple[InferenceRequest, Encode]:
        predict = decode_predict(body, model.metadata, is_batchable=model.max_batch_size > 0, pause=pause)
        return predict.request, lambda response, pause: encode_predictions(response, predict, pause)

    def begin(head: InferHead, body: Body) -> Cancel | None:
        if len(body) >= LONG_JSON_BYTES:
            return begin_long(registry, head, body, reply, lambda model: read(model, body, pause), stages)
        try:
            model = registry.get(head.model_name, head.version)
            request, encode = read(model, body)
            return model.begin(
                request, lambda outcome: answer_with(encode, head, outcome, reply, stages), stages.arrived_s, stages
            )
        except Exception as error:
            reply(answer_error(error))
            return None

    return begin_expanded(begin, head, body, reply, max_body_bytes)


# --- models -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Alive:
    """The answer to `GET /`."""

    status: str = "alive"


@dataclass(frozen=True, slots=True)
class ModelList:
    """The answer to `GET /v1/models`."""

    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VersionError:
    """A google.rpc.Code by name; empty text when it is OK."""

    error_code: str = "OK"
    error_message: str = ""


@dataclass(frozen=True, slots=True)
class VersionState:
    """One version, in TensorFlow Serving's words."""

    version: str
    state: str
    status: VersionError


@dataclass(frozen=True, slots=True)
class ModelStatusAnswer:
    """KServe's client reads `ready`, TensorFlow Serving's users `model_version_status`."""

    name: str
    ready: bool
    model_version_status: tuple[VersionState, ...]
    error: str | None = None


_STATES = {
    ModelState.LOADING: "LOADING",
    ModelState.READY: "AVAILABLE",
    ModelState.UNLOADING: "UNLOADING",
    # TensorFlow Serving has no other word for a version that failed.
    ModelState.UNAVAILABLE: "END",
}


class V1Reads:
    """Handlers of the GET routes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def v1_live(self) -> Alive:
        return Alive()

    async def v1_models(self) -> ModelList:
        return ModelList(tuple(dict.fromkeys(status.name for status in self._registry.states())))

    async def v1_model(self, model_name: ModelName, response: Response) -> ModelStatusAnswer:
        return self._status(model_name, None, response)

    async def v1_version(self, model_name: ModelName, version: Version, response: Response) -> ModelStatusAnswer:
        return self._status(model_name, version, response)

    def _status(self, name: str, version: str | None, response: Response) -> ModelStatusAnswer:
        """Raises NotFound, as `Registry.get` does."""
        error = None
        try:
            self._registry.require_ready(name, version)
        except ModelNotReady as refused:
            error = str(refused)
            response.status_code = status_of(refused).http
        states = (status for status in self._registry.states() if status.name == name and status.version is not None)
        chosen = tuple(_version_state(status) for status in states if version in (None, str(status.version)))
        return ModelStatusAnswer(name, error is None, chosen, error)


def _version_state(status: ModelStatus) -> VersionState:
    failed = status.state is ModelState.UNAVAILABLE
    told = VersionError("UNAVAILABLE", status.reason) if failed else VersionError()
    return VersionState(str(status.version), _STATES[status.state], told)


# --- what V1 has elsewhere ----------------------------------------------------------------------------------------


async def _refuse_verb(request: Request) -> Response:
    path, _, verb = request.url.path.rpartition(":")
    raise NotSupported(
        f"models here take no {quoted(':' + verb)}; POST {path}:predict answers all of a model's outputs"
    )


async def _refuse_metadata(request: Request) -> Response:
    path = request.url.path.removesuffix("/metadata").replace("/v1/", "/v2/", 1)
    raise NotFound(f"there is no metadata in V1 here; GET {path} tells a model's inputs and outputs")


_REFUSALS = (
    (("/v1/models/{model_name}:{verb}", "/v1/models/{model_name}/versions/{version}:{verb}"), _refuse_verb, "POST"),
    (
        ("/v1/models/{model_name}/metadata", "/v1/models/{model_name}/versions/{version}/metadata"),
        _refuse_metadata,
        "GET",
    ),
)

_READS: tuple[tuple[str, str, type, str], ...] = (
    ("/", "v1_live", Alive, "Is the server running?"),
    ("/v1/models", "v1_models", ModelList, "The names of all models"),
    ("/v1/models/{model_name}", "v1_model", ModelStatusAnswer, "Can this model answer?"),
    ("/v1/models/{model_name}/versions/{version}", "v1_version", ModelStatusAnswer, "Can this version answer?"),
)


def add_v1_routes(
    app: FastAPI,
    registry: Registry,
    max_body_bytes: int,
    make_stages: Callable[[float], Stages] = Stages,
    refusals: RefusalLines | None = None,
) -> None:
    """All of the routes above. make_stages: see `begin_infer`. refusals: see `add_routes`."""
    begin = functools.partial(begin_predict, max_body_bytes=max_body_bytes, make_stages=make_stages)
    route = InferRoute(registry, max_body_bytes, begin, refusals, make_stages)
    for path in PREDICT_PATHS:
        app.router.routes.append(Route(path, route, methods=["POST"]))
    # Behind those, or they would take ":predict" too.
    for paths, refuse, method in _REFUSALS:
        app.router.routes += [Route(path, refuse, methods=[method], include_in_schema=False) for path in paths]
    reads = V1Reads(registry)
    for path, handler, answer, summary in _READS:
        app.add_api_route(
            path,
            getattr(reads, handler),
            methods=["GET"],
            response_model=answer,
            response_model_exclude_none=True,
            summary=summary,
            operation_id=handler,
            tags=[TAG],
            responses=_errors(answer),
        )


# --- documentation ------------------------------------------------------------------------------------------------


def _errors(answer: type) -> dict[int | str, dict[str, Any]]:
    errors: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorResponse, "description": "Any other error."}}
    if answer is ModelStatusAnswer:
        errors[503] = {"model": answer, "description": "Not ready; `error` says why."}
    return errors


def describe_predict(document: dict[str, Any], models: Sequence[ModelMetadata]) -> dict[str, Any]:
    """`document` (OpenAPI) with the predict routes added, and examples for `models` (those that are READY)."""
    shown = [model for model in models if can_be_shown(model)] or [GENERIC_MODEL]
    examples = {
        model.name: {"summary": f"one row for model {model.name}", "value": example_predict(model)} for model in shown
    }
    paths = {path: {"post": _operation("{version}" in path, examples)} for path in PREDICT_PATHS}
    return {**document, "paths": {**document.get("paths", {}), **paths}}


def example_predict(model: ModelMetadata) -> dict[str, Any]:
    """The values of `example_request`, nested like their shapes."""
    nested = {
        tensor["name"]: np.array(tensor["data"], dtype=object).reshape(tensor["shape"]).tolist()
        for tensor in example_request(model)["inputs"]
    }
    has_rows = [tensor.shape[:1] for tensor in model.inputs] == [(-1,)]
    return {"instances": nested[model.inputs[0].name]} if has_rows else {"inputs": nested}


def _operation(has_version: bool, examples: dict[str, Any]) -> dict[str, Any]:
    names = ["model_name", "version"] if has_version else ["model_name"]
    values = {"description": "Values nested as the tensor is."}
    named = {"type": "object", "additionalProperties": values}
    return {
        "tags": [TAG],
        "summary": "Predict with one version of a model" if has_version else "Predict with a model",
        "description": "Either `instances`, one element a row, answered with `predictions`; or `inputs`, whole "
        "tensors, answered with `outputs`. A model with several inputs takes objects by input name. For BYTES, "
        '`{"b64": "..."}` stands for bytes in base64; it is also how bytes that are not UTF-8 are answered.',
        "operationId": "v1_version_predict" if has_version else "v1_predict",
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "instances": {"type": "array", "items": {"anyOf": [values, named]}},
                            "inputs": {"anyOf": [values, named]},
                        },
                    },
                    "examples": examples,
                }
            },
        },
        "responses": {
            "200": {
                "description": "One prediction a row, or the outputs.",
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "properties": {"predictions": {"type": "array", "items": {}}, "outputs": {}},
                        }
                    }
                },
            },
            "default": {
                "description": "Any error.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}},
            },
        },
    }
