"""The walker: what it widens, keeps and frees; functions, control flow, old broadcasting; and what it refuses."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.training.fold.models import build
from tests.training.reference.models import feeds, one_node, ours
from training.errors import UserError
from training.reference import EvaluationFailed, UnsupportedOperator, evaluate, widen, widened
from training.reference.op import Op
from training.reference.table import OPERATORS


def text(source: str) -> ir.Model:
    """A model in ONNX's text format."""
    return ir.serde.deserialize_model(onnx.parser.parse_model(source))


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ml_dtypes.float8_e4m3fn], ids=lambda d: d.__name__
)
def test_every_float_type_is_computed_in_float64_and_exactly_widened(dtype: Any) -> None:
    """1/3 rounded to the type, then times three in float64: no rounding back in between."""
    third = np.array([1 / 3]).astype(dtype)
    wide = widen(third)
    assert wide.dtype == np.float64
    assert wide[0] == float(third[0])
    model = one_node("Mul", [wide, np.array([3.0])])
    for info in model.graph.input[:1]:
        info.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(third.dtype)
    found = evaluate(ir.serde.deserialize_model(model), {"x0": third, "x1": np.array([3.0])})["y0"]
    assert found[0] == float(third[0]) * 3.0


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.bool_], ids=lambda d: d.__name__)
def test_integers_and_bools_keep_their_type(dtype: Any) -> None:
    x = np.array([0, 1, 1]).astype(dtype)
    assert ours(one_node("Identity", [x]), [x])[0].dtype == dtype


def test_whole_numbers_given_to_a_float_input_are_real_numbers() -> None:
    """7 / 2 is 3.5, not an integer division."""
    model = ir.serde.deserialize_model(one_node("Div", [np.zeros(1), np.zeros(1)]))
    assert evaluate(model, {"x0": np.array([7]), "x1": np.array([2])})["y0"] == 3.5


def test_a_cast_between_float_types_does_not_round() -> None:
    x = np.array([1 / 3])
    assert ours(one_node("Cast", [x], to=TensorProto.FLOAT16), [x])[0] == 1 / 3


def test_float_initializers_and_constants_are_widened() -> None:
    model = text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) <float[2] w = {0.1, 0.2}> {
            c = Constant<value = float[1] {0.7}>()
            f = Constant<value_float = 0.3>()
            i = Constant<value_ints = [1, 1]>()
            xw = Mul(x, w)
            xwc = Mul(xw, c)
            y = Add(xwc, f)
        }""")
    found = evaluate(model, {"x": np.array([1.0, 3.0], dtype=np.float32)})["y"]
    w, c, f = np.float32([0.1, 0.2]), np.float32(0.7), np.float32(0.3)
    assert found.tolist() == (np.array([1.0, 3.0]) * w.astype(float) * float(c) + float(f)).tolist()


def test_an_input_with_an_initializer_may_be_given_or_left_out() -> None:
    model = text("""<ir_version: 3, opset_import: ["" : 7]>
        g (float[1] x, float[1] w) => (float[1] y) <float[1] w = {2.0}> { y = Mul(x, w) }""")
    assert evaluate(model, {"x": np.array([3.0])})["y"] == 6.0
    assert evaluate(model, {"x": np.array([3.0]), "w": np.array([5.0])})["y"] == 15.0


def test_read_sees_every_constant_in_its_storage_type() -> None:
    model = text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1] x) => (float[1] y) <float16[1] w = {16384}> {
            c = Constant<value_float = 0.5>()
            h = Cast<to = 1>(w)
            xh = Mul(x, h)
            y = Mul(xh, c)
        }""")
    seen = []

    def read(tensor: Any) -> Any:
        seen.append(tensor.numpy().dtype.name)
        return widened(tensor) * 10

    # 0x4000 = 16384 is 2.0 in float16; (1 * 20) * 5
    assert evaluate(model, {"x": np.array([1.0])}, read=read)["y"] == 100.0
    assert sorted(seen) == ["float16", "float32"]


def test_a_tensor_is_freed_after_its_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a chain of ten only the tensor being read and the one being made are alive; weights go too."""
    alive: list[weakref.ref[Any]] = []
    most = 0

    def counted(op: Op, x: Any, w: Any) -> Any:
        nonlocal most
        y = x + w
        gc.collect()
        alive.append(weakref.ref(y))
        most = max(most, sum(ref() is not None for ref in alive))
        return y

    monkeypatch.setitem(OPERATORS, "Add", counted)
    nodes = [helper.make_node("Add", [f"t{i}", f"w{i}"], [f"t{i + 1}"]) for i in range(10)]
    weights = [numpy_helper.from_array(np.ones(3), f"w{i}") for i in range(10)]
    info = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [3]) for name in ("t0", "t10")]
    model = helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], weights))
    assert evaluate(ir.serde.deserialize_model(model), {"t0": np.zeros(3)})["t10"].tolist() == [10.0] * 3
    assert most == 2


def test_an_output_that_is_also_an_intermediate_is_kept() -> None:
    model = text("""<ir_version: 8, opset_import: ["" : 17]>
        g (double[2] x) => (double[2] a, double[2] b, double[2] x) { a = Neg(x)  b = Neg(a) }""")
    found = evaluate(model, {"x": np.array([1.0, 2.0])})
    assert found["a"].tolist() == [-1.0, -2.0]
    assert found["b"].tolist() == found["x"].tolist() == [1.0, 2.0]


def test_a_local_function_gets_its_attributes_and_its_own_opset() -> None:
    """`axes` is an attribute in the function's opset 11; alpha comes from the call, beta from the default."""
    model = text("""<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
        g (double[2,3] x) => (double[2] y, double[2] z) {
            y = local.weigh<alpha = 0.5>(x)
            z = local.weigh<alpha = 2.0, beta = 0.25>(x)
        }
        <domain: "local", opset_import: ["" : 11]>
        weigh<alpha, beta: float = 1.0>(x) => (y) {
            r = LeakyRelu<alpha = @alpha>(x)
            l = Elu<alpha = @beta>(r)
            y = ReduceSum<axes = [1], keepdims = 0>(l)
        }""")
    x = np.array([[1.0, -2.0, 3.0], [-1.0, -1.0, 4.0]])
    found = evaluate(model, {"x": x})

    def weigh(alpha: float, beta: float) -> Any:
        r = np.where(x < 0, alpha * x, x)
        return np.where(r < 0, beta * np.expm1(r), r).sum(axis=1)

    np.testing.assert_allclose(found["y"], weigh(0.5, 1.0), rtol=1e-15)
    np.testing.assert_allclose(found["z"], weigh(2.0, 0.25), rtol=1e-15)


def test_if_runs_one_branch_and_sees_the_outer_scope() -> None:
    model = text("""<ir_version: 8, opset_import: ["" : 17]>
        g (bool c, double[2] x) => (double[2] y) {
            n = Neg(x)
            y = If (c) <
                then_branch = a () => (double[2] r) { r = Add(n, n) },
                else_branch = b () => (double[2] r) { r = Mul(x, x) }
            >
        }""")
    x = np.array([1.0, 3.0])
    assert evaluate(model, {"c": np.array(True), "x": x})["y"].tolist() == [-2.0, -6.0]
    assert evaluate(model, {"c": np.array(False), "x": x})["y"].tolist() == [1.0, 9.0]


def test_loop_carries_values_and_stacks_scan_outputs() -> None:
    model = text("""<ir_version: 8, opset_import: ["" : 17]>
        g (int64 n, double[1] x) => (double[1] last, double[?,1] every) {
            keep = Constant<value = bool {1}>()
            last, every = Loop (n, keep, x) <
                body = b (int64 i, bool going, double[1] v) => (bool more, double[1] w, double[1] seen) {
                    w = Add(v, x)
                    limit = Constant<value = double[1] {5.0}>()
                    below = Less(w, limit)
                    more = Squeeze(below)
                    seen = Identity(w)
                }
            >
        }""")
    found = evaluate(model, {"n": np.array(3), "x": np.array([1.0])})
    assert found["last"].tolist() == [4.0]
    assert found["every"].tolist() == [[2.0], [3.0], [4.0]]
    assert evaluate(model, {"n": np.array(9), "x": np.array([1.0])})["last"].tolist() == [5.0]


def test_scan_sums_along_an_axis() -> None:
    model = text("""<ir_version: 8, opset_import: ["" : 17]>
        g (double[2] start, double[2,3] x) => (double[2] total, double[2,3] running) {
            total, running = Scan<
                num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
                body = b (double[2] s, double[2] column) => (double[2] t, double[2] out) {
                    t = Add(s, column)
                    out = Identity(t)
                }
            >(start, x)
        }""")
    x = np.arange(6.0).reshape(2, 3)
    found = evaluate(model, {"start": np.zeros(2), "x": x})
    assert found["total"].tolist() == x.sum(axis=1).tolist()
    assert found["running"].tolist() == np.cumsum(x, axis=1).tolist()


@pytest.mark.parametrize("kind", ["Add", "Mul", "Sub", "Div", "Pow"])
def test_broadcasting_of_opset_6_aligns_at_the_named_axis(kind: str) -> None:
    """All sizes alike: aligned at the last axis, as NumPy would, the result is wrong but has the right shape."""
    x, b = np.random.default_rng(0).uniform(1, 2, (3, 3, 3)), np.array([1.0, 2.0, 3.0])
    found = ours(one_node(kind, [x, b], opset=6, broadcast=1, axis=1), [x, b])[0]
    np.testing.assert_allclose(found, ours(one_node(kind, [x, b[:, None]]), [x, b[:, None]])[0], rtol=1e-15)


def test_prelu_of_opset_6_reads_a_vector_as_channels() -> None:
    x, slope = -np.ones((1, 2, 2, 2)), np.array([2.0, 3.0])
    assert ours(one_node("PRelu", [x, slope], opset=6), [x, slope])[0][0, :, 0, 0].tolist() == [-2.0, -3.0]


def test_reshape_of_opset_1_has_its_shape_in_an_attribute() -> None:
    x = np.arange(6.0)
    assert ours(one_node("Reshape", [x], opset=1, shape=[2, -1]), [x])[0].shape == (2, 3)


def test_an_operator_without_a_row_is_evaluated_by_onnx_reference() -> None:
    assert "Hardmax" not in OPERATORS
    x = np.array([[1.0, 5.0, 2.0]])
    found = ours(one_node("Hardmax", [x]), [x])[0]
    assert found.dtype == np.float64
    assert found.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("kind", "domain", "named"),
    [("Warp", "", "'ai.onnx'"), ("FusedConv", "com.microsoft", "'com.microsoft'"), ("RandomNormalLike", "", "random")],
    ids=["unknown", "contrib", "random"],
)
def test_an_operator_nobody_knows_is_named_with_its_domain_and_node(kind: str, domain: str, named: str) -> None:
    node = helper.make_node(kind, ["x"], ["y"], name="odd", domain=domain)
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    opsets = [helper.make_opsetid(domain, 1)] if domain else []
    model = helper.make_model(
        helper.make_graph([node], "g", info[:1], info[1:]), opset_imports=[helper.make_opsetid("", 17), *opsets]
    )
    with pytest.raises(UnsupportedOperator) as error:
        evaluate(ir.serde.deserialize_model(model), {"x": np.zeros(2)})
    message = str(error.value)
    assert "node 'odd'" in message
    assert f"operator '{kind}'" in message
    assert named in message
    assert "\n" not in message
    assert isinstance(error.value, UserError)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no array is given for the graph's input 'x0'"),
        (
            {"x0": np.zeros((2, 3)), "x1": np.zeros((3, 2)), "z": np.zeros(1)},
            "the graph has no input 'z'; it has ['x0', 'x1']",
        ),
        ({"x0": np.zeros((2, 3)), "x1": np.zeros((2, 2))}, "node 'the_node' (MatMul) refuses its inputs: matmul"),
    ],
    ids=["missing", "unknown", "shapes"],
)
def test_inputs_that_do_not_fit_are_one_clear_line(given: dict[str, Any], message: str) -> None:
    model = ir.serde.deserialize_model(one_node("MatMul", [np.zeros((2, 3)), np.zeros((3, 2))]))
    with pytest.raises(EvaluationFailed) as error:
        evaluate(model, given)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "shapes", "attributes", "message"),
    [
        ("Conv", [(1, 3, 5, 5), (4, 2, 3, 3)], {}, "do not fit with group=1"),
        ("Conv", [(1, 4, 5, 5), (3, 2, 3, 3)], {"group": 2}, "do not fit with group=2"),
        ("Conv", [(1, 3, 2, 2), (4, 3, 3, 3)], {}, "is larger than the padded input [2, 2]"),
        ("Conv", [(1, 3, 5), (4, 3, 3, 3)], {}, "the input has 1 spatial axes, the kernel [3, 3] has 2"),
        ("ConvTranspose", [(1, 3, 5, 5), (4, 2, 3, 3)], {}, "do not fit with group=1"),
        ("Gemm", [(2, 3, 4), (4, 5)], {}, "Gemm takes matrices, got [2, 3, 4]"),
        ("Gemm", [(2, 3), (3, 5), (4, 2, 5)], {}, "C [4, 2, 5] does not broadcast"),
        ("Reshape", [(2, 3)], {"opset": 1, "shape": [4]}, "cannot reshape"),
    ],
    ids=["channels", "groups", "kernel", "rank", "transpose-channels", "gemm-rank", "gemm-c", "reshape"],
)
def test_a_node_whose_inputs_do_not_fit_says_what_it_found(
    kind: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], message: str
) -> None:
    inputs = [np.zeros(shape) for shape in shapes]
    model = ir.serde.deserialize_model(one_node(kind, inputs, **attributes))
    with pytest.raises(EvaluationFailed) as error:
        evaluate(model, feeds(inputs))
    assert message in str(error.value)


def test_infinities_and_nan_pass_through_without_a_warning() -> None:
    inputs = [np.array([1e308, 1.0, -np.inf, np.nan, 0.0]), np.array([1e-10, 0.0, 0.0, 1.0, 0.0])]
    found = ours(one_node("Div", inputs), inputs)[0]
    assert found[:3].tolist() == [np.inf, np.inf, -np.inf]
    assert np.isnan(found[3:]).all()


def test_a_value_used_before_it_is_computed_is_named() -> None:
    nodes = [helper.make_node("Neg", ["a"], ["y"]), helper.make_node("Neg", ["x"], ["a"])]
    info = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [1]) for name in "xy"]
    model = ir.serde.deserialize_model(helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:])))
    with pytest.raises(EvaluationFailed, match="value 'a' is used before any node computes it"):
        evaluate(model, {"x": np.zeros(1)})


def test_dropout_is_the_identity_at_inference_and_refused_in_training() -> None:
    x = np.array([1.0, 2.0])
    assert ours(one_node("Dropout", [x], opset=12), [x])[0].tolist() == [1.0, 2.0]
    training = [x, np.array(0.5), np.array(True)]
    with pytest.raises(UnsupportedOperator, match="in training mode its result is random"):
        ours(one_node("Dropout", training, opset=13), training)


def test_an_output_that_is_no_tensor_is_refused_by_name() -> None:
    model = build("g (float[4] x) => (seq(float[2]) y) { y = SplitToSequence (x, two) }", two=np.array(2))
    with pytest.raises(EvaluationFailed, match="output 'y' is a list, expected a tensor"):
        evaluate(model, {"x": np.ones(4)})
