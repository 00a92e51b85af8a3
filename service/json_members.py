"""Members of a request's JSON objects: present or not, of the right kind, and the parameters that are known.

What a parameter means is decided in decode.py; here is what it may be. Every refusal is a MalformedRequest whose line
begins with `where`. Knows no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import NoReturn

from service.errors import MalformedRequest, quoted
from service.json_tensors import KINDS, Json, kind_of, shown

MAX_ENTRIES = 4096
"""Largest number of inputs, of requested outputs and of parameters: each costs microseconds, whatever its size."""


def required(owner: dict[str, Json], member: str, kind: type, where: str) -> Json:
    value = owner.get(member)
    if value is None:
        raise MalformedRequest(f"{where} has no {member!r}")
    # `type is`, not isinstance: Python calls True an int, the protocol does not.
    if type(value) is not kind:
        raise MalformedRequest(f"{where}: {member!r} is {kind_of(value)}, expected {KINDS[kind]}")
    return value


def optional(owner: dict[str, Json], member: str, kind: type, where: str) -> Json:
    return None if owner.get(member) is None else required(owner, member, kind, where)


def named(entry: Json, member: str, position: int) -> str:
    """The name of an input or of an output: entry `position` of the request's `member`."""
    name = entry.get("name") if type(entry) is dict else None
    if type(name) is str:
        return name
    where = f"{member}[{position}]"
    if type(entry) is not dict:
        raise MalformedRequest(f"{where} is {kind_of(entry)}, expected an object with the member 'name'")
    return str(required(entry, "name", str, where))


def refuse_too_many(entries: Sized, what: str) -> None:
    if len(entries) > MAX_ENTRIES:
        raise MalformedRequest(f"there are {len(entries)} {what}, at most {MAX_ENTRIES} are read")


_SEQUENCE_PARAMETERS = ("sequence_id", "sequence_start", "sequence_end")

# What a parameter's value may be: its types, and the smallest number.
Rule = tuple[tuple[type, ...], int | None]
_OTHER: Rule = ((bool, int, float, str), None)
_TRUTH: Rule = ((bool,), None)
_SHARED_MEMORY: dict[str, Rule] = {
    "shared_memory_region": ((str,), None),
    "shared_memory_byte_size": ((int,), 0),
    "shared_memory_offset": ((int,), 0),
}

REQUEST_PARAMETERS: dict[str, Rule] = {
    "binary_data_output": _TRUTH,
    "priority": ((int,), 0),
    "timeout": ((int,), 0),
    "sequence_id": ((int, str), None),
    "sequence_start": _TRUTH,
    "sequence_end": _TRUTH,
}
INPUT_PARAMETERS: dict[str, Rule] = {"binary_data_size": ((int,), 0)} | _SHARED_MEMORY
OUTPUT_PARAMETERS: dict[str, Rule] = {"binary_data": _TRUTH, "classification": ((int,), 1)} | _SHARED_MEMORY


def parameters_of(owner: dict[str, Json], where: str, known: Mapping[str, Rule]) -> dict[str, Json]:
    """The member `parameters`: any name, with a string, number or boolean; `known` narrows some."""
    given: dict[str, Json] | None = optional(owner, "parameters", dict, where)
    if not given:
        return {}
    refuse_too_many(given, f"parameters of {where}")
    has_null = False
    for name, value in given.items():
        types, smallest = known.get(name, _OTHER)
        if type(value) in types:
            if smallest is not None and value < smallest:
                raise MalformedRequest(f"{where}: parameter {name!r} is {shown(value)}, expected {smallest} or more")
        elif value is None:
            has_null = True
        else:
            _refuse_parameter(name, value, types, where)
    return {name: value for name, value in given.items() if value is not None} if has_null else given


def _refuse_parameter(name: str, value: Json, types: tuple[type, ...], where: str) -> NoReturn:
    expected = " or ".join([KINDS[kind] for kind in types])
    raise MalformedRequest(f"{where}: parameter {quoted(name)} is {kind_of(value)}, expected {expected}")


def refuse_state(parameters: dict[str, Json]) -> None:
    """Models here keep nothing between requests: a sequence would be answered wrongly. 0, "" and false ask for none."""
    for name in _SEQUENCE_PARAMETERS:
        if parameters.get(name):
            raise MalformedRequest(
                f"the request: parameter {name!r} is {shown(parameters[name])}, but no model here keeps a state from "
                f"one request to the next; leave it out"
            )
