"""A registry and a model small enough to see through, for tests of HTTP that have nothing to do with ONNX Runtime."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import cast

from service.counter_pages import Pages
from service.errors import ModelNotReady, NotFound, Unavailable
from service.model_states import ModelStatus
from service.protocol import (
    PLATFORM,
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    OutputTensor,
    Parameters,
    TensorMetadata,
)
from service.registry import Registry
from service.stages import Stages
from service.version_states import ModelState

_TENSOR = TensorMetadata("x", "FP32", (-1, 2))
ECHO_METADATA = ModelMetadata("echo", ("1",), PLATFORM, (_TENSOR,), (_TENSOR,))


class EchoModel:
    """Answers every input as an output of the same name. `error`: raises that instead."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.metadata = ECHO_METADATA
        self.max_batch_size = 8
        self.requests: list[InferenceRequest] = []

    def check_admission(self, rows: int, parameters: Parameters, arrived_s: float) -> None:
        if isinstance(self._error, Unavailable):
            raise self._error

    def begin(
        self,
        request: InferenceRequest,
        done: Callable[[InferenceResponse | Exception], object],
        arrived_s: float | None = None,
        stages: Stages | None = None,
    ) -> Callable[[], object]:
        """Answers in the next turn of the loop, unless given up."""
        self.requests.append(request)
        if self._error:
            raise self._error
        outputs = (
            OutputTensor(tensor.name, tensor.datatype, tensor.data, request.binary_data_output)
            for tensor in request.inputs
        )
        response = InferenceResponse("echo", "1", tuple(outputs), request.id)
        return asyncio.get_running_loop().call_soon(done, response).cancel


class FakeRegistry:
    """Models by name; a string instead of a model is the reason why it is UNAVAILABLE."""

    def __init__(self, models: Mapping[str, EchoModel | str], *, loads: bool = True) -> None:
        self._models = models
        self._loads = loads
        self.is_closed = False
        self.repository_name = "models"
        self.is_draining = False
        self.pages = Pages()
        self.refused: list[tuple[str, str | None, str]] = []

    def count_refusal(self, name: str, version: str | None, reason: str) -> None:
        self.refused.append((name, version, reason))

    async def load_all(self, assignment: object = None) -> None:
        if not self._loads:
            await asyncio.Event().wait()

    async def close(self, *, drain: bool = True) -> None:
        self.is_closed = True

    def get(self, name: str, version: str | None = None) -> EchoModel:
        if name not in self._models or version not in (None, "1"):
            raise NotFound(f"no model {name!r} of version {version}")
        model = self._models[name]
        if isinstance(model, str):
            raise ModelNotReady(f"model {name!r} is not ready: {model}")
        return model

    def require_ready(self, name: str, version: str | None = None) -> None:
        self.get(name, version)

    def metadata(self, name: str, version: str | None = None) -> ModelMetadata:
        self.get(name, version)
        tensor = TensorMetadata("x", "FP32", (-1, 2))
        return ModelMetadata(name, ("1",), PLATFORM, (tensor,), (tensor,))

    def states(self) -> tuple[ModelStatus, ...]:
        return tuple(
            ModelStatus(name, 1, ModelState.UNAVAILABLE, model)
            if isinstance(model, str)
            else ModelStatus(name, 1, ModelState.READY)
            for name, model in self._models.items()
        )

    def is_scanned(self) -> bool:
        return self._loads

    def why_unanswered(self) -> tuple[str, ...]:
        return ()

    def is_ready(self) -> bool:
        return bool(self._models) and all(isinstance(model, EchoModel) for model in self._models.values())


def fake_registry(*, loads: bool = True, **models: EchoModel | str) -> Registry:
    """A FakeRegistry under the type of the real one."""
    return cast("Registry", FakeRegistry(models, loads=loads))
