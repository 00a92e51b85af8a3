"""Tensors as JSON text, both ways: text to Python values to flat arrays, and arrays to what orjson writes.

What JSON lacks and the protocol needs is handled here and nowhere else: bare NaN, Infinity and -Infinity, numbers that
fit their datatype exactly or are refused, BYTES as UTF-8 strings. Knows no request, no response, no binary form.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import Any, NoReturn

import numpy as np
import orjson

from service.datatypes import DATATYPES, Datatype
from service.errors import MalformedRequest, RequestMismatch, excerpt, quoted
from service.protocol import Array

Pause = Callable[[], object]
"""Called where others may have the interpreter (off_loop.py)."""

Json = Any
"""What a JSON parser returns: dict, list, str, int, float, bool or None."""


# --- JSON text to Python values -----------------------------------------------------------------------------------


def parse_json(text: memoryview) -> Json:
    """Raises MalformedRequest when `text` is not UTF-8, not JSON, or nested more than about a thousand levels deep."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as refusal:
        return _parse_what_orjson_refuses(bytes(text), refusal)


def _parse_what_orjson_refuses(text: bytes, refusal: orjson.JSONDecodeError) -> Json:
    """Bare NaN and Infinity are in the protocol but not in JSON; everything else that orjson refuses is refused."""
    if not text.strip():
        raise MalformedRequest("the body is empty; an inference request is a JSON object with the member 'inputs'")
    try:
        characters = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedRequest(
            f"the JSON is not UTF-8: byte 0x{text[error.start]:02x} at position {error.start}"
        ) from error
    if "NaN" not in characters and "Infinity" not in characters:
        raise MalformedRequest(f"the body is not JSON: {refusal}") from refusal
    return _parse_with_bare_words(characters)


def _parse_with_bare_words(characters: str) -> Json:
    try:
        # Stand-ins for the bare words, parsed by orjson and put back, were tried: 0.65 s rather than 0.85 s for 55 MiB
        # of floats, but twice as long for many arrays or many words, which is what an attacker sends.
        value = json.loads(characters, parse_float=_finite)
        # Unlike orjson, json lets half a surrogate pair through ("\ud800"), which no later step could write again.
        if "\\u" in characters:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise MalformedRequest("the body is not JSON: a string holds half a surrogate pair") from error
    except RecursionError as error:
        raise MalformedRequest("the body is not JSON: it is nested too deeply") from error
    except ValueError as error:
        raise MalformedRequest(f"the body is not JSON: {error}") from error
    return value


def reads_alike(text: bytes) -> bool:
    """Whether `text`, which can be read, means the same as a part of a text with bare words.

    Another parser reads those, which takes less deep nesting, and longer integers for what they are.
    """
    try:
        return repr(_parse_with_bare_words(text.decode("utf-8"))) == repr(parse_json(memoryview(text)))
    except MalformedRequest:
        return False


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {quoted(text)} is out of range")
    return value


# --- elements, from JSON ------------------------------------------------------------------------------------------

_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "b": (bool,),
    "i": (int,),
    "u": (int,),
    "f": (float, int),
    "O": (str,),
}
"""Kind of a dtype to the types that its elements may have in JSON, the usual one first."""


def elements_from_json(values: list[Json], datatype: Datatype, shape: tuple[int, ...], where: str) -> Array:
    """`data`, flat or nested like the shape, as an array of the datatype's dtype and that shape; read-only.

    Never rounds to an infinity, never wraps, never guesses. Raises MalformedRequest, each line beginning with `where`.
    """
    if not datatype.in_json:
        raise MalformedRequest(
            f"{where}: {datatype.name} does not travel as JSON; send it in binary, with parameters.binary_data_size"
        )
    usual, *others = _JSON_TYPES[datatype.dtype.kind]
    if list(map(type, values)).count(usual) != len(values):
        values, types = _flatten(values, shape, where)
        if strangers := types - {usual, *others}:
            elements = list(map(type, values))
            _refuse_element(values, min(map(elements.index, strangers)), datatype, where)
    count = math.prod(shape)
    if len(values) != count:
        raise MalformedRequest(f"{where}: shape {list(shape)} has {count} elements, data has {len(values)}")
    if datatype.name == "BYTES":
        return np.fromiter(map(str.encode, values), dtype=object, count=count).reshape(shape)
    try:
        return np.ndarray(shape, datatype.dtype, _packed(values, datatype))
    except (OverflowError, struct.error):
        _refuse_element(values, _first_misfit(values, datatype), datatype, where)


BASE64 = "b64"
"""TensorFlow Serving's REST API: an object with this key alone stands for bytes."""


def is_base64(value: Json) -> bool:
    return type(value) is dict and len(value) == 1 and BASE64 in value


def bytes_from_json(values: list[Json], shape: tuple[int, ...], where: str) -> Array:
    """As `elements_from_json` for BYTES, where an object with the one key b64 stands for the bytes that it encodes."""
    flat, types = _flatten(values, shape, where)
    if dict not in types:
        return elements_from_json(flat, DATATYPES["BYTES"], shape, where)
    texts = ["" if is_base64(value) else value for value in flat]
    elements = elements_from_json(texts, DATATYPES["BYTES"], shape, where).reshape(-1)
    for index, value in enumerate(flat):
        if type(value) is dict:
            elements[index] = _from_base64(value[BASE64], f"{where}: element {index} of data")
    return elements.reshape(shape)


def _from_base64(text: Json, where: str) -> bytes:
    if type(text) is not str:
        raise MalformedRequest(f"{where}: {BASE64!r} is {kind_of(text)}, expected a string")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedRequest(f"{where}: {BASE64!r} is no base64 (RFC 4648, section 4): {error}") from error


def _flatten(values: list[Json], shape: tuple[int, ...], where: str) -> tuple[list[Json], set[type]]:
    """Elements of `values` in row-major order, and the types among them. Depth is bounded by the shape's rank."""
    types = set(map(type, values))
    if list not in types:
        return values, types
    nesting = [len(values)]
    # Level by level, and no further than the shape agrees: that bounds the depth, and the time spent on nonsense.
    while list in types and _agrees(nesting, shape):
        if len(types) > 1:
            raise MalformedRequest(f"{where}: data mixes arrays and values at depth {len(nesting)}")
        lengths = set(map(len, values))
        if len(lengths) > 1:
            raise MalformedRequest(
                f"{where}: data is ragged: at depth {len(nesting) + 1} there are arrays of {min(lengths)} and of "
                f"{max(lengths)} elements"
            )
        nesting.extend(lengths)
        values = list(chain.from_iterable(values))
        types = set(map(type, values))
    # Below a dimension of 0 there is nothing left to nest.
    if not _agrees(nesting, shape) or (len(nesting) < len(shape) and 0 not in nesting):
        deeper = ", ..." if list in types else ""
        raise MalformedRequest(
            f"{where}: data is nested as [{', '.join(map(str, nesting))}{deeper}], shape is {list(shape)}; "
            f"send it nested like the shape, or flat"
        )
    return values, types


def _agrees(nesting: list[int], shape: tuple[int, ...]) -> bool:
    """Is `nesting` how the outer dimensions of `shape` are nested?"""
    return tuple(nesting) == shape[: len(nesting)]


_PACKED_AS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
"""A datatype's letter in the module struct, which packs Python's numbers three times as fast as NumPy does, and refuses
those that are out of range."""


def _packed(values: list[Json], datatype: Datatype) -> bytes:
    """Raises OverflowError or struct.error when a value is out of the datatype's range."""
    return struct.pack(f"<{len(values)}{_PACKED_AS[datatype.name]}", *values)


def _first_misfit(values: list[Json], datatype: Datatype) -> int:
    """Index of the first value that `_packed` refuses. Bisects: about as much work again as packing once."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _packed(values[low:middle], datatype)
            low = middle
        except (OverflowError, struct.error):
            high = middle
    return low


def _refuse_element(values: list[Json], index: int, datatype: Datatype, where: str) -> NoReturn:
    raise MalformedRequest(
        f"{where}: element {index} of data is {shown(values[index])}; {datatype.name} takes {_range(datatype)}"
    )


def _range(datatype: Datatype) -> str:
    match datatype.dtype.kind:
        case "b":
            return "true or false"
        case "O":
            return "strings"
        case "f":
            largest = str(np.finfo(datatype.dtype.char).max)
            return f"numbers from -{largest} to {largest}, NaN, Infinity and -Infinity"
        case _:
            limits = np.iinfo(datatype.dtype.char)
            return f"integers from {limits.min} to {limits.max}"


# --- elements, to JSON --------------------------------------------------------------------------------------------


LONG_ELEMENTS = 32 * 1024
"""A millisecond or two of writing."""
_SLICE_ELEMENTS = LONG_ELEMENTS // 2


def elements_to_json(array: Array, datatype: Datatype, where: str, pause: Pause | None = None) -> bytes:
    """The array's elements as the text of one flat JSON list.

    float32 is written in its own shortest form, without passing through Python floats. pause: called now and then while
    long arrays of numbers are written. Raises RequestMismatch when the values have no JSON form, each line beginning
    with `where`.
    """
    if not datatype.in_json:
        raise RequestMismatch(f"{where}: {datatype.name} does not travel as JSON; {_ASK_FOR_BINARY}")
    if datatype.name == "BYTES":
        return orjson.dumps([_to_text(element, index, where) for index, element in enumerate(array.reshape(-1))])
    return numbers_to_text(np.ascontiguousarray(array, dtype=datatype.dtype).reshape(-1), pause)


def numbers_to_text(array: Array, pause: Pause | None = None) -> bytes:
    """Numbers or truths, contiguous and in this machine's byte order, as JSON text, nested like the array's shape; of
    one dimension at least."""
    if pause is None or array.size <= _SLICE_ELEMENTS:
        text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
        # Of floats orjson writes `null` for what JSON lacks; of nothing else that comes here.
        return _with_bare_words(text, array.reshape(-1)) if b"null" in text else text
    row_elements = array.size // len(array)
    if row_elements > _SLICE_ELEMENTS:
        parts = [numbers_to_text(row, pause) for row in array]
    else:
        rows = _SLICE_ELEMENTS // row_elements
        parts = []
        for start in range(0, len(array), rows):
            parts.append(numbers_to_text(array[start : start + rows])[1:-1])
            pause()
    return b"[%b]" % b",".join(parts)


def nested_to_text(
    array: Array, datatype: Datatype, where: str, *, as_base64: bool = False, pause: Pause | None = None
) -> bytes:
    """As `elements_to_json`, but nested like the array's shape; a single value where it has no dimensions. BYTES that
    are not UTF-8, or all of them with `as_base64`, become objects with the one key b64."""
    if datatype.name == "BYTES":
        values = np.empty(array.size, dtype=object)
        values[:] = [_text_or_base64(element, as_base64=as_base64) for element in array.reshape(-1)]
        return orjson.dumps(values.reshape(array.shape).tolist())
    if array.ndim == 1 or not datatype.in_json:
        return elements_to_json(array, datatype, where, pause)
    # Of one dimension at least, as ascontiguousarray makes it.
    text = numbers_to_text(np.ascontiguousarray(array, dtype=datatype.dtype), pause)
    return text if array.ndim else text[1:-1]


_ASK_FOR_BINARY = "request it in binary, with parameters.binary_data true (or binary_data_output for all outputs)"


def _to_text(element: bytes, index: int, where: str) -> str:
    try:
        return element.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestMismatch(f"{where}: element {index} is not UTF-8; {_ASK_FOR_BINARY}") from error


def _text_or_base64(element: bytes, *, as_base64: bool) -> Json:
    if not as_base64:
        with suppress(UnicodeDecodeError):
            return element.decode("utf-8")
    return {BASE64: base64.b64encode(element).decode("ascii")}


def _with_bare_words(text: bytes, flat: Array) -> bytes:
    """Triton writes NaN, Infinity and -Infinity where orjson writes `null`."""
    words = [
        b"NaN" if math.isnan(value) else b"Infinity" if value > 0 else b"-Infinity"
        for value in flat[~np.isfinite(flat)].tolist()
    ]
    return b"".join(chain.from_iterable(zip(text.split(b"null"), [*words, b""], strict=True)))


# --- words --------------------------------------------------------------------------------------------------------

KINDS: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def kind_of(value: Json) -> str:
    return KINDS[type(value)]


def shown(value: Json) -> str:
    """A JSON value as its sender wrote it, roughly; arrays and objects only by kind."""
    if isinstance(value, (dict, list)):
        return kind_of(value)
    return excerpt(json.dumps(value, ensure_ascii=False))
