"""The routes of shared memory: status, register, unregister, for system shared memory; and what CUDA's can answer.

Clients unregister everything before they do anything (perf_analyzer does, of both kinds), so status and unregister
answer whether or not regions are taken. Registering CUDA memory is answered 501. Spec: Triton, extension_shared_memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request, Response

from service.control import Control
from service.errors import MalformedRequest, NotFound, NotSupported, quoted
from service.http_api import read_object
from service.json_tensors import KINDS, kind_of
from service.protocol import ErrorResponse
from service.shared_memory import RegionStatus, SharedMemory

TAG = "Shared memory"
# A name, a key and two numbers.
_MAX_BODY_BYTES = 64 * 1024

RegionName = Annotated[str, Path(description="The region's name.")]


class SystemRoutes:
    """Handlers for /v2/systemsharedmemory."""

    def __init__(self, regions: SharedMemory, control: Control) -> None:
        self._regions = regions
        self._control = control

    async def system_regions(self) -> tuple[RegionStatus, ...]:
        return self._regions.status()

    async def system_region(self, region: RegionName) -> tuple[RegionStatus, ...]:
        return self._regions.status(region)

    async def register_system_region(self, region: RegionName, request: Request) -> Response:
        members = await _read_object(request)
        key: str = _member(members, "key", str)
        size_bytes: int = _member(members, "byte_size", int)
        offset: int = _member(members, "offset", int, 0)
        await self._control.register_region(region, key, offset, size_bytes)
        return _done()

    async def unregister_system_regions(self) -> Response:
        await self._control.unregister_regions()
        return _done()

    async def unregister_system_region(self, region: RegionName) -> Response:
        await self._control.unregister_regions(region)
        return _done()


class CudaRoutes:
    """Handlers for /v2/cudasharedmemory: there are no regions, and there will be none."""

    async def cuda_regions(self) -> tuple[()]:
        return ()

    async def cuda_region(self, region: RegionName) -> tuple[()]:
        raise NotFound(f"Unable to find cuda shared memory region: {quoted(region)}; none can be registered here")

    async def register_cuda_region(self, region: RegionName) -> Response:
        raise NotSupported(
            f"CUDA shared memory region {quoted(region)} cannot be registered: this server does not take CUDA shared "
            f"memory; send tensors in binary, or use system shared memory"
        )

    async def unregister_cuda_regions(self) -> Response:
        return _done()

    async def unregister_cuda_region(self, region: RegionName) -> Response:  # noqa: ARG002 - the path's parameter
        return _done()


@dataclass(frozen=True, slots=True)
class _Route:
    method: str
    path: str
    handler: str
    summary: str


_SYSTEM = (
    _Route("GET", "/status", "system_regions", "Every region that is registered"),
    _Route("GET", "/region/{region}/status", "system_region", "One region"),
    _Route("POST", "/region/{region}/register", "register_system_region", "Register a part of an object as a region"),
    _Route("POST", "/unregister", "unregister_system_regions", "Unregister all regions"),
    _Route("POST", "/region/{region}/unregister", "unregister_system_region", "Unregister one region"),
)
_CUDA = tuple(
    _Route(route.method, route.path, route.handler.replace("system", "cuda"), route.summary) for route in _SYSTEM
)


def add_shared_memory_routes(app: FastAPI, regions: SharedMemory, control: Control) -> None:
    """Both kinds' routes."""
    for prefix, routes, handlers in (
        ("/v2/systemsharedmemory", _SYSTEM, SystemRoutes(regions, control)),
        ("/v2/cudasharedmemory", _CUDA, CudaRoutes()),
    ):
        for route in routes:
            app.add_api_route(
                prefix + route.path,
                getattr(handlers, route.handler),
                methods=[route.method],
                response_model=list[RegionStatus] if route.method == "GET" else None,
                summary=f"{route.summary} ({'system' if handlers.__class__ is SystemRoutes else 'CUDA'})",
                operation_id=route.handler,
                tags=[TAG],
                responses={"default": {"model": ErrorResponse, "description": "Any error."}},
                openapi_extra=_REGISTER_BODY if route.handler == "register_system_region" else None,
            )


_REGISTER_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["key", "byte_size"],
                    "properties": {
                        "key": {"type": "string", "description": "The name given to shm_open."},
                        "offset": {"type": "integer", "minimum": 0, "default": 0, "description": "In bytes."},
                        "byte_size": {"type": "integer", "minimum": 1},
                    },
                }
            }
        },
    }
}


async def _read_object(request: Request) -> dict[str, Any]:
    return await read_object(
        request,
        _MAX_BODY_BYTES,
        too_large=f"the body is longer than the {_MAX_BODY_BYTES} bytes that a registration takes",
        expected="an object with 'key' and 'byte_size'",
    )


def _member(members: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = members.get(name)
    if value is None:
        value = default
    if type(value) is not kind:
        found = "missing" if value is None else kind_of(value)
        raise MalformedRequest(f"the request's {name!r} is {found}, expected {KINDS[kind]}")
    return value


def _done() -> Response:
    """Triton's is empty; its C++ client would like JSON in every answer."""
    return Response(b"{}", media_type="application/json")
