from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import decode, json_slices, v1_predict
from service.datatypes import DATATYPES
from service.decode import decode_request
from service.errors import MalformedRequest, RequestMismatch
from service.json_slices import LongArray, Unsliceable, cut_out
from service.protocol import ModelMetadata, TensorMetadata
from service.v1_predict import decode_predict
from tests.service.wire_table import same

FP32, INT64, BOOL, BYTES = (DATATYPES[name] for name in ("FP32", "INT64", "BOOL", "BYTES"))


class Pauses:
    """Counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays are long, and slices full, after some bytes: a slice holds the longest number drawn here with the blanks
    and brackets around it, for one without a comma is not read in slices."""
    monkeypatch.setattr(decode, "LONG_JSON_BYTES", 0)
    monkeypatch.setattr(v1_predict, "LONG_JSON_BYTES", 0)
    monkeypatch.setattr(json_slices, "LONG_BYTES", 8)
    monkeypatch.setattr(json_slices, "_SLICE_BYTES", 48)
    monkeypatch.setattr(json_slices, "_BLOCK_BYTES", 24)
    monkeypatch.setattr(json_slices, "_EDGE_BYTES", 8)


def cut(text: str) -> tuple[str, list[LongArray]]:
    """What is left, each array's stand-in as @, and the arrays."""
    left, arrays = cut_out(memoryview(text.encode()), lambda: None)
    words = left.decode()
    found = []
    for word in words.split('"'):
        if (array := arrays.take(word)) is not None:
            words = words.replace(f'"{word}"', "@")
            found.append(array)
    return words, found


# --- what is cut out ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("text", "left", "arrays"),
    [
        ('{"data":[1,2,3,4,5]}', '{"data":@}', ["[1,2,3,4,5]"]),
        ('{"data" : [1, 2, 3]\n, "x":1}', '{"data" : @\n, "x":1}', ["[1, 2, 3]"]),
        ('{"data":[[1,2],[3,4]],"x":[1,2]}', '{"data":@,"x":[1,2]}', ["[[1,2],[3,4]]"]),
        ('{"a":[1,2,3,4],"b":[5,6,7,8]}', '{"a":@,"b":@}', ["[1,2,3,4]", "[5,6,7,8]"]),
        ('{"inputs":[{"data":[1,2,3,4]}]}', '{"inputs":[{"data":@}]}', ["[1,2,3,4]"]),
        # Not the value of a member, and not numbers alone.
        ("[1,2,3,4,5,6,7,8,9]", "[1,2,3,4,5,6,7,8,9]", []),
        ("{[1,2,3,4,5,6,7]:1}", "{[1,2,3,4,5,6,7]:1}", []),
        ('{"data":["a","b","c"]}', '{"data":["a","b","c"]}', []),
        ('{"data":[{"a":1},{"a":2}]}', '{"data":[{"a":1},{"a":2}]}', []),
        ("", "", []),
    ],
)
def test_long_arrays_of_numbers_that_are_values_of_members_are_cut_out(text: str, left: str, arrays: list[str]) -> None:
    words, found = cut(text)
    assert (words, [bytes(array.text).decode() for array in found]) == (left, arrays)


@pytest.mark.usefixtures("small")
def test_an_array_inside_a_string_leaves_nothing_that_can_be_parsed() -> None:
    for text in ('{"data":":[1,2,3,4,5]"}', '{"data":": [1,2,3,4,5] "}'):
        left, arrays = cut_out(memoryview(text.encode()), lambda: None)
        assert arrays
        assert json.loads(text)
        with pytest.raises(ValueError, match="Expecting"):
            json.loads(left)


def test_what_is_short_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_slices, "LONG_BYTES", 12)
    monkeypatch.setattr(json_slices, "_EDGE_BYTES", 8)
    assert cut('{"data":[1,2,3,4,5]}')[1] == []
    assert len(cut('{"data":[1,2,3,4,5,6]}')[1]) == 1


# --- how one array is read ----------------------------------------------------------------------------------------


def long_array(text: str, pause: Callable[[], object] = lambda: None) -> LongArray:
    return LongArray(memoryview(text.encode()), pause)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1]", [1]),
        ("[1.5,-2e3, 3]", [1.5, -2e3, 3]),
        ("[[1,2,3],[4,5,6]]", [[1, 2, 3], [4, 5, 6]]),
        (" [ [ [1] , [2] ] ] ", [[[1], [2]]]),
        ("[[[1,2],[3,4]],[[5,6],[7,8]],[[9,10],[11,12]]]", np.arange(1, 13).reshape(3, 2, 2)),
        ("[1,NaN,Infinity,-Infinity,5,6,7,8,9]", [1, np.nan, np.inf, -np.inf, 5, 6, 7, 8, 9]),
    ],
)
def test_nesting_is_the_shape(text: str, expected: Any) -> None:
    assert same(long_array(text).nested(FP32, "x"), np.array(expected, dtype="<f4"))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "text",
    [
        "[]", "[[],[]]", "[1,2", "1,2]", "[1,2]]", "[[1,2]", "[[1,2],[3]]", "[[1],2]", "[1,[2]]", "[1,[2],3]",
        "[[1,2],3[,4]]", "[[1,2]3,[4,5]]", "[[1 2],[3,4]]", "[1][2]", "[[1][2]]", "[1,,2]", "[,1]", "[1,]",
        "[1,2],[3,4]",
        "[[1,2],[3,4]],[[5,6],[7,8]]", "[[[1,2],[3,4]],[5,6]]", "[1 2 3 4 5 6 7 8 9 10]", "[01,2]", "[1.,2]", "[+1,2]",
        "[nan,1]", "[null,1]", "[true,1]", "[1e99,1]", "[1:2]", "[" * 65 + "1" + "]" * 65,
        "[1,2,3,4,5,6,7,8,,9,10,11,12]",
        "[1,2,3,4,5,6,7,8],[9,10,11,12]", "[" * 65 + "1,1" + "]" * 65, "[1234567890123456789012345678901234567890]",
    ],
)  # fmt: skip
def test_what_is_odd_is_left_to_those_who_read_it_whole(text: str) -> None:
    with pytest.raises(Unsliceable):
        long_array(text).nested(FP32, "x")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("datatype", "text"),
    [(INT64, "[1,2.0]"), (INT64, "[9223372036854775808]"), (BOOL, "[true,0]"), (BYTES, "[1,2]"), (FP32, "[1,true]")],
)
def test_elements_that_do_not_fit_the_datatype_are_left_to_them_too(datatype: Any, text: str) -> None:
    with pytest.raises(Unsliceable):
        long_array(text).nested(datatype, "x")


@pytest.mark.usefixtures("small")
def test_data_may_be_flat_or_nested_like_the_shape() -> None:
    expected = np.arange(12, dtype="<i8").reshape(3, 4)
    for values in (expected.tolist(), expected.reshape(-1).tolist()):
        found = long_array(json.dumps(values)).elements(INT64, (3, 4), "x")
        assert same(found, expected)
        assert not found.flags.writeable
    with pytest.raises(Unsliceable):
        long_array(json.dumps(expected.tolist())).elements(INT64, (4, 3), "x")


def test_others_get_their_turn_behind_every_slice() -> None:
    pauses = Pauses()
    text = json.dumps(list(range(100_000)))
    long_array(text, pauses).nested(INT64, "x")
    assert pauses.count == len(text) // json_slices._SLICE_BYTES + 1


# --- requests -----------------------------------------------------------------------------------------------------


def outcome(read: Callable[[], Any]) -> Any:
    """What was read, in a form that can be compared, or what was refused."""
    try:
        found = read()
    except (MalformedRequest, RequestMismatch) as refusal:
        return type(refusal), str(refusal)
    request = getattr(found, "request", found)
    tensors = [(t.name, t.datatype, t.shape, t.data.dtype.str, t.data.tobytes()) for t in request.inputs]
    return tensors, request._replace(inputs=()), getattr(found, "rows", None), getattr(found, "is_whole", None)


SCALARS = st.one_of(
    st.integers(-(2**40), 2**40).map(str), st.floats(width=32).map(json.dumps), st.sampled_from(["true", "null", '"a"'])
)


def nested(element: st.SearchStrategy[str], shape: tuple[int, ...]) -> st.SearchStrategy[str]:
    if not shape:
        return element
    inner = nested(element, shape[1:])
    blank = st.sampled_from(["", "", " ", "\n "])
    return st.lists(inner, min_size=shape[0], max_size=shape[0]).flatmap(
        lambda parts: blank.map(lambda b: f"[{b}" + f"{b},".join(parts) + f"{b}]")
    )


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
ELEMENTS = {
    "FP32": st.floats(width=32).map(json.dumps),
    "INT64": st.integers(-(2**63), 2**63 - 1).map(str),
    "BOOL": st.sampled_from(["true", "false"]),
}


@st.composite
def good_inputs(draw: st.DrawFn, name: str) -> str:
    shape = draw(SHAPES)
    datatype = draw(st.sampled_from(sorted(ELEMENTS)))
    data = draw(nested(ELEMENTS[datatype], draw(st.sampled_from([shape, (int(np.prod(shape)),)]))))
    members = [
        f'"name":"{name}"',
        f'"shape":{json.dumps(shape, separators=(",", ":"))}',
        f'"datatype":"{datatype}"',
        f'"data" : {data}',
    ]
    return "{" + ",".join(draw(st.permutations(members))) + "}"


# Behind the inputs. In the first line what leaves nothing long unread.
HARMLESS = ["", ',"id":"a"', ',"parameters":{"timeout":5}', ',"id":":[1,2,3]"']
ODD = [f',"{member}":[1,2,3,4,5,6]' for member in ("id", "other", "outputs", "parameters")]
ODD += [',"parameters":{"a":[1,2,3,4,5,6]}', ',"id":":[1,2,3,4,5]"', ',"id": : [1,2,3,4,5]']


@st.composite
def requests(draw: st.DrawFn, behind: list[str]) -> str:
    inputs = [draw(good_inputs(name)) for name in draw(st.sampled_from(["x", "xy"]))]
    return '{"inputs":[' + ",".join(inputs) + "]" + draw(st.sampled_from(behind)) + "}"


@pytest.mark.usefixtures("small")
@given(requests(HARMLESS))
def test_a_good_request_is_read_in_slices_wherever_it_has_long_arrays(text: str) -> None:
    view = memoryview(text.encode())
    _, arrays = cut_out(view, lambda: None)
    request = decode._decode_in_slices(view, None, None, lambda: None)
    assert (request is not None) == bool(arrays)


@pytest.mark.usefixtures("small")
@given(requests(HARMLESS + ODD))
def test_a_request_means_the_same_read_in_slices(text: str) -> None:
    body = text.encode()
    assert outcome(lambda: decode_request(body, None, pause=lambda: None)) == outcome(
        lambda: decode_request(body, None)
    )


@pytest.mark.usefixtures("small")
@given(requests(HARMLESS + ODD), st.data())
def test_a_damaged_request_is_refused_in_the_same_words(text: str, data: st.DataObject) -> None:
    body = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.sampled_from([b"", b",", b"[", b"]", b'"', b"1", b"}"])
        )
    sliced, whole = (outcome(lambda p=p: decode_request(bytes(body), None, pause=p)) for p in (lambda: None, None))
    assert sliced == whole


def test_a_long_request_is_read_in_slices_and_a_short_one_at_once() -> None:
    for count, is_long in ((1000, False), (100_000, True)):
        values = np.random.default_rng(0).normal(size=(2, count // 2)).astype("<f4")
        inputs = [{"name": "x", "shape": [2, count // 2], "datatype": "FP32", "data": values.tolist()}]
        pauses = Pauses()
        request = decode_request(json.dumps({"inputs": inputs}).encode(), None, pause=pauses)
        assert same(request.inputs[0].data, values)
        assert (pauses.count > 10) == is_long


def test_a_long_request_may_have_binary_tensors_behind_it() -> None:
    values = list(range(100_000))
    inputs = [
        {"name": "x", "shape": [100_000], "datatype": "INT64", "data": values},
        {"name": "y", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}},
    ]
    text = json.dumps({"inputs": inputs}).encode()
    pauses = Pauses()
    request = decode_request(text + b"\x01\x02", len(text), pause=pauses)
    assert [tensor.data.tolist() for tensor in request.inputs] == [values, [1, 2]]
    assert pauses.count > 5


# --- V1 -----------------------------------------------------------------------------------------------------------

ONE = ModelMetadata(
    name="m", versions=("1",), platform="onnxruntime_onnx", inputs=(TensorMetadata("x", "FP32", (-1, -1)),), outputs=()
)
TWO = ModelMetadata(
    name="m",
    versions=("1",),
    platform="onnxruntime_onnx",
    inputs=(TensorMetadata("x", "FP32", (-1, -1)), TensorMetadata("t", "BYTES", (-1, -1))),
    outputs=(),
)
TEXT = ModelMetadata(
    name="m", versions=("1",), platform="onnxruntime_onnx", inputs=(TensorMetadata("t", "BYTES", (-1,)),), outputs=()
)
V1_BODIES = st.sampled_from([
    '{"instances":%s}', '{"inputs":%s}', '{"inputs":{"x":%s}}', '{"inputs":{"x":%s,"t":[["a"]]}}',
    '{"inputs":{"t":%s}}',
    '{"instances":[{"x":%s}]}', '{"instances":[{"t":%s},{"t":%s}]}', '{"instances":"a","x":%s}', '{"inputs":5,"x":%s}',
    '{"instances":[%s]}', '{"instances":%s,"signature_name":%s}', '{"instances":%s,"inputs":%s}',
])  # fmt: skip


@pytest.mark.usefixtures("small")
@given(
    V1_BODIES, SHAPES.flatmap(lambda shape: nested(SCALARS, shape)), st.sampled_from([ONE, TWO, TEXT]), st.booleans()
)
def test_a_prediction_means_the_same_read_in_slices(
    form: str, values: str, model: ModelMetadata, is_batchable: bool
) -> None:
    body = form.replace("%s", values).encode()
    sliced, whole = (
        outcome(lambda p=p: decode_predict(body, model, is_batchable=is_batchable, pause=p))
        for p in (lambda: None, None)
    )
    assert sliced == whole


WITH_NAN = '"inputs":[{"name":"x","shape":[3],"datatype":"FP32","data":[1,2,NaN]}]}'


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("text", "model"),
    [
        # Another parser reads what is around bare words: it takes long integers for what they are, and less nesting.
        ('{"parameters":{"k":123456789012345678901},' + WITH_NAN, ONE),
        ('{"z":' + "[" * 1000 + "]" * 1000 + "," + WITH_NAN, ONE),
        ('{"z":' + "[" * 1000 + "]" * 1000 + ',"instances":[[1,2,3,NaN]]}', ONE),
        ('{"instances":' + "[" * 65 + "1,1,1,1,1,1" + "]" * 65 + ',"x":"y"}', ONE),
        ('{"instances":"abc","x":[1,1,1,1,1,1,1]}', TEXT),
    ],
)  # fmt: skip
def test_rare_requests_mean_the_same_read_in_slices(text: str, model: ModelMetadata) -> None:
    body = text.encode()
    reads = {
        "inputs": lambda pause: decode_request(body, None, pause=pause),
        "instances": lambda pause: decode_predict(body, model, pause=pause),
    }
    read = reads["instances" if "instances" in text else "inputs"]
    assert outcome(lambda: read(lambda: None)) == outcome(lambda: read(None))


def test_a_long_prediction_is_read_in_slices() -> None:
    values = np.random.default_rng(0).normal(size=(20, 5000)).astype("<f4")
    for form in ("instances", "inputs"):
        pauses = Pauses()
        found = decode_predict(json.dumps({form: values.tolist()}).encode(), ONE, pause=pauses)
        assert same(found.request.inputs[0].data, values)
        assert found.rows == (20 if form == "instances" else None)
        assert pauses.count > 10
