"""A remembered form changes nothing but the time: every text means what it means without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from service import decode, json_forms
from service.decode import decode_request
from service.errors import MalformedRequest
from service.json_forms import decode_known_form
from service.protocol import InferenceRequest


@pytest.fixture(autouse=True)
def _nothing_is_known() -> Iterator[None]:
    json_forms._FORMS.clear()
    yield
    json_forms._FORMS.clear()


def text_of(data: str, shape: str = "[3]", datatype: str = "FP32", before: str = "", behind: str = "") -> bytes:
    return (
        f'{{{before}"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}]{behind}}}'
    ).encode()


def meaning(text: bytes) -> Any:
    """What `text` means, or the refusal's words."""
    try:
        request = decode_request(text, None)
    except MalformedRequest as error:
        return str(error)
    return _as_values(request)


def _as_values(request: InferenceRequest) -> Any:
    inputs = [(t.name, t.datatype, t.data.dtype.str, t.data.shape, repr(t.data.tolist())) for t in request.inputs]
    return inputs, request.outputs, request.id, request.binary_data_output, dict(request.parameters)


def meaning_without_forms(text: bytes) -> Any:
    json_forms._FORMS.clear()
    return meaning(text)


def test_the_second_request_of_a_form_is_known() -> None:
    assert decode_known_form(text_of("[1,2,3]")) is None
    decode_request(text_of("[1,2,3]"), None)
    known = decode_known_form(text_of("[4,5.5,-6e-1]"))
    assert known is not None
    np.testing.assert_array_equal(known.inputs[0].data, np.array([4, 5.5, -0.6], np.float32), strict=True)


OTHERS = [
    "[1,2]", "[1,2,3,4]", "[1,2,1e39]", "[1,2,true]", "[1,2,null]", '[1,2,"3"]', "[[1,2,3]]", "[[1],[2],[3]]", "[]",
    "[1,2,]", "[1,2,NaN]", "[1,2,Infinity]", "[1 2 3]", "{}", "null", "7", '"a]"', '["]",1,2]', "[1,2,3]]", "[1,[2],3]",
    "[ 1 , 2 , 3 ]", "[01,2,3]", "[1,2,1e999]", "[1,2,99999999999999999999999999]",
]  # fmt: skip


@pytest.mark.parametrize("data", OTHERS)
def test_other_data_in_a_known_form_means_what_it_means(data: str) -> None:
    expected = meaning_without_forms(text_of(data))
    meaning_without_forms(text_of("[1,2,3]"))
    assert meaning(text_of(data)) == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text_of("[1,2,3]", behind=',"inputs":[]'), id="inputs-again"),
        pytest.param(text_of('[1,2,3],"data":[4,5,6]'), id="data-again"),
        pytest.param(text_of("[1,2,3]", before='"data":[9],'), id="data-of-the-request"),
        pytest.param(text_of("[1,2,3]", before='"id":"\\"data\\":[7]",'), id="data-in-a-string"),
        pytest.param(
            b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]},'
            b'{"name":"z","shape":[1],"datatype":"FP32","data":[2]}]}',
            id="two-inputs",
        ),
        pytest.param(text_of("[[1,2,3]]", shape="[1,3]"), id="nested"),
        pytest.param(text_of('["a","b]","c"]', datatype="BYTES"), id="bracket-in-a-string"),
    ],
)
def test_what_has_no_form_is_never_taken_for_one(text: bytes) -> None:
    expected = meaning_without_forms(text)
    assert meaning(text) == expected == meaning(text)


@given(
    first=st.lists(st.one_of(st.floats(width=32, allow_nan=False), st.integers(-(2**70), 2**70)), max_size=4),
    second=st.lists(
        st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text(max_size=2), st.lists(st.integers())),
        max_size=4,
    ),
    datatype=st.sampled_from(["FP32", "FP64", "INT8", "INT64", "UINT64", "BOOL", "BYTES", "FP16"]),
    count=st.integers(0, 4),
    parameters=st.sampled_from(["", ',"parameters":{"binary_data_output":true}', ',"id":"7","outputs":[{"name":"y"}]']),
)
def test_a_known_form_changes_no_meaning_and_no_refusal(
    first: list[Any], second: list[Any], datatype: str, count: int, parameters: str
) -> None:
    texts = [text_of(json.dumps(data), f"[{count}]", datatype, behind=parameters) for data in (first, second)]
    expected = [meaning_without_forms(text) for text in texts]
    json_forms._FORMS.clear()
    assert [meaning(text) for text in texts] == expected
    assert [meaning(text) for text in texts] == expected


def test_forms_are_bounded() -> None:
    for number in range(json_forms._MOST_FORMS + 10):
        decode_request(text_of("[1,2,3]", behind=f',"id":"{number}"'), None)
    assert len(json_forms._FORMS) <= json_forms._MOST_FORMS
    json_forms._FORMS.clear()
    decode_request(text_of("[1,2,3]", behind=f',"id":"{"7" * 3000}"'), None)
    assert json_forms._FORMS == {}
    assert decode._REMEMBERED_BYTES == json_forms._MOST_AROUND_BYTES
