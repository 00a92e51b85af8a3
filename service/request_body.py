"""The body of an infer request, in any form that is understood, becomes an `InferenceRequest`.

    Inference-Header-Content-Length   body                           read by
    none, or more than 0              JSON, then binary tensors      decode.py
    0                                 one raw tensor                 here (Triton, "raw binary request")
    none                              one .npy file                  npy.py

Compressed ones are expanded before (compression.py); lengths count what is inside. The last two say nothing about
names, datatypes and batches, so the model's metadata fills that in. Where the head announces another form than the body
has, the refusal ends with what the head should have said. Knows no model beyond its metadata, and no connection.
"""

from __future__ import annotations

import json
import math

from service.binary_tensors import tensor_from_bytes
from service.datatypes import DATATYPES
from service.decode import HEADER_LENGTH, LONG_JSON_BYTES, decode_request, parse_header_bytes
from service.errors import MalformedRequest, RequestMismatch
from service.json_tensors import Pause
from service.npy import MAGIC, MEDIA_TYPE, read_npy
from service.protocol import InferenceRequest, InputTensor, ModelMetadata, RequestedOutput, TensorMetadata
from service.shared_memory import SharedMemory

Body = bytes | bytearray | memoryview


def read_request(
    body: Body,
    metadata: ModelMetadata,
    *,
    is_batchable: bool,
    regions: SharedMemory | None = None,
    header_length: bytes | None = None,
    content_type: bytes = b"",
    pause: Pause | None = None,
) -> InferenceRequest:
    """The request in `body`, whose head said `header_length` and `content_type`; see `decode_request` for the others.

    Raises MalformedRequest and RequestMismatch.
    """
    try:
        if header_length is None:
            # JSON cannot begin with the magic bytes, so a .npy file is known without its media type.
            if body[: len(MAGIC)] == MAGIC or MEDIA_TYPE in content_type:
                return _npy_request(body, metadata, is_batchable)
            return decode_request(body, None, regions, pause)
        header_bytes = parse_header_bytes(header_length)
        if header_bytes == 0:
            return _raw_request(body, metadata, is_batchable)
        return decode_request(body, header_bytes, regions, pause)
    except (MalformedRequest, RequestMismatch) as error:
        if next_step := _next_step(memoryview(body), header_length):
            raise type(error)(f"{error}; {next_step}") from error
        raise


def reads_long(body: Body, header_length: bytes | None, content_type: bytes) -> bool:
    """Whether so much of it is JSON that others should not wait for it. Of a body that is not compressed."""
    if len(body) < LONG_JSON_BYTES:
        return False
    if header_length is None:
        return body[: len(MAGIC)] != MAGIC and MEDIA_TYPE not in content_type
    return header_length.isdigit() and len(header_length) <= 18 and int(header_length) >= LONG_JSON_BYTES


# --- a head that does not fit its body ----------------------------------------------------------------------------

_LONGEST_SEARCH_BYTES = 16 * 1024
"""JSON in front of binary tensors is shorter, and what pads it too; and a refusal must cost little."""

_GZIP_MAGIC = b"\x1f\x8b"


def _next_step(body: memoryview, header_length: bytes | None) -> str:
    """What the head should have said; empty when it was right, or nobody can tell."""
    if header_length is not None and not header_length.isdigit():
        return ""
    if body[: len(MAGIC)] == MAGIC:
        media_type = MEDIA_TYPE.decode("ascii")
        advice = f"the body is a .npy file: send it with Content-Type: {media_type} and without {HEADER_LENGTH}"
        return "" if header_length is None else advice
    if (end := _end_of_json(body)) is not None:
        stop = len(body) if header_length is None else int(header_length[:18])
        if end <= stop <= len(body) and not bytes(body[end : min(stop, end + _LONGEST_SEARCH_BYTES)]).strip():
            return ""
        return f"the JSON ends behind {end} of {len(body)} bytes: send the header {HEADER_LENGTH}: {end}"
    if header_length is not None or _is_text(bytes(body[:64])):
        return ""
    if body[: len(_GZIP_MAGIC)] == _GZIP_MAGIC:
        return "the body begins like gzip: send the header Content-Encoding: gzip"
    return (
        f"for the raw bytes of one tensor send the header {HEADER_LENGTH}: 0; for JSON with binary tensors behind it, "
        f"the length of the JSON in bytes"
    )


def _end_of_json(body: memoryview) -> int | None:
    """Where the request in JSON ends that `body` begins with; None when there is none, or it is long."""
    text = str(body[:_LONGEST_SEARCH_BYTES], "latin-1")  # one character a byte, and JSON's own are all ASCII
    try:
        value, end = json.JSONDecoder().raw_decode(text, len(text) - len(text.lstrip(" \t\r\n")))
    except (ValueError, RecursionError):
        return None
    return end if isinstance(value, dict) and "inputs" in value else None


def _is_text(beginning: bytes) -> bool:
    try:
        text = beginning.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(beginning) - 3:  # otherwise a character may have been cut off
            return False
        text = beginning[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\t\r\n\ufeff" for character in text)


# --- one raw tensor -----------------------------------------------------------------------------------------------


def _raw_request(body: Body, metadata: ModelMetadata, is_batchable: bool) -> InferenceRequest:
    """One row, if the model takes rows; all outputs come back in binary (Triton, extension_binary_data)."""
    what = f"{HEADER_LENGTH} is 0, so the body is one raw tensor"
    expected = _only_input(metadata, what)
    if expected.datatype == "BYTES":
        body, shape = _packed(body), _shape_of_one_string(expected, is_batchable, what)
    else:
        shape = _shape_from_length(len(body), expected, is_batchable, what)
    where = f"input {expected.name!r}"
    data = tensor_from_bytes(memoryview(body), DATATYPES[expected.datatype], shape, where)
    return InferenceRequest((InputTensor(expected.name, expected.datatype, data),), binary_data_output=True)


def _only_input(metadata: ModelMetadata, what: str) -> TensorMetadata:
    if len(metadata.inputs) != 1:
        names = ", ".join(repr(tensor.name) for tensor in metadata.inputs) or "none"
        raise RequestMismatch(
            f"{what}, but model {metadata.name!r} has {len(metadata.inputs)} inputs ({names}); describe them in JSON"
        )
    return metadata.inputs[0]


def _packed(text: Body) -> bytes:
    """A raw string is the whole body, without the length that stands before it elsewhere."""
    return len(text).to_bytes(4, "little") + text


def _shape_of_one_string(expected: TensorMetadata, is_batchable: bool, what: str) -> tuple[int, ...]:
    of_a_row = expected.shape[1:] if is_batchable else expected.shape
    if of_a_row != (1,):
        raise RequestMismatch(
            f"{what}, but input {expected.name!r} holds BYTES of shape {list(expected.shape)}; raw BYTES are possible "
            f"only where a row is one string, shape [1]"
        )
    return (1, 1) if is_batchable else (1,)


def _shape_from_length(body_bytes: int, expected: TensorMetadata, is_batchable: bool, what: str) -> tuple[int, ...]:
    """The declared shape, with one row, and the one dimension that may be free as the length of the body says."""
    shape = (1, *expected.shape[1:]) if is_batchable else expected.shape
    free = shape.count(-1)
    if free > 1:
        raise RequestMismatch(
            f"{what}, but input {expected.name!r} has shape {list(expected.shape)} with {free} dimensions that its "
            f"length cannot tell; describe it in JSON"
        )
    slice_bytes = math.prod(dim for dim in shape if dim != -1) * DATATYPES[expected.datatype].item_bytes
    length, left_over = divmod(body_bytes, slice_bytes) if slice_bytes else (0, body_bytes)
    if left_over or (not free and body_bytes != slice_bytes):
        multiple = "a multiple of " if free else ""
        raise RequestMismatch(
            f"{what}, but it has {body_bytes} bytes; input {expected.name!r} of {expected.datatype} and shape "
            f"{list(expected.shape)} takes {multiple}{slice_bytes}{' for one row' if is_batchable else ''}"
        )
    return tuple(length if dim == -1 else dim for dim in shape)


# --- one .npy file ------------------------------------------------------------------------------------------------


def _npy_request(body: Body, metadata: ModelMetadata, is_batchable: bool) -> InferenceRequest:
    """Answered as JSON, except outputs that have no JSON form. A single row may come without its batch dimension."""
    expected = _only_input(metadata, "the body is one .npy file")
    datatype, data = read_npy(body)
    if datatype.name != expected.datatype:
        hint = ""
        if wanted := _numpy_name(expected.datatype):
            hint = f"; array.astype({wanted!r}) converts it"
        raise RequestMismatch(
            f"the .npy body holds {datatype.name}, model {metadata.name!r} expects {expected.datatype}{hint}"
        )
    lacks_a_dimension = data.ndim == len(expected.shape) - 1
    if lacks_a_dimension and (is_batchable or expected.shape[0] == 1):
        data = data.reshape(1, *data.shape)
    outputs = tuple(
        RequestedOutput(output.name, binary=not DATATYPES[output.datatype].in_json) for output in metadata.outputs
    )
    return InferenceRequest((InputTensor(expected.name, expected.datatype, data),), outputs)


def _numpy_name(datatype: str) -> str:
    row = DATATYPES[datatype]
    return row.dtype.name if row.item_bytes and datatype != "BF16" else ""
