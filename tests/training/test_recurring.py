"""A constant of the original is known by its type and its bytes, whatever its shape and its name."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from training.recurring import Recurring

LONG = np.arange(100_000, dtype=np.float32)


def middle_off(array: Any) -> Any:
    other = array.copy()
    other[array.size // 2] += 1
    return other


@pytest.mark.parametrize(
    ("array", "recurs"),
    [
        (LONG, True),
        (LONG.reshape(100, -1), True),
        (middle_off(LONG), False),
        (LONG[:-1], False),
        (LONG.view(np.int32), False),
        (np.float32(3.0), True),
        (np.float64(3.0), False),
        (np.array([], dtype=np.float32), True),
        (np.array([], dtype=np.int8), False),
        (np.array([0.5, -2.0], dtype=ml_dtypes.bfloat16), True),
        (np.array([-0.0], dtype=np.float32), False),
        (np.array([b"a", b"b"], dtype=object), True),
        (np.array([b"a", b"c"], dtype=object), False),
    ],
    ids=[
        "the same", "reshaped", "one number in the middle", "shorter", "the same bytes of another type", "a scalar",
        "a scalar of another type", "empty", "empty of another type", "bfloat16", "the other zero", "strings",
        "other strings",
    ],
)  # fmt: skip
def test_a_constant_recurs_by_type_and_bytes(array: Any, recurs: bool) -> None:
    known: list[Any] = [LONG, np.float32(3.0), np.array([], np.float32), np.zeros(1, np.float32)]
    known += [np.array([0.5, -2.0], dtype=ml_dtypes.bfloat16), np.array([b"a", b"b"], dtype=object)]
    constants = Recurring(ir.tensor(np.asarray(each).copy()) for each in known)
    tensor = ir.tensor(np.asarray(array))
    assert constants.has(tensor) is recurs
    assert constants.has(tensor) is recurs  # remembered, or found again


def test_many_tensors_that_live_for_a_moment_are_not_kept() -> None:
    constants = Recurring([ir.tensor(LONG)])
    for number in range(100):
        assert not constants.has(ir.tensor(np.array([number], dtype=np.float32)))
    assert len(constants._known) == 1
