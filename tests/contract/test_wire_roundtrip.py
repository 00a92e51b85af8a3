"""The law between the two directions of the wire: decode(encode(x)) = x, for every datatype, in JSON and in binary.

An output looks on the wire as an input does, so a response whose member `outputs` is renamed `inputs` is a request.
"""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.datatypes import DATATYPES
from service.decode import decode_request
from service.encode import EncodedResponse, encode_response
from service.protocol import InferenceResponse, OutputTensor
from tests.service.wire_table import same

NAMES = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw: st.DrawFn, datatype: str, name: str) -> OutputTensor:
    """A tensor of any shape and value that its form, JSON or binary, can carry."""
    row = DATATYPES[datatype]
    binary = draw(st.booleans()) or not row.in_json
    shape = draw(SHAPES)
    if datatype == "BYTES":
        elements = st.binary(max_size=5) if binary else NAMES.map(str.encode)
        array = np.empty(shape, dtype=object)
        for index in np.ndindex(shape):
            array[index] = draw(elements)
    else:
        array = draw(hnp.arrays(row.dtype, shape, elements=None))
    if not binary and row.dtype.kind == "f":
        # JSON has one NaN; binary carries every bit of it.
        array = np.where(np.isnan(array), np.array(np.nan, row.dtype), array)
    return OutputTensor(name, datatype, array, binary)


def as_request(encoded: EncodedResponse) -> tuple[bytes, int | None]:
    body = encoded.body.replace(b'"outputs":', b'"inputs":', 1)
    return body, None if encoded.header_bytes is None else encoded.header_bytes - 1


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_decode_of_encode_gives_the_tensor_back(datatype: str, data: st.DataObject) -> None:
    output = data.draw(tensors(datatype, "x"))
    (read,) = decode_request(*as_request(encode_response(InferenceResponse("m", "1", (output,))))).inputs
    assert (read.name, read.datatype) == ("x", datatype)
    assert same(read.data, output.data)


@given(data=st.data())
def test_several_tensors_of_mixed_form_stay_apart(data: st.DataObject) -> None:
    names = data.draw(st.lists(NAMES, max_size=5, unique=True))
    outputs = tuple(data.draw(tensors(data.draw(st.sampled_from(sorted(DATATYPES))), name)) for name in names)
    identifier = data.draw(NAMES)
    encoded = encode_response(InferenceResponse("m", "1", outputs, identifier))
    request = decode_request(*as_request(encoded))
    assert request.id == identifier
    assert [tensor.name for tensor in request.inputs] == names
    for read, output in zip(request.inputs, outputs, strict=True):
        assert same(read.data, output.data)


@given(data=st.data())
def test_nested_json_means_the_same_as_flat(data: st.DataObject) -> None:
    names = [name for name, row in DATATYPES.items() if row.in_json and row.dtype.kind in "iub"]
    datatype = data.draw(st.sampled_from(names))
    array = data.draw(hnp.arrays(DATATYPES[datatype].dtype, SHAPES.filter(len)))

    def read(nested: Any) -> Any:
        one = {"name": "x", "shape": array.shape, "datatype": datatype, "data": nested}
        return decode_request(json.dumps({"inputs": [one]}).encode(), None).inputs[0].data

    assert same(read(array.tolist()), array)
    assert same(read(array.reshape(-1).tolist()), array)


@pytest.mark.parametrize(
    ("datatype", "binary"),
    [
        *(pytest.param(name, True, id=f"{name}-binary") for name in DATATYPES),
        *(pytest.param(name, False, id=f"{name}-json") for name, row in DATATYPES.items() if row.in_json),
    ],
)
def test_what_tritonclient_sends_is_what_decode_reads(datatype: str, binary: bool) -> None:
    """The bytes of an unmodified client, made without a server."""
    row = DATATYPES[datatype]
    array = np.array([[0, 1], [1, 0]]).astype(row.dtype)
    if datatype == "BYTES":
        array = np.array([["", "a"], ["\u00e9", "zz"]], dtype=object)
    tensor = triton.InferInput("x", [2, 2], datatype)
    tensor.set_data_from_numpy(array.view(ml_dtypes.bfloat16) if datatype == "BF16" else array, binary_data=binary)
    asked = [triton.InferRequestedOutput("y", binary_data=binary)]
    body, header_bytes = triton.InferenceServerClient.generate_request_body([tensor], outputs=asked, request_id="q")
    assert (header_bytes is not None) == binary
    request = decode_request(body, header_bytes)
    expected = np.vectorize(str.encode, otypes=[object])(array) if datatype == "BYTES" else array
    assert same(request.inputs[0].data, expected)
    assert (request.id, request.outputs[0].name, request.outputs[0].binary) == ("q", "y", binary)


def test_tritonclient_without_outputs_asks_for_binary() -> None:
    tensor = triton.InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.ones(1, np.float32))
    request = decode_request(*triton.InferenceServerClient.generate_request_body([tensor], priority=1, timeout=5))
    assert request.outputs == ()
    assert request.binary_data_output is True
    assert request.parameters == {"priority": 1, "timeout": 5}
