"""join and split: the law between them, and what each refuses."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from service.batch import JoinSpace, join, size_bytes, split
from service.datatypes import DATATYPES
from service.errors import InferenceFailed

DTYPES = [row.dtype for row in DATATYPES.values()]


@st.composite
def requests_of_one_group(draw: st.DrawFn) -> list[dict[str, Any]]:
    """One to six requests with the same names, dtypes and row shapes, and one to four rows each."""
    tensors = draw(
        st.dictionaries(
            st.sampled_from("xyz"),
            st.tuples(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)),
            min_size=1,
        )
    )
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    return [{name: draw(_array(dtype, (rows, *shape))) for name, (dtype, shape) in tensors.items()} for rows in counts]


def _array(dtype: np.dtype[Any], shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    return hnp.arrays(dtype, shape, elements=st.binary(max_size=3) if dtype.kind == "O" else None)


@given(requests_of_one_group())
def test_split_gives_back_what_join_took(parts: list[dict[str, Any]]) -> None:
    rows = [len(next(iter(part.values()))) for part in parts]
    returned = split(join(parts), rows)
    assert len(returned) == len(parts)
    for part, back in zip(parts, returned, strict=True):
        assert list(back) == list(part)
        for name in part:
            assert back[name].dtype == part[name].dtype
            np.testing.assert_array_equal(back[name], part[name], strict=True)


def test_a_single_request_is_not_copied() -> None:
    x = np.ones((3, 2), np.float32)
    assert join([{"x": x}])["x"] is x
    assert split({"x": x}, [3])[0]["x"] is x


def test_split_copies_nothing() -> None:
    x = np.ones((3, 2), np.float32)
    assert all(np.shares_memory(part["x"], x) for part in split({"x": x}, [1, 2]))


@pytest.mark.parametrize("rows", [[1, 1, 1], [1, 0, 2], [0, 3], [2, 1]])
def test_each_owner_gets_its_own_rows_in_order(rows: list[int]) -> None:
    pieces = split({"x": np.arange(6).reshape(3, 2), "y": np.array([7, 8, 9])}, rows)
    assert [piece["x"].shape for piece in pieces] == [(count, 2) for count in rows]
    assert np.concatenate([piece["x"] for piece in pieces]).ravel().tolist() == [0, 1, 2, 3, 4, 5]
    assert np.concatenate([piece["y"] for piece in pieces]).tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        pytest.param((2, 5), [1, 2], id="too-few-rows"),
        pytest.param((4, 5), [1, 2], id="too-many-rows"),
        pytest.param((), [1], id="scalar"),
        pytest.param((1, 5), [3], id="single-request"),
    ],
)
def test_an_output_whose_axis_0_is_not_rows_is_refused(shape: tuple[int, ...], rows: list[int]) -> None:
    expected = rf"'y' has shape {list(shape)} for a batch of {sum(rows)} rows".replace("[", r"\[")
    with pytest.raises(InferenceFailed, match=expected):
        split({"y": np.zeros(shape)}, rows)


@pytest.mark.parametrize("names", ["z", "xz", ""])
def test_parts_with_different_names_are_refused(names: str) -> None:
    with pytest.raises(ValueError, match="different tensors"):
        join([{"x": np.ones(1)}, {name: np.ones(1) for name in names}])


def test_dtypes_are_never_promoted() -> None:
    with pytest.raises(TypeError, match="cast"):
        join([{"x": np.ones(1, np.float32)}, {"x": np.ones(1, np.float64)}])


def test_memory_that_is_joined_in_again_changes_no_result() -> None:
    space = JoinSpace()
    for rows in (3, 2, 5, 1, 4):
        parts = [{"x": np.full((rows, 300, 50), 10 * rows + number, np.float32)} for number in range(3)]
        joined = join(parts, space)
        np.testing.assert_array_equal(joined["x"], np.concatenate([part["x"] for part in parts]), strict=True)


def test_memory_for_large_batches_is_used_again() -> None:
    space = JoinSpace()
    first, second = (join([{"x": np.zeros((1, 50_000), np.float32)}] * 2, space)["x"] for _ in range(2))
    assert first.ctypes.data == second.ctypes.data


def test_joining_in_memory_refuses_what_joining_refuses() -> None:
    parts = [{"x": np.zeros((1, 50_000), np.float32)}, {"x": np.zeros((1, 50_000), np.float64)}]
    with pytest.raises(TypeError):
        join(parts, JoinSpace())


def test_the_size_of_a_request_counts_what_its_texts_hold_as_well() -> None:
    numbers = np.zeros((2, 3), np.float32)
    texts = np.array([b"", b"four"], dtype=object)
    assert size_bytes([numbers]) == 24
    assert size_bytes([numbers, texts]) == 24 + 2 * 8 + 2 * 33 + 4
