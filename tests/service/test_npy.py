from __future__ import annotations

import io
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.datatypes import DATATYPES
from service.errors import MalformedRequest
from service.npy import MAGIC, read_npy
from tests.service.wire_table import same

NUMBERS = [row for row in DATATYPES.values() if row.name not in ("BYTES", "BF16")]


def saved(array: Any, version: tuple[int, int] | None = None) -> bytes:
    """What numpy itself writes."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), version, allow_pickle=True)
    return file.getvalue()


def handmade(header: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A version 1.0 file whose header is exactly this, without numpy's padding."""
    return MAGIC + version + len(header).to_bytes(2 if version[0] == 1 else 4, "little") + header + data


def test_the_golden_bytes_of_the_format() -> None:
    body = handmade(
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }\n", b"\x00\x00\x80\x3f\x00\x00\x00\xc0"
    )
    datatype, array = read_npy(body)
    assert datatype.name == "FP32"
    assert same(array, np.array([[1.0, -2.0]], "<f4"))


@given(
    st.sampled_from(NUMBERS).flatmap(
        lambda row: hnp.arrays(row.dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    ),
    st.booleans(),
    st.booleans(),
)
def test_what_numpy_saved_is_read_whatever_its_byte_order_and_layout(array: Any, turned: bool, swapped: bool) -> None:
    stored = np.asfortranarray(array) if turned else array
    stored = stored.astype(stored.dtype.newbyteorder(">")) if swapped else stored
    datatype, read = read_npy(saved(stored.reshape(array.shape, order="A") if array.ndim == 0 else stored))
    assert datatype.dtype == array.dtype
    assert same(np.ascontiguousarray(read).reshape(array.shape), np.ascontiguousarray(array).reshape(array.shape))
    assert read.flags.c_contiguous


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_all_versions_of_the_format_are_read(version: tuple[int, int]) -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    assert same(read_npy(saved(array, version))[1], array)


def test_elements_in_order_are_a_view_of_the_body() -> None:
    body = saved(np.ones((2, 3), np.float32))
    assert np.shares_memory(read_npy(body)[1], np.frombuffer(body, np.uint8))


@pytest.mark.parametrize(
    "header",
    [
        b'{"shape": (2,), "descr": "|u1", "fortran_order": False}',
        b"{'descr':'|u1','fortran_order':False,'shape':(2,)}",
        b"  { 'descr' : '|u1' , 'fortran_order' : False , 'shape' : ( 2 , ) , }   \n",
    ],
)
def test_other_writers_spell_the_header_in_other_ways(header: bytes) -> None:
    assert read_npy(handmade(header, b"\x01\x02"))[1].tolist() == [1, 2]


EXPECTED = "; expected are 'descr' with one plain type, 'fortran_order' and 'shape'"
BAD = {
    "empty": (b"", "the .npy body begins with , not with 93 4e 55 4d 50 59"),
    "json": (b'{"inputs":[]}', "the .npy body begins with 7b 22 69 6e 70 75, not with 93 4e 55 4d 50 59"),
    "no-version": (MAGIC, "the .npy body has version 0; known are 1, 2 and 3"),
    "version-9": (handmade(b"{}", version=b"\x09\x00"), "the .npy body has version 9; known are 1, 2 and 3"),
    "cut-in-the-length": (MAGIC + b"\x01\x00\x05", "the .npy body is cut off in its header: it has 9 bytes"),
    "cut-in-the-header": (handmade(b"{'descr'")[:-1], "the .npy body is cut off in its header: it has 17 bytes"),
    "header-too-long": (
        MAGIC + b"\x02\x00" + b"\xff\xff\xff\xff",
        "the .npy body has a header of 4294967295 bytes, at most 10000 are read",
    ),
    "header-is-code": (
        handmade(b"__import__('os').getpid()"),
        "the .npy body has the header \"__import__('os').getpid()\"" + EXPECTED,
    ),
    "structured": (
        saved(np.zeros(1, [("a", "<f4")])),
        "the .npy body has the header \"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': ... (68 characters)"
        + EXPECTED,
    ),
    "member-missing": (
        handmade(b"{'descr': '<f4', 'shape': (1,)}"),
        "the .npy body has the header \"{'descr': '<f4', 'shape': (1,)}\"" + EXPECTED,
    ),
    "negative-dimension": (
        handmade(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
        "the .npy body has the header \"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\"" + EXPECTED,
    ),
    "objects": (
        saved(np.array([{"a": 1}], object)),
        "the .npy body has elements of type '|O'; objects are never unpickled here",
    ),
    "strings": (
        saved(np.array(["ab"])),
        "the .npy body has elements of type '<U2'; send strings as BYTES in JSON or in binary",
    ),
    "complex": (
        saved(np.zeros(1, "<c8")),
        "the .npy body has elements of type '<c8'; known are b1, u1, u2, u4, u8, i1, i2, i4, i8, f2, f4, f8",
    ),
    "too-few-bytes": (
        saved(np.zeros((2, 3), "<f4"))[:-1],
        "the .npy body: shape [2, 3] of FP32 takes 24 bytes, 23 follow the header",
    ),
    "too-many-bytes": (
        saved(np.zeros(2, "<i8")) + b"!", "the .npy body: shape [2] of INT64 takes 16 bytes, 17 follow the header",
    ),
    "claims-a-quintillion": (
        handmade(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000000)}"),
        "the .npy body: shape [1000000000, 1000000000] of FP64 takes 8000000000000000000 bytes, 0 follow the header",
    ),
    "dimension-beyond-everything": (
        handmade(b"{'descr': '<f8', 'fortran_order': False, 'shape': (0, 9999999999999999999)}"),
        "the .npy body: dimension 1 of shape is 9999999999999999999, expected an integer from 0 to 2**60 - 1",
    ),
    "rank-65": (
        handmade(b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"1," * 65 + b")}", b"\x01"),
        "the .npy body: shape has 65 dimensions, at most 64 are possible",
    ),
    "bool-that-is-2": (
        handmade(b"{'descr': '|b1', 'fortran_order': False, 'shape': (2,)}", b"\x01\x02"),
        "the .npy body: element 1 is byte 2; a BOOL is 0 or 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "message"), [pytest.param(*row, id=name) for name, row in BAD.items()])
def test_bad_file_is_refused_with_one_exact_line(body: bytes, message: str) -> None:
    with pytest.raises(MalformedRequest) as refusal:
        read_npy(body)
    assert str(refusal.value) == message


SPLINTERS = [
    b"'",
    b'"',
    b"(",
    b"(1,",
    b")",
    b"{",
    b"}",
    b",",
    b":",
    b"True",
    b"'<O'",
    b"\xff",
    b"\x00",
    b"9" * 20,
    MAGIC,
]


@given(st.data())
def test_any_bytes_end_in_a_tensor_or_one_named_error(data: st.DataObject) -> None:
    body = data.draw(st.sampled_from([body for body, _ in BAD.values()] + [saved(np.ones((2, 3), np.float32))]))
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(body)))
        end = data.draw(st.integers(start, min(len(body), start + 8)))
        body = body[:start] + data.draw(st.sampled_from(SPLINTERS) | st.binary(max_size=4)) + body[end:]
    try:
        datatype, array = read_npy(body)
    except MalformedRequest as refusal:
        assert "\n" not in str(refusal)
        assert len(str(refusal)) < 1000
    else:
        assert array.dtype == datatype.dtype
