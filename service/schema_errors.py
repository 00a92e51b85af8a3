"""What is wrong with a file that people write, in one line: key, what was found, what was expected.

A schema says what is legal (model_knobs.Schema and those made of it); pydantic finds the offence; here it is told in
the words of the rest of this service. Knows no file and no schema of its own.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from service.errors import quoted

Location = Sequence[str | int]
"""From the outermost key inwards; a number is a position in a list."""

# By pydantic's error types ("Validation Errors" in its documentation); in braces, what the offence brings with it.
_EXPECTED: Mapping[str, str] = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than_equal": "{ge} or more",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of at most 64 bits",
    "int_type": "a whole number",
    "less_than_equal": "{le} or less",
    "literal_error": "{expected}",
    "model_type": "an object",
    "string_pattern_mismatch": "a text of the form {pattern}",
    "string_type": "a string",
    "tuple_type": "a list",
}


def keys(location: Location) -> str:
    """`inputs[0].shape[1]`; empty for the file as a whole."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def first_problem(
    error: ValidationError, schema: type[BaseModel], spell: Callable[[Location], str] = keys, whole: str = "the file"
) -> str:
    """The first offence that was found. spell: what its place is called, where the file has other names than the
    schema; whole: what everything together is called."""
    first = error.errors(include_url=False)[0]
    kind, location, context = first["type"], first["loc"], first.get("ctx", {})
    where = spell(location) or whole
    if kind == "value_error":  # raised by the schema itself, in our words
        return f"{spell(location)}: {context['error']}".removeprefix(": ")
    if kind == "json_invalid":
        return f"{whole} is not JSON: {context['error']}"
    if kind == "missing":
        return f"{where} is missing"
    if kind == "extra_forbidden":
        return f"{where} is no key here; known are {', '.join(_schema_at(schema, location[:-1]).model_fields)}"
    expected = _EXPECTED[kind].format(**context) if kind in _EXPECTED else first["msg"]
    return f"{where} is {_told(first['input'])}; expected {expected}"


def repeated_keys(content: bytes) -> list[str]:
    """Keys, in quotes, that some object has more than once, of JSON that pydantic has read: it keeps the last value and
    says nothing (RFC 8259, 4, leaves that to the parser)."""
    repeated: list[str] = []

    def look(members: list[tuple[str, object]]) -> None:
        seen: set[str] = set()
        for key, _ in members:
            if key in seen:
                repeated.append(quoted(key))
            seen.add(key)

    json.loads(content, object_pairs_hook=look, parse_int=str, parse_float=str)
    return repeated


def _schema_at(schema: type[BaseModel], location: Location) -> type[BaseModel]:
    """The schema of the object that lies there; positions and the keys of maps change nothing."""
    for part in location:
        if isinstance(part, str) and part in schema.model_fields:
            annotation = schema.model_fields[part].annotation
            inner = [one for one in (annotation, *typing.get_args(annotation)) if inspect.isclass(one)]
            schema = next((one for one in inner if issubclass(one, BaseModel)), schema)
    return schema


def _told(value: Any) -> str:
    """As JSON spells it, short."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"{value!r:.40}"
        case str():
            return quoted(value)
        case dict():
            return "an object"
    return "a list"
