from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.compression import expand
from service.errors import MalformedRequest, PayloadTooLarge, RequestMismatch, UnsupportedEncoding
from service.protocol import InferenceRequest, ModelMetadata, RequestedOutput, TensorMetadata
from service.request_body import read_request
from tests.service.bad_bodies import bad_request
from tests.service.test_npy import saved
from tests.service.wire_table import same

LIMIT = 10_000
RAW = b"0"
WHAT = "Inference-Header-Content-Length is 0, so the body is one raw tensor, but "


def model(*inputs: tuple[str, tuple[int, ...]], outputs: tuple[str, ...] = ("FP32",)) -> ModelMetadata:
    """Inputs x, y, ... by datatype and shape; outputs p, q, ... by datatype, of one element a row."""
    return ModelMetadata(
        "m", ("1",), "onnx_onnxv1",
        tuple(TensorMetadata(name, *of) for name, of in zip("xyz", inputs, strict=False)),
        tuple(TensorMetadata(name, datatype, (-1, 1)) for name, datatype in zip("pqr", outputs, strict=False)),
    )  # fmt: skip


IMAGE = model(("UINT8", (-1, 2, 3)))


def read(
    body: bytes, metadata: ModelMetadata, *, is_batchable: bool = True, content_encoding: bytes = b"", **head: Any
) -> InferenceRequest:
    """As both doors do: expanded first, if it is packed."""
    expanded = expand(body, content_encoding, LIMIT) if content_encoding else body
    return read_request(expanded, metadata, is_batchable=is_batchable, **head)


# --- raw tensors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "is_batchable", "body", "expected"),
    [
        pytest.param(IMAGE, True, b"\1\2\3\4\5\6", np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8), id="one-row"),
        pytest.param(
            model(("INT16", (-1, 2, -1))), True, b"\1\0\2\0\3\0\4\0", np.array([[[1, 2], [3, 4]]], np.int16),
            id="the-free-dimension-follows-from-the-length",
        ),
        pytest.param(
            model(("FP32", (2, 1))), False, b"\0\0\x80\x3f\0\0\0\xc0", np.array([[1.0], [-2.0]], np.float32),
            id="not-batchable-as-declared",
        ),
        pytest.param(model(("INT8", (-1, 2))), False, b"\1\2\3\4", np.array([[1, 2], [3, 4]], np.int8), id="axis-0"),
        pytest.param(model(("FP16", (-1, 1))), True, b"\0\x3c", np.array([[1.0]], np.float16), id="fp16"),
        pytest.param(model(("BF16", (-1, 1))), True, b"\x80\x3f", np.array([[0x3F80]], np.uint16), id="bf16"),
        pytest.param(model(("BOOL", (-1, 2))), True, b"\1\0", np.array([[True, False]]), id="bool"),
        pytest.param(model(("FP32", ())), False, b"\0\0\x80\x3f", np.float32(1).reshape(()), id="scalar"),
        pytest.param(
            model(("BYTES", (-1, 1))), True, b"a\0\xff", np.array([[b"a\0\xff"]], object), id="a-string-of-any-bytes",
        ),
        pytest.param(model(("BYTES", (1,))), False, b"", np.array([b""], object), id="an-empty-string"),
    ],
)  # fmt: skip
def test_raw_body_is_the_one_input(metadata: ModelMetadata, is_batchable: bool, body: bytes, expected: Any) -> None:
    request = read(body, metadata, is_batchable=is_batchable, header_length=RAW)
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype) == ("x", metadata.inputs[0].datatype)
    assert same(tensor.data, expected)
    # All outputs come back, in binary (Triton, qa/L0_http).
    assert (request.outputs, request.binary_data_output, request.id, dict(request.parameters)) == ((), True, None, {})


def test_raw_tensor_is_a_view_of_the_body() -> None:
    body = bytes(6)
    (tensor,) = read(body, IMAGE, header_length=RAW).inputs
    assert np.shares_memory(tensor.data, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize(
    ("metadata", "is_batchable", "body", "message"),
    [
        pytest.param(
            model(("FP32", (-1, 1)), ("FP32", (-1, 1))), True, b"",
            WHAT + "model 'm' has 2 inputs ('x', 'y'); describe them in JSON", id="two-inputs",
        ),
        pytest.param(model(), False, b"", WHAT + "model 'm' has 0 inputs (none); describe them in JSON", id="no-input"),
        pytest.param(
            model(("FP32", (-1, -1, -1))), True, bytes(8),
            WHAT + "input 'x' has shape [-1, -1, -1] with 2 dimensions that its length cannot tell; describe it in "
            "JSON", id="two-free-dimensions",
        ),
        pytest.param(
            model(("FP32", (-1, -1))), False, bytes(8),
            WHAT + "input 'x' has shape [-1, -1] with 2 dimensions that its length cannot tell; describe it in JSON",
            id="two-free-dimensions-not-batchable",
        ),
        pytest.param(
            IMAGE, True, bytes(12),
            WHAT + "it has 12 bytes; input 'x' of UINT8 and shape [-1, 2, 3] takes 6 for one row",
            id="two-rows",
        ),
        pytest.param(
            IMAGE, True, b"", WHAT + "it has 0 bytes; input 'x' of UINT8 and shape [-1, 2, 3] takes 6 for one row",
            id="no-bytes",
        ),
        pytest.param(
            model(("FP32", (-1, 2, -1))), True, bytes(9),
            WHAT + "it has 9 bytes; input 'x' of FP32 and shape [-1, 2, -1] takes a multiple of 8 for one row",
            id="no-multiple",
        ),
        pytest.param(
            model(("FP32", (3,))), False, bytes(8), WHAT + "it has 8 bytes; input 'x' of FP32 and shape [3] takes 12",
            id="not-batchable-too-short",
        ),
        pytest.param(
            model(("BYTES", (-1, 2))), True, b"a",
            WHAT + "input 'x' holds BYTES of shape [-1, 2]; raw BYTES are possible only where a row is one string, "
            "shape [1]", id="two-strings",
        ),
        pytest.param(
            model(("BYTES", (-1,))), False, b"a",
            WHAT + "input 'x' holds BYTES of shape [-1]; raw BYTES are possible only where a row is one string, "
            "shape [1]", id="any-number-of-strings",
        ),
    ],
)  # fmt: skip
def test_raw_body_that_cannot_be_told_is_refused_with_one_exact_line(
    metadata: ModelMetadata, is_batchable: bool, body: bytes, message: str
) -> None:
    with pytest.raises(RequestMismatch) as refusal:
        read(body, metadata, is_batchable=is_batchable, header_length=RAW)
    assert str(refusal.value) == message


def test_raw_bool_is_looked_at_as_everywhere() -> None:
    with pytest.raises(MalformedRequest, match=r"^input 'x': element 1 is byte 2; a BOOL is 0 or 1$"):
        read(b"\1\2", model(("BOOL", (-1, 2))), header_length=RAW)


# --- .npy files ---------------------------------------------------------------------------------------------------

ROWS = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)


@pytest.mark.parametrize("content_type", [b"", b"application/x-npy", b"application/octet-stream"])
def test_npy_is_known_by_its_first_bytes_and_answered_as_json(content_type: bytes) -> None:
    request = read(saved(ROWS), IMAGE, content_type=content_type)
    assert same(request.inputs[0].data, ROWS)
    assert (request.inputs[0].name, request.inputs[0].datatype) == ("x", "UINT8")
    assert request.outputs == (RequestedOutput("p", binary=False),)


@pytest.mark.parametrize(
    ("metadata", "is_batchable", "sent", "shape"),
    [
        pytest.param(IMAGE, True, ROWS[0], (1, 2, 3), id="a-row-of-a-batch"),
        pytest.param(model(("UINT8", (1, 2, 3))), False, ROWS[0], (1, 2, 3), id="fixed-to-one-row"),
        pytest.param(model(("UINT8", (-1, 2))), False, ROWS[0, 0], (3,), id="axis-0-that-is-not-rows-is-never-added"),
        pytest.param(model(("UINT8", (-1, 2, 3))), True, ROWS[0, 0], (3,), id="two-dimensions-too-few"),
    ],
)  # fmt: skip
def test_a_single_row_may_come_without_its_batch_dimension(
    metadata: ModelMetadata, is_batchable: bool, sent: Any, shape: tuple[int, ...]
) -> None:
    """What does not fit afterwards is for `validate` to tell."""
    assert read(saved(sent), metadata, is_batchable=is_batchable).inputs[0].shape == shape


def test_outputs_without_a_json_form_come_back_in_binary() -> None:
    """Or a caller with nothing but a file could never have them."""
    request = read(saved(ROWS), model(("UINT8", (-1, 2, 3)), outputs=("FP32", "FP16")))
    assert request.outputs == (RequestedOutput("p", binary=False), RequestedOutput("q", binary=True))


@pytest.mark.parametrize(
    ("metadata", "array", "message"),
    [
        pytest.param(
            model(("FP32", (-1, 2))), np.zeros((1, 2)),
            "the .npy body holds FP64, model 'm' expects FP32; array.astype('float32') converts it", id="float64",
        ),
        pytest.param(
            model(("BYTES", (-1, 2))), np.zeros((1, 2)),
            "the .npy body holds FP64, model 'm' expects BYTES", id="bytes",
        ),
        pytest.param(
            model(("BF16", (-1, 2))), np.zeros((1, 2), np.uint16),
            "the .npy body holds UINT16, model 'm' expects BF16", id="bit-patterns-are-not-bf16",
        ),
        pytest.param(
            model(("FP32", (-1,)), ("FP32", (-1,))), np.zeros(2),
            "the body is one .npy file, but model 'm' has 2 inputs ('x', 'y'); describe them in JSON", id="two-inputs",
        ),
    ],
)  # fmt: skip
def test_npy_of_another_datatype_is_never_converted(metadata: ModelMetadata, array: Any, message: str) -> None:
    with pytest.raises(RequestMismatch) as refusal:
        read(saved(array), metadata)
    assert str(refusal.value) == message


def test_media_type_of_npy_promises_its_first_bytes() -> None:
    with pytest.raises(MalformedRequest, match=r"^the \.npy body begins with 7b 22"):
        read(bad_request(), IMAGE, content_type=b"application/x-npy; charset=binary")


# --- content codings ----------------------------------------------------------------------------------------------

HEAD = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}}]}
).encode()


@pytest.mark.parametrize(
    ("body", "header_length"),
    [
        pytest.param(HEAD + b"\1\2", b"%d" % len(HEAD), id="json-and-binary"),
        pytest.param(b"\1\2", RAW, id="raw"),
        pytest.param(saved(np.array([[1, 2]], np.uint8)), None, id="npy"),
        pytest.param(HEAD.replace(b'"parameters": {"binary_data_size": 2}', b'"data": [1, 2]'), None, id="json"),
    ],
)
@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
def test_every_form_may_be_packed_and_its_lengths_count_what_is_inside(
    body: bytes, header_length: bytes | None, coding: bytes
) -> None:
    packed = gzip.compress(body) if coding == b"gzip" else zlib.compress(body)
    for sent, content_encoding in ((packed, coding), (body, b"identity"), (body, b"")):
        request = read(sent, model(("UINT8", (-1, 2))), header_length=header_length, content_encoding=content_encoding)
        assert request.inputs[0].data.tolist() == [[1, 2]]


def test_packed_body_has_the_limit_of_an_unpacked_one() -> None:
    with pytest.raises(PayloadTooLarge, match="grows to more than 10000"):
        read(gzip.compress(bytes(LIMIT + 1)), IMAGE, content_encoding=b"gzip")


@pytest.mark.parametrize("length", [b"", b"-1", b"1, 1", b"0x0", b"\xb2"])
def test_header_length_that_is_no_number_is_refused(length: bytes) -> None:
    with pytest.raises(MalformedRequest, match=r"expected a number of bytes in decimal digits$"):
        read(HEAD, IMAGE, header_length=length)


# --- a head that does not fit its body ----------------------------------------------------------------------------

BINARY = HEAD + b"\1\xff"
RAW_OR_LENGTH = (
    "for the raw bytes of one tensor send the header Inference-Header-Content-Length: 0; for JSON with binary tensors "
    "behind it, the length of the JSON in bytes"
)
MEASURED = f"the JSON ends behind {len(HEAD)} of {len(BINARY)} bytes: send the header Inference-Header-Content-Length: "
NPY_WITH_LENGTH = (
    "the body is a .npy file: send it with Content-Type: application/x-npy and without Inference-Header-Content-Length"
)
NPY = saved(np.array([[1, 2]], np.uint8))


@pytest.mark.parametrize(
    ("body", "header_length", "found", "advice"),
    [
        pytest.param(BINARY, None, f"the JSON is not UTF-8: byte 0xff at position {len(HEAD) + 1}",
                     f"{MEASURED}{len(HEAD)}", id="binary-behind-json"),
        pytest.param(HEAD + b"{}", None, "the body is not JSON: unexpected content after document: line 1 column 105 "
                     "(char 104)", f"{MEASURED}{len(HEAD)}", id="text-behind-json"),
        pytest.param(BINARY, b"%d" % (len(HEAD) - 1), "the body is not JSON: unexpected end of data: line 1 column 104 "
                     "(char 103)", f"{MEASURED}{len(HEAD)}", id="length-too-small"),
        pytest.param(b"\xc3\xf5\x48\x40", None, "the JSON is not UTF-8: byte 0xc3 at position 0", RAW_OR_LENGTH,
                     id="a-float"),
        pytest.param(bytes(8), None, "the body is not JSON: unexpected character, expected a JSON value: line 1 column "
                     "1 (char 0)", RAW_OR_LENGTH, id="zeros"),
        pytest.param(gzip.compress(HEAD, mtime=0), None, "the JSON is not UTF-8: byte 0x8b at position 1",
                     "the body begins like gzip: send the header Content-Encoding: gzip", id="packed"),
        pytest.param(NPY, RAW, WHAT + f"it has {len(NPY)} bytes; input 'x' of UINT8 and shape [-1, 2, 3] takes 6 for "
                     "one row", NPY_WITH_LENGTH, id="npy-as-raw"),
        pytest.param(NPY, b"9", "the JSON is not UTF-8: byte 0x93 at position 0", NPY_WITH_LENGTH, id="npy-as-json"),
    ],
)  # fmt: skip
def test_refusal_names_the_header_that_was_missing_or_wrong(
    body: bytes, header_length: bytes | None, found: str, advice: str
) -> None:
    with pytest.raises((MalformedRequest, RequestMismatch)) as refusal:
        read(body, IMAGE, header_length=header_length)
    assert str(refusal.value) == f"{found}; {advice}"


@pytest.mark.parametrize(
    ("body", "header_length"),
    [
        pytest.param(HEAD + b" \r\n", None, id="length-missing-but-nothing-follows"),
        pytest.param(HEAD + b"  ", b"%d" % (len(HEAD) + 2), id="padded-json"),
        pytest.param(b"<x/>", None, id="other-text"),
        pytest.param('{"id":"é'.encode("latin-1") + b'"}', None, id="json-in-another-encoding"),
        pytest.param("\ufeff{}".encode(), None, id="byte-order-mark"),
        pytest.param(b"x" * 63 + "é".encode(), None, id="a-character-that-the-look-cuts-in-two"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b"[" * 5000, None, id="deep"),
    ],
)
def test_refusal_gives_no_advice_where_the_head_was_right_or_nobody_can_tell(
    body: bytes, header_length: bytes | None
) -> None:
    with pytest.raises(MalformedRequest) as refusal:
        read(body, IMAGE, header_length=header_length)
    assert "send" not in str(refusal.value)


# --- any bytes ----------------------------------------------------------------------------------------------------

BODIES = [HEAD + b"\1\2", b"\1\2", b"", saved(np.array([[1, 2]], np.uint8)), bad_request()]
MODELS = [
    IMAGE, model(("BYTES", (-1, 1))), model(("FP16", (-1, -1))), model(("BOOL", (-1, 2)), ("FP32", (1,))),
    model(), model(("INT64", ())), model(("FP32", (-1, 0, -1))),
]  # fmt: skip
REFUSALS = (MalformedRequest, RequestMismatch, PayloadTooLarge, UnsupportedEncoding)


@given(
    st.sampled_from(BODIES) | st.binary(max_size=40),
    st.sampled_from([bytes, gzip.compress, zlib.compress]),
    st.binary(max_size=3),
    st.sampled_from(MODELS),
    st.fixed_dictionaries(
        {
            "header_length": st.sampled_from([None, b"0", b"%d" % len(HEAD), b"7"]) | st.binary(max_size=3),
            "content_type": st.sampled_from([b"", b"application/x-npy", b"application/json"]) | st.binary(max_size=9),
            "content_encoding": st.sampled_from([b"", b"gzip", b"deflate", b"identity", b"br"]) | st.binary(max_size=9),
        }
    ),
    st.booleans(),
)
def test_any_bytes_end_in_a_request_or_one_named_error(
    body: bytes, pack: Any, tail: bytes, metadata: ModelMetadata, head: dict[str, Any], is_batchable: bool
) -> None:
    try:
        request = read(pack(body) + tail, metadata, is_batchable=is_batchable, **head)
    except REFUSALS as refusal:
        text = str(refusal)
        assert text
        assert "\n" not in text
        assert len(text) < 1000
        text.encode("utf-8")
    else:
        assert isinstance(request, InferenceRequest)
