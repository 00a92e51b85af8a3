from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.decode import _REMEMBERED, decode_request, parse_header_bytes
from service.errors import MalformedRequest
from service.json_members import MAX_ENTRIES
from service.protocol import InferenceRequest, RequestedOutput
from service.shared_memory import SharedMemory
from tests.service.bad_bodies import BAD_BINARY, BAD_JSON, INPUT, bad_request
from tests.service.wire_table import GOLDEN, Golden, same


def body_of(golden: Golden, data: bytes) -> bytes:
    """A request with one JSON input, put together as bytes: no writer of ours stands between the table and decode."""
    shape = json.dumps(list(golden.array.shape)).encode()
    return (
        b'{"inputs":[{"name":"x","shape":' + shape + b',"datatype":"' + golden.datatype.encode()
        + b'","data":' + data + b"}]}"
    )  # fmt: skip


def binary_body_of(golden: Golden) -> tuple[bytes, int]:
    """A request with one binary input, and the length of its JSON."""
    shape = json.dumps(list(golden.array.shape)).encode()
    head = (
        b'{"inputs":[{"name":"x","shape":' + shape + b',"datatype":"' + golden.datatype.encode()
        + b'","parameters":{"binary_data_size":' + str(len(golden.binary)).encode() + b"}}]}"
    )  # fmt: skip
    return head + golden.binary, len(head)


def case(golden: Golden) -> Any:
    return pytest.param(golden, id=golden.name)


# --- good bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", [case(one) for one in GOLDEN if one.text])
def test_flat_json_becomes_the_tensor(golden: Golden) -> None:
    body = body_of(golden, golden.text)
    # The C++ client always sends the header; the Python client only with binary inputs.
    for header_bytes in (None, len(body)):
        (tensor,) = decode_request(body, header_bytes).inputs
        assert (tensor.name, tensor.datatype) == ("x", golden.datatype)
        assert same(tensor.data, golden.array)


@pytest.mark.parametrize("golden", [case(one) for one in GOLDEN if one.nested])
def test_nested_json_becomes_the_same_tensor(golden: Golden) -> None:
    (tensor,) = decode_request(body_of(golden, golden.nested), None).inputs
    assert same(tensor.data, golden.array)


@pytest.mark.parametrize("golden", [case(one) for one in GOLDEN])
def test_binary_becomes_the_tensor(golden: Golden) -> None:
    body, header_bytes = binary_body_of(golden)
    for held in (body, bytearray(body), memoryview(b"." + body)[1:]):
        (tensor,) = decode_request(held, header_bytes).inputs
        assert same(tensor.data, golden.array)


def test_binary_tensors_are_views_of_the_body() -> None:
    body, header_bytes = binary_body_of(next(one for one in GOLDEN if one.name == "fp32-not-finite"))
    (tensor,) = decode_request(body, header_bytes).inputs
    assert np.shares_memory(tensor.data, np.frombuffer(body, np.uint8))


def test_binary_tensors_are_taken_in_the_order_of_the_inputs() -> None:
    """JSON inputs in between take nothing from the binary part, nor do tensors without elements."""
    inputs = [
        {"name": "a", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}},
        {"name": "json", "shape": [1], "datatype": "UINT8", "data": [9]},
        {"name": "none", "shape": [0], "datatype": "FP64", "parameters": {"binary_data_size": 0}},
        {"name": "b", "shape": [1], "datatype": "INT16", "parameters": {"binary_data_size": 2}},
    ]
    head = json.dumps({"inputs": inputs}).encode()
    request = decode_request(head + b"\x01\x02\x03\x00", len(head))
    assert {tensor.name: tensor.data.tolist() for tensor in request.inputs} == {
        "a": [1, 2], "json": [9], "none": [], "b": [3],
    }  # fmt: skip


# --- repeated bytes -----------------------------------------------------------------------------------------------


def test_the_same_json_in_front_of_other_tensors_is_another_request() -> None:
    """What it means is remembered, the elements are not."""
    body, header_bytes = binary_body_of(next(one for one in GOLDEN if one.name == "uint8"))
    head = body[:header_bytes]
    first, second = (decode_request(head + tail, header_bytes).inputs[0].data.tolist() for tail in (b"\1\2", b"\3\4"))
    assert (first, second) == ([1, 2], [3, 4])
    for tail in (b"\1", b"", b"\1\2\3"):
        with pytest.raises(MalformedRequest):
            decode_request(head + tail, header_bytes)


def test_what_is_remembered_is_bounded() -> None:
    for number in range(1500):
        head = bad_request(id=str(number), inputs=[INPUT | {"name": str(number)}])
        with pytest.raises(MalformedRequest, match="there are 1 bytes behind the JSON"):
            decode_request(head + b".", len(head))
        assert len(_REMEMBERED) <= 1024
    long = bad_request(id="i" * 3000)
    with pytest.raises(MalformedRequest):
        decode_request(long + b".", len(long))
    assert long not in _REMEMBERED


def test_shared_memory_is_read_anew_each_time(tmp_path: Path) -> None:
    regions = SharedMemory(is_enabled=True, max_request_bytes=100, folder=tmp_path)
    (tmp_path / "r").write_bytes(b"ab")
    regions.register("r", "/r", 0, 2)
    shared = {"shared_memory_region": "r", "shared_memory_byte_size": 2}
    inputs = [
        {"name": "s", "shape": [2], "datatype": "UINT8", "parameters": shared},
        {"name": "b", "shape": [1], "datatype": "UINT8", "parameters": {"binary_data_size": 1}},
    ]
    head = json.dumps({"inputs": inputs}).encode()
    for content in (b"ab", b"cd"):
        (tmp_path / "r").write_bytes(content)
        request = decode_request(head + b"!", len(head), regions)
        assert [tensor.data.tobytes() for tensor in request.inputs] == [content, b"!"]
    regions.unregister()
    with pytest.raises(MalformedRequest, match="Unable to find shared memory region"):
        decode_request(head + b"!", len(head), regions)


# --- members ------------------------------------------------------------------------------------------------------


def request_with(**members: Any) -> InferenceRequest:
    return decode_request(json.dumps({"inputs": [INPUT], **members}).encode(), None)


def test_members_of_the_request_arrive() -> None:
    request = request_with(
        id="seven",
        parameters={"binary_data_output": True, "priority": 1, "my_own": 0.5},
        outputs=[
            {"name": "a"},
            {"name": "b", "parameters": {"binary_data": False}},
            {"name": "c", "parameters": {"classification": 5, "my_own": "x"}},
            {"name": "d", "parameters": {"binary_data": True, "classification": None}},
        ],
    )
    assert request.id == "seven"
    assert request.binary_data_output is True
    assert request.parameters == {"priority": 1, "my_own": 0.5}
    assert request.outputs == (
        RequestedOutput("a"),
        RequestedOutput("b", binary=False),
        RequestedOutput("c", classes=5),
        RequestedOutput("d", binary=True),
    )


@pytest.mark.parametrize(
    "members",
    [
        pytest.param({}, id="left-out"),
        pytest.param({"id": None, "parameters": None, "outputs": None}, id="null"),
        pytest.param({"parameters": {"binary_data_output": None}, "outputs": []}, id="empty"),
        pytest.param({"model_name": "m", "anything": {"nested": [1]}}, id="unknown-members"),
    ],
)
def test_optional_members_have_defaults(members: dict[str, Any]) -> None:
    request = request_with(**members)
    assert (request.id, request.outputs, request.binary_data_output, request.parameters) == (None, (), False, {})


@pytest.mark.parametrize(
    "nothing", [{"sequence_id": 0}, {"sequence_id": ""}, {"sequence_start": False}, {"timeout": 0}]
)
def test_parameters_that_ask_for_nothing_are_no_fault(nothing: dict[str, Any]) -> None:
    assert request_with(parameters=nothing).parameters == nothing


@pytest.mark.parametrize(
    "tail", [pytest.param(b"", id="for-orjson"), pytest.param(b',"parameters":{"bare":NaN}', id="for-json")]
)
def test_last_of_two_members_with_one_name_counts(tail: bytes) -> None:
    """Both parsers agree on it, so that a NaN somewhere cannot change what a request means."""
    text = b'{"id":"first","inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":[1],"data":[2]}],"id":"last"'
    request = decode_request(text + tail + b"}", None)
    assert (request.id, request.inputs[0].data.tolist()) == ("last", [2])


def test_number_rounds_to_the_nearest_float32() -> None:
    request = decode_request(b'{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[16777217,1e-60]}]}', None)
    assert request.inputs[0].data.tolist() == [16777216.0, 0.0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, None, id="no-header"),
        pytest.param(b"12", 12, id="bytes"),
        pytest.param("0", 0, id="text"),
    ],
)
def test_header_length_is_a_number_of_bytes(value: str | bytes | None, expected: int | None) -> None:
    assert parse_header_bytes(value) == expected


@pytest.mark.parametrize("value", ["", "-1", "+1", "1.5", "0x10", "ten", " 1", "1\n", "1_000", "\u0663", "9" * 5000])
def test_header_length_that_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(MalformedRequest, match=r"^Inference-Header-Content-Length is .*, expected a number of bytes"):
        parse_header_bytes(value)


# --- bad bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "message"), [pytest.param(*row, id=name) for name, row in BAD_JSON.items()])
def test_bad_json_is_refused_with_one_exact_line(body: bytes, message: str) -> None:
    for header_bytes in (None, *([len(body)] if body else [])):
        with pytest.raises(MalformedRequest) as refusal:
            decode_request(body, header_bytes)
        assert str(refusal.value) == message


def test_entry_limit_is_the_one_in_the_table() -> None:
    assert MAX_ENTRIES == 4096


@pytest.mark.parametrize(("held", "message"), [pytest.param(*row, id=name) for name, row in BAD_BINARY.items()])
def test_bad_binary_is_refused_with_one_exact_line(held: tuple[bytes, int], message: str) -> None:
    with pytest.raises(MalformedRequest) as refusal:
        decode_request(*held)
    assert str(refusal.value) == message


# --- any bytes ----------------------------------------------------------------------------------------------------

SEEDS = [
    *((body_of(one, text), None) for one in GOLDEN for text in (one.text, one.nested) if text),
    *(binary_body_of(one) for one in GOLDEN),
    (request_text := bad_request(id="i", parameters={"a": 1}, outputs=[{"name": "y"}]), len(request_text)),
]
SPLINTERS = st.sampled_from(
    [
        b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"1e39", b"-1", b"1.5", b"18446744073709551616", b'"x"',
        b'"\\ud800"', b"[", b"]", b"{}", b",", b":", b'"', b"\\", b"\x00", b"\xff", b'"BYTES"', b'"BOOL"', b'"FP16"',
        b'"data"', b'"binary_data_size"', b"[0,1152921504606846975]", b"[" * 1100,
    ]
)  # fmt: skip


@st.composite
def damaged_bodies(draw: st.DrawFn) -> tuple[bytes, int | None]:
    """A good body with a few places cut out, overwritten or stuffed; its header length right, wrong or absent."""
    body, header_bytes = draw(st.sampled_from(SEEDS))
    before = len(body)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(len(body), start + 12)))
        body = body[:start] + draw(st.one_of(st.just(b""), st.binary(max_size=4), SPLINTERS)) + body[end:]
    if header_bytes is not None:
        moved = header_bytes + len(body) - before
        header_bytes = draw(st.sampled_from([header_bytes, max(0, moved), None, len(body), len(body) + 1, -1]))
    return body, header_bytes


@given(st.one_of(damaged_bodies(), st.tuples(st.binary(), st.one_of(st.none(), st.integers(-1, 200)))))
def test_any_bytes_end_in_a_request_or_one_named_error(held: tuple[bytes, int | None]) -> None:
    try:
        request = decode_request(*held)
    except MalformedRequest as refusal:
        text = str(refusal)
        assert text
        assert "\n" not in text
        assert len(text) < 1000
        # It must be possible to tell: no half surrogate pairs.
        text.encode("utf-8")
    else:
        assert isinstance(request, InferenceRequest)


# --- the cycle collector ------------------------------------------------------------------------------------------

LARGE = b'{"inputs":[],"x":[' + b"[]," * 400_000 + b"[]]}"


@pytest.mark.parametrize("body", [pytest.param(LARGE, id="good"), pytest.param(LARGE + b"!", id="refused")])
@pytest.mark.parametrize("was_enabled", [True, False])
def test_collector_rests_while_a_large_body_is_decoded(was_enabled: bool, body: bytes) -> None:
    """And its owner's choice is kept. Not a moment earlier than all parsed values are gone, or it visits them all."""
    visits: list[str] = []

    def visit(phase: str, _: object) -> None:
        visits.append(phase)

    if not was_enabled:
        gc.disable()
    gc.collect()
    gc.callbacks.append(visit)
    try:
        try:
            decode_request(body, None)
        except MalformedRequest:
            assert body.endswith(b"!")
        assert gc.isenabled() is was_enabled
        assert len(visits) <= 2  # one visit, begun and ended
    finally:
        gc.callbacks.remove(visit)
        gc.enable()
