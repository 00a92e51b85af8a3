"""The Open Inference Protocol's vocabulary as frozen dataclasses: the single schema.

Transports translate bytes to these values and back at their own edge; everything inside the service speaks only these.
No parsing, no validation, no transport here. Spec: open-inference-protocol, specification/protocol/inference_rest.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
"""A tensor's values: the datatype's dtype, C order, the tensor's shape.

May be a view of the request body: then it may be read-only, and start at an address that is no multiple of its item
size (`flags.aligned` False), because the protocol packs tensors without gaps."""

Parameters = Mapping[str, bool | int | float | str]


@dataclass(frozen=True, slots=True, eq=False)
class InputTensor:
    """One input of a request. `data.shape` is the declared shape."""

    name: str
    datatype: str
    data: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """One output the caller asked for. `binary` None: follow the request's `binary_data_output`."""

    name: str
    binary: bool | None = None


@dataclass(frozen=True, slots=True, eq=False)
class InferenceRequest:
    """What a caller asks. `outputs` empty: all outputs. `binary_data_output`: default form of the answer."""

    inputs: tuple[InputTensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    id: str | None = None
    binary_data_output: bool = False
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class OutputTensor:
    """One output of an answer; `data` as in `InputTensor`."""

    name: str
    datatype: str
    data: Array
    binary: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class InferenceResponse:
    """The answer. `model_name` is never omitted: KServe's client reads it unconditionally."""

    model_name: str
    model_version: str
    outputs: tuple[OutputTensor, ...]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """Name, datatype and shape of a model's input or output; -1 is a dimension the request chooses.

    The batch dimension is included, as -1: perf_analyzer skips the first dimension when max_batch_size > 0.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """The answer to `GET /v2/models/{name}[/versions/{version}]`."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """The answer to `GET /v2`. `extensions` lists only what works: clients act on it."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServerLive:
    """The answer to `GET /v2/health/live`. KServe's client reads these three bodies, tritonclient only the status."""

    live: bool


@dataclass(frozen=True, slots=True)
class ServerReady:
    """The answer to `GET /v2/health/ready`. `live` too: the specification's own example shows it there."""

    ready: bool
    live: bool = True
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ModelReady:
    """The answer to `GET /v2/models/{name}[/versions/{version}]/ready`."""

    name: str
    ready: bool
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """The body of every answer that is not a success."""

    error: str


SERVER_EXTENSIONS: tuple[str, ...] = ("binary_tensor_data", "parameters")
PLATFORM = "onnx_onnxv1"
"""Platform name of ONNX models in the protocol's metadata (Triton itself reports `onnxruntime_onnx`)."""
