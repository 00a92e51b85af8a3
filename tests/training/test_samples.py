"""Made inputs: what is among them, in which types and shapes, what is guessed, and what is asked for instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tests.training.graphs import model, random
from training.samples import CannotMakeSamples, Sample, check_answers, cut_rows, make_samples, more_like


def identity(shape: list[Any] | None, kind: int = TensorProto.FLOAT) -> ir.Model:
    info = [helper.make_tensor_value_info(name, kind, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", info[:1], info[1:])
    return ir.serde.deserialize_model(helper.make_model(graph, ir_version=8))


def test_the_order_is_held_out_zeros_ones_borders_large_and_noise() -> None:
    real = {"x": np.full((4, 3, 6, 5), 7)}
    labels = [sample.label for sample in make_samples(identity([4, 3, 6, 5]), [real])]
    assert labels == [
        "held-out 0",
        "zeros",
        "ones",
        "one-hot borders 0",
        "one-hot borders 1",
        "noise times 1000",
        "noise times 10000",
        "noise 0",
        "noise 1",
    ]


def test_one_hot_borders_touch_the_first_and_last_index_of_every_spatial_axis() -> None:
    samples = [s["x"] for s in make_samples(identity([1, 3, 6, 5])) if s.label.startswith("one-hot")]
    pixels = [tuple(int(i) for i in np.argwhere(x)[0]) for x in samples]
    assert [x.sum() for x in samples] == [1.0] * 6
    assert [pixel[2:] for pixel in pixels] == [(0, 2), (5, 2), (3, 0), (3, 4), (0, 0), (5, 4)]
    assert {pixel[1] for pixel in pixels} == {0, 1, 2}  # every channel is hot in some pixel


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (["n", 3, 8, 8], (2, 3, 8, 8)),
        ([None, 3, 8, 8], (2, 3, 8, 8)),
        ([2, 3, 8, 8], (2, 3, 8, 8)),
        (["n", 7], (2, 7)),
        ([5], (5,)),
        ([], ()),
        (["n", 3, "h", "w"], (2, 3, 32, 32)),
    ],
    ids=str,
)
def test_a_symbolic_batch_gets_two_rows_and_other_symbols_a_size_that_fits(shape: Any, expected: Any) -> None:
    samples = [sample for sample in make_samples(identity(shape)) if "other sizes" not in sample.label]
    assert {sample["x"].shape for sample in samples} == {expected}


def test_a_symbol_means_one_size_wherever_it_stands() -> None:
    graph = model(
        [helper.make_node("MatMul", ["x", "m"], ["y"])],
        inputs={"m": ["n", "n"], "x": ["n", "n"]},
        outputs={"y": ["n", "n"]},
        weights={},
    )
    assert {s["m"].shape for s in make_samples(graph)} == {(2, 2)}


def test_sizes_are_tried_until_the_graph_accepts_one() -> None:
    """Flatten and Gemm: only 28 by 28 has 784 numbers; a batch of 2 is tried first."""
    graph = model(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"])],
        inputs={"x": ["n", 1, "h", "w"]},
        outputs={"y": ["n", 10]},
        weights={"w": random(0, 784, 10)},
    )
    assert make_samples(graph)[0]["x"].shape == (2, 1, 28, 28)


def test_a_graph_that_accepts_one_row_only_gets_one() -> None:
    graph = model(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        inputs={"x": ["n", 6]},
        outputs={"y": [1, 2, 3]},
        weights={"s": np.array([1, 2, 3])},
    )
    assert make_samples(graph)[0]["x"].shape == (1, 6)


def test_when_nothing_fits_the_error_says_what_was_tried_and_what_to_give() -> None:
    graph = model(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"])],
        inputs={"x": ["n", 1, "h", "w"]},
        outputs={"y": ["n", 10]},
        weights={"w": random(0, 35, 10)},
    )
    with pytest.raises(CannotMakeSamples) as error:
        make_samples(graph)
    message = str(error.value)
    assert message.startswith(
        "input 'x': shape [n, 1, h, w] has symbolic sizes, and none of those tried fits (batches of 2"
    )
    assert "Gemm" in message
    assert message.endswith("give the shape: --input-shape x=1,3,224,224")
    assert make_samples(graph, shapes={"x": [2, 1, 5, 7]})[0]["x"].shape == (2, 1, 5, 7)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": [1]}, "--input-shape: the graph has no input 'z'; it has ['x']"),
        ({"x": [1, 3]}, "--input-shape x: shape [1, 3] does not fit [n, 3, h, 8]"),
        ({"x": [1, 3, 9, 9]}, "--input-shape x: shape [1, 3, 9, 9] does not fit [n, 3, h, 8]"),
        ({"x": [1, 3, 0, 8]}, "--input-shape x: [1, 3, 0, 8] is not a list of positive sizes"),
    ],
    ids=["name", "rank", "static size", "zero"],
)
def test_a_given_shape_that_does_not_fit_is_refused(shapes: Any, message: str) -> None:
    with pytest.raises(CannotMakeSamples) as error:
        make_samples(identity(["n", 3, "h", 8]), shapes=shapes)
    assert str(error.value) == message


def test_an_input_without_a_shape_or_with_strings_is_asked_for() -> None:
    with pytest.raises(CannotMakeSamples, match="input 'x' has no shape in the file; give one: --input-shape x="):
        make_samples(identity(None))
    with pytest.raises(CannotMakeSamples, match=r"input 'x' is .*STRING"):
        make_samples(identity([2], TensorProto.STRING))


@pytest.mark.parametrize(
    ("kind", "dtype", "low", "high"),
    [
        (TensorProto.INT64, np.int64, 0, 1),
        (TensorProto.INT32, np.int32, 0, 1),
        (TensorProto.BOOL, np.bool_, 0, 1),
        (TensorProto.UINT8, np.uint8, 0, 255),
    ],
    ids=["int64", "int32", "bool", "uint8"],
)
def test_integers_are_small_and_valid_and_bytes_are_pixels(kind: int, dtype: Any, low: int, high: int) -> None:
    values = np.stack([s["x"] for s in make_samples(identity([2, 64], kind)) if "borders" not in s.label])
    assert values.dtype == dtype
    assert values.min() == low
    assert (high == 1 and values.max() == 1) or values.max() > 200


@pytest.mark.parametrize(
    ("kind", "largest"), [(TensorProto.FLOAT, 1e4), (TensorProto.FLOAT16, 256.0), (TensorProto.DOUBLE, 1e4)]
)
def test_large_values_are_ten_thousandfold_but_leave_room_in_float16(kind: int, largest: float) -> None:
    sample = next(s for s in make_samples(identity([4, 500], kind)) if s.label == "noise times 10000")
    assert 0.9 * largest < sample["x"].astype(float).std() < 1.1 * largest
    assert np.isfinite(sample["x"]).all()


def test_the_seed_decides_the_noise() -> None:
    graph = identity([2, 5])
    first, again, other = (make_samples(graph, seed=seed)[-1]["x"] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_an_input_with_an_initializer_is_left_to_it() -> None:
    graph = model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        inputs={"x": [2], "w": [2]},
        outputs={"y": [2]},
        weights={"w": np.ones(2)},
    )
    assert set(make_samples(graph)[0]) == {"x"}


def test_held_out_arrays_give_the_shape_that_the_graph_leaves_open() -> None:
    graph = identity(["n", 3, "h", "w"])
    samples = make_samples(graph, [{"x": np.zeros((2, 3, 11, 13))}])
    assert {sample["x"].shape for sample in samples[:-1]} == {(2, 3, 11, 13)}
    assert samples[0]["x"].dtype == np.float32


def test_a_free_size_is_tried_even_and_odd_where_the_graph_takes_both() -> None:
    last = make_samples(identity(["n", 3, "h", 8]), shapes={"x": (1, 3, 6, 8)})[-1]
    assert (last.label, last["x"].shape) == ("noise of other sizes", (1, 3, 7, 8))
    for sizes in ([2, 3, 6, 8], ["n", 3, 6, 8]):
        assert "other sizes" not in make_samples(identity(sizes))[-1].label
    shape = {"s": np.array([2, 3, 6, 8])}
    picky = model([helper.make_node("Reshape", ["x", "s"], ["y"])], {"x": ["n", 3, "h", 8]}, {"y": [2, 3, 6, 8]}, shape)
    assert "other sizes" not in make_samples(picky, shapes={"x": (2, 3, 6, 8)})[-1].label


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "held-out 0: no array for input 'x'; found []"),
        ({"x": np.zeros((2, 3)), "z": np.zeros(1)}, "held-out 0: the graph has no input 'z'; it has ['x']"),
        ({"x": np.zeros((2, 4))}, "held-out 0: input 'x': shape [2, 4] does not fit [2, 3]"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_held_out_arrays_that_do_not_fit_are_refused(arrays: Any, message: str) -> None:
    with pytest.raises(CannotMakeSamples) as error:
        make_samples(identity([2, 3]), [arrays])
    assert str(error.value) == message


def test_rows_are_cut_to_the_batch_the_graph_takes() -> None:
    rows = {"x": np.arange(21).reshape(7, 3)}
    assert [s["x"].tolist() for s in cut_rows(identity([2, 3]), rows)] == [
        [[0, 1, 2], [3, 4, 5]],
        [[6, 7, 8], [9, 10, 11]],
        [[12, 13, 14], [15, 16, 17]],
    ]
    assert [len(s["x"]) for s in cut_rows(identity(["n", 3]), rows)] == [7]
    assert [len(s["x"]) for s in cut_rows(identity(["n", 3]), {"x": np.zeros((150, 3))})] == [64, 64]


def test_one_array_serves_one_input_whatever_its_name() -> None:
    assert list(cut_rows(identity([2, 3]), {"arr_0": np.zeros((2, 3))})[0]) == ["x"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((2, 3)), "b": np.zeros((2, 3))}, "no array for input 'x'; found ['a', 'b']"),
        (
            {"x": np.zeros((1, 3))},
            "holds 1 row along axis 0, expected at least 2, which the graph takes at a time",
        ),
        (
            {"x": np.zeros((0, 3))},
            "holds no rows along axis 0, expected at least 2, which the graph takes at a time",
        ),
        ({"x": np.zeros((4, 5))}, "input 'x': shape [2, 5] does not fit [2, 3]"),
        ({"x": np.full((2, 3), "a")}, "input 'x': holds <U1, which does not become the graph's float32"),
        ({"x": np.zeros((2, 3), complex)}, "input 'x': holds complex128, which does not become the graph's float32"),
    ],
    ids=["names", "too few", "none", "shape", "words", "complex"],
)
def test_samples_that_cannot_be_cut_are_refused_by_the_path_of_their_file(arrays: Any, message: str) -> None:
    with pytest.raises(CannotMakeSamples) as error:
        cut_rows(identity([2, 3]), arrays, "real.npz")
    assert str(error.value) == f"real.npz: {message}"


def test_a_free_batch_expects_one_row_at_least() -> None:
    with pytest.raises(CannotMakeSamples, match=r"holds no rows along axis 0, expected at least 1$"):
        cut_rows(identity(["n", 3]), {"x": np.zeros((0, 3))})


def test_real_rows_say_where_they_are_from() -> None:
    rows = {"x": np.zeros((5, 3), np.float32)}
    assert [s.origin for s in cut_rows(identity(["n", 3]), rows, "real.npz")] == ["real.npz"]
    found = [s.origin for s in make_samples(identity([2, 3]), cut_rows(identity([2, 3]), rows, "real.npz"))]
    assert found[:3] == ["real.npz, rows 1 to 2", "real.npz, rows 3 to 4", ""]


NAN, NUMBERS = np.full((2, 3), np.nan, np.float32), np.array([[np.nan, 1.0]], np.float32)


@pytest.mark.parametrize(
    "answers",
    [{"y": NUMBERS}, {"y": NAN, "z": NUMBERS}, {"i": np.zeros(3, np.int64)}, {"y": np.zeros((0, 3))}],
    ids=["one number", "in one output", "no floating point", "empty"],
)
def test_answers_with_a_number_show_something(answers: Any) -> None:
    check_answers(answers, Sample({}, "held-out 0", origin="real.npz"))


@pytest.mark.parametrize("answers", [{"y": NAN}, {"y": -NAN, "i": np.zeros(3, np.int64)}, {"y": NAN / 0, "z": NAN}])
def test_answers_to_real_inputs_without_any_number_are_refused_by_the_rows_of_the_file(answers: Any) -> None:
    with pytest.raises(CannotMakeSamples, match=r"^real\.npz, rows 3 to 4: no finite number in output 'y'"):
        check_answers(answers, Sample({}, "held-out 0", origin="real.npz, rows 3 to 4"))
    check_answers(answers, Sample({}, "noise times 1000"))  # which is not somebody's mistake


def test_more_samples_resemble_the_numbers_among_those_given_and_warn_of_nothing() -> None:
    wild = [np.full(50, np.nan), np.full(50, np.inf), np.full(50, 1e300), np.zeros(0), np.full(50, 3.0)]
    given = [{"x": array} for array in wild]
    assert all(next(more_like(given[i:] + given[:i], seed=0))["x"].dtype == np.float64 for i in range(len(given)))
    assert np.isfinite(next(more_like([given[4], given[0]], seed=0))["x"]).all()


def test_more_samples_resemble_those_given() -> None:
    given = [{"x": random(0, 4, 50) * 3 + 100, "i": np.array([4, 9])} for _ in range(3)]
    more = next(more_like(given, seed=0))
    assert 80 < more["x"].mean() < 120
    assert 1 < more["x"].std() < 6
    assert set(more["i"].tolist()) <= {4, 9}
