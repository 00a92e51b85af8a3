"""What becomes of each key of Triton's model configuration: the whole table, and nothing but the table.

The keys are the fields of the ModelConfig message (triton-inference-server/common, protobuf/model_config.proto), with a
dot before what lies in another. A key without a row is none of Triton's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# Enums, in the order of their numbers.
_DATA_TYPES = (
    "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8", "TYPE_INT16",
    "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
)  # fmt: skip
_KINDS = ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL")
_FORMATS = ("FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW")
_TIMEOUT_ACTIONS = ("REJECT", "DELAY")

Type = Literal["message", "string", "bool", "int32", "uint32", "int64", "uint64"] | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Key:
    """What becomes of one key.

    verdict: "taken", "warned" (it changes no answer here, and `why`) or "refused" (it would, and `why`).
    unless: values, mostly the default, that ask for nothing: with one of them the key is taken whatever the verdict.
    type: how the value reads; a tuple is an enum. None: nobody looks.
    """

    verdict: Literal["taken", "warned", "refused"]
    why: str = ""
    type: Type | None = None
    repeated: bool = False
    unless: tuple[object, ...] = ()


def _taken(kind: Type, *, repeated: bool = False) -> Key:
    return Key("taken", type=kind, repeated=repeated)


def _warned(why: str) -> Key:
    return Key("warned", why, repeated=True)


def _refused(why: str) -> Key:
    return Key("refused", why, repeated=True)


def _warned_unless(kind: Type, harmless: object, why: str) -> Key:
    return Key("warned", why, kind, unless=(harmless,))


def _refused_unless(kind: Type, *harmless: object, why: str) -> Key:
    return Key("refused", why, kind, unless=harmless)


_TENSORRT_ONLY = "Triton reads it for TensorRT engines only"
_PROVIDERS = "--providers says which execution providers run the models"
_SHAPE_TENSOR = "shape tensors belong to TensorRT engines"

KEYS: Mapping[str, Key] = {
    "name": _taken("string"),
    "platform": _refused_unless("string", "", "onnxruntime_onnx", why="only ONNX models are served: onnxruntime_onnx"),
    "backend": _refused_unless("string", "", "onnxruntime", why="only ONNX models are served: onnxruntime"),
    "runtime": _refused_unless("string", "", "libtriton_onnxruntime.so", why="the model runs in ONNX Runtime only"),
    "default_model_filename": _taken("string"),
    "max_batch_size": _taken("int32"),
    "input": _taken("message", repeated=True),
    "input.name": _taken("string"),
    "input.data_type": _taken(_DATA_TYPES),
    "input.dims": _taken("int64", repeated=True),
    "input.format": _warned_unless(_FORMATS, "FORMAT_NONE", "dims state the layout already; nothing is transposed"),
    "input.reshape": _taken("message"),
    "input.reshape.shape": _taken("int64", repeated=True),
    "input.is_shape_tensor": _refused_unless("bool", False, why=_SHAPE_TENSOR),
    "input.allow_ragged_batch": _refused_unless("bool", False, why="only rows of one shape share a batch"),
    "input.optional": _refused_unless("bool", False, why="a request brings every input"),
    "input.is_non_linear_format_io": _refused_unless("bool", False, why="such layouts belong to TensorRT engines"),
    "output": _taken("message", repeated=True),
    "output.name": _taken("string"),
    "output.data_type": _taken(_DATA_TYPES),
    "output.dims": _taken("int64", repeated=True),
    "output.label_filename": _taken("string"),
    "output.reshape": _taken("message"),
    "output.reshape.shape": _taken("int64", repeated=True),
    "output.is_shape_tensor": _refused_unless("bool", False, why=_SHAPE_TENSOR),
    "output.is_non_linear_format_io": _refused_unless("bool", False, why="such layouts belong to TensorRT engines"),
    "batch_input": _refused("inputs that describe the batch are not made here"),
    "batch_output": _refused("outputs are split along their first dimension only"),
    "version_policy": _taken("message"),
    "version_policy.latest": _taken("message"),
    "version_policy.latest.num_versions": _taken("uint32"),
    "version_policy.all": _taken("message"),
    "version_policy.specific": _taken("message"),
    "version_policy.specific.versions": _taken("int64", repeated=True),
    "dynamic_batching": _taken("message"),
    "dynamic_batching.preferred_batch_size": _warned("batch sizes follow the latencies measured at load"),
    "dynamic_batching.max_queue_delay_microseconds": _taken("uint64"),
    "dynamic_batching.preserve_ordering": _warned_unless(
        "bool", False, "each HTTP connection is answered in order, connections have no order among each other"
    ),
    "dynamic_batching.priority_levels": _taken("uint64"),
    "dynamic_batching.default_priority_level": _taken("uint64"),
    "dynamic_batching.default_queue_policy": _taken("message"),
    "dynamic_batching.default_queue_policy.timeout_action": _refused_unless(
        _TIMEOUT_ACTIONS, "REJECT", why="a request whose timeout has passed is refused with 503, never run late"
    ),
    "dynamic_batching.default_queue_policy.default_timeout_microseconds": _taken("uint64"),
    "dynamic_batching.default_queue_policy.allow_timeout_override": _taken("bool"),
    "dynamic_batching.default_queue_policy.max_queue_size": _taken("uint32"),
    "dynamic_batching.priority_queue_policy": _refused("all priorities share default_queue_policy"),
    "sequence_batching": _refused("requests are independent: nothing is kept from one to the next"),
    "ensemble_scheduling": _refused("each model is served by itself; join the graphs into one ONNX file"),
    "instance_group": _taken("message", repeated=True),
    "instance_group.kind": _taken(_KINDS),
    "instance_group.count": _taken("int32"),
    "instance_group.gpus": _taken("int32", repeated=True),
    "instance_group.name": _warned("instances have no names here"),
    "instance_group.rate_limiter": _warned("models do not wait for each other's resources, as in Triton by default"),
    "instance_group.secondary_devices": _refused("models run on the devices of --providers only"),
    "instance_group.profile": _warned(_TENSORRT_ONLY),
    "instance_group.passive": _refused_unless("bool", False, why="an instance that takes no requests answers nothing"),
    "instance_group.host_policy": _warned("threads follow the process's CPU affinity"),
    "optimization": _taken("message"),
    "optimization.graph": _warned("all of ONNX Runtime's graph optimisations are on, as in Triton by default"),
    "optimization.priority": _warned(_TENSORRT_ONLY),
    "optimization.cuda": _warned(_TENSORRT_ONLY),
    "optimization.execution_accelerators": _warned(_PROVIDERS),
    "optimization.input_pinned_memory": _warned("ONNX Runtime copies to and from devices by itself"),
    "optimization.output_pinned_memory": _warned("ONNX Runtime copies to and from devices by itself"),
    "optimization.gather_kernel_buffer_threshold": _warned(_TENSORRT_ONLY),
    "optimization.eager_batching": _warned(_TENSORRT_ONLY),
    "cc_model_filenames": _refused("one file is served on every device; name it with default_model_filename"),
    "metric_tags": _warned("metrics carry the model's name and version only"),
    "parameters": _warned("settings of ONNX Runtime are made by --providers and --intra-op-threads for all models"),
    "model_warmup": _warned("every model is warmed up at load, with golden.npz or made-up inputs"),
    "model_operations": _refused("libraries of custom operators are not loaded"),
    "model_transaction_policy": _taken("message"),
    "model_transaction_policy.decoupled": _refused_unless("bool", False, why="one request has one response"),
    "model_repository_agents": _refused("files are served as they lie there; their hashes belong in report.json"),
    "response_cache": _taken("message"),
    "response_cache.enable": _warned_unless("bool", False, "there is no cache: every request is computed"),
    "model_metrics": _warned("which metrics there are is not a model's choice"),
}  # fmt: skip
