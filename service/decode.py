"""A body and its header length become an `InferenceRequest`, or one `MalformedRequest` that says what is wrong where.

Pure, bounded, suspicious: no asyncio, no framework, no model. Every claim of the caller (shapes, sizes, counts, depths)
is compared with the bytes that are really there before anything is made from it; memory and time stay proportional to
the body. Binary tensors are views of the body, never copies (so they may be read-only and unaligned).

The parts of a body (Triton, extension_binary_data.md): `header_bytes` of JSON, then the binary tensors in the order of
the inputs, without gaps. No header: the whole body is JSON.

Decisions where the specifications are silent:
- A JSON null means the same as leaving the member out; some clients dump their optional fields that way.
- Members that the protocol does not know are ignored (KServe's client sends `model_name`), parameters that it does not
  know are kept; a parameter that would change the answer and is not supported here is refused, never ignored.
- When an object names a member twice, the last one counts, as in every fast parser (RFC 8259 section 4 allows it).
- Bare NaN, Infinity and -Infinity are numbers, as in Triton. 1e999 is not: it is out of every datatype's range.
"""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager, nullcontext

import numpy as np

from service.datatypes import DATATYPES, Datatype, unpack_bytes
from service.errors import MalformedRequest, quoted
from service.json_tensors import KINDS, Json, elements_from_json, kind_of, parse_json, shown
from service.protocol import Array, InferenceRequest, InputTensor, RequestedOutput

HEADER_LENGTH = "Inference-Header-Content-Length"

MAX_ENTRIES = 4096
"""Largest number of inputs, of requested outputs and of parameters: each costs microseconds, whatever its size."""

MAX_RANK = 64
"""NumPy's own limit on dimensions."""

MAX_ELEMENTS = 2**60 - 1
"""Largest product of a shape's dimensions, zeros left out; beyond it NumPy refuses even an empty int64 array."""


def parse_header_bytes(value: str | bytes | None) -> int | None:
    """The value of the header `Inference-Header-Content-Length` as a number of bytes; None when there is no header.

    Raises MalformedRequest when it is anything but decimal digits.
    """
    if value is None:
        return None
    text = value if isinstance(value, str) else value.decode("latin-1")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise MalformedRequest(f"{HEADER_LENGTH} is {quoted(text)}, expected a number of bytes in decimal digits")
    return int(text)


def decode_request(body: bytes | bytearray | memoryview, header_bytes: int | None) -> InferenceRequest:
    """The request in `body`, whose first `header_bytes` bytes are JSON (None: all of it).

    Each input's `data` has its datatype's dtype and its declared shape. Raises MalformedRequest.
    """
    with _collector_paused() if len(body) > _LARGE_BODY_BYTES else nullcontext():
        return _decode(memoryview(body), header_bytes)


_LARGE_BODY_BYTES = 2**20


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Python's cycle collector looks through all live containers again and again while a parser makes millions of them,
    and finds nothing: 64 MiB of `[],[],...` took 7.3 s with it, 1.0 s without. When it runs again the parser's values
    must be gone, or it would look through them once more: hence around all of the decoding.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _decode(view: memoryview, header_bytes: int | None) -> InferenceRequest:
    if header_bytes is None:
        header_bytes = len(view)
    elif header_bytes == 0:
        raise MalformedRequest(
            f"{HEADER_LENGTH} is 0: a body that is one raw tensor is not supported here; describe it in JSON first"
        )
    elif not 0 < header_bytes <= len(view):
        raise MalformedRequest(f"{HEADER_LENGTH} is {header_bytes}, but the body has {len(view)} bytes")
    members = parse_json(view[:header_bytes])
    if type(members) is not dict:
        raise MalformedRequest(f"the request is {kind_of(members)}, expected a JSON object with the member 'inputs'")
    parameters = _parameters(members, "the request", _REQUEST_PARAMETERS)
    inputs: list[Json] = _required(members, "inputs", list, "the request")
    outputs: list[Json] = _optional(members, "outputs", list, "the request") or []
    _refuse_too_many(inputs, "inputs")
    _refuse_too_many(outputs, "outputs")
    return InferenceRequest(
        inputs=_inputs(inputs, _BinaryPart(view[header_bytes:])),
        outputs=tuple(_requested_output(output, f"outputs[{position}]") for position, output in enumerate(outputs)),
        id=_optional(members, "id", str, "the request"),
        binary_data_output=parameters.pop("binary_data_output", False),
        parameters=parameters,
    )


# --- members ------------------------------------------------------------------------------------------------------


def _required(owner: dict[str, Json], member: str, kind: type, where: str) -> Json:
    value = _optional(owner, member, kind, where)
    if value is None:
        raise MalformedRequest(f"{where} has no {member!r}")
    return value


def _optional(owner: dict[str, Json], member: str, kind: type, where: str) -> Json:
    value = owner.get(member)
    # `type is`, not isinstance: Python calls True an int, the protocol does not.
    if value is not None and type(value) is not kind:
        raise MalformedRequest(f"{where}: {member!r} is {kind_of(value)}, expected {KINDS[kind]}")
    return value


def _refuse_too_many(entries: Sized, what: str) -> None:
    if len(entries) > MAX_ENTRIES:
        raise MalformedRequest(f"there are {len(entries)} {what}, at most {MAX_ENTRIES} are read")


_REQUEST_PARAMETERS: dict[str, type] = {"binary_data_output": bool, "priority": int, "timeout": int}
_INPUT_PARAMETERS: dict[str, type] = {"binary_data_size": int}
_OUTPUT_PARAMETERS: dict[str, type] = {"binary_data": bool}
_UNSUPPORTED_PARAMETERS = ("classification", "shared_memory_region")
_PARAMETER_KINDS = (bool, int, float, str)


def _parameters(owner: dict[str, Json], where: str, known: Mapping[str, type]) -> dict[str, Json]:
    """The member `parameters`: any name, with a string, number or boolean; `known` fixes the type of some."""
    given: dict[str, Json] = _optional(owner, "parameters", dict, where) or {}
    _refuse_too_many(given, f"parameters of {where}")
    for name, value in given.items():
        if value is None:
            continue
        expected = (known[name],) if name in known else _PARAMETER_KINDS
        if type(value) not in expected:
            raise MalformedRequest(
                f"{where}: parameter {quoted(name)} is {kind_of(value)}, "
                f"expected {' or '.join(KINDS[kind] for kind in expected)}"
            )
        if name in _UNSUPPORTED_PARAMETERS:
            raise MalformedRequest(f"{where}: parameter {name!r} is not supported here")
    return {name: value for name, value in given.items() if value is not None}


def _requested_output(output: Json, where: str) -> RequestedOutput:
    if type(output) is not dict:
        raise MalformedRequest(f"{where} is {kind_of(output)}, expected an object with the member 'name'")
    name = _required(output, "name", str, where)
    parameters = _parameters(output, f"output {quoted(name)}", _OUTPUT_PARAMETERS)
    return RequestedOutput(name, parameters.get("binary_data"))


# --- inputs -------------------------------------------------------------------------------------------------------


class _BinaryPart:
    """The bytes behind the JSON, handed out from front to back."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._offset = 0

    def take(self, size_bytes: int, where: str) -> memoryview:
        left_bytes = len(self._view) - self._offset
        if size_bytes > left_bytes:
            raise MalformedRequest(
                f"{where}: binary_data_size is {shown(size_bytes)}, but only {left_bytes} of the "
                f"{len(self._view)} bytes behind the JSON are left"
            )
        self._offset += size_bytes
        return self._view[self._offset - size_bytes : self._offset]

    def finish(self) -> None:
        if self._offset != len(self._view):
            raise MalformedRequest(
                f"there are {len(self._view)} bytes behind the JSON, but the binary inputs take {self._offset}; "
                f"{HEADER_LENGTH} and the inputs' binary_data_size must add up to the length of the body"
            )


def _inputs(descriptions: list[Json], binary: _BinaryPart) -> tuple[InputTensor, ...]:
    tensors: dict[str, InputTensor] = {}
    for position, description in enumerate(descriptions):
        tensor = _input(description, f"inputs[{position}]", binary)
        if tensor.name in tensors:
            raise MalformedRequest(f"input {quoted(tensor.name)} is given twice")
        tensors[tensor.name] = tensor
    binary.finish()
    return tuple(tensors.values())


def _input(description: Json, position: str, binary: _BinaryPart) -> InputTensor:
    if type(description) is not dict:
        raise MalformedRequest(f"{position} is {kind_of(description)}, expected an object")
    name: str = _required(description, "name", str, position)
    where = f"input {quoted(name)}"
    datatype = _datatype(_required(description, "datatype", str, where), where)
    shape = _shape(_required(description, "shape", list, where), where)
    size_bytes: int | None = _parameters(description, where, _INPUT_PARAMETERS).get("binary_data_size")
    values: list[Json] | None = _optional(description, "data", list, where)
    if values is not None and size_bytes is not None:
        raise MalformedRequest(f"{where} has both 'data' and parameters.binary_data_size; give one of them")
    if values is not None:
        flat = elements_from_json(values, datatype, shape, where)
    elif size_bytes is not None:
        flat = _elements_from_bytes(size_bytes, binary, datatype, shape, where)
    else:
        raise MalformedRequest(f"{where} has neither 'data' nor parameters.binary_data_size; give one of them")
    return InputTensor(name, datatype.name, flat.reshape(shape))


def _datatype(name: str, where: str) -> Datatype:
    if name not in DATATYPES:
        raise MalformedRequest(f"{where}: datatype {quoted(name)} is unknown; known are {', '.join(DATATYPES)}")
    return DATATYPES[name]


def _shape(dimensions: list[Json], where: str) -> tuple[int, ...]:
    if len(dimensions) > MAX_RANK:
        raise MalformedRequest(f"{where}: shape has {len(dimensions)} dimensions, at most {MAX_RANK} are possible")
    for axis, dimension in enumerate(dimensions):
        if type(dimension) is not int or not 0 <= dimension <= MAX_ELEMENTS:
            raise MalformedRequest(
                f"{where}: dimension {axis} of shape is {shown(dimension)}, expected an integer from 0 to 2**60 - 1"
            )
    if math.prod(dimension or 1 for dimension in dimensions) > MAX_ELEMENTS:
        raise MalformedRequest(f"{where}: shape {dimensions} spans more than 2**60 - 1 elements")
    return tuple(dimensions)


# --- elements, from bytes -----------------------------------------------------------------------------------------


def _elements_from_bytes(
    size_bytes: int, binary: _BinaryPart, datatype: Datatype, shape: tuple[int, ...], where: str
) -> Array:
    """The next tensor of the binary part, flat."""
    if size_bytes < 0:
        raise MalformedRequest(f"{where}: binary_data_size is {shown(size_bytes)}, expected 0 or more")
    count = math.prod(shape)
    if datatype.name != "BYTES" and size_bytes != count * datatype.item_bytes:
        raise MalformedRequest(
            f"{where}: binary_data_size is {shown(size_bytes)}, but shape {list(shape)} of {datatype.name} "
            f"takes {count * datatype.item_bytes} bytes"
        )
    buffer = binary.take(size_bytes, where)
    if datatype.name == "BYTES":
        try:
            return unpack_bytes(buffer, count)
        except ValueError as error:
            raise MalformedRequest(f"{where}: BYTES of shape {list(shape)}: {error}") from error
    if datatype.name == "BOOL":
        _refuse_bytes_that_are_not_bool(buffer, where)
    return np.frombuffer(buffer, dtype=datatype.dtype)


def _refuse_bytes_that_are_not_bool(buffer: memoryview, where: str) -> None:
    """Triton passes such bytes on, but to the runtime's C++ `bool` any other value is undefined behaviour."""
    values = np.frombuffer(buffer, dtype=np.uint8)
    if values.max(initial=0) > 1:
        position = int(np.argmax(values > 1))
        raise MalformedRequest(f"{where}: element {position} is byte {values[position]}; a BOOL is 0 or 1")
