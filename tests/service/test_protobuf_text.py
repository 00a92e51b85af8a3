"""The text format's grammar, production by production, and what is refused with line and column."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.protobuf_text import DEEPEST, LARGEST_BYTES, Field, Message, Name, Place, TextFormatError, Value, parse


def values(text: str) -> list[Value]:
    """Of the field `f`, in order."""
    return [value for field in parse(text.encode()).fields if field.name == "f" for value in field.values]


def plain(value: Value) -> object:
    """Messages as lists of pairs."""
    if isinstance(value, Message):
        return [(field.name, *map(plain, field.values)) for field in value.fields]
    return value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("f: 0", 0, id="zero"),
        pytest.param("f: 42", 42, id="decimal"),
        pytest.param("f: 0x1F", 31, id="hexadecimal"),
        pytest.param("f: 017", 15, id="octal"),
        pytest.param("f: -1", -1, id="negative"),
        pytest.param("f: - # of one\n 1", -1, id="sign-apart"),
        pytest.param("f: 18446744073709551615", 2**64 - 1, id="largest"),
        pytest.param("f: 1.5", 1.5, id="float"),
        pytest.param("f: .5", 0.5, id="no-digit-before-the-point"),
        pytest.param("f: 1.", 1.0, id="no-digit-behind-the-point"),
        pytest.param("f: 1e-3", 1e-3, id="exponent"),
        pytest.param("f: 10f", 10.0, id="float-by-suffix"),
        pytest.param("f: TYPE_FP32", Name("TYPE_FP32"), id="enum"),
        pytest.param("f: true", Name("true"), id="bool"),
        pytest.param("f: -inf", Name("-inf"), id="infinity"),
        pytest.param("f: 'it'", "it", id="single-quotes"),
        pytest.param('f: "a" \'b\'\n # c\n "d"', "abd", id="strings-in-parts"),
        pytest.param("f: \"a''b\"", "a''b", id="other-quotes-inside"),
        pytest.param("f: 'größe ✓'", "größe ✓", id="utf-8"),
        pytest.param(r"f: '\n\t\r\a\b\f\v\?\\\'\"'", "\n\t\r\a\b\f\v?\\'\"", id="letters"),
        pytest.param(r"f: '\1234\x213\x4'", "S4!3\x04", id="octal-and-hex-bytes"),
        pytest.param(r"f: '\303\274'", "ü", id="bytes-that-make-a-character"),
        pytest.param(r"f: '\u00fc\U0001F600'", "ü😀", id="code-points"),
        pytest.param("f: {}", [], id="empty-message"),
        pytest.param("f { a: 1 b: 2 }", [("a", 1), ("b", 2)], id="message"),
        pytest.param("f: < a: 1 >", [("a", 1)], id="angle-brackets"),
        pytest.param("f { a: 1, b: 2; c { } ; }", [("a", 1), ("b", 2), ("c", [])], id="separators"),
        pytest.param("f{a:{b<c:'d'>}}", [("a", [("b", [("c", "d")])])], id="nested-without-spaces"),
    ],
)
def test_a_value_reads_as_the_specification_says(text: str, expected: object) -> None:
    (value,) = values(text)
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("f: [1, 2, 3]", [1, 2, 3], id="list"),
        pytest.param("f: []", [], id="empty"),
        pytest.param("f [{a: 1}, {}]", [[("a", 1)], []], id="messages-without-a-colon"),
        pytest.param("f: 1 f: [2, 3] f: 4", [1, 2, 3, 4], id="repeated-and-list"),
    ],
)
def test_repeated_fields_keep_their_order(text: str, expected: list[object]) -> None:
    assert [plain(value) for value in values(text)] == expected


def test_a_field_knows_where_it_stands_and_whether_it_is_a_list() -> None:
    assert parse("# ü\n  a: 'ü' b: [2]\n\tc {}".encode()).fields == (
        Field("a", ("ü",), False, Place(2, 3)),
        Field("b", (2,), True, Place(2, 10)),
        Field("c", (Message(()),), False, Place(3, 2)),
    )


def test_nothing_is_an_empty_message() -> None:
    assert parse(b"  # only a comment") == Message(())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("f 1", r"line 1, column 3: found '1', expected ':' after 'f'", id="no-colon"),
        pytest.param("f [1]", r"line 1, column 1: 'f' needs a ':' before a list", id="no-colon-before-a-list"),
        pytest.param("f:", r"line 1, column 3: the file ends, expected a value", id="no-value"),
        pytest.param("f: }", r"column 4: found '}', expected a value", id="mark-for-a-value"),
        pytest.param("f {\n a: 1", r"line 2, column 6: the file ends, expected '}'", id="open-message"),
        pytest.param("f { a: 1 >", r"column 10: found '>', expected a field's name", id="other-bracket"),
        pytest.param("f: 1 }", r"column 6: found '}', expected a field's name", id="stray-bracket"),
        pytest.param("f: [1, 2", r"column 9: the file ends, expected ',' or ']'", id="open-list"),
        pytest.param("f: [1, ]", r"column 8: found ']', expected a value", id="comma-before-the-bracket"),
        pytest.param("f: [[1]]", r"column 5: found '\[', expected a value", id="list-in-a-list"),
        pytest.param("f: 1,, g: 2", r"column 6: found ',', expected a field's name", id="two-separators"),
        pytest.param("f: 'a\n'", r"line 1, column 4: a string without its closing quote", id="line-break-in-a-string"),
        pytest.param(r"f: 'a\'", r"a string without its closing quote", id="escaped-quote-only"),
        pytest.param(r"f: '\q'", r"'\\\\q' is no escape sequence", id="unknown-escape"),
        pytest.param(r"f: '\400'", r"'\\\\400' is no escape sequence", id="octal-over-a-byte"),
        pytest.param(r"f: '\ud800'", r"no escape sequence", id="surrogate"),
        pytest.param(r"f: '\U00110000'", r"no escape sequence", id="code-point-too-large"),
        pytest.param(r"f: '\x'", r"no escape sequence", id="hex-without-digits"),
        pytest.param(r"f: '\xff'", r"column 4: the string's escapes are not UTF-8", id="escapes-not-utf-8"),
        pytest.param("f: 10bar: 20", r"column 6: 'bar' directly behind a number", id="number-then-name"),
        pytest.param("f: 08", r"column 5: '8' directly behind a number", id="bad-octal"),
        pytest.param("f: 1.2.3", r"'.3' directly behind a number", id="two-points"),
        pytest.param("f: 18446744073709551616", r"more than 64 bits", id="too-large"),
        pytest.param("f: " + "9" * 5000, r"more than 64 bits", id="thousands-of-digits"),
        pytest.param("f: 2 . 0", r"column 6: '.' has no meaning here", id="spaces-in-a-number"),
        pytest.param("[a.b/c.D]: 1", r"extensions and Any, in square brackets, are not known here", id="extension"),
        pytest.param("f: @", r"column 4: '@' has no meaning here", id="stray-character"),
        pytest.param("f: 'a\0b'", r"a string without its closing quote", id="nul-in-a-string"),
        pytest.param("\0", r"line 1, column 1: a NUL character", id="nul"),
        pytest.param("\ufefff: 1", r"line 1, column 1: '\\ufeff' has no meaning", id="byte-order-mark"),
        pytest.param('{"f": 1}', r"line 1, column 1: found '{', expected a field's name", id="json"),
    ],
)
def test_what_is_not_in_the_format_is_refused_with_its_place(text: str, told: str) -> None:
    with pytest.raises(TextFormatError, match=told) as caught:
        parse(text.encode())
    assert str(caught.value).startswith("line ")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_utf_8_are_refused_with_their_place() -> None:
    with pytest.raises(TextFormatError, match=r"line 2, column 5: byte 0xff is not UTF-8"):
        parse("ü\nü: '".encode() + b"\xff'")


def test_size_and_depth_are_bounded() -> None:
    nested = b"f {" * DEEPEST + b"}" * DEEPEST
    assert parse(nested).fields[0].name == "f"
    with pytest.raises(TextFormatError, match=rf"over {DEEPEST} deep"):
        parse(b"f {" + nested + b"}")
    with pytest.raises(TextFormatError, match="the most that is read"):
        parse(b" " * (LARGEST_BYTES + 1))


NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=8)
NUMBERS = st.integers(-(2**63), 2**63 - 1)


def written(value: object) -> str:
    """As protobuf's own printer would."""
    if isinstance(value, str):
        return '"' + "".join(f"\\{byte:03o}" for byte in value.encode()) + '"'
    if isinstance(value, list):
        return "{" + " ".join(f"{name}: {written(inner)}" for name, inner in value) + "}"
    return str(value)


TREES: st.SearchStrategy[object] = st.recursive(
    NUMBERS | st.text(max_size=20), lambda inner: st.lists(st.tuples(NAMES, inner), max_size=4), max_leaves=20
)


@given(TREES)
def test_what_is_written_is_read_again(tree: object) -> None:
    (value,) = values(f"f: {written(tree)}")
    assert plain(value) == tree


@given(st.binary(max_size=200) | st.text("fa:{}[]<>,;#'\"\\-01x.e \n", max_size=80).map(str.encode))
def test_any_bytes_end_in_a_message_or_the_one_error(content: bytes) -> None:
    try:
        assert isinstance(parse(content), Message)
    except TextFormatError as error:
        assert str(error).startswith("line ")
