"""The V1 protocol's bodies, spelled out: what each means, what it is answered with, and the words of each refusal."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from service.errors import MalformedRequest, RequestError, RequestMismatch
from service.protocol import PLATFORM, InferenceRequest, InferenceResponse, ModelMetadata, OutputTensor, TensorMetadata
from service.v1_predict import Predict, decode_predict, encode_predictions


def model(**inputs: tuple[str, tuple[int, ...]]) -> ModelMetadata:
    tensors = tuple(TensorMetadata(name, datatype, shape) for name, (datatype, shape) in inputs.items())
    return ModelMetadata("m", ("1",), PLATFORM, tensors, ())


ONE = model(x=("FP32", (-1, 2)))
TWO = model(x=("FP32", (-1, 2)), i=("INT64", (-1,)))
WORDS = model(x=("BYTES", (-1,)))


def inputs_of(body: str, metadata: ModelMetadata) -> dict[str, Any]:
    """Name to datatype, shape and values."""
    tensors = decode_predict(body.encode(), metadata).request.inputs
    return {tensor.name: (tensor.datatype, tensor.shape, tensor.data.tolist()) for tensor in tensors}


# --- requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "metadata", "expected"),
    [
        pytest.param('{"instances":[[1,2],[3,4]]}', ONE, {"x": ("FP32", (2, 2), [[1, 2], [3, 4]])}, id="rows"),
        pytest.param('{"inputs":[[1,2],[3,4]]}', ONE, {"x": ("FP32", (2, 2), [[1, 2], [3, 4]])}, id="column"),
        pytest.param('{"instances":[{"x":[1,2]},{"x":[3,4]}]}', ONE, {"x": ("FP32", (2, 2), [[1, 2], [3, 4]])},
                     id="named-rows"),
        pytest.param('{"inputs":{"x":[[1,2]]}}', ONE, {"x": ("FP32", (1, 2), [[1, 2]])}, id="named-column"),
        pytest.param('{"instances":[{"x":[1,2],"i":7},{"i":8,"x":[3,4]}]}', TWO,
                     {"x": ("FP32", (2, 2), [[1, 2], [3, 4]]), "i": ("INT64", (2,), [7, 8])}, id="rows-of-two-inputs"),
        pytest.param('{"inputs":{"i":[7],"x":[[1,2]]}}', TWO,
                     {"i": ("INT64", (1,), [7]), "x": ("FP32", (1, 2), [[1, 2]])}, id="columns-of-two-inputs"),
        pytest.param('{"instances":["foo","é"]}', WORDS, {"x": ("BYTES", (2,), [b"foo", "é".encode()])}, id="words"),
        pytest.param('{"instances":[{"b64":"/wA="},"é",{"b64":""}]}', WORDS,
                     {"x": ("BYTES", (3,), [b"\xff\0", "é".encode(), b""])}, id="bytes"),
        pytest.param('{"instances":[{"x":{"b64":"/wA="}}]}', WORDS, {"x": ("BYTES", (1,), [b"\xff\0"])},
                     id="bytes-of-named-rows"),
        pytest.param('{"instances":[[{"b64":"/w=="},"a"],["b",{"b64":"AA=="}]]}', model(x=("BYTES", (-1, 2))),
                     {"x": ("BYTES", (2, 2), [[b"\xff", b"a"], [b"b", b"\0"]])}, id="bytes-in-rows"),
        pytest.param('{"inputs":[{"b64":"/w=="}]}', WORDS, {"x": ("BYTES", (1,), [b"\xff"])}, id="bytes-in-a-column"),
        pytest.param('{"inputs":{"x":[{"b64":"/w=="}]}}', WORDS, {"x": ("BYTES", (1,), [b"\xff"])},
                     id="bytes-in-a-named-column"),
        pytest.param('{"inputs":{"b64":"/w=="}}', WORDS, {"x": ("BYTES", (), b"\xff")}, id="single-bytes"),
        pytest.param('{"instances":[{"b64":"/w=="}]}', model(b64=("BYTES", (-1,))),
                     {"b64": ("BYTES", (1,), [b"/w=="])}, id="input-called-b64"),
        pytest.param('{"inputs":7}', ONE, {"x": ("FP32", (), 7.0)}, id="single-value"),
        pytest.param('{"instances":[[]]}', ONE, {"x": ("FP32", (1, 0), [[]])}, id="empty-row"),
        pytest.param('{"signature_name":"serving_default","instances":[[1,2]],"else":0}', ONE,
                     {"x": ("FP32", (1, 2), [[1, 2]])}, id="default-signature"),
        pytest.param('{"signature_name":null,"inputs":null,"instances":[[1,2]]}', ONE,
                     {"x": ("FP32", (1, 2), [[1, 2]])}, id="nulls"),
        pytest.param('{"instances":[[9007199254740993]]}', model(i=("INT64", (-1, 1))),
                     {"i": ("INT64", (1, 1), [[9007199254740993]])}, id="integer-beyond-float64"),
        pytest.param('{"instances":[[1,-Infinity]]}', ONE, {"x": ("FP32", (1, 2), [[1, -math.inf]])}, id="infinity"),
        pytest.param('{"instances":[1,2]}', ONE, {"x": ("FP32", (2,), [1, 2])}, id="shape-is-the-nesting"),
    ],
)  # fmt: skip
def test_body_is_read_as(body: str, metadata: ModelMetadata, expected: dict[str, Any]) -> None:
    assert inputs_of(body, metadata) == expected


def test_number_of_rows_is_that_of_instances() -> None:
    assert decode_predict(b'{"instances":[[1,2],[3,4],[5,6]]}', ONE).rows == 3
    assert decode_predict(b'{"inputs":[[1,2],[3,4],[5,6]]}', ONE).rows is None


COUNT = model(i=("INT64", (-1,)))
PIXEL = model(i=("UINT8", (-1,)))
HALF = model(h=("FP16", (-1,)))

WHOLE = model(x=("FP32", (3, -1)))
PAIR = model(x=("FP32", (2,)), i=("INT64", ()))


@pytest.mark.parametrize(
    ("body", "metadata", "shape", "is_whole"),
    [
        pytest.param('{"instances":[[[1],[2],[3]]]}', WHOLE, (3, 1), True, id="one-instance-is-the-input"),
        pytest.param('{"instances":[[1],[2],[3]]}', WHOLE, (3, 1), False, id="what-fits-is-left"),
        pytest.param('{"instances":[[[[1],[2],[3]]]]}', WHOLE, (1, 1, 3, 1), False, id="one-list-only"),
        pytest.param('{"inputs":[[[1],[2],[3]]]}', WHOLE, (1, 3, 1), False, id="columns-are-whole-already"),
        pytest.param('{"instances":[{"x":[1,2],"i":7}]}', PAIR, (2,), True, id="several-inputs"),
        pytest.param('{"instances":[[1,2,3]]}', model(x=("FP32", (1, -1))), (1, 3), False, id="an-axis-of-one"),
        pytest.param('{"instances":[[[1]],[[2]]]}', model(x=("FP32", (4, 1))), (2, 1, 1), False, id="nothing-fits"),
    ],
)  # fmt: skip
def test_one_instance_for_a_model_without_rows_is_its_whole_input_where_only_that_fits(
    body: str, metadata: ModelMetadata, shape: tuple[int, ...], is_whole: bool
) -> None:
    predict = decode_predict(body.encode(), metadata, is_batchable=False)
    assert (predict.request.inputs[0].shape, predict.is_whole) == (shape, is_whole)
    assert all(isinstance(tensor.data, np.ndarray) for tensor in predict.request.inputs)
    assert not decode_predict(body.encode(), metadata).is_whole, "a model with rows has an axis for them"


def test_several_instances_for_a_model_without_rows_are_told_the_way_out() -> None:
    with pytest.raises(RequestMismatch, match=r"has 2 instances, .* send each by itself, or whole tensors as 'inputs'"):
        decode_predict(b'{"instances":[[[1],[2],[3]],[[1],[2],[3]]]}', WHOLE, is_batchable=False)


def test_answer_to_a_whole_instance_is_one_prediction() -> None:
    outputs = (OutputTensor("a", "FP32", F([[1, 2]])), OutputTensor("b", "INT64", np.array(3)))
    whole = Predict(InferenceRequest(()), 1, is_whole=True)
    for tensors, text in ((outputs[:1], b"[[[1.0,2.0]]]"), (outputs, b'[{"a":[[1.0,2.0]],"b":3}]')):
        assert encode_predictions(InferenceResponse("m", "1", tensors), whole).body == b'{"predictions":%b}' % text


REFUSED = {
    "empty": ("", ONE, "the body is empty"),
    "array": ("[[1,2]]", ONE, "the request is an array, expected an object with 'instances' or 'inputs'"),
    "neither": ("{}", ONE, "the request has neither 'instances' nor 'inputs'; give one of them"),
    "both": ('{"instances":[1],"inputs":[1]}', ONE, "the request has both 'instances' and 'inputs'; give one of them"),
    "object": ('{"instances":{"x":[1,2]}}', ONE, "'instances' is an object, expected an array with one element a row"),
    "no-row": ('{"instances":[]}', ONE, "'instances' is empty, expected at least one"),
    "signature": (
        '{"signature_name":"classify","instances":[[1,2]]}',
        ONE,
        "signature_name is 'classify'; models here have one way to be called, 'serving_default': leave it out",
    ),
    "signature-kind": ('{"signature_name":[1],"instances":[[1,2]]}', ONE, "signature_name is an array; models here"),
    "mixed": (
        '{"instances":[[1,2],{"x":[1,2]}]}',
        ONE,
        "instances[0] is an array, instances[1] is an object; give all of them as objects with the inputs by name",
    ),
    "mixed-late": (
        '{"instances":[{"x":[1,2]},{"x":[1,2]},7]}',
        ONE,
        "instances[0] is an object, instances[2] is an integer; give all of them",
    ),
    "lacks-one": (
        '{"instances":[{"x":[1,2],"i":1},{"x":[1,2]}]}',
        TWO,
        "instances[0] has input 'i', instances[1] has not",
    ),
    "has-one-more": (
        '{"instances":[{"x":[1,2]},{"x":[1,2],"i":1}]}',
        TWO,
        "instances[1] has input 'i', instances[0] has not",
    ),
    "unknown": ('{"instances":[{"z":[1,2]}]}', ONE, "input 'z' is unknown to model 'm', the model takes 'x'"),
    "no-names": (
        '{"instances":[[1,2]]}',
        TWO,
        "'instances' gives values without names, the model takes 'x', 'i'; give objects with their names",
    ),
    "column-without-names": ('{"inputs":[[1,2]]}', TWO, "'inputs' gives values without names, the model takes"),
    "ragged": (
        '{"instances":[[1,2],[3]]}',
        ONE,
        "input 'x': data is ragged: at depth 2 there are arrays of 1 and of 2 elements",
    ),
    "deep": ('{"instances":[[1,[2]],[3,4]]}', ONE, "input 'x': data mixes arrays and values at depth 2"),
    "text": ('{"instances":[[1,"2"]]}', ONE, "input 'x': element 1 of data is \"2\"; FP32 takes numbers from"),
    "null": ('{"instances":[[1,null]]}', ONE, "input 'x': element 1 of data is null; FP32 takes"),
    "bytes-for-numbers": (
        '{"instances":[[{"b64":"/w=="},1]]}',
        ONE,
        "input 'x': element 0 of data is an object; FP32 takes numbers from",
    ),
    "bytes-for-rows-of-numbers": ('{"instances":[{"b64":"/w=="}]}', ONE, "element 0 of data is an object; FP32 takes"),
    "base64-cut-off": (
        '{"instances":["a",{"b64":"/w"}]}',
        WORDS,
        "input 'x': element 1 of data: 'b64' is no base64 (RFC 4648, section 4): Incorrect padding",
    ),
    "base64-for-urls": (
        '{"instances":[{"b64":"_w=="}]}',
        WORDS,
        "input 'x': element 0 of data: 'b64' is no base64 (RFC 4648, section 4): Only base64 data is allowed",
    ),
    "base64-not-ascii": ('{"instances":[{"b64":"é"}]}', WORDS, "element 0 of data: 'b64' is no base64"),
    "base64-is-number": (
        '{"instances":[[{"b64":7}]]}',
        WORDS,
        "input 'x': element 0 of data: 'b64' is an integer, expected a string",
    ),
    "bytes-and-more": ('{"inputs":{"x":[{"b64":"/w==","a":1}]}}', WORDS, "element 0 of data is an object; BYTES takes"),
    "bytes-and-names": (
        '{"instances":[{"b64":"/w=="},{"x":"a"}]}',
        WORDS,
        "instances[0] is bytes as 'b64', instances[1] is an object; give all of them",
    ),
    "truth": ('{"instances":[true]}', COUNT, "input 'i': element 0 of data is true; INT64 takes integers"),
    "never-wraps": ('{"instances":[300]}', PIXEL, "element 0 of data is 300; UINT8 takes integers from 0 to 255"),
    "never-rounds": ('{"instances":[1.0]}', COUNT, "element 0 of data is 1.0; INT64 takes integers"),
    "never-infinite": ('{"instances":[1e39]}', ONE, "element 0 of data is 1e+39; FP32 takes numbers from"),
    "half": ('{"instances":[1]}', HALF, "input 'h': FP16 does not travel as JSON"),
    "depth": ('{"instances":[' + "[" * 70 + "]" * 70 + "]}", ONE, "input 'x': data is nested more than 64 deep"),
}


@pytest.mark.parametrize(("body", "metadata", "told"), [pytest.param(*row, id=name) for name, row in REFUSED.items()])
def test_refusal_says_what_and_where(body: str, metadata: ModelMetadata, told: str) -> None:
    with pytest.raises(MalformedRequest) as refusal:
        decode_predict(body.encode(), metadata)
    assert told in str(refusal.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "i", "z"]), inner, max_size=3),
    max_leaves=12,
)


@given(form=st.sampled_from(["instances", "inputs"]), value=JSON, metadata=st.sampled_from([ONE, TWO, WORDS]))
def test_any_json_is_a_request_or_one_named_error(form: str, value: Any, metadata: ModelMetadata) -> None:
    body = json.dumps({form: value}).encode()
    try:
        predict = decode_predict(body, metadata)
    except RequestError as error:
        assert str(error)
    else:
        assert predict.rows == (len(value) if form == "instances" else None)


@given(array=npst.arrays(np.float32, npst.array_shapes(max_dims=4, max_side=3)))
def test_nested_lists_of_an_array_are_the_array(array: np.ndarray[Any, Any]) -> None:
    (tensor,) = decode_predict(json.dumps({"instances": array.tolist()}).encode(), ONE).request.inputs
    np.testing.assert_array_equal(tensor.data, array)


# --- answers ------------------------------------------------------------------------------------------------------


def answer(rows: int | None, **outputs: tuple[str, Any]) -> str:
    tensors = tuple(
        OutputTensor(name, datatype, np.asarray(values, object if datatype == "BYTES" else None))
        for name, (datatype, values) in outputs.items()
    )
    encoded = encode_predictions(InferenceResponse("m", "1", tensors), Predict(InferenceRequest(()), rows))
    assert (encoded.content_type, encoded.header_bytes) == ("application/json", None)
    return encoded.body.decode()


F = np.float32


@pytest.mark.parametrize(
    ("rows", "outputs", "text"),
    [
        pytest.param(2, {"y": ("FP32", F([[1, 0.1], [2, 3]]))}, '{"predictions":[[1.0,0.1],[2.0,3.0]]}', id="rows"),
        pytest.param(2, {"y": ("INT64", np.array([3, 4]))}, '{"predictions":[3,4]}', id="scalars"),
        pytest.param(1, {"y": ("BYTES", [["a", "é"]])}, '{"predictions":[["a","é"]]}', id="words"),
        pytest.param(2, {"y": ("BYTES", ["a", "b"])}, '{"predictions":["a","b"]}', id="single-words"),
        pytest.param(2, {"y": ("BOOL", np.array([[True], [False]]))}, '{"predictions":[[true],[false]]}', id="truths"),
        pytest.param(
            2, {"y": ("FP32", F([[math.nan, 1], [math.inf, -math.inf]]))},
            '{"predictions":[[NaN,1.0],[Infinity,-Infinity]]}', id="not-finite"),
        pytest.param(
            2, {"a": ("FP32", F([[1, 2], [3, 4]])), "b": ("INT64", np.array([5, 6])), "c": ("BYTES", ["u", "v"])},
            '{"predictions":[{"a":[1.0,2.0],"b":5,"c":"u"},{"a":[3.0,4.0],"b":6,"c":"v"}]}', id="several"),
        pytest.param(
            2, {"a": ("FP32", F([math.nan, 1])), "b\"": ("FP32", F([[[math.inf]], [[2]]]))},
            '{"predictions":[{"a":NaN,"b\\"":[[Infinity]]},{"a":1.0,"b\\"":[[2.0]]}]}', id="several-not-finite"),
        pytest.param(None, {"y": ("FP32", F([[1, 2], [3, 4]]))}, '{"outputs":[[1.0,2.0],[3.0,4.0]]}', id="column"),
        pytest.param(None, {"y": ("FP32", F(7))}, '{"outputs":7.0}', id="column-of-one-value"),
        pytest.param(None, {"y": ("FP32", F(math.nan))}, '{"outputs":NaN}', id="column-of-one-nan"),
        pytest.param(None, {"y": ("FP32", np.zeros((2, 0), F))}, '{"outputs":[[],[]]}', id="column-of-nothing"),
        pytest.param(None, {"a": ("FP32", F([1])), "b": ("INT64", np.array([[5, 6]]))},
                     '{"outputs":{"a":[1.0],"b":[[5,6]]}}', id="columns"),
    ],
)  # fmt: skip
def test_answer_is_written_as(rows: int | None, outputs: dict[str, Any], text: str) -> None:
    encoded = {
        name: (datatype, np.vectorize(str.encode, otypes=[object])(values) if datatype == "BYTES" else values)
        for name, (datatype, values) in outputs.items()
    }
    assert answer(rows, **encoded) == text


@pytest.mark.parametrize(
    ("rows", "outputs", "text"),
    [
        pytest.param(2, {"y": ("BYTES", [b"a", b"\xff\0"])}, '{"predictions":["a",{"b64":"/wA="}]}', id="rows"),
        pytest.param(2, {"y": ("BYTES", [[b"a"], [b"\xff"]])}, '{"predictions":[["a"],[{"b64":"/w=="}]]}', id="nested"),
        pytest.param(1, {"a": ("BYTES", [b"\xff"]), "b": ("BYTES", [b""])},
                     '{"predictions":[{"a":{"b64":"/w=="},"b":""}]}', id="several"),
        pytest.param(None, {"y": ("BYTES", b"\xff")}, '{"outputs":{"b64":"/w=="}}', id="single-value"),
        pytest.param(None, {"y_bytes": ("BYTES", [b"a", b"\xff"])}, '{"outputs":[{"b64":"YQ=="},{"b64":"/w=="}]}',
                     id="all-where-the-name-says-so"),
        pytest.param(1, {"y_bytes": ("FP32", F([1]))}, '{"predictions":[1.0]}', id="numbers-whatever-the-name-says"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_text_are_answered_as_base64(rows: int | None, outputs: dict[str, Any], text: str) -> None:
    assert answer(rows, **outputs) == text


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=5))
def test_bytes_answered_and_sent_again_are_the_same(elements: list[bytes]) -> None:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    read = json.loads(answer(len(elements), y=("BYTES", array)))["predictions"]
    (tensor,) = decode_predict(json.dumps({"instances": read}).encode(), WORDS).request.inputs
    assert tensor.data.tolist() == elements


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        pytest.param({"y": ("FP32", F([1, 2, 3]))}, "'y' has shape [3], which is not one value for each of 2", id="3"),
        pytest.param({"y": ("FP32", F(1))}, "output 'y' has shape [], which", id="single-value"),
        pytest.param({"a": ("FP32", F([1, 2])), "y": ("FP32", F([[1, 2]]))}, "'y' has shape [1, 2]", id="second"),
        pytest.param({"y": ("FP16", np.zeros(2, np.float16))}, "output 'y': FP16 does not travel as JSON", id="half"),
    ],
)
def test_answer_that_cannot_be_written_is_told(outputs: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestMismatch) as refusal:
        answer(2, **outputs)
    assert told in str(refusal.value)


@given(
    array=npst.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.bool_]), npst.array_shapes(max_dims=4, max_side=3)
    )
)
def test_predictions_read_back_are_the_rows_in_order(array: np.ndarray[Any, Any]) -> None:
    datatype = {"float32": "FP32", "float64": "FP64", "int64": "INT64", "bool": "BOOL"}[array.dtype.name]
    read = json.loads(answer(len(array), y=(datatype, array)))["predictions"]
    np.testing.assert_array_equal(np.array(read, array.dtype), array)
    rows = json.loads(answer(len(array), y=(datatype, array), z=(datatype, array)))["predictions"]
    np.testing.assert_array_equal(np.array([row["z"] for row in rows], array.dtype), array)
