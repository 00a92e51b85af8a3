"""The service's only door to ONNX Runtime: options, providers, run, input and output metadata.

Speaks NumPy and the protocol's datatypes outside, ONNX Runtime's types inside; knows no request, no batch, no queue.
ONNX Runtime is imported at the first session rather than with this file, so that liveness does not wait for it.
External data of an ONNX file is resolved by ONNX Runtime itself, which refuses absolute paths, `..` and symlinks that
leave the model's folder (checked by a test, because we rely on it).
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from service.datatypes import BY_ORT_TYPE, DATATYPES
from service.errors import InferenceFailed, ModelRejected, RequestMismatch
from service.protocol import Array

# ONNX Runtime's own log level 4, fatal. Everything below is either advice that nobody serving can act on, or an error
# that reaches us as an exception and is told once, by us, to whom it concerns.
_LOG_FATAL = 4

# Provider options that differ from ONNX Runtime's defaults (its CUDA Execution Provider page). use_tf32: rounds factors
# to 11 bits, which golden tolerances rightly refuse. cudnn_conv_algo_search: the default, EXHAUSTIVE, stops the first
# request of every new shape for hundreds of milliseconds, and batching makes new shapes. Unsure: not yet run on a GPU.
_PROVIDER_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
}

_STATUS_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (?:Load model from .*? failed:\s*)?")
_FAILED_NODE = re.compile(r"^Non-zero status code returned while running (\w+) node\. Name:'.*?' Status Message: ")
# A place in ONNX Runtime's own source, and the function there: a bare name, or a C++ signature.
_SOURCE_LOCATION = re.compile(r"\S+\.(?:cc|cpp|cu|h|hpp):\d+ (?:[\w:*&<>, ]*?[\w:~]+\([^()]*\)(?: const)? |\w+ )?")


@dataclass(frozen=True, slots=True)
class SessionTensor:
    """An input or output as the model file declares it.

    dims: an int is fixed, a str is the file's symbol for a free dimension, None is free without a name.
    ONNX Runtime reports a tensor of unknown rank as rank 0, so `dims == ()` may mean either.
    """

    name: str
    datatype: str
    dims: tuple[int | str | None, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The protocol's form: -1 for a free dimension."""
        return tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in self.dims)


@cache
def _runtime() -> ModuleType:
    # Official builds since 1.29 report usage over the network unless this is set before the import.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    onnxruntime.set_default_logger_severity(_LOG_FATAL)
    module: ModuleType = onnxruntime
    return module


class Session:
    """One loaded model file. `run` may be called from several threads at once; ONNX Runtime's Run keeps no state."""

    inputs: tuple[SessionTensor, ...]
    outputs: tuple[SessionTensor, ...]
    providers: tuple[str, ...]
    """What runs the model, as ONNX Runtime reports it. The CPU is always last: it takes nodes that no other can."""
    node_share: Mapping[str, float]
    """By provider, of the graph's nodes when they were assigned; empty where ONNX Runtime does not tell."""

    def __init__(self, path: Path, *, providers: tuple[str, ...], intra_op_threads: int) -> None:
        """Loads and optimises `path`. Raises ModelRejected when it cannot be loaded exactly as asked."""
        _check_available(providers)
        # Path, not bytes: external data is found relative to it.
        try:
            self._session = _runtime().InferenceSession(
                os.fspath(path),
                sess_options=_options(intra_op_threads, providers),
                providers=list(providers),
                provider_options=[dict(_PROVIDER_OPTIONS.get(name, {})) for name in providers],
                # Off: on failure it would try again on the CPU and say so only on the console.
                enable_fallback=0,
            )
        except Exception as error:  # the binding raises its own types, RuntimeError, ValueError and TypeError
            raise ModelRejected(
                f"{path.name} cannot be loaded by ONNX Runtime: {_without_folder(_first_line(error), path.parent)}"
            ) from error
        self.providers = tuple(self._session.get_providers())
        if missing := [name for name in providers if name not in self.providers]:
            raise ModelRejected(
                f"{path.name}: execution provider {', '.join(missing)} was requested but could not start (a library or "
                f"device it needs is missing); running are {', '.join(self.providers)}"
            )
        self.node_share = _node_share(self._session, self.providers)
        self.inputs = tuple(_tensor("input", node) for node in self._session.get_inputs())
        self.outputs = tuple(_tensor("output", node) for node in self._session.get_outputs())
        self._output_names = [tensor.name for tensor in self.outputs]
        self._gives_text = any(tensor.datatype == "BYTES" for tensor in self.outputs)
        self._shapes_are_free = _free_sizes(self.inputs) > 1
        self._holds_bf16 = any(tensor.datatype == "BF16" for tensor in (*self.inputs, *self.outputs))
        if self._holds_bf16:
            _check_bf16_can_be_fed(self.inputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs for one feed, by name in the model's order. BYTES elements are `bytes` on both sides.

        Blocks for as long as the model computes. Raises RequestMismatch when a BYTES element is not UTF-8 (ONNX strings
        are text) or when what the declarations leave free does not go together, InferenceFailed otherwise, both with
        ONNX Runtime's words.
        """
        feed = {
            name: _to_text(name, array) if array.dtype == object else _aligned(array) for name, array in inputs.items()
        }
        try:
            values = self._run_with_bf16(feed) if self._holds_bf16 else self._session.run(self._output_names, feed)
        except Exception as error:  # as above; also UnicodeDecodeError for an output string that is not text
            if self._is_the_callers(error):
                raise RequestMismatch(f"the model cannot take these inputs: {_first_line(error)}") from error
            raise InferenceFailed(f"ONNX Runtime: {_first_line(error)}") from error
        if self._gives_text:
            values = [_to_bytes(value) if value.dtype == object else value for value in values]
        return dict(zip(self._output_names, values, strict=True))

    def _run_with_bf16(self, feed: Mapping[str, Array]) -> list[Array]:
        """As ONNX Runtime's `run`, which has no NumPy dtype for bfloat16: bit patterns go in and come out."""
        value = _runtime().OrtValue
        datatypes = {tensor.name: tensor.datatype for tensor in self.inputs}
        inputs = {
            name: value.ortvalue_from_numpy_with_onnx_type(array, _ONNX_BFLOAT16)
            if datatypes[name] == "BF16"
            else value.ortvalue_from_numpy(array)
            for name, array in ((name, np.ascontiguousarray(array)) for name, array in feed.items())
        }
        outputs = self._session.run_with_ort_values(None, inputs)
        return [
            _bit_patterns(output) if tensor.datatype == "BF16" else output.numpy()
            for tensor, output in zip(self.outputs, outputs, strict=True)
        ]

    def _is_the_callers(self, error: Exception) -> bool:
        """Kernels say INVALID_ARGUMENT of shapes and indices; the model has run before, so it is this request. Others
        say FAIL of sizes that do not go together: where only the number of rows is free the caller cannot cause that,
        and it stays a defect of the server's side."""
        kinds = _runtime().capi.onnxruntime_pybind11_state
        return isinstance(error, kinds.InvalidArgument) or (self._shapes_are_free and isinstance(error, kinds.Fail))


_ALONE = ("CPUExecutionProvider",)


def _node_share(session: Any, providers: tuple[str, ...]) -> dict[str, float]:
    if providers == _ALONE:
        return {_ALONE[0]: 1.0}
    if not hasattr(session, "get_provider_graph_assignment_info"):  # ONNX Runtime before 1.30
        return {}
    nodes = dict.fromkeys(providers, 0)
    for part in session.get_provider_graph_assignment_info():
        nodes[part.ep_name] = nodes.get(part.ep_name, 0) + len(part.get_nodes())
    total = sum(nodes.values())
    return {name: count / total for name, count in nodes.items()} if total else {}


def runtime_version() -> str:
    """ONNX Runtime's, once it has been imported; until then empty."""
    module = sys.modules.get("onnxruntime")
    return str(module.__version__) if module else ""


def _options(intra_op_threads: int, providers: tuple[str, ...]) -> Any:
    options = _runtime().SessionOptions()
    # Explicit, also because ONNX Runtime's automatic choice pins threads to cores it may not have (cpuset).
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.execution_mode = _runtime().ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _LOG_FATAL
    # Spinning threads win microseconds on an idle machine and take the event loop's core on a busy one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if providers != _ALONE:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _check_available(providers: tuple[str, ...]) -> None:
    available = _runtime().get_available_providers()
    if missing := [name for name in providers if name not in available]:
        raise ModelRejected(
            f"execution provider {', '.join(missing)} is not in this build of ONNX Runtime; "
            f"available are {', '.join(available)}"
        )


def _tensor(kind: str, node: Any) -> SessionTensor:
    row = BY_ORT_TYPE.get(node.type)
    if row is None:
        raise ModelRejected(
            f"{kind} {node.name!r} has type {node.type}, which cannot travel in the protocol; "
            f"known are {', '.join(BY_ORT_TYPE)}"
        )
    return SessionTensor(node.name, row.name, tuple(node.shape))


# Its number in ONNX's TensorProto.DataType.
_ONNX_BFLOAT16 = 16


def _check_bf16_can_be_fed(inputs: Sequence[SessionTensor]) -> None:
    if texts := [tensor.name for tensor in inputs if tensor.datatype == "BYTES"]:
        raise ModelRejected(
            f"the model has bfloat16 tensors and the string input {texts[0]!r}; ONNX Runtime's Python interface can "
            f"feed one or the other, not both"
        )


def _bit_patterns(value: Any) -> Array:
    """A copy of a bfloat16 tensor that ONNX Runtime holds in main memory, in the dtype of the table."""
    content = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.ndarray(value.shape(), DATATYPES["BF16"].dtype, content)


def _aligned(array: Array) -> Array:
    """ONNX Runtime computes on NumPy's memory in place; a view of a request body may start at any address."""
    return array if array.flags.aligned else array.copy()


def _to_text(name: str, array: Array) -> Array:
    text = np.empty(array.size, dtype=object)
    for position, element in enumerate(array.ravel()):
        try:
            text[position] = element.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RequestMismatch(
                f"input {name!r}: element {position} is not UTF-8 ({error.reason} at byte {error.start}); "
                f"this model's strings are text"
            ) from error
    return text.reshape(array.shape)


def _to_bytes(array: Array) -> Array:
    packed = np.empty(array.size, dtype=DATATYPES["BYTES"].dtype)
    packed[:] = [element.encode("utf-8") for element in array.ravel()]
    return packed.reshape(array.shape)


def _free_sizes(tensors: Sequence[SessionTensor]) -> int:
    """How many sizes a request may choose: one for each symbol, and for each free dimension without a name."""
    free = [dim for tensor in tensors for dim in tensor.dims if not isinstance(dim, int)]
    return len({dim for dim in free if dim is not None}) + free.count(None)


def _first_line(error: Exception) -> str:
    """ONNX Runtime's message without its status prefix, the node's name and the places in its own source."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = _FAILED_NODE.sub(r"\1: ", _STATUS_PREFIX.sub("", lines[0]))
    return _SOURCE_LOCATION.sub("", text).strip()


def _without_folder(text: str, folder: Path) -> str:
    """ONNX Runtime makes paths absolute before it complains of them."""
    return text.replace(f"{folder.absolute()}{os.sep}", "").replace(f"{folder}{os.sep}", "")
