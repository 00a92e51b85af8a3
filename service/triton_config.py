"""Triton's `config.pbtxt` to the values of our own configuration.

What is taken, warned about or refused stands in triton_keys.py, triton_reading.py reads it.
Pure: bytes in, values and warnings out. Knows neither files nor pydantic; service.repository validates the values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.errors import ModelRejected
from service.protobuf_text import Place, TextFormatError, parse
from service.triton_reading import Reading, Taken, refusal

# ONNX Runtime's providers that run on a GPU; KIND_GPU is believed only with one of them.
GPU_PROVIDERS = frozenset(
    {
        "CUDAExecutionProvider",
        "DmlExecutionProvider",
        "MIGraphXExecutionProvider",
        "NvTensorRTRTXExecutionProvider",
        "ROCMExecutionProvider",
        "TensorrtExecutionProvider",
        "WebGpuExecutionProvider",
    }
)


@dataclass(frozen=True, slots=True)
class Translation:
    """`values`: what service.repository.ModelConfig is made of, by its own names; only what the file says.

    `warnings`: one line for each key that is not used. `is_batch_size_implied`: `max_batch_size` is 0 because the file
    says nothing of it.
    """

    values: dict[str, Any]
    warnings: tuple[str, ...]
    is_batch_size_implied: bool
    _tree: Taken = field(repr=False)

    def spell(self, location: Sequence[str | int]) -> str:
        """A place within `values` as the file has it: line, column and Triton's key."""
        ours = ".".join(part for part in location if isinstance(part, str))
        path = _KEYS_OF.get(ours, ours)
        positions = (part for part in location if isinstance(part, int))
        node, place = self._tree, self._tree.place
        for name in path.split("."):
            place = node.places.get(name, place)
            inner = node.get(name)
            if isinstance(inner, list) and inner and isinstance(inner[0], Taken):
                inner = inner[next(positions, 0)]
            if not isinstance(inner, Taken):
                break
            node = inner
        return f"{place}: {path}" if path else ""


# Where the values of `Translation` come from, in Triton's names; those that are the same are left out.
_KEYS_OF: Mapping[str, str] = {
    "inputs": "input",
    "inputs.name": "input.name",
    "inputs.datatype": "input.data_type",
    "inputs.shape": "input.dims",
    "inputs.reshape": "input.reshape.shape",
    "outputs": "output",
    "outputs.name": "output.name",
    "outputs.datatype": "output.data_type",
    "outputs.shape": "output.dims",
    "outputs.reshape": "output.reshape.shape",
    "outputs.labels": "output.label_filename",
    "scheduler": "dynamic_batching",
    "scheduler.max_queue_delay_us": "dynamic_batching.max_queue_delay_microseconds",
    "scheduler.priority_levels": "dynamic_batching.priority_levels",
    "scheduler.default_priority": "dynamic_batching.default_priority_level",
    "scheduler.default_timeout_us": "dynamic_batching.default_queue_policy.default_timeout_microseconds",
    "scheduler.allow_timeout_override": "dynamic_batching.default_queue_policy.allow_timeout_override",
    "scheduler.max_queue_size": "dynamic_batching.default_queue_policy.max_queue_size",
    "scheduler.instances": "instance_group.count",
    "version_policy.latest": "version_policy.latest.num_versions",
    "version_policy.specific": "version_policy.specific.versions",
}


def translate(content: bytes, folder_name: str, providers: Sequence[str]) -> Translation:
    """What a model's `config.pbtxt` means here; a file that names no model names its folder's, as in Triton.

    Raises ModelRejected with line, column and key.
    """
    try:
        reading = Reading()
        tree = reading.message(parse(content), "", Place(1, 1))
        values = _model(tree, folder_name, providers, reading)
        is_implied = "max_batch_size" in values and "max_batch_size" not in tree
        return Translation(values, tuple(reading.warnings), is_implied, tree)
    except TextFormatError as error:
        raise ModelRejected(str(error)) from error


def _model(tree: Taken, folder_name: str, providers: Sequence[str], reading: Reading) -> dict[str, Any]:
    values: dict[str, Any] = {"name": tree.get("name") or folder_name}
    if file_name := tree.get("default_model_filename"):
        values["default_model_filename"] = file_name
    # Absent is 0 in Protocol Buffers. Triton's ONNX backend looks for a better number only where the tensors are not
    # described (AutoCompleteConfig); so do we.
    batch_size = tree.get("max_batch_size")
    if batch_size is None and tree.get("input") and tree.get("output"):
        batch_size = 0
    if batch_size is not None:
        values["max_batch_size"] = batch_size
    for ours, triton in (("inputs", "input"), ("outputs", "output")):
        if triton in tree:
            values[ours] = tuple(_tensor(triton, one, bool(batch_size)) for one in tree[triton])
    if scheduler := _scheduler(tree, providers, reading):
        values["scheduler"] = scheduler
    if "version_policy" in tree:
        values["version_policy"] = _version_policy(tree["version_policy"])
    return values


def _tensor(kind: str, tensor: Taken, batched: bool) -> dict[str, Any]:
    """model_configuration.md, "Inputs and Outputs": with max_batch_size above 0 the full shape is [-1] + dims."""
    # Triton wants dims to be something; our own configuration says [] of a model whose rows are single numbers.
    if missing := [name for name in ("name", "data_type", "dims") if not tensor.get(name) and tensor.get(name) != []]:
        raise refusal(
            tensor.place,
            kind,
            f"{tensor.get('name', '')!r} lacks {', '.join(missing)}; leave out all {kind}s to take the model's own",
        )
    datatype = tensor["data_type"].removeprefix("TYPE_")
    dims = tuple(tensor["dims"])
    values = {
        "name": tensor["name"],
        # extension_model_configuration.md: what the protocol calls BYTES is TYPE_STRING here.
        "datatype": "BYTES" if datatype == "STRING" else datatype,
        "shape": (-1, *dims) if batched else dims,
    }
    if "reshape" in tensor:
        reshaped = tuple(tensor["reshape"].get("shape", ()))
        values["reshape"] = (-1, *reshaped) if batched else reshaped
    if label_file := tensor.get("label_filename"):
        values["labels"] = label_file
    return values


def _scheduler(tree: Taken, providers: Sequence[str], reading: Reading) -> dict[str, Any]:
    batching = tree.get("dynamic_batching", Taken(tree.place))
    policy = batching.get("default_queue_policy", Taken(tree.place))
    scheduler = {}
    for ours, group, triton in (
        ("max_queue_delay_us", batching, "max_queue_delay_microseconds"),
        ("priority_levels", batching, "priority_levels"),
        ("default_priority", batching, "default_priority_level"),
        ("default_timeout_us", policy, "default_timeout_microseconds"),
        ("allow_timeout_override", policy, "allow_timeout_override"),
        ("max_queue_size", policy, "max_queue_size"),
    ):
        if triton in group:
            scheduler[ours] = group[triton]
    if scheduler.get("max_queue_size") == 0:
        del scheduler["max_queue_size"]
        reading.warn(
            policy.places["max_queue_size"],
            "dynamic_batching.default_queue_policy.max_queue_size",
            "0 (no limit) ",
            "a queue always has a limit here",
        )
    if groups := tree.get("instance_group"):
        scheduler["instances"] = sum(_instances(group, providers, reading) for group in groups)
    return scheduler


def _instances(group: Taken, providers: Sequence[str], reading: Reading) -> int:
    kind, gpus, count = group.get("kind", "KIND_AUTO"), group.get("gpus", []), group.get("count", 1)
    asked = ",".join(providers)
    elsewhere = f"models run where --providers says, {asked}"
    on_gpu = not GPU_PROVIDERS.isdisjoint(providers)
    if kind == "KIND_GPU" and not on_gpu:
        raise refusal(
            group.places["kind"],
            "instance_group.kind",
            f"is KIND_GPU, but --providers is {asked}: nothing would run on a GPU; ask for one, as with "
            f"--providers CUDAExecutionProvider,CPUExecutionProvider, or write KIND_CPU, or KIND_AUTO for either",
        )
    if kind == "KIND_CPU" and on_gpu:
        reading.warn(group.places["kind"], "instance_group.kind", "KIND_CPU ", elsewhere)
    if gpus and gpus != [0]:
        raise refusal(
            group.places["gpus"],
            "instance_group.gpus",
            f"is {gpus}, but a model runs on the first GPU there is; choose with what is visible",
        )
    if gpus and not on_gpu:
        reading.warn(group.places["gpus"], "instance_group.gpus", f"{gpus} ", elsewhere)
    if count < 0:
        raise refusal(group.places["count"], "instance_group.count", f"is {count}; expected 1 or more")
    if count == 0:  # Protocol Buffers cannot tell it from nothing said, so Triton takes its default
        reading.warn(group.places["count"], "instance_group.count", "0 ", "there is always one instance")
    return max(1, int(count))


def _version_policy(policy: Taken) -> dict[str, Any]:
    """oneof policy_choice: at most one of the three; none is the default."""
    if len(policy) > 1:
        raise refusal(policy.place, "version_policy", f"has {' and '.join(sorted(policy))}; choose one")
    if "all" in policy:
        return {"all": True}
    if "specific" in policy:
        versions = tuple(policy["specific"].get("versions", ()))
        if not versions:
            raise refusal(policy.places["specific"], "version_policy.specific", "lists no versions")
        return {"specific": versions}
    return {"latest": policy.get("latest", {}).get("num_versions") or 1}
