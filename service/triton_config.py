"""Triton's `config.pbtxt` to the values of our own configuration.

What is taken, warned about or refused stands in triton_keys.py; nothing is passed over in silence.
Pure: bytes in, values and warnings out. Knows neither files nor pydantic; service.repository validates the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import ModelRejected
from service.protobuf_text import Message, Name, Place, TextFormatError, Value, parse
from service.triton_keys import KEYS, Key, Type

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

_TRUE, _FALSE = ("true", "True", "t"), ("false", "False", "f")
_EXPECTED = {"string": "a string in quotes", "bool": "true or false", "message": "{ ... }"}
_INTEGERS = {
    "int32": range(-(2**31), 2**31), "uint32": range(2**32), "int64": range(-(2**63), 2**63), "uint64": range(2**64),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Translation:
    """`values`: what service.repository.ModelConfig is made of, by its own names; only what the file says.

    `warnings`: one line for each key that is not used.
    """

    values: dict[str, Any]
    warnings: tuple[str, ...]


def translate(content: bytes, folder_name: str, providers: Sequence[str]) -> Translation:
    """What a model's `config.pbtxt` means here; a file that names no model names its folder's, as in Triton.

    Raises ModelRejected with line, column and key.
    """
    try:
        reading = _Reading(providers)
        tree = reading.message(parse(content), "")
        return Translation(_model(tree, folder_name, reading), tuple(reading.warnings))
    except TextFormatError as error:
        raise ModelRejected(str(error)) from error


class _Reading:
    """Walks the file once beside KEYS; collects what is taken, and a warning for what is not."""

    def __init__(self, providers: Sequence[str]) -> None:
        self.providers = providers
        self.warnings: list[str] = []
        self._places: dict[str, Place] = {}

    def message(self, message: Message, prefix: str) -> dict[str, Any]:
        """The taken fields by name: a list where the key is repeated. Raises ModelRejected."""
        taken: dict[str, Any] = {}
        for field in message.fields:
            path = prefix + field.name
            self._places[path] = field.place
            key = KEYS.get(path)
            if key is None:
                raise self.refusal(path, "is no key of Triton's model configuration; mend or remove it")
            if not key.repeated and (field.is_list or field.name in taken):
                raise self.refusal(path, "is given more than once, and may have one value only")
            for value in field.values:
                self._one(path, key, value, taken)
        return taken

    def _one(self, path: str, key: Key, value: Value, taken: dict[str, Any]) -> None:
        read = self._read(path, key.type, value) if key.type else None
        if key.verdict == "taken" or (key.type and read in key.unless):
            name = path.rpartition(".")[2]
            if key.repeated:
                taken.setdefault(name, []).append(read)
            else:
                taken[name] = read
        elif key.verdict == "warned":
            self.warn(path, _shown(value, key), key.why)
        else:
            raise self.refusal(path, f"{_shown(value, key)}is not served: {key.why}")

    def _read(self, path: str, kind: Type, value: Value) -> Any:
        if kind == "message" and isinstance(value, Message):
            return self.message(value, f"{path}.")
        try:
            return _read_value(kind, value)
        except ValueError as error:
            raise self.refusal(path, str(error)) from None

    def warn(self, path: str, shown: str, why: str) -> None:
        """One line a key; the same said again, of the next tensor or instance, is not repeated."""
        line = f"{path} {shown}is not used: {why}"
        if not any(told.endswith(line) for told in self.warnings):
            self.warnings.append(f"{self._places[path]}: {line}")

    def refusal(self, path: str, problem: str) -> ModelRejected:
        return ModelRejected(f"{self._places[path]}: {path} {problem}")


def _shown(value: Value, key: Key) -> str:
    """What a message says of the value, and a space: the value of a key that may say something else, the key of a
    map's entry; otherwise nothing, since no value would do."""
    if isinstance(value, Message):
        entry = {field.name: field.values for field in value.fields}.get("key", ())
        return f"{_told(entry[0])} " if entry else ""
    return f"{_told(value)} " if key.type else ""


# --- values -------------------------------------------------------------------------------------------------------


def _read_value(kind: Type, value: Value) -> str | bool | int:
    """Text Format Language Specification, "Value Types". Raises ValueError with what was found and expected."""
    if isinstance(kind, tuple):
        return _read_enum(kind, value)
    if kind in _INTEGERS:
        return _read_integer(_INTEGERS[kind], value)
    if kind == "string" and type(value) is str:
        return value
    if kind == "bool" and (value in (0, 1) or (isinstance(value, Name) and value in _TRUE + _FALSE)):
        return value == 1 or value in _TRUE
    raise ValueError(f"is {_told(value)}; expected {_EXPECTED[kind]}")


def _read_integer(allowed: range, value: Value) -> int:
    if not isinstance(value, int) or value not in allowed:
        raise ValueError(f"is {_told(value)}; expected a whole number from {allowed[0]} to {allowed[-1]}")
    return value


def _read_enum(names: tuple[str, ...], value: Value) -> str:
    """By name or by number."""
    if isinstance(value, Name) and value in names:
        return str(value)
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    raise ValueError(f"is {_told(value)}; expected one of {', '.join(names)}")


def _told(value: Value) -> str:
    if isinstance(value, Message):
        return "a message"
    return f"{value!r:.60}" if type(value) is str else f"{value:.60}" if isinstance(value, str) else str(value)


# --- from Triton's names to ours ----------------------------------------------------------------------------------


def _model(tree: dict[str, Any], folder_name: str, reading: _Reading) -> dict[str, Any]:
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
            values[ours] = tuple(_tensor(triton, one, bool(batch_size), reading) for one in tree[triton])
    if scheduler := _scheduler(tree, reading):
        values["scheduler"] = scheduler
    if "version_policy" in tree:
        values["version_policy"] = _version_policy(tree["version_policy"], reading)
    return values


def _tensor(kind: str, tensor: dict[str, Any], batched: bool, reading: _Reading) -> dict[str, Any]:
    """model_configuration.md, "Inputs and Outputs": with max_batch_size above 0 the full shape is [-1] + dims."""
    if missing := [name for name in ("name", "data_type", "dims") if not tensor.get(name)]:
        raise reading.refusal(
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
    if label_file := tensor.get("label_filename"):
        values["labels"] = label_file
    return values


def _scheduler(tree: dict[str, Any], reading: _Reading) -> dict[str, Any]:
    batching = tree.get("dynamic_batching", {})
    policy = batching.get("default_queue_policy", {})
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
            "dynamic_batching.default_queue_policy.max_queue_size", "0 (no limit) ", "a queue always has a limit here"
        )
    if groups := tree.get("instance_group"):
        scheduler["instances"] = sum(_instances(group, reading) for group in groups)
    return scheduler


def _instances(group: dict[str, Any], reading: _Reading) -> int:
    kind, gpus = group.get("kind", "KIND_AUTO"), group.get("gpus", [])
    providers = ",".join(reading.providers)
    on_gpu = not GPU_PROVIDERS.isdisjoint(reading.providers)
    if kind == "KIND_GPU" and not on_gpu:
        raise reading.refusal(
            "instance_group.kind",
            f"is KIND_GPU, but --providers is {providers}: nothing would run on a GPU; ask for one, as with "
            f"--providers CUDAExecutionProvider,CPUExecutionProvider, or write KIND_AUTO",
        )
    if kind == "KIND_CPU" and on_gpu:
        reading.warn("instance_group.kind", "KIND_CPU ", f"models run where --providers says, {providers}")
    if gpus and gpus != [0]:
        raise reading.refusal(
            "instance_group.gpus", f"is {gpus}, but a model runs on the first GPU there is; choose with what is visible"
        )
    count: int = group.get("count", 1)
    return max(1, count)


def _version_policy(policy: dict[str, Any], reading: _Reading) -> dict[str, Any]:
    """oneof policy_choice: at most one of the three; none is the default."""
    if len(policy) > 1:
        raise reading.refusal("version_policy", f"has {' and '.join(sorted(policy))}; choose one")
    if "all" in policy:
        return {"all": True}
    if "specific" in policy:
        versions = tuple(policy["specific"].get("versions", ()))
        if not versions:
            raise reading.refusal("version_policy.specific", "lists no versions")
        return {"specific": versions}
    return {"latest": policy.get("latest", {}).get("num_versions") or 1}
