from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.classification import can_be_ranked, classify
from service.datatypes import DATATYPES
from service.errors import RequestMismatch
from tests.service.wire_table import tensor

NAN, INF = float("nan"), float("inf")
LABELS = ("zero", "one", "")


def top(
    array: Any, classes: int, datatype: str = "FP32", labels: tuple[str, ...] = (), *, has_rows: bool = True
) -> list[Any]:
    texts = classify(array, datatype, classes, labels, "output 'y'", has_rows=has_rows)
    assert texts.dtype == object
    return texts.tolist()


@pytest.mark.parametrize(
    ("datatype", "values", "texts"),
    [
        pytest.param("FP32", [0.1, 0.7, 0.2], [b"0.7:1", b"0.2:2", b"0.1:0"], id="largest-first"),
        pytest.param("FP32", [1.0, 2.0, 2.0, 1.0], [b"2.0:1", b"2.0:2", b"1.0:0", b"1.0:3"], id="equals-in-order"),
        pytest.param("FP32", [0.0, -0.0], [b"0.0:0", b"-0.0:1"], id="both-zeros-are-equal"),
        pytest.param(
            "FP32", [NAN, -INF, 1.0, NAN, INF], [b"Infinity:4", b"1.0:2", b"-Infinity:1", b"NaN:0", b"NaN:3"],
            id="nan-last",
        ),
        pytest.param("FP32", [1e-45, 3.4028234663852886e38], [b"3.4028235e+38:1", b"1e-45:0"], id="all-digits-of-fp32"),
        pytest.param("FP64", [0.1 + 0.2], [b"0.30000000000000004:0"], id="all-digits-of-fp64"),
        pytest.param("FP16", [0.1, 65504.0, NAN], [b"6.55e+04:1", b"0.1:0", b"NaN:2"], id="fp16-in-its-shortest-form"),
        pytest.param("BF16", [0x3F80, 0x4000, 0xC000], [b"2.0:1", b"1.0:0", b"-2.0:2"], id="bf16-by-value"),
        pytest.param("INT8", [-128, 127, 0], [b"127:1", b"0:2", b"-128:0"], id="int8-has-no-opposite-of-its-least"),
        pytest.param("UINT64", [0, 2**64 - 1], [b"18446744073709551615:1", b"0:0"], id="uint64"),
        pytest.param("INT64", [2**53, 2**53 + 1], [b"9007199254740993:1", b"9007199254740992:0"], id="int64-exactly"),
    ],
)  # fmt: skip
def test_elements_are_ranked_and_written(datatype: str, values: list[Any], texts: list[bytes]) -> None:
    row = tensor(datatype, values, [1, len(values)])
    assert top(row, len(values), datatype) == [texts]
    assert top(row, 1, datatype) == [texts[:1]]


def test_each_row_has_its_own_ranking() -> None:
    array = np.array([[1, 2], [4, 3]], np.float32)
    assert top(array, 1) == [[b"2.0:1"], [b"4.0:0"]]


def test_an_output_whose_axis_0_is_not_rows_is_ranked_as_a_whole() -> None:
    array = np.array([[1, 2], [4, 3]], np.float32)
    assert top(array, 3, has_rows=False) == [b"4.0:2", b"3.0:3", b"2.0:1"]
    assert top(np.float32(7).reshape(()), 3, has_rows=False) == [b"7.0:0"]


def test_further_dimensions_count_on_within_a_row() -> None:
    assert top(np.arange(8, dtype=np.int32).reshape(2, 2, 2), 1, "INT32") == [[b"3:3"], [b"7:3"]]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [pytest.param((0, 3), (0, 2), id="no-rows"), pytest.param((2, 0), (2, 0), id="nothing-in-the-rows")],
)
def test_nothing_is_ranked_as_nothing(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    texts = classify(np.zeros(shape, np.float32), "FP32", 2, (), "y", has_rows=True)
    assert (texts.shape, texts.dtype) == (expected, object)


def test_more_classes_than_elements_are_all_elements() -> None:
    assert top(np.ones((1, 2), np.float32), 2**63) == [[b"1.0:0", b"1.0:1"]]


def test_labels_stand_behind_the_index_as_far_as_there_are_any() -> None:
    array = np.array([[4, 3, 2, 1]], np.float32)
    assert top(array, 4, labels=LABELS) == [[b"4.0:0:zero", b"3.0:1:one", b"2.0:2", b"1.0:3"]]
    assert top(array, 1, labels=("n\u00e9:\u6570",)) == [["4.0:0:n\u00e9:\u6570".encode()]]


def test_too_many_strings_are_refused() -> None:
    with pytest.raises(RequestMismatch) as refusal:
        classify(np.zeros((101, 1000), np.float32), "FP32", 1000, (), "output 'y'", has_rows=True)
    assert str(refusal.value) == (
        "output 'y': classification of 1000 elements in each of 101 rows makes 101000 strings, at most 100000 are "
        "written; ask for fewer"
    )


def test_strings_and_truths_have_no_largest() -> None:
    assert [name for name in DATATYPES if not can_be_ranked(name)] == ["BOOL", "BYTES"]


@given(
    st.sampled_from(["FP16", "FP32", "FP64", "INT8", "UINT8", "INT64", "UINT64"]).flatmap(
        lambda name: st.tuples(
            st.just(name), hnp.arrays(DATATYPES[name].dtype, st.tuples(st.integers(1, 3), st.integers(1, 9)))
        )
    ),
    st.integers(1, 10),
)
def test_values_read_back_exactly_and_in_falling_order(held: tuple[str, Any], classes: int) -> None:
    datatype, array = held
    for row, texts in zip(array, top(array, classes, datatype), strict=True):
        pairs = [text.decode().split(":") for text in texts]
        indices = [int(index) for _, index in pairs]
        assert len(set(indices)) == min(classes, len(row))
        read = np.array([value.replace("Infinity", "inf") for value, _ in pairs]).astype(row.dtype)
        np.testing.assert_array_equal(read, row[indices])
        # The definition, by a slow and plain way.
        order = sorted(
            range(len(row)), key=lambda i: (row[i] != row[i], -float(row[i]) if datatype[0] == "F" else -int(row[i]), i)
        )
        if not np.isnan(row.astype(np.float64)).any():
            assert indices == order[:classes]


@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(0, 3), st.just(100)), elements=st.sampled_from([0.0, -0.0, 1.0, 2.0, NAN])
    ),
    st.integers(1, 20),
)
def test_few_of_many_are_the_same_as_the_first_of_all(array: Any, classes: int) -> None:
    """Equals and NaN included, wherever the cut falls."""
    assert top(array, classes) == [row[:classes] for row in top(array, 100)]
