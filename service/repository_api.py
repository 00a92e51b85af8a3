"""The routes of the model repository: what there is to serve, load, unload. Spec: Triton, extension_model_repository.

    POST /v2/repository/index                  every version in its state, every model on disk
    POST /v2/repository/models/{m}/load        find the model anew and serve it; what served before serves until then;
                                               what it may bring in place of the configuration: overrides.py
    POST /v2/repository/models/{m}/unload      answer what it has taken, then free it

Each of them also under /v2/repository/{repository}/, where the one there is may be named. Bodies may be empty.
Handlers read bodies and raise ServiceErrors; what loading means is their control's affair. A name from a URL is only
ever compared with names that the repository lists.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request, Response

from service.control import Control
from service.errors import MalformedRequest, NotFound, NotSupported, quoted
from service.http_api import read_object
from service.json_members import optional
from service.overrides import Parts
from service.protocol import ErrorResponse, RepositoryIndexRow
from service.version_states import ModelState

TAG = "Model repository"
# Room for a configuration with thousands of tensors; files do not travel here.
_MAX_BODY_BYTES = 1024 * 1024
_LOAD_PARAMETERS = {"config": str, "version_policy": dict, "traffic": dict}

ModelName = Annotated[str, Path(description="The model's name.")]
RepositoryName = Annotated[
    str, Path(description="The name of the repository's folder; there is one, so it says nothing.")
]


class Routes:
    """The handlers."""

    def __init__(self, control: Control, repository_name: str) -> None:
        self._control = control
        self._repository_name = repository_name

    async def repository_index(self, request: Request) -> list[RepositoryIndexRow]:
        members = await _read_object(request)
        ready_only = optional(members, "ready", bool, "the request")
        rows = await self._control.index()
        return [row for row in rows if not ready_only or row.state == ModelState.READY.value]

    async def model_load(self, model_name: ModelName, request: Request) -> Response:
        parameters = await _read_parameters(request)
        if files := [name for name in parameters if name.startswith("file:")]:
            raise NotSupported(
                f"parameter {quoted(files[0])}: files are not taken over the network; put them into the model "
                f"repository, then load the model"
            )
        _refuse_others(parameters, _LOAD_PARAMETERS, "load")
        for known, kind in _LOAD_PARAMETERS.items():
            optional(parameters, known, kind, "the request's parameters")
        said = {name: value for name, value in parameters.items() if value is not None}
        await self._control.load(model_name, said or None)
        return _done()

    async def model_unload(self, model_name: ModelName, request: Request) -> Response:
        parameters = await _read_parameters(request)
        # No model here depends on another, so both values ask for the same.
        optional(parameters, "unload_dependents", bool, "the request's parameters")
        _refuse_others(parameters, ["unload_dependents"], "unload")
        await self._control.unload(model_name)
        return _done()

    async def named_repository_index(self, repository: RepositoryName, request: Request) -> list[RepositoryIndexRow]:
        self._require_here(repository)
        return await self.repository_index(request)

    async def named_model_load(self, repository: RepositoryName, model_name: ModelName, request: Request) -> Response:
        self._require_here(repository)
        return await self.model_load(model_name, request)

    async def named_model_unload(self, repository: RepositoryName, model_name: ModelName, request: Request) -> Response:
        self._require_here(repository)
        return await self.model_unload(model_name, request)

    def _require_here(self, repository: str) -> None:
        if repository != self._repository_name:
            raise NotFound(
                f"there is no model repository {quoted(repository)} here; there is one only, so leave its name out"
            )


@dataclass(frozen=True, slots=True)
class _Route:
    path: str
    handler: str
    summary: str
    body: dict[str, Any]


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _in_one_piece(part: Any, definitions: dict[str, Any]) -> Any:
    """A schema without references: pydantic's lead to where an OpenAPI document has nothing."""
    if isinstance(part, list):
        return [_in_one_piece(one, definitions) for one in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _in_one_piece(definitions[part["$ref"].rpartition("/")[2]], definitions)
    return {key: _in_one_piece(one, definitions) for key, one in part.items()}


_PARTS_SCHEMA = Parts.model_json_schema()
_PARTS: dict[str, Any] = _in_one_piece(_PARTS_SCHEMA["properties"], _PARTS_SCHEMA["$defs"])
_READY = _object({"ready": {"type": "boolean", "default": False, "description": "Only what is READY."}})
_LOAD = _object(
    {
        "parameters": _object(
            {
                "config": {
                    "type": "string",
                    "description": "A model configuration as JSON, in place of the one on disk until the next load: "
                    "in Triton's form, or in that of config.json.",
                },
                "version_policy": _PARTS["version_policy"],
                "traffic": _PARTS["traffic"],
            }
        )
    }
)
_UNLOAD = _object(
    {
        "parameters": _object(
            {"unload_dependents": {"type": "boolean", "description": "No model depends on another here."}}
        )
    }
)

ROUTES = (
    _Route("/index", "repository_index", "Every version in its state, and every model that could be loaded", _READY),
    _Route(
        "/models/{model_name}/load",
        "model_load",
        "Load a model as it is on disk now; what served before serves until it is READY",
        _LOAD,
    ),
    _Route(
        "/models/{model_name}/unload",
        "model_unload",
        "Unload a model, when what it has taken is answered; nothing happens if it is not loaded",
        _UNLOAD,
    ),
)
PREFIXES = {"/v2/repository": "", "/v2/repository/{repository}": "named_"}
"""Path before a route, and what stands before its handler's name."""


def add_repository_routes(app: FastAPI, control: Control, repository_name: str) -> None:
    routes = Routes(control, repository_name)
    for prefix, named in PREFIXES.items():
        for route in ROUTES:
            app.add_api_route(
                prefix + route.path,
                getattr(routes, named + route.handler),
                methods=["POST"],
                response_model=list[RepositoryIndexRow] if route.body is _READY else None,
                response_model_exclude_none=True,
                summary=route.summary,
                operation_id=named + route.handler,
                tags=[TAG],
                responses={"default": {"model": ErrorResponse, "description": "Any error."}},
                openapi_extra={
                    "requestBody": {"required": False, "content": {"application/json": {"schema": route.body}}}
                },
            )


# --- bodies -------------------------------------------------------------------------------------------------------


async def _read_parameters(request: Request) -> dict[str, Any]:
    return optional(await _read_object(request), "parameters", dict, "the request") or {}


async def _read_object(request: Request) -> dict[str, Any]:
    return await read_object(
        request,
        _MAX_BODY_BYTES,
        too_large=f"the body is longer than the {_MAX_BODY_BYTES} bytes that this route takes; put files into the "
        f"model repository, then load the model",
        expected="an object or no body at all",
        may_be_empty=True,
    )


def _refuse_others(parameters: dict[str, Any], known: Collection[str], action: str) -> None:
    if unknown := sorted(parameters.keys() - set(known)):
        takes = ", ".join(map(repr, known))
        raise MalformedRequest(f"parameter {quoted(unknown[0])} is unknown to {action}; it takes {takes}")


def _done() -> Response:
    """Triton's is empty; its C++ client would like JSON in every answer."""
    return Response(b"{}", media_type="application/json")
