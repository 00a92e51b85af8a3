"""Golden samples: reading them, and judging a run against them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import InferenceFailed, ModelRejected, RequestMismatch
from service.golden import GoldenSamples, check_golden, default_tolerance, difference_of, read_golden
from service.protocol import TensorMetadata
from service.repository import GoldenRecord, VersionDirectory
from tests.service.handmade import save_golden

INPUTS = (TensorMetadata("x", "FP32", (-1, 2)),)
OUTPUTS = (TensorMetadata("y", "FP32", (-1, 2)), TensorMetadata("z", "INT64", (-1,)))
X = np.arange(6, dtype=np.float32).reshape(3, 2)


def read(folder: Path, record: GoldenRecord | None = None) -> GoldenSamples | None:
    return read_golden(VersionDirectory(folder, 1), record, INPUTS, OUTPUTS)


def samples(**changes: Any) -> GoldenSamples:
    return GoldenSamples(**({"inputs": {"x": X}, "outputs": {"y": 2 * X}, "tolerance": {"y": 1e-3}} | changes))


def doubling(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"y": 2 * inputs["x"]}


def test_samples_are_read_as_written(tmp_path: Path) -> None:
    save_golden(tmp_path, input_x=X, output_y=2 * X)
    golden = read(tmp_path, GoldenRecord(samples=3, tolerance={"y": 0.5}))
    assert golden is not None
    np.testing.assert_array_equal(golden.inputs["x"], X, strict=True)
    np.testing.assert_array_equal(golden.outputs["y"], 2 * X, strict=True)
    assert golden.tolerance == {"y": 0.5}
    assert golden.rows == 3


def test_no_samples_and_no_promise_is_none(tmp_path: Path) -> None:
    assert read(tmp_path) is None


def test_a_file_that_stands_alone_has_no_samples(tmp_path: Path) -> None:
    """Whatever lies beside it belongs to something else."""
    save_golden(tmp_path, input_x=X, output_y=X)
    assert read_golden(VersionDirectory(tmp_path, 1, "net.onnx"), None, INPUTS, OUTPUTS) is None


def test_promised_samples_that_are_missing_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=r"golden\.npz is missing, but report\.json promises 3"):
        read(tmp_path, GoldenRecord(samples=3, tolerance={}))


@pytest.mark.parametrize(
    ("record", "told"),
    [
        pytest.param(
            {"samples": 3, "tolerance": {"y": 1e30}}, "tolerance of output 'y' is 1e\\+30, at most 2.5", id="huge"
        ),
        pytest.param({"samples": 3, "tolerance": {"y": 2.6}}, "at most 2.5 is believed", id="too-large"),
        pytest.param({"samples": 3, "tolerance": {"y": float("inf")}}, "is inf, at most", id="infinite"),
        pytest.param({"samples": 3, "tolerance": {"y": float("nan")}}, "is nan, at most", id="nan"),
        pytest.param({"samples": 3, "tolerance": {"y": -1.0}}, "is -1, at most", id="negative"),
        pytest.param({"samples": 3, "tolerance": {"yy": 1e-5}}, "tolerance for 'yy'", id="misspelt-output"),
        pytest.param({"samples": 9, "tolerance": {}}, "holds 3 samples, report.json promises 9", id="other-count"),
    ],
)
def test_a_report_that_would_make_the_check_vain_is_rejected(
    record: Mapping[str, Any], told: str, tmp_path: Path
) -> None:
    save_golden(tmp_path, input_x=X, output_y=2 * X)
    with pytest.raises(ModelRejected, match=told):
        read(tmp_path, GoldenRecord(**record))


def test_a_tolerance_of_outputs_that_are_nearly_zero_may_be_the_default_one(tmp_path: Path) -> None:
    save_golden(tmp_path, input_x=X, output_y=0 * X)
    assert read(tmp_path, GoldenRecord(samples=3, tolerance={"y": 1e-6})) is not None


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        pytest.param({"output_y": X}, ["'input.x'", "output.y"], id="input-missing"),
        pytest.param({"input_x": X}, ["at least one output"], id="no-output"),
        pytest.param({"input_x": X, "output_y": X, "output_q": X}, ["'output.q'", "no input or output"], id="stranger"),
        pytest.param({"input_x": X.astype(np.float64), "output_y": X}, ["'input.x'", "float64", "FP32"], id="dtype"),
        pytest.param({"input_x": X[:, :1], "output_y": X}, ["'input.x'", "[3, 1]", "[-1, 2]"], id="shape"),
        pytest.param({"input_x": X[0], "output_y": X}, ["'input.x'", "[2]"], id="rank"),
        pytest.param({"input_x": X[:0], "output_y": X[:0]}, ["holds no samples"], id="zero-samples"),
    ],
)
def test_samples_that_do_not_fit_the_model_are_rejected(
    arrays: Mapping[str, Any], words: list[str], tmp_path: Path
) -> None:
    save_golden(tmp_path, **arrays)
    with pytest.raises(ModelRejected, match=r"golden\.npz") as caught:
        read(tmp_path)
    for word in words:
        assert word in str(caught.value)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(X.tobytes()) + 3] ^= 1  # inside the first array's values: the archive's CRC must notice
    path.write_bytes(content)


def _pickle(path: Path) -> None:
    np.savez(path, **{"input.x": np.array([{"a": 1}], dtype=object)})


def _single_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, X)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _named_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _huge_shape(path: Path) -> None:
    """A header that promises far more memory than any machine has."""
    content = path.read_bytes().replace(b"'shape': (3, 2), }", b"'shape': (3, 9**9)")
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"nonsense" * 9), id="text"),
        pytest.param(_truncate, id="truncated"),
        pytest.param(_flip, id="one-bit"),
        pytest.param(_pickle, id="pickle"),
        pytest.param(_single_array, id="single-array"),
        pytest.param(_folder, id="folder"),
        pytest.param(_named_pipe, id="named-pipe"),
        pytest.param(_huge_shape, id="huge-shape"),
    ],
)
def test_a_damaged_archive_is_rejected_in_one_line(damage: Callable[[Path], None], tmp_path: Path) -> None:
    save_golden(tmp_path, input_x=X, output_y=X)
    damage(tmp_path / "golden.npz")
    with pytest.raises(ModelRejected, match=r"golden\.npz") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_bytes_samples_are_stored_as_fixed_width_text(tmp_path: Path) -> None:
    """Object arrays would need pickle, which a file from outside must never get."""
    save_golden(tmp_path, input_x=np.array([["é", "b"]]), output_y=np.array([[b"c", b""]]))
    text = (TensorMetadata("x", "BYTES", (-1, 2)),)
    golden = read_golden(VersionDirectory(tmp_path, 1), None, text, (TensorMetadata("y", "BYTES", (-1, 2)),))
    assert golden is not None
    assert golden.inputs["x"].tolist() == [["é".encode(), b"b"]]
    assert golden.outputs["y"].tolist() == [[b"c", b""]]


@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 64])
def test_a_run_that_reproduces_the_samples_passes_in_pieces_of_any_size(rows_at_once: int) -> None:
    seen = []

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        seen.append(len(inputs["x"]))
        return doubling(inputs)

    assert str(check_golden(samples(), run, rows_at_once)) == "3 samples, largest difference 0"
    assert sum(seen) == 3
    assert max(seen) <= rows_at_once


def test_a_difference_beyond_tolerance_names_output_sample_and_size() -> None:
    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": np.where(inputs["x"] == 5, 10.25, 2 * inputs["x"]).astype(np.float32)}

    with pytest.raises(
        ModelRejected, match=r"output 'y' differs from the golden answer by 0\.25 at sample 2, .*0\.001"
    ):
        check_golden(samples(), run, 64)
    assert "0.25" in str(check_golden(samples(tolerance={"y": 0.25}), run, 64))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(np.full((3, 2), np.nan, np.float32), id="nan"),
        pytest.param(np.full((3, 2), np.inf, np.float32), id="infinity"),
        pytest.param(np.zeros((3, 1), np.float32), id="shape"),
        pytest.param(2.0 * X.astype(np.float64), id="dtype"),
    ],
)
def test_an_answer_of_another_kind_fails_at_any_tolerance(answer: Any) -> None:
    with pytest.raises(ModelRejected, match="golden check: output 'y'"):
        check_golden(samples(tolerance={"y": 1e300}), lambda inputs: {"y": answer}, 64)


def test_a_tolerance_that_is_not_a_number_lets_nothing_pass() -> None:
    with pytest.raises(ModelRejected, match="golden check"):
        check_golden(samples(tolerance={"y": float("nan")}), doubling, 64)


def test_bf16_is_judged_as_the_numbers_that_its_bit_patterns_are(tmp_path: Path) -> None:
    """1, -2 and 3; in the second run each is off by one in the last place, in the third all are negative."""
    bits = np.array([[0x3F80], [0xC000], [0x4040]], np.uint16)
    save_golden(tmp_path, input_x=X, output_y=bits)
    outputs = (TensorMetadata("y", "BF16", (-1, 1)),)
    golden = read_golden(VersionDirectory(tmp_path, 1), None, INPUTS, outputs)
    assert golden is not None
    assert str(check_golden(golden, lambda inputs: {"y": bits}, 64)) == "3 samples, largest difference 0"
    assert (
        str(check_golden(golden, lambda inputs: {"y": bits + np.uint16(1)}, 64))
        == "3 samples, largest difference 0.016"
    )
    with pytest.raises(ModelRejected, match=r"output 'y' differs from the golden answer by 6 at sample 2, .*0\.24"):
        check_golden(golden, lambda inputs: {"y": bits | np.uint16(0x8000)}, 64)


@pytest.mark.parametrize("kind", [InferenceFailed, RequestMismatch])
def test_a_model_that_fails_on_its_own_samples_is_rejected(kind: type[Exception]) -> None:
    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        raise kind("out of range")

    with pytest.raises(ModelRejected, match=r"fails on its own golden samples: out of range"):
        check_golden(samples(), run, 64)


INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("actual", "expected", "difference"),
    [
        pytest.param([1.0, 2.0], [1.0, 2.5], [0, 0.5], id="numbers"),
        pytest.param([INF, -INF, NAN], [INF, -INF, NAN], [0, 0, 0], id="special-values-in-the-same-place"),
        pytest.param([INF, NAN, 1.0], [-INF, 1.0, NAN], [INF, INF, INF], id="special-values-that-differ"),
        pytest.param([3, 5], [3, 4], [0, 1], id="integers"),
        pytest.param([True, False], [True, True], [0, 1], id="booleans"),
    ],
)
def test_difference_of_each_element(actual: Any, expected: Any, difference: Any) -> None:
    np.testing.assert_array_equal(difference_of(np.array(actual), np.array(expected)), difference)


def test_difference_of_bytes_is_all_or_nothing() -> None:
    a, b = (np.array([b"a", last], dtype=object) for last in (b"b", b"c"))
    np.testing.assert_array_equal(difference_of(a, b), [0, INF])


@pytest.mark.parametrize(
    ("expected", "tolerance"),
    [
        pytest.param(np.array([0.5, -0.1], np.float32), 5e-5, id="fp32"),
        pytest.param(np.array([-200, np.inf], np.float32), 2e-2, id="large-fp32"),
        pytest.param(np.array([1e-9], np.float32), 1e-6, id="nearly-zero-fp32"),
        pytest.param(np.array([2], np.float16), 2e-2, id="fp16"),
        pytest.param(np.array([7], np.int64), 0.0, id="integers"),
        pytest.param(np.array([], np.float32), 1e-6, id="empty"),
    ],
)
def test_default_tolerance_follows_the_output_s_scale(expected: Any, tolerance: float) -> None:
    assert default_tolerance(expected) == pytest.approx(tolerance)
