"""An `InferenceResponse` becomes the headers and bytes of an answer. The mirror of decode.py; pure as well.

Facts that real clients depend on: `data` is flat (Triton's C++ client counts only the top level); an output has
`parameters` only when it is binary (the same client then requires `binary_data_size`); NaN and infinities are written
bare; the content types carry no charset (KServe's client compares for equality).

The JSON around the elements hardly changes from one answer to the next, so its pieces are remembered, by what is in
them: names, datatype and shape. Both memories are bounded.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import orjson

from service.datatypes import DATATYPES, pack_bytes
from service.json_tensors import LONG_ELEMENTS, Pause, elements_to_json
from service.protocol import InferenceResponse, OutputTensor

JSON_CONTENT_TYPE = "application/json"
BINARY_CONTENT_TYPE = "application/octet-stream"


class EncodedResponse(NamedTuple):
    """The body, and the value of its header Inference-Header-Content-Length: None when all of the body is JSON.

    content_encoding: empty, or the coding that `body` is packed in; `header_bytes` counts what is inside.
    depends_on_accept_encoding: whether another Accept-Encoding might have brought another body.
    """

    body: bytes
    content_type: str = JSON_CONTENT_TYPE
    header_bytes: int | None = None
    content_encoding: bytes = b""
    depends_on_accept_encoding: bool = False


def encode_response(response: InferenceResponse, pause: Pause | None = None) -> EncodedResponse:
    """JSON, followed by the binary outputs in order, if there are any.

    pause: called now and then while long outputs are written as JSON. Outputs that go to shared memory are written
    there. Raises RequestMismatch when that is too small, or an output is asked for as JSON and has no JSON form (FP16,
    BYTES that are not UTF-8).
    """
    pieces = [_head(response.model_name, response.model_version)]
    if response.id is not None:
        pieces += (b',"id":', orjson.dumps(response.id))
    pieces.append(b',"outputs":[')
    buffers: list[bytes | memoryview] = []
    for output in response.outputs:
        pieces.append(_description(output.name, output.datatype, output.data.shape))
        if output.binary:
            buffer, size_bytes = _to_bytes(output)
            if output.area is not None:
                output.area.write(buffer)
                # And no parameters, as in Triton: its C++ client takes any for a sign of binary data.
                pieces[-1] = pieces[-1].removesuffix(b",") + b"},"
                continue
            buffers.append(buffer)
            pieces.append(b'"parameters":{"binary_data_size":%d}},' % size_bytes)
        else:
            text = elements_to_json(output.data, DATATYPES[output.datatype], f"output {output.name!r}", pause)
            pieces += (b'"data":', text, b"},")
    pieces[-1] = pieces[-1].removesuffix(b",") + b"]}"
    if not buffers:
        return EncodedResponse(b"".join(pieces))
    header_bytes = sum(map(len, pieces))
    return EncodedResponse(b"".join([*pieces, *buffers]), BINARY_CONTENT_TYPE, header_bytes)


def long_json_elements(response: InferenceResponse) -> int:
    """How many elements become JSON, where these are so many that others should not wait for that; otherwise 0."""
    count = sum([output.data.size for output in response.outputs if not output.binary])
    return count if count >= LONG_ELEMENTS else 0


@lru_cache(maxsize=1024)
def _head(model_name: str, model_version: str) -> bytes:
    return orjson.dumps({"model_name": model_name, "model_version": model_version})[:-1]


@lru_cache(maxsize=1024)
def _description(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """An output as far as its values do not matter."""
    return orjson.dumps({"name": name, "datatype": datatype, "shape": shape})[:-1] + b","


def encode_error(message: str) -> EncodedResponse:
    """The protocol's error body. Any text will do: what is not ASCII is escaped, half a surrogate pair included."""
    # Of a bare text json.dumps takes a sixth of the time that it takes of a dict, and refusals come in floods.
    return EncodedResponse(f'{{"error": {json.dumps(message)}}}'.encode("ascii"))


def _to_bytes(output: OutputTensor) -> tuple[bytes | memoryview, int]:
    """Little-endian, row-major, without gaps, and how many bytes that is; a view where the array already is that."""
    if output.datatype == "BYTES":
        packed = pack_bytes(output.data.reshape(-1))
        return packed, len(packed)
    array = np.ascontiguousarray(output.data, dtype=DATATYPES[output.datatype].dtype)
    return array.data, array.nbytes
