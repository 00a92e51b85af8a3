"""Bodies that are not requests, each with the exact line that must refuse it. Decoded alone, and sent through HTTP."""

from __future__ import annotations

import json
from typing import Any

INPUT = {"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}


def bad_input(**changes: Any) -> bytes:
    """A request whose one input differs from a good one; a change to None leaves the member out."""
    members = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]} | changes
    return json.dumps({"inputs": [{name: value for name, value in members.items() if value is not None}]}).encode()


def bad_data(data: str, datatype: str = "FP32", shape: list[int] | None = None) -> bytes:
    """As `bad_input`, with `data` as JSON text."""
    text = bad_input(datatype=datatype, shape=[2] if shape is None else shape, data="DATA")
    return text.replace(b'"DATA"', data.encode())


def bad_request(**changes: Any) -> bytes:
    return json.dumps({"inputs": [INPUT]} | changes).encode()


FLOATS = "FP32 takes numbers from -3.4028235e+38 to 3.4028235e+38, NaN, Infinity and -Infinity"
DOUBLES = "FP64 takes numbers from -1.7976931348623157e+308 to 1.7976931348623157e+308, NaN, Infinity and -Infinity"
INT64S = "INT64 takes integers from -9223372036854775808 to 9223372036854775807"
KNOWN = "BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, BF16, FP16, FP32, FP64, BYTES"
STATELESS = ", but no model here keeps a state from one request to the next; leave it out"
NESTED = "; send it nested like the shape, or flat"

BAD_JSON = {
    # the text
    "empty": (b"", "the body is empty; an inference request is a JSON object with the member 'inputs'"),
    "spaces": (b" \r\n", "the body is empty; an inference request is a JSON object with the member 'inputs'"),
    "not-json": (
        b"<x/>",
        "the body is not JSON: unexpected character, expected a JSON value: line 1 column 1 (char 0)",
    ),
    "not-utf-8": (b'{"id":"\xff"}', "the JSON is not UTF-8: byte 0xff at position 7"),
    "bare-nan-then-garbage": (b"[NaN}", "the body is not JSON: Expecting ',' delimiter: line 1 column 5 (char 4)"),
    "half-a-surrogate-pair-beside-nan": (
        b'{"id":"\\ud800","x":NaN}',
        "the body is not JSON: a string holds half a surrogate pair",
    ),
    "infinite-number-beside-nan": (
        b'{"x":[NaN,1e999]}',
        "the body is not JSON: the number '1e999' is out of range",
    ),
    # the request
    "array": (b"[]", "the request is an array, expected a JSON object with the member 'inputs'"),
    "null": (b"null", "the request is null, expected a JSON object with the member 'inputs'"),
    "no-inputs": (b"{}", "the request has no 'inputs'"),
    "inputs-is-object": (bad_request(inputs={}), "the request: 'inputs' is an object, expected an array"),
    "input-is-string": (bad_request(inputs=["x"]), "inputs[0] is a string, expected an object with the member 'name'"),
    "id-is-number": (bad_request(id=7), "the request: 'id' is an integer, expected a string"),
    "outputs-is-string": (bad_request(outputs="y"), "the request: 'outputs' is a string, expected an array"),
    "output-is-string": (
        bad_request(outputs=["y"]),
        "outputs[0] is a string, expected an object with the member 'name'",
    ),
    "output-without-name": (bad_request(outputs=[{}]), "outputs[0] has no 'name'"),
    "too-many-inputs": (bad_request(inputs=[1] * 4097), "there are 4097 inputs, at most 4096 are read"),
    "too-many-outputs": (bad_request(outputs=[1] * 4097), "there are 4097 outputs, at most 4096 are read"),
    "input-twice": (bad_request(inputs=[INPUT, INPUT]), "input 'x' is given twice"),
    # parameters
    "parameters-is-array": (bad_request(parameters=[]), "the request: 'parameters' is an array, expected an object"),
    "parameter-is-array": (
        bad_request(parameters={"mine": [1]}),
        "the request: parameter 'mine' is an array, expected a boolean or an integer or a number or a string",
    ),
    "binary-data-output-is-number": (
        bad_request(parameters={"binary_data_output": 1}),
        "the request: parameter 'binary_data_output' is an integer, expected a boolean",
    ),
    "priority-is-string": (
        bad_request(parameters={"priority": "high"}),
        "the request: parameter 'priority' is a string, expected an integer",
    ),
    "binary-data-is-string": (
        bad_request(outputs=[{"name": "y", "parameters": {"binary_data": "yes"}}]),
        "output 'y': parameter 'binary_data' is a string, expected a boolean",
    ),
    "no-classes": (
        bad_request(outputs=[{"name": "y", "parameters": {"classification": 0}}]),
        "output 'y': parameter 'classification' is 0, expected 1 or more",
    ),
    "classes-negative": (
        bad_request(outputs=[{"name": "y", "parameters": {"classification": -1}}]),
        "output 'y': parameter 'classification' is -1, expected 1 or more",
    ),
    "classes-is-string": (
        bad_request(outputs=[{"name": "y", "parameters": {"classification": "3"}}]),
        "output 'y': parameter 'classification' is a string, expected an integer",
    ),
    "classes-is-true": (
        bad_request(outputs=[{"name": "y", "parameters": {"classification": True}}]),
        "output 'y': parameter 'classification' is a boolean, expected an integer",
    ),
    "priority-negative": (
        bad_request(parameters={"priority": -1}),
        "the request: parameter 'priority' is -1, expected 0 or more",
    ),
    "priority-is-number": (
        bad_request(parameters={"priority": 1.0}),
        "the request: parameter 'priority' is a number, expected an integer",
    ),
    "timeout-negative": (
        bad_request(parameters={"timeout": -5}),
        "the request: parameter 'timeout' is -5, expected 0 or more",
    ),
    "timeout-beyond-64-bits": (
        bad_request(parameters={"timeout": 2**64}),
        "the request: parameter 'timeout' is a number, expected an integer",
    ),
    "timeout-is-true": (
        bad_request(parameters={"timeout": True}),
        "the request: parameter 'timeout' is a boolean, expected an integer",
    ),
    "sequence": (
        bad_request(parameters={"sequence_id": 7, "sequence_start": True, "sequence_end": False}),
        "the request: parameter 'sequence_id' is 7" + STATELESS,
    ),
    "sequence-by-name": (
        bad_request(parameters={"sequence_id": "call-7"}),
        "the request: parameter 'sequence_id' is \"call-7\"" + STATELESS,
    ),
    "sequence-start-alone": (
        bad_request(parameters={"sequence_start": True}),
        "the request: parameter 'sequence_start' is true" + STATELESS,
    ),
    "sequence-id-is-number": (
        bad_request(parameters={"sequence_id": 0.5}),
        "the request: parameter 'sequence_id' is a number, expected an integer or a string",
    ),
    "sequence-end-is-integer": (
        bad_request(parameters={"sequence_end": 1}),
        "the request: parameter 'sequence_end' is an integer, expected a boolean",
    ),
    "shared-memory": (
        bad_input(data=None, parameters={"shared_memory_region": "r"}),
        "input 'x' has parameter 'shared_memory_region', but no 'shared_memory_byte_size'; give both",
    ),
    "too-many-parameters": (
        bad_request(parameters=dict.fromkeys(map(str, range(4097)), 1)),
        "there are 4097 parameters of the request, at most 4096 are read",
    ),
    # an input's members
    "no-name": (bad_input(name=None), "inputs[0] has no 'name'"),
    "name-is-number": (bad_input(name=1), "inputs[0]: 'name' is an integer, expected a string"),
    "no-datatype": (bad_input(datatype=None), "input 'x' has no 'datatype'"),
    "unknown-datatype": (
        bad_input(datatype="FLOAT"),
        f"input 'x': datatype 'FLOAT' is unknown; known are {KNOWN}",
    ),
    "datatype-in-lower-case": (
        bad_input(datatype="fp32"),
        f"input 'x': datatype 'fp32' is unknown; known are {KNOWN}",
    ),
    "no-shape": (bad_input(shape=None), "input 'x' has no 'shape'"),
    "shape-is-number": (bad_input(shape=2), "input 'x': 'shape' is an integer, expected an array"),
    "name-with-nul": (bad_input(name="a\0b", shape=None), "input 'a\\x00b' has no 'shape'"),
    "endless-name": (
        bad_input(name="n" * 10_000, shape=None),
        f"input '{'n' * 59}... (10002 characters) has no 'shape'",
    ),
    "neither-data-nor-binary": (
        bad_input(data=None),
        "input 'x' has neither 'data' nor parameters.binary_data_size; give one of them",
    ),
    "both-data-and-binary": (
        bad_input(parameters={"binary_data_size": 8}),
        "input 'x' has both 'data' and parameters.binary_data_size; give one of them",
    ),
    "data-is-string": (bad_input(data="AAAA"), "input 'x': 'data' is a string, expected an array"),
    "data-is-number": (bad_input(shape=[], data=1), "input 'x': 'data' is an integer, expected an array"),
    # shapes
    "dimension-negative": (
        bad_input(shape=[-1, 2]),
        "input 'x': dimension 0 of shape is -1, expected an integer from 0 to 2**60 - 1",
    ),
    "dimension-half": (
        bad_input(shape=[1, 1.5]),
        "input 'x': dimension 1 of shape is 1.5, expected an integer from 0 to 2**60 - 1",
    ),
    "dimension-true": (
        bad_input(shape=[True]),
        "input 'x': dimension 0 of shape is true, expected an integer from 0 to 2**60 - 1",
    ),
    "dimension-beyond-64-bits": (
        bad_input(shape=[2**64]),
        "input 'x': dimension 0 of shape is 1.8446744073709552e+19, expected an integer from 0 to 2**60 - 1",
    ),
    "dimension-is-array": (
        bad_input(shape=[[2]]),
        "input 'x': dimension 0 of shape is an array, expected an integer from 0 to 2**60 - 1",
    ),
    "product-overflows-64-bits-to-2": (
        bad_input(shape=[2**33, 2**31, 1, 2]),
        "input 'x': shape [8589934592, 2147483648, 1, 2] spans more than 2**60 - 1 elements",
    ),
    "product-is-0-after-overflow": (
        bad_input(shape=[0, 2**40, 2**40], data=[]),
        "input 'x': shape [0, 1099511627776, 1099511627776] spans more than 2**60 - 1 elements",
    ),
    "rank-65": (bad_input(shape=[1] * 65), "input 'x': shape has 65 dimensions, at most 64 are possible"),
    # data against shape
    "one-element-missing": (
        bad_input(shape=[3, 224], data=[0] * 671),
        "input 'x': shape [3, 224] has 672 elements, data has 671",
    ),
    "one-element-too-many": (bad_input(data=[1, 2, 3]), "input 'x': shape [2] has 2 elements, data has 3"),
    "claims-a-quintillion": (
        bad_input(shape=[10**9, 10**9]),
        "input 'x': shape [1000000000, 1000000000] has 1000000000000000000 elements, data has 2",
    ),
    "nested-the-other-way": (
        bad_input(shape=[2, 3], data=[[1, 2], [3, 4], [5, 6]]),
        "input 'x': data is nested as [3, ...], shape is [2, 3]" + NESTED,
    ),
    "nested-too-deep": (
        bad_input(shape=[2], data=[[1], [2]]),
        "input 'x': data is nested as [2, 1], shape is [2]" + NESTED,
    ),
    "nested-not-deep-enough": (
        bad_input(shape=[2, 1, 1], data=[[1], [2]]),
        "input 'x': data is nested as [2, 1], shape is [2, 1, 1]" + NESTED,
    ),
    "ragged": (
        bad_input(shape=[2, 2], data=[[1, 2], [3]]),
        "input 'x': data is ragged: at depth 2 there are arrays of 1 and of 2 elements",
    ),
    "half-nested": (bad_input(shape=[2], data=[1, [2]]), "input 'x': data mixes arrays and values at depth 1"),
    # elements
    "string-for-number": (bad_data('[1,"2"]'), "input 'x': element 1 of data is \"2\"; " + FLOATS),
    "true-for-number": (bad_data("[true,1]"), "input 'x': element 0 of data is true; " + FLOATS),
    "null-for-number": (bad_data("[1,null]"), "input 'x': element 1 of data is null; " + FLOATS),
    "object-for-number": (bad_data("[1,{}]"), "input 'x': element 1 of data is an object; " + FLOATS),
    "beyond-fp32": (bad_data("[1,-1e39]"), "input 'x': element 1 of data is -1e+39; " + FLOATS),
    "just-beyond-fp32": (
        bad_data("[1,3.4028235677973366e38]"),
        "input 'x': element 1 of data is 3.4028235677973366e+38; " + FLOATS,
    ),
    "beyond-fp64": (
        bad_data("[1e999,1]"),
        "the body is not JSON: number is infinity when parsed as double: line 1 column 70 (char 69)",
    ),
    "beyond-fp64-as-integer-beside-nan": (
        bad_data(f"[NaN,1{'0' * 400}]", "FP64"),
        f"input 'x': element 1 of data is 1{'0' * 59}... (401 characters); {DOUBLES}",
    ),
    "300-as-uint8": (
        bad_data("[300,1]", "UINT8"),
        "input 'x': element 0 of data is 300; UINT8 takes integers from 0 to 255",
    ),
    "minus-1-as-uint64": (
        bad_data("[0,-1]", "UINT64"),
        "input 'x': element 1 of data is -1; UINT64 takes integers from 0 to 18446744073709551615",
    ),
    "2-to-the-63-as-int64": (
        bad_data("[0,9223372036854775808]", "INT64"),
        f"input 'x': element 1 of data is 9223372036854775808; {INT64S}",
    ),
    "2-to-the-64-as-uint64": (
        bad_data("[0,18446744073709551616]", "UINT64"),
        "input 'x': element 1 of data is 1.8446744073709552e+19; UINT64 takes integers from 0 to 18446744073709551615",
    ),
    "half-as-int8": (
        bad_data("[1,1.5]", "INT8"),
        "input 'x': element 1 of data is 1.5; INT8 takes integers from -128 to 127",
    ),
    "1-point-0-as-int8": (
        bad_data("[1,1.0]", "INT8"),
        "input 'x': element 1 of data is 1.0; INT8 takes integers from -128 to 127",
    ),
    "nan-as-int8": (
        bad_data("[1,NaN]", "INT8"),
        "input 'x': element 1 of data is NaN; INT8 takes integers from -128 to 127",
    ),
    "1-as-bool": (bad_data("[true,1]", "BOOL"), "input 'x': element 1 of data is 1; BOOL takes true or false"),
    "number-as-bytes": (bad_data('["a",1]', "BYTES"), "input 'x': element 1 of data is 1; BYTES takes strings"),
    "fp16": (
        bad_data("[1,2]", "FP16"),
        "input 'x': FP16 does not travel as JSON; send it in binary, with parameters.binary_data_size",
    ),
    "first-of-many-is-named": (
        bad_data(str([0] * 999 + [-129] + [200] * 24), "INT8", [1024]),
        "input 'x': element 999 of data is -129; INT8 takes integers from -128 to 127",
    ),
    "endless-string-is-cut": (
        bad_data(f'[1,"{"z" * 10_000}"]'),
        f"input 'x': element 1 of data is \"{'z' * 59}... (10002 characters); {FLOATS}",
    ),
}


def binary(tail: bytes, datatype: str = "UINT8", shape: list[int] | None = None, size_bytes: Any = 2) -> Any:
    """Body and header length of a request with one binary input."""
    shape = [2] if shape is None else shape
    parameters = {"binary_data_size": size_bytes}
    one = {"name": "x", "shape": shape, "datatype": datatype, "parameters": parameters}
    head = json.dumps({"inputs": [one]}).encode()
    return head + tail, len(head)


def left_over(there: int, taken: int) -> str:
    return (
        f"there are {there} bytes behind the JSON, but the binary inputs take {taken}; Inference-Header-Content-Length "
        f"and the inputs' binary_data_size must add up to the length of the body"
    )


GOOD_BODY = bad_request()

BAD_BINARY = {
    "header-beyond-the-body": (
        (b"{}", 3),
        "Inference-Header-Content-Length is 3, but the body has 2 bytes",
    ),
    "header-negative": ((b"{}", -1), "Inference-Header-Content-Length is -1, but the body has 2 bytes"),
    "header-cuts-the-json": (
        (GOOD_BODY, len(GOOD_BODY) - 1),
        f"the body is not JSON: unexpected end of data: line 1 column {len(GOOD_BODY)} (char {len(GOOD_BODY) - 1})",
    ),
    "size-against-shape": (
        binary(b"\x01\x02", shape=[1, 3]),
        "input 'x': binary_data_size is 2, but shape [1, 3] of UINT8 takes 3 bytes",
    ),
    "size-against-datatype": (
        binary(b"\x01\x02", "FP32"),
        "input 'x': binary_data_size is 2, but shape [2] of FP32 takes 8 bytes",
    ),
    "size-claims-more-than-memory": (
        binary(b"", "FP64", [10**9, 10**9], 8 * 10**18),
        "input 'x': binary_data_size is 8000000000000000000, but only 0 of the 0 bytes behind the JSON are left",
    ),
    "size-negative": (
        binary(b"", size_bytes=-2),
        "input 'x': parameter 'binary_data_size' is -2, expected 0 or more",
    ),
    "size-true": (
        binary(b"\x01", shape=[1], size_bytes=True),
        "input 'x': parameter 'binary_data_size' is a boolean, expected an integer",
    ),
    "size-string": (
        binary(b"\x01\x02", size_bytes="2"),
        "input 'x': parameter 'binary_data_size' is a string, expected an integer",
    ),
    "tail-too-short": (
        binary(b"\x01"),
        "input 'x': binary_data_size is 2, but only 1 of the 1 bytes behind the JSON are left",
    ),
    "tail-too-long": (binary(b"\x01\x02\x03"), left_over(3, 2)),
    "tail-behind-json-inputs": ((GOOD_BODY + b"..", len(GOOD_BODY)), left_over(2, 0)),
    "bool-that-is-2": (
        binary(b"\x01\x02", "BOOL"),
        "input 'x': element 1 is byte 2; a BOOL is 0 or 1",
    ),
    "bytes-length-runs-out": (
        binary(b"\x05\x00\x00\x00ab", "BYTES", [1], 6),
        "input 'x': BYTES of shape [1]: element 0 ends at byte 9, but there are 6 bytes",
    ),
    "bytes-length-is-cut": (
        binary(b"\x02\x00\x00\x00ab\x00\x00", "BYTES", [2], 8),
        "input 'x': BYTES of shape [2]: element 1 ends at byte 10, but there are 8 bytes",
    ),
    "bytes-too-many-elements": (
        binary(b"\x00\x00\x00\x00", "BYTES", [10**9], 4),
        "input 'x': BYTES of shape [1000000000]: 4 bytes cannot hold 1000000000 elements of at least 4 bytes each",
    ),
    "bytes-left-over": (
        binary(b"\x01\x00\x00\x00a!", "BYTES", [1], 6),
        "input 'x': BYTES of shape [1]: 1 bytes are left over after 1 elements",
    ),
    "bytes-for-no-elements": (
        binary(b"\x00\x00\x00\x00", "BYTES", [0], 4),
        "input 'x': BYTES of shape [0]: 4 bytes are left over after 0 elements",
    ),
}
