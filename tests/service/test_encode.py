from __future__ import annotations

import json

import numpy as np
import pytest
import tritonclient.http as triton

from service.encode import encode_error, encode_response
from service.errors import RequestMismatch
from service.protocol import InferenceResponse, OutputTensor
from tests.service.wire_table import GOLDEN, Golden, same, tensor


def respond(*outputs: OutputTensor, request_id: str | None = None) -> InferenceResponse:
    return InferenceResponse("m", "1", outputs, request_id)


def one_output(golden: Golden, *, binary: bool) -> InferenceResponse:
    return respond(OutputTensor("x", golden.datatype, golden.array, binary))


def head_of(golden: Golden, rest: bytes) -> bytes:
    shape = json.dumps(list(golden.array.shape), separators=(",", ":")).encode()
    return (
        b'{"model_name":"m","model_version":"1","outputs":[{"name":"x","datatype":"' + golden.datatype.encode()
        + b'","shape":' + shape + b"," + rest + b"}]}"
    )  # fmt: skip


def case(golden: Golden) -> object:
    return pytest.param(golden, id=golden.name)


@pytest.mark.parametrize("golden", [case(one) for one in GOLDEN if one.text])
def test_tensor_becomes_flat_json(golden: Golden) -> None:
    encoded = encode_response(one_output(golden, binary=False))
    assert encoded.body == head_of(golden, b'"data":' + golden.text)
    assert (encoded.content_type, encoded.header_bytes) == ("application/json", None)


@pytest.mark.parametrize("golden", [case(one) for one in GOLDEN])
def test_tensor_becomes_bytes_behind_the_json(golden: Golden) -> None:
    encoded = encode_response(one_output(golden, binary=True))
    head = head_of(golden, b'"parameters":{"binary_data_size":%d}' % len(golden.binary))
    assert encoded.body == head + golden.binary
    assert (encoded.content_type, encoded.header_bytes) == ("application/octet-stream", len(head))


@pytest.mark.parametrize("binary", [pytest.param(False, id="json"), pytest.param(True, id="binary")])
@pytest.mark.parametrize("golden", [case(one) for one in GOLDEN if one.text])
def test_tritonclient_reads_the_tensor(golden: Golden, binary: bool) -> None:
    encoded = encode_response(one_output(golden, binary=binary))
    result = triton.InferResult.from_response_body(encoded.body, header_length=encoded.header_bytes)
    read = result.as_numpy("x")
    if golden.datatype == "BYTES" and not binary:
        # From JSON the client keeps text.
        read = tensor("BYTES", [text.encode() for text in read.reshape(-1)], list(golden.array.shape))
    assert same(read, golden.array)


def test_binary_outputs_stand_in_order_and_json_outputs_have_no_parameters() -> None:
    """The C++ client requires binary_data_size wherever it finds parameters on an output."""
    encoded = encode_response(
        respond(
            OutputTensor("a", "UINT8", tensor("UINT8", [1, 2]), binary=True),
            OutputTensor("b", "UINT8", tensor("UINT8", [9])),
            OutputTensor("c", "INT16", tensor("INT16", [3]), binary=True),
            request_id="seven",
        )
    )
    assert encoded.header_bytes is not None
    head = json.loads(encoded.body[: encoded.header_bytes])
    assert head["id"] == "seven"
    assert [sorted(output) for output in head["outputs"]] == [
        ["datatype", "name", "parameters", "shape"],
        ["data", "datatype", "name", "shape"],
        ["datatype", "name", "parameters", "shape"],
    ]
    assert encoded.body[encoded.header_bytes :] == b"\x01\x02" + b"\x03\x00"


def test_response_without_outputs_is_json() -> None:
    assert encode_response(respond()).body == b'{"model_name":"m","model_version":"1","outputs":[]}'


@pytest.mark.parametrize("binary", [pytest.param(False, id="json"), pytest.param(True, id="binary")])
@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.arange(12, dtype="<f4").reshape(4, 3)[1:3], id="rows-of-a-batch"),
        pytest.param(np.arange(6, dtype="<f4").reshape(2, 3).T, id="transposed"),
        pytest.param(np.arange(12, dtype="<f4")[::2], id="every-second"),
        pytest.param(np.arange(6, dtype=">f4"), id="big-endian"),
    ],
)
def test_array_may_lie_in_memory_in_any_way(array: np.ndarray, binary: bool) -> None:
    encoded = encode_response(respond(OutputTensor("x", "FP32", array, binary)))
    read = triton.InferResult.from_response_body(encoded.body, header_length=encoded.header_bytes).as_numpy("x")
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        pytest.param(
            OutputTensor("y", "FP16", tensor("FP16", [1.0])),
            "output 'y': FP16 does not travel as JSON; request it in binary, with parameters.binary_data true "
            "(or binary_data_output for all outputs)",
            id="fp16",
        ),
        pytest.param(
            OutputTensor("y", "BYTES", tensor("BYTES", [b"good", b"\xff\xfe"])),
            "output 'y': element 1 is not UTF-8; request it in binary, with parameters.binary_data true "
            "(or binary_data_output for all outputs)",
            id="bytes-that-are-not-text",
        ),
    ],
)
def test_output_without_a_json_form_is_refused(output: OutputTensor, message: str) -> None:
    with pytest.raises(RequestMismatch) as refusal:
        encode_response(respond(output))
    assert str(refusal.value) == message


def test_bytes_that_are_not_text_travel_in_binary() -> None:
    encoded = encode_response(respond(OutputTensor("y", "BYTES", tensor("BYTES", [b"\xff\xfe"]), binary=True)))
    assert encoded.body.endswith(b"\x02\x00\x00\x00\xff\xfe")


@pytest.mark.parametrize("message", ["plain", 'quote " and \\ and \n', "\u00e9\u6570", "half a pair \ud800"])
def test_error_is_json_whatever_the_text(message: str) -> None:
    encoded = encode_error(message)
    assert encoded.content_type == "application/json"
    assert json.loads(encoded.body) == {"error": message}
