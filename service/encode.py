"""An `InferenceResponse` becomes the headers and bytes of an answer. The mirror of decode.py; pure as well.

Facts that real clients depend on: `data` is flat (Triton's C++ client counts only the top level); an output has
`parameters` only when it is binary (the same client then requires `binary_data_size`); NaN and infinities are written
bare; the content types carry no charset (KServe's client compares for equality).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from service.datatypes import DATATYPES, pack_bytes
from service.json_tensors import elements_to_json
from service.protocol import InferenceResponse, OutputTensor

JSON_CONTENT_TYPE = "application/json"
BINARY_CONTENT_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """The body, and the value of its header Inference-Header-Content-Length: None when all of the body is JSON."""

    body: bytes
    content_type: str = JSON_CONTENT_TYPE
    header_bytes: int | None = None


def encode_response(response: InferenceResponse) -> EncodedResponse:
    """JSON, followed by the binary outputs in order, if there are any.

    Raises RequestMismatch when an output is asked for as JSON and has no JSON form (FP16, BYTES that are not UTF-8).
    """
    descriptions: list[dict[str, Any]] = []
    buffers: list[bytes | memoryview] = []
    for output in response.outputs:
        description: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": output.data.shape,
        }
        if output.binary:
            buffers.append(_to_bytes(output))
            description["parameters"] = {"binary_data_size": len(buffers[-1])}
        else:
            datatype = DATATYPES[output.datatype]
            description["data"] = elements_to_json(output.data, datatype, f"output {output.name!r}")
        descriptions.append(description)
    head = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id is not None:
        head["id"] = response.id
    text = orjson.dumps(head | {"outputs": descriptions}, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any(output.binary for output in response.outputs):
        return EncodedResponse(text)
    return EncodedResponse(b"".join([text, *buffers]), BINARY_CONTENT_TYPE, len(text))


def encode_error(message: str) -> EncodedResponse:
    """The protocol's error body. Any text will do: what is not ASCII is escaped, half a surrogate pair included."""
    return EncodedResponse(json.dumps({"error": message}).encode("ascii"))


def _to_bytes(output: OutputTensor) -> bytes | memoryview:
    """Little-endian, row-major, without gaps; a view where the array already is that."""
    if output.datatype == "BYTES":
        return pack_bytes(output.data.reshape(-1))
    array = np.ascontiguousarray(output.data, dtype=DATATYPES[output.datatype].dtype)
    # Through bytes, because a memoryview cannot be cast when a dimension is 0.
    return array.reshape(-1).view(np.uint8).data
