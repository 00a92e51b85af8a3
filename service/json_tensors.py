"""Tensors as JSON text, both ways: text to Python values to flat arrays, and arrays to what orjson writes.

What JSON lacks and the protocol needs is handled here and nowhere else: bare NaN, Infinity and -Infinity, numbers that
fit their datatype exactly or are refused, BYTES as UTF-8 strings. Knows no request, no response, no binary form.
"""

from __future__ import annotations

import json
import math
from itertools import chain
from typing import Any, NoReturn

import numpy as np
import orjson

from service.datatypes import Datatype
from service.errors import MalformedRequest, RequestMismatch, excerpt, quoted
from service.protocol import Array

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


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {quoted(text)} is out of range")
    return value


# --- elements, from JSON ------------------------------------------------------------------------------------------

_JSON_TYPES: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "f": frozenset({int, float}),
    "O": frozenset({str}),
}
"""Kind of a dtype to the types that its elements may have in JSON."""


def elements_from_json(values: list[Json], datatype: Datatype, shape: tuple[int, ...], where: str) -> Array:
    """`data`, flat or nested like the shape, as a flat array of the datatype's dtype.

    Never rounds to an infinity, never wraps, never guesses. Raises MalformedRequest, each line beginning with `where`.
    """
    if not datatype.in_json:
        raise MalformedRequest(
            f"{where}: {datatype.name} does not travel as JSON; send it in binary, with parameters.binary_data_size"
        )
    flat, types = _flatten(values, shape, where)
    count = math.prod(shape)
    if len(flat) != count:
        raise MalformedRequest(f"{where}: shape {list(shape)} has {count} elements, data has {len(flat)}")
    strangers = types - _JSON_TYPES[datatype.dtype.kind]
    if strangers:
        elements = list(map(type, flat))
        _refuse_element(flat, min(map(elements.index, strangers)), datatype, where)
    if datatype.name == "BYTES":
        return np.fromiter(map(str.encode, flat), dtype=object, count=count)
    try:
        return _to_array(flat, datatype.dtype)
    except (OverflowError, FloatingPointError):
        _refuse_element(flat, _first_misfit(flat, datatype.dtype), datatype, where)


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


def _to_array(values: list[Json], dtype: np.dtype[Any]) -> Array:
    """Raises OverflowError or FloatingPointError when a value is out of the dtype's range."""
    with np.errstate(over="raise"):
        return np.array(values, dtype=dtype)


def _first_misfit(values: list[Json], dtype: np.dtype[Any]) -> int:
    """Index of the first value that `_to_array` refuses. Bisects: about as much work again as converting once."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _to_array(values[low:middle], dtype)
            low = middle
        except (OverflowError, FloatingPointError):
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


def elements_to_json(array: Array, datatype: Datatype, where: str) -> Json:
    """What orjson (with OPT_SERIALIZE_NUMPY) writes as the flat list of the array's elements.

    float32 is written in its own shortest form, without passing through Python floats. Raises RequestMismatch when the
    values have no JSON form, each line beginning with `where`.
    """
    if not datatype.in_json:
        raise RequestMismatch(f"{where}: {datatype.name} does not travel as JSON; {_ASK_FOR_BINARY}")
    flat = np.ascontiguousarray(array, dtype=datatype.dtype).reshape(-1)
    if datatype.name == "BYTES":
        return [_to_text(element, index, where) for index, element in enumerate(flat)]
    if datatype.dtype.kind == "f" and not np.isfinite(flat).all():
        return orjson.Fragment(_with_bare_infinities(flat))
    return flat


_ASK_FOR_BINARY = "request it in binary, with parameters.binary_data true (or binary_data_output for all outputs)"


def _to_text(element: bytes, index: int, where: str) -> str:
    try:
        return element.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestMismatch(f"{where}: element {index} is not UTF-8; {_ASK_FOR_BINARY}") from error


def _with_bare_infinities(flat: Array) -> bytes:
    """orjson writes `null` for each value that JSON lacks; Triton writes NaN, Infinity and -Infinity in its place."""
    pieces = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY).split(b"null")
    words = [
        b"NaN" if math.isnan(value) else b"Infinity" if value > 0 else b"-Infinity"
        for value in flat[~np.isfinite(flat)].tolist()
    ]
    return b"".join(chain.from_iterable(zip(pieces, [*words, b""], strict=True)))


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
