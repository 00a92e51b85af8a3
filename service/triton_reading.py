"""One walk through a `config.pbtxt` beside the table of keys: what is taken of it, warned about, or refused.

What becomes of a key stands in triton_keys.py; nothing is passed over in silence. What the values mean is
triton_config's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.errors import ModelRejected
from service.protobuf_text import Message, Name, Place, Value
from service.triton_keys import KEYS, Key, Type

_TRUE, _FALSE = ("true", "True", "t"), ("false", "False", "f")
_EXPECTED = {"string": "a string in quotes", "bool": "true or false", "message": "{ ... }"}
_INTEGERS = {
    "int32": range(-(2**31), 2**31), "uint32": range(2**32), "int64": range(-(2**63), 2**63), "uint64": range(2**64),
}  # fmt: skip


class Taken(dict[str, Any]):
    """The fields that are taken of a message, by name; a list where the key is repeated. And where they stand."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.places: dict[str, Place] = {}


class Reading:
    """Walks the file once beside KEYS; collects what is taken, and a warning for what is not."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def message(self, message: Message, prefix: str, place: Place) -> Taken:
        """Raises ModelRejected."""
        taken = Taken(place)
        for one in message.fields:
            path = prefix + one.name
            key = KEYS.get(path)
            if key is None:
                raise refusal(one.place, path, "is no key of Triton's model configuration; mend or remove it")
            if not key.repeated and (one.is_list or one.name in taken):
                raise refusal(one.place, path, "is given more than once, and may have one value only")
            if key.repeated and key.verdict == "taken":
                taken.setdefault(one.name, [])  # an empty list is something said
            taken.places[one.name] = one.place
            for value in one.values:
                self._one(one.place, path, key, value, taken)
        return taken

    def _one(self, place: Place, path: str, key: Key, value: Value, taken: Taken) -> None:
        read = self._read(place, path, key.type, value) if key.type else None
        if key.verdict == "taken" or (key.type and read in key.unless):
            name = path.rpartition(".")[2]
            if key.repeated:
                taken[name].append(read)
            else:
                taken[name] = read
        elif key.verdict == "warned":
            self.warn(place, path, _shown(value, key) + _named_inside(value), key.why)
        else:
            raise refusal(place, path, f"{_shown(value, key)}is not served: {key.why}")

    def _read(self, place: Place, path: str, kind: Type, value: Value) -> Any:
        if kind == "message" and isinstance(value, Message):
            return self.message(value, f"{path}.", place)
        try:
            return _read_value(kind, value)
        except ValueError as error:
            raise refusal(place, path, str(error)) from None

    def warn(self, place: Place, path: str, shown: str, why: str) -> None:
        """One line a key; the same said again, of the next tensor or instance, is not repeated."""
        line = f"{path} {shown}is not used: {why}"
        if not any(told.endswith(line) for told in self.warnings):
            self.warnings.append(f"{place}: {line}")


def refusal(place: Place, path: str, problem: str) -> ModelRejected:
    return ModelRejected(f"{place}: {path} {problem}")


def _shown(value: Value, key: Key) -> str:
    """What a message says of the value, and a space: the value of a key that may say something else, the key of a
    map's entry; otherwise nothing, since no value would do."""
    if isinstance(value, Message):
        entry = {field.name: field.values for field in value.fields}.get("key", ())
        return f"{_told(entry[0])} " if entry else ""
    return f"{_told(value)} " if key.type else ""


# What the entry of a map is made of.
_OF_ENTRIES = frozenset({"key", "value", "value.string_value"})
_NAMES_SHOWN = 10


def _named_inside(value: Value) -> str:
    """The keys within a message that nobody looks into, in brackets, and a space: each of them goes unused."""
    names = [name for name in dict.fromkeys(_paths(value)) if name not in _OF_ENTRIES]
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    return f"({', '.join(names[:_NAMES_SHOWN])}{more}) " if names else ""


def _paths(value: Value, prefix: str = "") -> Iterator[str]:
    if isinstance(value, Message):
        for one in value.fields:
            path = prefix + one.name
            inner = [name for each in one.values for name in _paths(each, f"{path}.")]
            yield from inner or [path]


# --- values -------------------------------------------------------------------------------------------------------


def _read_value(kind: Type, value: Value) -> str | bool | int:
    """Text Format Language Specification, "Value Types". Raises ValueError with what was found and expected."""
    if isinstance(kind, tuple):
        return _read_enum(kind, value)
    if kind in _INTEGERS:
        return _read_integer(_INTEGERS[kind], value)
    if kind == "string" and type(value) is str:
        return value
    if kind == "bool" and (value in (0, 1) or (isinstance(value, Name) and value in _TRUE + _FALSE)):
        return value == 1 or value in _TRUE
    raise ValueError(f"is {_told(value)}; expected {_EXPECTED[kind]}")


def _read_integer(allowed: range, value: Value) -> int:
    if not isinstance(value, int) or value not in allowed:
        raise ValueError(f"is {_told(value)}; expected a whole number from {allowed[0]} to {allowed[-1]}")
    return value


def _read_enum(names: tuple[str, ...], value: Value) -> str:
    """By name or by number."""
    if isinstance(value, Name) and value in names:
        return str(value)
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    raise ValueError(f"is {_told(value)}; expected one of {', '.join(names)}")


def _told(value: Value) -> str:
    if isinstance(value, Message):
        return "a message"
    return f"{value!r:.60}" if type(value) is str else f"{value:.60}" if isinstance(value, str) else str(value)
