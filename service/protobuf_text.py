"""Protocol Buffers text format to a tree of fields: the syntax alone, bounded in size and depth.

Follows "Text Format Language Specification" (protobuf.dev); names in capitals are its grammar's. Knows no schema: which
fields exist, which are repeated and what their values mean is the caller's business. Extensions and `Any` (names in
square brackets) are refused. Pure: no files, no logging.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

LARGEST_BYTES = 1 << 18
"""A model's configuration with a hundred tensors has some 20 KB; this many are read in well under a second."""
DEEPEST = 32
"""Messages within messages; Triton's own schema ends at 8."""
# 2**64 - 1 has 20 digits, 22 in octal with its 0. More digits would only make Python's conversion slow.
_LONGEST_INTEGER = 24

_TOKEN = re.compile(
    r"""
      (?P<space>   [ \t\n\v\f\r]+ | \#[^\n]*)
    | (?P<float>   (?: \.[0-9]+ | (?:0|[1-9][0-9]*) \.[0-9]* ) (?:[eE][+-]?[0-9]+)? [fF]?
                 | (?:0|[1-9][0-9]*) (?: [eE][+-]?[0-9]+ [fF]? | [fF] ) )
    | (?P<integer> 0[xX][0-9a-fA-F]+ | 0[0-7]+ | 0 | [1-9][0-9]* )
    | (?P<name>    [A-Za-z_][A-Za-z0-9_]* )
    | (?P<string>  "(?:[^"\\\n\0]|\\[^\n\0])*+" | '(?:[^'\\\n\0]|\\[^\n\0])*+' )
    | (?P<mark>    [{}<>\[\]:;,-] )
    """,
    re.VERBOSE,
)
_ESCAPE = re.compile(
    rb"\\(?: (?P<letter>[abfnrtv?\\'\"]) | (?P<octal>[0-7]{1,3}) | x(?P<hex>[0-9a-fA-F]{1,2})"
    rb"| u(?P<short>[0-9a-fA-F]{4}) | U(?P<long>[0-9a-fA-F]{8}) | (?P<bad>.) )",
    re.VERBOSE | re.DOTALL,
)
_LETTERS = dict(zip(b"abfnrtv?\\'\"", b"\a\b\f\n\r\t\v?\\'\"", strict=True))
_CLOSING = {"{": "}", "<": ">"}


class TextFormatError(ValueError):
    """The text is not in the format, or over a limit. `str(error)` is one line that begins with line and column."""


class Place(NamedTuple):
    """Where something begins: both count from 1, columns in characters."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


class Name(str):
    """A word without quotes: the name of an enum's value, `true`, `inf`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Message:
    """`{ ... }`, or the whole file: fields in the order of the text, repeated ones as often as they stand there."""

    fields: tuple[Field, ...]


Value = str | int | float | Name | Message


@dataclass(frozen=True, slots=True)
class Field:
    """`name: value`, or `name: [value, ...]`, which only a repeated field may have: then `is_list`."""

    name: str
    values: tuple[Value, ...]
    is_list: bool
    place: Place


def parse(content: bytes) -> Message:
    """The message that a file holds. Raises TextFormatError."""
    if len(content) > LARGEST_BYTES:
        raise TextFormatError(f"line 1, column 1: longer than {LARGEST_BYTES} bytes, the most that is read")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        place = _place_of_byte(content, error.start)
        raise TextFormatError(f"{place}: byte 0x{content[error.start]:02x} is not UTF-8") from error
    return _Parser(text).whole()


def _place_of_byte(content: bytes, offset: int) -> Place:
    before = content[:offset].decode("utf-8")  # good: decoding came this far
    return Place(before.count("\n") + 1, len(before) - before.rfind("\n"))


class _Token(NamedTuple):
    kind: str
    """A group of _TOKEN, or "end"."""
    text: str
    place: Place


def _tokens(text: str) -> Iterator[_Token]:
    offset, line, line_began = 0, 1, 0
    after_number = False
    while offset < len(text):
        place = Place(line, offset - line_began + 1)
        found = _TOKEN.match(text, offset)
        if found is None:
            raise TextFormatError(f"{place}: {_what_is_wrong(text[offset])}")
        kind, lexeme = str(found.lastgroup), found.group()
        if after_number and (kind == "name" or kind in {"integer", "float"}):
            raise TextFormatError(f"{place}: {lexeme[:20]!r} directly behind a number; put a space between them")
        after_number = kind in {"integer", "float"}
        if kind != "space":
            yield _Token(kind, lexeme, place)
        if newlines := lexeme.count("\n"):
            line, line_began = line + newlines, offset + lexeme.rindex("\n") + 1
        offset = found.end()
    yield _Token("end", "", Place(line, offset - line_began + 1))


def _what_is_wrong(character: str) -> str:
    if character in "\"'":
        return "a string without its closing quote on the same line"
    if character == "\0":
        return "a NUL character"
    return f"{character!r} has no meaning here"


class _Parser:
    """Recursive descent with one token of look-ahead; a method for each rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = next(self._tokens)

    def whole(self) -> Message:
        return self._fields(closing="", depth=0)

    def _fields(self, closing: str, depth: int) -> Message:
        """Message = { Field }, and the mark that ends it ("": the file's end)."""
        fields = []
        while not (self._next.kind == "end" or self._next.text == closing):
            fields.append(self._field(depth))
        if self._next.text != closing:
            raise self._unexpected(f"{closing!r}")
        if closing:
            self._take()
        return Message(tuple(fields))

    def _field(self, depth: int) -> Field:
        """FieldName, [":"], value or list, [";" | ","]. Only messages, and lists of them, may omit the colon."""
        if self._next.text == "[":
            raise TextFormatError(f"{self._next.place}: extensions and Any, in square brackets, are not known here")
        if self._next.kind != "name":
            raise self._unexpected("a field's name")
        name = self._take()
        colon = self._skip(":")
        if not colon and self._next.text not in {"{", "<", "["}:
            raise self._unexpected(f"':' after {name.text!r}")
        is_list = self._next.text == "["
        values = self._list(depth) if is_list else (self._value(depth),)
        if not colon and not all(isinstance(value, Message) for value in values):
            raise TextFormatError(f"{name.place}: {name.text!r} needs a ':' before a list of values")
        if not self._skip(";"):
            self._skip(",")
        return Field(name.text, values, is_list, name.place)

    def _list(self, depth: int) -> tuple[Value, ...]:
        """A bracket, values with commas between them, a bracket; no comma after the last value."""
        self._take()
        values: list[Value] = []
        if not self._skip("]"):
            values.append(self._value(depth))
            while self._skip(","):
                values.append(self._value(depth))
            if not self._skip("]"):
                raise self._unexpected("',' or ']'")
        return tuple(values)

    def _value(self, depth: int) -> Value:
        if closing := _CLOSING.get(self._next.text):
            if depth >= DEEPEST:
                raise TextFormatError(f"{self._next.place}: messages within messages, over {DEEPEST} deep")
            self._take()
            return self._fields(closing, depth + 1)
        if self._next.kind == "string":
            return self._strings()
        negative = self._skip("-")
        token = self._next
        if token.kind not in {"integer", "float", "name"}:
            raise self._unexpected("a value")
        self._take()
        if token.kind == "name":
            return Name(f"-{token.text}" if negative else token.text)
        number = float(token.text.rstrip("fF")) if token.kind == "float" else _integer(token)
        return -number if negative else number

    def _strings(self) -> str:
        """String = STRING, { STRING }: parts that follow each other are one value."""
        place = self._next.place
        content = bytearray()
        while self._next.kind == "string":
            token = self._take()
            content += _unescaped(token)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TextFormatError(f"{place}: the string's escapes are not UTF-8") from error

    def _take(self) -> _Token:
        token = self._next
        self._next = next(self._tokens, token)
        return token

    def _skip(self, mark: str) -> bool:
        """Whether `mark` was next; then it is taken."""
        if found := self._next.kind == "mark" and self._next.text == mark:
            self._take()
        return found

    def _unexpected(self, wanted: str) -> TextFormatError:
        found = "the file ends" if self._next.kind == "end" else f"found {self._next.text[:40]!r}"
        return TextFormatError(f"{self._next.place}: {found}, expected {wanted}")


def _integer(token: _Token) -> int:
    """DEC_INT, OCT_INT or HEX_INT; none of the schema's types holds more than 64 bits."""
    text = token.text
    if len(text) <= _LONGEST_INTEGER:
        base = 16 if text[:2] in {"0x", "0X"} else 8 if text[0] == "0" and len(text) > 1 else 10
        if (number := int(text, base)) < 1 << 64:
            return number
    raise TextFormatError(f"{token.place}: {text[:_LONGEST_INTEGER]} is more than 64 bits hold")


def _unescaped(token: _Token) -> bytes:
    def replace(match: re.Match[bytes]) -> bytes:
        try:
            return _escaped_bytes(match)
        except (ValueError, OverflowError) as error:
            told = match.group().decode("utf-8", "replace")
            raise TextFormatError(f"{token.place}: {told!r} is no escape sequence") from error

    return _ESCAPE.sub(replace, token.text[1:-1].encode("utf-8"))


def _escaped_bytes(match: re.Match[bytes]) -> bytes:
    """What a sequence stands for. Raises ValueError and OverflowError when for nothing (a surrogate, \\400, \\q)."""
    kind, digits = str(match.lastgroup), match.group(str(match.lastgroup))
    if kind == "letter":
        return bytes([_LETTERS[digits[0]]])
    if kind in {"octal", "hex"}:
        return bytes([int(digits, 8 if kind == "octal" else 16)])
    if kind == "bad":
        raise ValueError
    return chr(int(digits, 16)).encode("utf-8")
