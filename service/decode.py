"""A body and its header length become an `InferenceRequest`, or one `MalformedRequest` that says what is wrong where.

Pure, bounded, suspicious: no asyncio, no framework, no model. Every claim of the caller (shapes, sizes, counts, depths)
is compared with the bytes that are really there before anything is made from it; memory and time stay proportional to
the body. Binary tensors are views of the body, never copies (so they may be read-only and unaligned).

The parts of a body (Triton, extension_binary_data.md): `header_bytes` of JSON, then the binary tensors in the order of
the inputs, without gaps. No header: the whole body is JSON. Bodies of other forms: request_body.py.

Numbers in JSON keep the interpreter until they are read, 9 ms for 1 MiB and 0.65-0.8 s for the 61 MiB that the default
limit lets in, on one core of 2026; so from `LONG_JSON_BYTES` on whoever has others to serve decodes in a thread, and
gives a `pause`: then long arrays are read in slices (json_slices.py). Strings are not, nor what is refused: that is
read once more in one go, for the words to refuse it with.

Decisions where the specifications are silent:
- A JSON null means the same as leaving the member out; some clients dump their optional fields that way.
- Members that the protocol does not know are ignored (KServe's client sends `model_name`), parameters that it does not
  know are kept; a parameter that would change the answer and is not supported here is refused, never ignored.
- When an object names a member twice, the last one counts, as in every fast parser (RFC 8259 section 4 allows it).
- Bare NaN, Infinity and -Infinity are numbers, as in Triton. 1e999 is not: it is out of every datatype's range.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from service.binary_tensors import check_size, tensor_from_bytes
from service.datatypes import DATATYPES, Datatype
from service.errors import MalformedRequest, quoted
from service.json_forms import decode_known_form, learn_form
from service.json_members import (
    INPUT_PARAMETERS,
    OUTPUT_PARAMETERS,
    REQUEST_PARAMETERS,
    named,
    optional,
    parameters_of,
    refuse_state,
    refuse_too_many,
    required,
)
from service.json_slices import LongArray, LongArrays, Unsliceable, read_in_slices
from service.json_tensors import Json, Pause, elements_from_json, kind_of, parse_json, shown
from service.protocol import InferenceRequest, InputTensor, RequestedOutput
from service.shared_memory import NO_AREAS, Area, RequestAreas, SharedMemory

HEADER_LENGTH = "Inference-Header-Content-Length"

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
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        text = value if isinstance(value, str) else value.decode("latin-1")
        raise MalformedRequest(f"{HEADER_LENGTH} is {quoted(text)}, expected a number of bytes in decimal digits")
    return int(value)


LONG_JSON_BYTES = 256 * 1024
"""Two milliseconds of reading."""


def decode_request(
    body: bytes | bytearray | memoryview,
    header_bytes: int | None,
    regions: SharedMemory | None = None,
    pause: Pause | None = None,
) -> InferenceRequest:
    """The request in `body`, whose first `header_bytes` bytes are JSON (None: all of it).

    regions: of shared memory, which inputs may be copied from and outputs go to. pause: called now and then while long
    arrays are read. Each input's `data` has its datatype's dtype and its declared shape. Raises MalformedRequest.
    """
    view = memoryview(body)
    if pause is None and len(body) <= LARGE_BODY_BYTES:
        return _decode(view, header_bytes, regions)
    with collector_paused():
        if pause is not None and (request := _decode_in_slices(view, header_bytes, regions, pause)) is not None:
            return request
        return _decode(view, header_bytes, regions)


class Preview(NamedTuple):
    """What the JSON in front of binary tensors says about a request's place in a queue."""

    rows: int
    parameters: dict[str, Json]


def peek(text: bytes) -> Preview | None:
    """For a request of which only its JSON has come. None when that is not a request, and for the whole to tell."""
    if len(text) > _REMEMBERED_BYTES:
        return None
    try:
        description = _REMEMBERED.get(text) or _describe_once(text, NO_AREAS)
    except MalformedRequest:
        return None
    shapes = [tensor.shape for tensor in description.inputs[:1]]
    return Preview(shapes[0][0] if shapes and shapes[0] else 1, description.parameters)


LARGE_BODY_BYTES = 2**20


_pausing = threading.Lock()
_pauses = 0
_was_enabled = True


@contextmanager
def collector_paused() -> Iterator[None]:
    """Python's cycle collector looks through all live containers again and again while a parser makes millions of them,
    and finds nothing: 64 MiB of `[],[],...` took 7.3 s with it, 1.0 s without. When it runs again the parser's values
    must be gone, or it would look through them once more: hence around all of the decoding, of the last one when
    several threads decode. Where somebody else has switched it off, it stays off.
    """
    global _pauses, _was_enabled
    with _pausing:
        _pauses += 1
        if _pauses == 1:
            _was_enabled = gc.isenabled()
            gc.disable()
    try:
        yield
    finally:
        with _pausing:
            _pauses -= 1
            if not _pauses and _was_enabled:
                gc.enable()


def _decode(view: memoryview, header_bytes: int | None, regions: SharedMemory | None) -> InferenceRequest:
    if header_bytes is None:
        header_bytes = len(view)
    elif not 0 < header_bytes <= len(view):
        raise MalformedRequest(f"{HEADER_LENGTH} is {header_bytes}, but the body has {len(view)} bytes")
    if header_bytes == len(view):
        return _decode_json(view, regions)
    areas = regions.for_request() if regions else NO_AREAS
    if header_bytes > _REMEMBERED_BYTES:
        description = _describe(view[:header_bytes], areas)
    else:
        text = bytes(view[:header_bytes])
        description = _REMEMBERED.get(text) or _describe_once(text, areas)
    return description.request_with(_BinaryPart(view, header_bytes), areas)


def _decode_in_slices(
    view: memoryview, header_bytes: int | None, regions: SharedMemory | None, pause: Pause
) -> InferenceRequest | None:
    text_bytes = len(view) if header_bytes is None else header_bytes
    if not LONG_JSON_BYTES <= text_bytes <= len(view):
        return None

    def read(text: memoryview, arrays: LongArrays) -> InferenceRequest:
        areas = regions.for_request() if regions else NO_AREAS
        description = _describe(text, areas, arrays)
        if arrays:
            raise Unsliceable("a long array that is no input's")
        return description.request_with(_BinaryPart(view, text_bytes), areas)

    return read_in_slices(view[:text_bytes], pause, read, lambda request: request.inputs)


def _decode_json(view: memoryview, regions: SharedMemory | None) -> InferenceRequest:
    """A body that is all JSON is hardly ever the same twice, but often the same around its numbers."""
    text = bytes(view)
    if (known := decode_known_form(text)) is not None:
        return known
    areas = regions.for_request() if regions else NO_AREAS
    description = _describe(view, areas)
    request = description.request_with(_BinaryPart(view, len(view)), areas)
    if not description.is_in_shared_memory:
        learn_form(text, request)
    return request


# --- what the JSON says -------------------------------------------------------------------------------------------


class _Binary(NamedTuple):
    """An input whose elements are elsewhere: in `area`, or the next `size_bytes` behind the JSON."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    size_bytes: int
    area: Area | None
    where: str

    def read(self, binary: _BinaryPart, areas: RequestAreas) -> InputTensor:
        buffer = binary.take(self.size_bytes, self.where) if self.area is None else areas.read(self.area, self.where)
        return InputTensor(
            self.name, self.datatype.name, tensor_from_bytes(buffer, self.datatype, self.shape, self.where)
        )


class _Long(NamedTuple):
    """An input whose elements have been cut out of the JSON."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    array: LongArray
    where: str

    def read(self) -> InputTensor:
        return InputTensor(self.name, self.datatype.name, self.array.elements(self.datatype, self.shape, self.where))


class _Description(NamedTuple):
    """A request, but for the elements of inputs that are not in the JSON, or not any more."""

    inputs: list[InputTensor | _Binary | _Long]
    outputs: tuple[RequestedOutput, ...]
    id: str | None
    binary_data_output: bool
    parameters: dict[str, Json]

    @property
    def is_in_shared_memory(self) -> bool:
        """In part; then it means something only now."""
        return any(isinstance(tensor, _Binary) and tensor.area is not None for tensor in self.inputs) or any(
            output.area is not None for output in self.outputs
        )

    def request_with(self, binary: _BinaryPart, areas: RequestAreas) -> InferenceRequest:
        tensors = [
            tensor
            if isinstance(tensor, InputTensor)
            else tensor.read()
            if isinstance(tensor, _Long)
            else tensor.read(binary, areas)
            for tensor in self.inputs
        ]
        binary.finish()
        return InferenceRequest(tuple(tensors), self.outputs, self.id, self.binary_data_output, self.parameters)


_REMEMBERED_BYTES = 2048
_REMEMBERED_ENTRIES = 1024
_REMEMBERED: dict[bytes, _Description] = {}
"""What JSON in front of binary tensors has meant: clients that call in a loop send the same text each time, and then
decoding takes a third of its time. It changes no result, and it is bounded."""


def _describe_once(text: bytes, areas: RequestAreas) -> _Description:
    description = _describe(memoryview(text), areas)
    if not description.is_in_shared_memory:
        if len(_REMEMBERED) >= _REMEMBERED_ENTRIES:
            _REMEMBERED.clear()
        _REMEMBERED[text] = description
    return description


def _describe(text: memoryview, areas: RequestAreas, arrays: LongArrays | None = None) -> _Description:
    members = parse_json(text)
    if type(members) is not dict:
        raise MalformedRequest(f"the request is {kind_of(members)}, expected a JSON object with the member 'inputs'")
    parameters = parameters_of(members, "the request", REQUEST_PARAMETERS)
    if parameters:
        refuse_state(parameters)
    inputs: list[Json] = required(members, "inputs", list, "the request")
    outputs: list[Json] = optional(members, "outputs", list, "the request") or []
    refuse_too_many(inputs, "inputs")
    refuse_too_many(outputs, "outputs")
    described = [_input(entry, position, areas, arrays) for position, entry in enumerate(inputs)]
    if len(described) > 1:
        _refuse_repeated_names(described)
    return _Description(
        described,
        tuple([_requested_output(entry, position, areas) for position, entry in enumerate(outputs)]) if outputs else (),
        optional(members, "id", str, "the request"),
        parameters.pop("binary_data_output", False) if parameters else False,
        parameters,
    )


def _requested_output(output: Json, position: int, areas: RequestAreas) -> RequestedOutput:
    name = named(output, "outputs", position)
    where = f"output {quoted(name)}"
    parameters = parameters_of(output, where, OUTPUT_PARAMETERS)
    binary: bool | None = parameters.get("binary_data")
    if len(parameters) == (binary is not None):  # what most outputs say, or less
        return RequestedOutput(name, binary)
    area = areas.find(parameters, where)
    if area is not None and "classification" in parameters:
        raise MalformedRequest(f"{where}: a classification cannot go to shared memory; ask for one of them")
    return RequestedOutput(name, binary if area is None else True, parameters.get("classification"), area)


# --- inputs -------------------------------------------------------------------------------------------------------


class _BinaryPart:
    """The bytes behind the JSON, handed out from front to back."""

    def __init__(self, body: memoryview, start: int) -> None:
        self._body = body
        self._start = self._offset = start

    def take(self, size_bytes: int, where: str) -> memoryview:
        start = self._offset
        if size_bytes > len(self._body) - start:
            raise MalformedRequest(
                f"{where}: binary_data_size is {shown(size_bytes)}, but only {len(self._body) - start} of the "
                f"{len(self._body) - self._start} bytes behind the JSON are left"
            )
        self._offset = start + size_bytes
        return self._body[start : self._offset]

    def finish(self) -> None:
        if self._offset != len(self._body):
            raise MalformedRequest(
                f"there are {len(self._body) - self._start} bytes behind the JSON, but the binary inputs take "
                f"{self._offset - self._start}; {HEADER_LENGTH} and the inputs' binary_data_size must add up to the "
                f"length of the body"
            )


def _refuse_repeated_names(tensors: Sequence[InputTensor | _Binary | _Long]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise MalformedRequest(f"input {quoted(tensor.name)} is given twice")
        seen.add(tensor.name)


def _input(
    description: Json, position: int, areas: RequestAreas, arrays: LongArrays | None
) -> InputTensor | _Binary | _Long:
    name = named(description, "inputs", position)
    where = f"input {quoted(name)}"
    datatype = _datatype(required(description, "datatype", str, where), where)
    shape = read_shape(required(description, "shape", list, where), where)
    parameters = parameters_of(description, where, INPUT_PARAMETERS)
    size_bytes: int | None = parameters.get("binary_data_size")
    if arrays and not parameters and (long := arrays.take(description.get("data"))) is not None:
        return _Long(name, datatype, shape, long, where)
    values: list[Json] | None = optional(description, "data", list, where)
    # Most inputs have that parameter, or none.
    area = None if len(parameters) == (size_bytes is not None) else areas.find(parameters, where)
    if values is not None and size_bytes is not None:
        raise MalformedRequest(f"{where} has both 'data' and parameters.binary_data_size; give one of them")
    if area is not None:
        if values is not None or size_bytes is not None:
            raise MalformedRequest(f"{where} is in shared memory, and has data in the request too; give one of them")
        check_size("shared_memory_byte_size", area.size_bytes, datatype, shape, where)
        return _Binary(name, datatype, shape, area.size_bytes, area, where)
    if size_bytes is not None:
        check_size("binary_data_size", size_bytes, datatype, shape, where)
        return _Binary(name, datatype, shape, size_bytes, None, where)
    if values is None:
        raise MalformedRequest(f"{where} has neither 'data' nor parameters.binary_data_size; give one of them")
    return InputTensor(name, datatype.name, elements_from_json(values, datatype, shape, where))


def _datatype(name: str, where: str) -> Datatype:
    datatype = DATATYPES.get(name)
    if datatype is None:
        raise MalformedRequest(f"{where}: datatype {quoted(name)} is unknown; known are {', '.join(DATATYPES)}")
    return datatype


def read_shape(dimensions: list[Json], where: str) -> tuple[int, ...]:
    """`dimensions` as a shape that NumPy can have. Raises MalformedRequest, beginning with `where`."""
    if len(dimensions) > MAX_RANK:
        raise MalformedRequest(f"{where}: shape has {len(dimensions)} dimensions, at most {MAX_RANK} are possible")
    product = 1
    for axis, dimension in enumerate(dimensions):
        if type(dimension) is not int or not 0 <= dimension <= MAX_ELEMENTS:
            raise MalformedRequest(
                f"{where}: dimension {axis} of shape is {shown(dimension)}, expected an integer from 0 to 2**60 - 1"
            )
        product *= dimension or 1
    if product > MAX_ELEMENTS:
        raise MalformedRequest(f"{where}: shape {dimensions} spans more than 2**60 - 1 elements")
    return tuple(dimensions)
