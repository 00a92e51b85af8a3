from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from service.datatypes import BY_ORT_TYPE, DATATYPES, Datatype, pack_bytes, unpack_bytes


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in DATATYPES.items()])
def test_row_agrees_with_numpy_and_with_tritonclient(row: Datatype) -> None:
    # NumPy has no bfloat16: its bit patterns travel as whole numbers.
    assert np_to_triton_dtype(row.dtype) == ("UINT16" if row.name == "BF16" else row.name)
    if row.name != "BYTES":
        assert row.dtype.itemsize == row.item_bytes
        # Little-endian on every machine ("=" and "|": the machine's own order, or none).
        assert row.dtype.str[0] in "<|"


def test_every_type_of_onnx_runtime_leads_to_one_datatype() -> None:
    assert len(BY_ORT_TYPE) == len(DATATYPES)
    assert BY_ORT_TYPE["tensor(float)"].name == "FP32"


def test_only_half_precision_stays_out_of_json() -> None:
    assert [row.name for row in DATATYPES.values() if not row.in_json] == ["BF16", "FP16"]


def test_packed_bytes_are_length_then_content() -> None:
    assert pack_bytes([b"", b"ab"]) == b"\x00\x00\x00\x00" + b"\x02\x00\x00\x00ab"


@given(st.lists(st.binary(max_size=20)))
def test_unpack_gives_back_what_pack_and_tritonclient_packed(elements: list[bytes]) -> None:
    packed = pack_bytes(elements)
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    if elements:
        assert serialize_byte_tensor(array).item() == packed
    assert unpack_bytes(memoryview(packed), len(elements)).tolist() == elements


@given(st.binary(max_size=40), st.integers(0, 12))
def test_any_bytes_are_unpacked_whole_or_refused(buffer: bytes, count: int) -> None:
    try:
        elements = unpack_bytes(memoryview(buffer), count)
    except ValueError as refusal:
        assert str(refusal)
    else:
        assert pack_bytes(elements) == buffer


@pytest.mark.parametrize(
    ("buffer", "count", "message"),
    [
        pytest.param(b"\x01\x00\x00\x00", 1, "element 0 ends at byte 5, but there are 4 bytes", id="content-missing"),
        pytest.param(b"\xff\xff\xff\xff", 1, "element 0 ends at byte 4294967299, but there are 4 bytes", id="largest"),
        pytest.param(b"\x00" * 5, 1, "1 bytes are left over after 1 elements", id="left-over"),
        pytest.param(b"\x00" * 3, 1, "3 bytes cannot hold 1 elements of at least 4 bytes each", id="too-many"),
        pytest.param(b"", 2**40, f"0 bytes cannot hold {2**40} elements of at least 4 bytes each", id="claimed"),
    ],
)
def test_wrong_packing_is_refused(buffer: bytes, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        unpack_bytes(memoryview(buffer), count)
