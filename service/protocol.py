"""The Open Inference Protocol's vocabulary as immutable records: the single schema.

Transports translate bytes to these values and back at their own edge; everything inside the service speaks only these.
No parsing, no validation, no transport here. Spec: open-inference-protocol, specification/protocol/inference_rest.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]
"""A tensor's values: the datatype's dtype, C order, the tensor's shape.

May be a view of the request body: then it may be read-only, and start at an address that is no multiple of its item
size (`flags.aligned` False), because the protocol packs tensors without gaps."""

Parameters = Mapping[str, bool | int | float | str]


class OutputArea(Protocol):
    """Where an output goes that does not go into the answer's body."""

    def write(self, data: bytes | memoryview, /) -> None: ...


# The next five are made for every request. They are named tuples, as immutable as frozen dataclasses, and made in a
# third of the time: together that is 2 microseconds of a small request.


class InputTensor(NamedTuple):
    """One input of a request. `data.shape` is the declared shape."""

    name: str
    datatype: str
    data: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape


class RequestedOutput(NamedTuple):
    """One output the caller asked for.

    binary: None follows the request's `binary_data_output`. classes: not the values but that many of the largest, as
    text (Triton, extension_classification); None: the values. area: of shared memory, None: it goes into the body.
    """

    name: str
    binary: bool | None = None
    classes: int | None = None
    area: OutputArea | None = None


class InferenceRequest(NamedTuple):
    """What a caller asks. `outputs` empty: all outputs. `binary_data_output`: default form of the answer."""

    inputs: tuple[InputTensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    id: str | None = None
    binary_data_output: bool = False
    parameters: Parameters = MappingProxyType({})


class OutputTensor(NamedTuple):
    """One output of an answer; `data` as in `InputTensor`, `area` as in `RequestedOutput`."""

    name: str
    datatype: str
    data: Array
    binary: bool = False
    area: OutputArea | None = None


class InferenceResponse(NamedTuple):
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
class BatchInvariance:
    """Whether a row's answer depends on what it is batched with, as probed at load (see batch_invariance.py).

    largest_difference: between two answers to the same row, in any output; absolute.
    probed_rows: the batch sizes that were tried.
    identical_rows: those at which the row's answer had the same bits, wherever it stood.
    padded: every batch is padded to one of `identical_rows`.
    """

    largest_difference: float
    probed_rows: tuple[int, ...]
    identical_rows: tuple[int, ...]
    padded: bool = False


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """What a version answered that is asked behind another, never to a caller (see traffic.py).

    differing: of those compared, answers with an element beyond the tolerance. dropped: not asked, because it was busy.
    """

    tolerance: float
    compared: int
    differing: int
    dropped: int
    failed: int
    largest_absolute_difference: float
    largest_relative_difference: float


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """How the requests that named no version were shared since both versions were loaded.

    weight, on_trial: of a canary, the share that it is to answer, and how many it was given.
    """

    version: str
    version_on_trial: str
    requests: int
    weight: float | None = None
    on_trial: int | None = None
    shadow: ShadowReport | None = None


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """The answer to `GET /v2/models/{name}[/versions/{version}]`."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    batch_invariance: BatchInvariance | None = None
    traffic: TrafficReport | None = None


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
class DurationStatistics:
    """How often something happened, and how long it took in all."""

    count: int
    ns: int


@dataclass(frozen=True, slots=True)
class InferenceStatistics:
    """Per request (Triton, extension_statistics). perf_analyzer ends when a member is missing or no whole number."""

    success: DurationStatistics
    fail: DurationStatistics
    queue: DurationStatistics
    compute_input: DurationStatistics
    compute_infer: DurationStatistics
    compute_output: DurationStatistics
    cache_hit: DurationStatistics
    cache_miss: DurationStatistics


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Per batch of `batch_size` rows."""

    batch_size: int
    compute_input: DurationStatistics
    compute_infer: DurationStatistics
    compute_output: DurationStatistics


@dataclass(frozen=True, slots=True)
class VersionStatistics:
    """One version's counters; what each of them counts is told in statistics.py. `last_inference`: ms since 1970."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    batch_stats: tuple[BatchStatistics, ...]


@dataclass(frozen=True, slots=True)
class Statistics:
    """The answer to `GET /v2/models/stats` and `GET /v2/models/{name}[/versions/{version}]/stats`."""

    model_stats: tuple[VersionStatistics, ...]


@dataclass(frozen=True, slots=True)
class RepositoryIndexRow:
    """A row of the answer to `POST /v2/repository/index`. `version` None: the model has none that could be loaded."""

    name: str
    version: str | None
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TensorReshape:
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorConfiguration:
    """One input or output. `label_filename`: an output's labels, a file in the version's folder. `reshape`: its shape
    in the model file, where it is another."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    label_filename: str | None = None
    reshape: TensorReshape | None = None


@dataclass(frozen=True, slots=True)
class LatestVersions:
    num_versions: int


@dataclass(frozen=True, slots=True)
class SpecificVersions:
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AllVersions:
    """A choice without anything to say."""


@dataclass(frozen=True, slots=True)
class VersionPolicyConfiguration:
    """One of the three."""

    latest: LatestVersions | None = None
    all: AllVersions | None = None
    specific: SpecificVersions | None = None


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    max_queue_size: int
    allow_timeout_override: bool
    default_timeout_microseconds: int | None = None


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    default_queue_policy: QueuePolicy
    max_queue_delay_microseconds: int | None = None
    priority_levels: int | None = None
    default_priority_level: int | None = None


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    name: str
    kind: str
    count: int


@dataclass(frozen=True, slots=True)
class ModelParameter:
    """What Triton's messages have no field of its own for."""

    string_value: str


@dataclass(frozen=True, slots=True)
class ModelConfiguration:
    """The answer to `GET /v2/models/{name}[/versions/{version}]/config`, in words of Triton's ModelConfig message."""

    name: str
    platform: str
    backend: str
    version_policy: VersionPolicyConfiguration
    max_batch_size: int
    input: tuple[TensorConfiguration, ...]
    output: tuple[TensorConfiguration, ...]
    instance_group: tuple[InstanceGroup, ...]
    default_model_filename: str
    dynamic_batching: DynamicBatching | None = None
    parameters: Mapping[str, ModelParameter] | None = None


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """The body of every answer that is not a success."""

    error: str


SERVER_EXTENSIONS: tuple[str, ...] = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "statistics",
)
PLATFORM = "onnx_onnxv1"
"""Platform name of ONNX models in the protocol's metadata (Triton itself reports `onnxruntime_onnx`)."""
