"""A loaded version's configuration in Triton's words, as perf_analyzer, Model Analyzer and tritonclient read it.

The names are the fields of Triton's ModelConfig message (common, protobuf/model_config.proto); Model Analyzer refuses
any other. What is not used is left out and nothing is null: perf_analyzer takes the mere presence of
`sequence_batching`, `dynamic_batching`, `model_transaction_policy` and `response_cache` for a statement, and ends when
one of them is not the object that it expects. Dimensions are those of one row when `max_batch_size` is above 0, whereas
the metadata's shapes begin with -1 for the rows. Knows no requests and no session.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.model_knobs import SchedulerConfig, VersionPolicy
from service.protocol import (
    AllVersions,
    DynamicBatching,
    InstanceGroup,
    LatestVersions,
    ModelConfiguration,
    ModelMetadata,
    ModelParameter,
    QueuePolicy,
    SpecificVersions,
    TensorConfiguration,
    TensorMetadata,
    TensorReshape,
    VersionPolicyConfiguration,
)
from service.repository import MODEL_FILE, InputConfig, ModelConfig, OutputConfig
from service.triton_config import GPU_PROVIDERS

# Triton's own names for ONNX models that ONNX Runtime runs; the metadata's platform is the protocol's.
_PLATFORM = "onnxruntime_onnx"
_BACKEND = "onnxruntime"


def describe_configuration(
    metadata: ModelMetadata,
    config: ModelConfig,
    *,
    max_batch_size: int,
    providers: Sequence[str],
    model_file: str = MODEL_FILE,
    cpu_plan: str = "",
) -> ModelConfiguration:
    """max_batch_size and providers: as settled at load, where config.json may have said nothing. cpu_plan: in words."""
    skipped = 1 if max_batch_size else 0
    inputs, outputs = ({tensor.name: tensor for tensor in tensors} for tensors in (config.inputs, config.outputs))
    kind = "KIND_CPU" if GPU_PROVIDERS.isdisjoint(providers) else "KIND_GPU"
    return ModelConfiguration(
        name=metadata.name,
        platform=_PLATFORM,
        backend=_BACKEND,
        version_policy=_version_policy(config.version_policy),
        max_batch_size=max_batch_size,
        input=tuple(_tensor(tensor, skipped, inputs.get(tensor.name)) for tensor in metadata.inputs),
        output=tuple(_tensor(tensor, skipped, outputs.get(tensor.name)) for tensor in metadata.outputs),
        instance_group=(InstanceGroup(f"{metadata.name}_0", kind, config.scheduler.instances),),
        default_model_filename=model_file,
        # One row a batch is no batching.
        dynamic_batching=_batching(config.scheduler) if max_batch_size > 1 else None,
        parameters={"cpu_plan": ModelParameter(cpu_plan)} if cpu_plan else None,
    )


def _version_policy(policy: VersionPolicy) -> VersionPolicyConfiguration:
    if policy.specific:
        return VersionPolicyConfiguration(specific=SpecificVersions(policy.specific))
    if policy.all:
        return VersionPolicyConfiguration(all=AllVersions())
    return VersionPolicyConfiguration(latest=LatestVersions(policy.latest))


def _batching(scheduler: SchedulerConfig) -> DynamicBatching:
    return DynamicBatching(
        default_queue_policy=QueuePolicy(
            max_queue_size=scheduler.max_queue_size,
            allow_timeout_override=scheduler.allow_timeout_override,
            default_timeout_microseconds=scheduler.default_timeout_us or None,
        ),
        max_queue_delay_microseconds=scheduler.max_queue_delay_us,
        priority_levels=scheduler.priority_levels or None,
        default_priority_level=scheduler.default_priority or None,
    )


def _tensor(tensor: TensorMetadata, skipped: int, said: InputConfig | OutputConfig | None) -> TensorConfiguration:
    """said: what the configuration says of it, if anything."""
    return TensorConfiguration(
        tensor.name,
        data_type(tensor.datatype),
        tensor.shape[skipped:],
        said.labels if isinstance(said, OutputConfig) else None,
        TensorReshape(said.reshape[skipped:]) if said and said.reshape is not None else None,
    )


def data_type(datatype: str) -> str:
    """The configuration's name of a datatype: TYPE_FP32 for FP32; only BYTES is called otherwise, TYPE_STRING."""
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
