from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service import json_tensors
from service.datatypes import DATATYPES
from service.errors import MalformedRequest
from service.json_tensors import elements_from_json, elements_to_json, nested_to_text, numbers_to_text, parse_json

# Strings that look like what may stand bare, with the characters that make it hard to see where a string ends.
TRICKY = st.lists(st.sampled_from(["NaN", "Infinity", "-Infinity", "null", '"', "\\", ",", ":", "[", "\x00"])).map(
    "".join
)
STRINGS = st.text(st.characters(codec="utf-8")) | TRICKY
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | STRINGS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner),
    max_leaves=20,
)


def same_json(left: Any, right: Any) -> bool:
    """Equal, with NaN equal to NaN and 1 different from 1.0 and True."""
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same_json(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same_json, left, right))
    return bool(left == right)


@given(JSON_VALUES)
def test_parse_reads_what_pythons_json_writes(value: Any) -> None:
    """Bare NaN and infinities included, which go another way through the code than everything else."""
    for ensure_ascii in (True, False):
        assert same_json(parse_json(memoryview(json.dumps(value, ensure_ascii=ensure_ascii).encode())), value)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"[" * 100_000, id="open-arrays"),
        pytest.param(b'{"a":' * 100_000, id="open-objects"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="arrays"),
        pytest.param(b"[" * 100_000 + b"NaN" + b"]" * 100_000, id="arrays-around-nan"),
        pytest.param(b'{"a":' * 100_000 + b"NaN" + b"}" * 100_000, id="objects-around-nan"),
    ],
)
def test_deep_text_is_refused_without_recursion(text: bytes) -> None:
    with pytest.raises(MalformedRequest, match=r"^the body is not JSON: "):
        parse_json(memoryview(text))


@given(hnp.arrays("<f4", st.integers(0, 30), elements=st.floats(width=32)))
def test_float32_survives_its_text_and_the_text_is_not_longer_than_it_must_be(array: np.ndarray) -> None:
    text = elements_to_json(array, DATATYPES["FP32"], "y")
    words = text[1:-1].decode().split(",") if array.size else []
    for word, value in zip(words, array, strict=True):
        assert np.float32(word) == value or np.isnan(value)
        if np.isfinite(value):
            # repr of a float32 is its shortest form; only the spelling of exponents differs.
            assert sum(map(str.isdigit, word.partition("e")[0].strip("-0."))) <= 9


@given(st.lists(st.integers(-200, 300), min_size=1, max_size=300))
def test_first_element_out_of_range_is_named_wherever_it_stands(values: list[int]) -> None:
    outside = [index for index, value in enumerate(values) if not -128 <= value <= 127]
    if not outside:
        assert elements_from_json(values, DATATYPES["INT8"], (len(values),), "x").tolist() == values
        return
    with pytest.raises(MalformedRequest) as refusal:
        elements_from_json(values, DATATYPES["INT8"], (len(values),), "x")
    expected = f"x: element {outside[0]} of data is {values[outside[0]]}; INT8 takes integers from -128 to 127"
    assert str(refusal.value) == expected


@given(st.lists(st.floats(allow_nan=False) | st.integers(-(2**63), 2**64 - 1), max_size=20))
def test_numbers_round_to_float32_as_numpy_rounds_them_or_are_refused(values: list[float]) -> None:
    with np.errstate(over="ignore"):
        expected = np.array(values, np.float64).astype(np.float32)
    overflows = any(
        np.isinf(rounded) and not math.isinf(value) for rounded, value in zip(expected, values, strict=True)
    )
    if overflows:
        with pytest.raises(MalformedRequest, match="FP32 takes numbers from"):
            elements_from_json(values, DATATYPES["FP32"], (len(values),), "x")
    else:
        read = elements_from_json(values, DATATYPES["FP32"], (len(values),), "x")
        assert read.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["FP32", "FP64", "INT64", "UINT8", "BOOL"])
@given(data=st.data())
def test_numbers_written_in_slices_are_the_same_text(name: str, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=4).map(tuple))
    array = data.draw(hnp.arrays(DATATYPES[name].dtype, shape))
    pauses: list[None] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_tensors, "_SLICE_ELEMENTS", 4)
        sliced = numbers_to_text(array, lambda: pauses.append(None))
    assert sliced == numbers_to_text(array)
    assert len(pauses) >= array.size // 4 - 1 or array.size <= 4
    for transposed in (array, array.T):  # whatever the strides are
        for write in (elements_to_json, nested_to_text):
            assert write(transposed, DATATYPES[name], "y", pause=lambda: None) == write(
                transposed, DATATYPES[name], "y"
            )
