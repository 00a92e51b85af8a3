"""float16 and bfloat16: everything that can be half is, what cannot stays exact, and the answers are judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.training.fold.models import build, op_types, rng_of
from training.half_precision import TYPES, HalfDiffers, HalfRefused, judge, to_half
from training.samples import make_samples

FLOAT16, BFLOAT16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
DRAW = rng_of(0).standard_normal


def valid(model: ir.Model) -> ir.Model:
    """Types agree from end to end, says ONNX's own checker."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def judged(single: ir.Model, half: ir.Model, dtype: ir.DataType = FLOAT16) -> Any:
    return judge(single, half, [s for s in make_samples(single) if "times" not in s.label], dtype)


def conv_net(opset: int = 22) -> ir.Model:
    return build(
        """g (float[N,3,8,8] x, int64[N] i) => (float[N,4] y, int64[N] j) {
            c = Conv <pads = [1,1,1,1]> (x, w, b)
            l = Clip (c, low, high)
            p = GlobalAveragePool (l)
            y = Flatten (p)
            j = Identity (i)
        }""",
        opset=opset,
        ir_version=10,
        w=DRAW((4, 3, 3, 3)).astype(np.float32),
        b=DRAW(4).astype(np.float32),
        low=np.float32(-1),
        high=np.float32(np.finfo(np.float32).max),
    )


@pytest.mark.parametrize("name", TYPES)
def test_floats_become_half_and_integers_stay(name: str) -> None:
    dtype = TYPES[name]
    single = conv_net()
    half = valid(to_half(single, dtype))
    ends = {value.name: value.dtype for value in (*half.graph.inputs, *half.graph.outputs)}
    assert ends == {"x": dtype, "i": ir.DataType.INT64, "y": dtype, "j": ir.DataType.INT64}
    assert {v.const_value.dtype for v in half.graph.initializers.values()} == {dtype}
    assert op_types(half) == op_types(single)
    w = half.graph.initializers["w"].const_value.numpy()
    assert np.array_equal(w, single.graph.initializers["w"].const_value.numpy().astype(dtype.numpy()))
    assert single.graph.inputs[0].dtype is ir.DataType.FLOAT  # a copy was changed


def test_float16_answers_are_proved_within_the_stated_bound() -> None:
    single = conv_net()
    report = judged(single, to_half(single, FLOAT16))
    assert report.algebra_error <= 1e-9
    assert 0 < report.error < report.bound == 64 * 2.0**-11
    assert "FLOAT16: the same function" in report.as_text()


def test_where_the_runtime_has_no_kernels_it_is_judged_all_the_same_and_the_report_says_so() -> None:
    single = conv_net()
    report = judged(single, to_half(single, BFLOAT16), BFLOAT16)
    assert report.algebra_error <= 1e-9
    assert 2.0**-12 < report.error < report.bound == 64 * 2.0**-8
    assert "note: ONNX Runtime cannot run the model" in report.as_text()


def test_no_limit_stays_no_limit() -> None:
    high = to_half(conv_net(), FLOAT16).graph.initializers["high"].const_value.numpy()
    assert high == np.finfo(np.float16).max


# name -> (nodes, constants, operators expected after the pass, initializers that stay float32)
FLOAT32_ONLY: Mapping[str, tuple[str, dict[str, np.ndarray], list[str], dict[str, Any]]] = {
    "a constant operand stays unrounded": (
        'y = Resize <mode = "nearest"> (x, , scales)',
        {"scales": np.array([1, 1, 4 / 3, 4 / 3], np.float32)},
        ["Resize"],
        {"scales_float32": np.float32(4 / 3)},
    ),
    "a constant that others read, too, is there twice": (
        's = Add (x, scales) r = Resize <mode = "nearest"> (s, , scales) y = Identity (r)',
        {"scales": np.array([1, 1, 1, 1], np.float32)},
        ["Add", "Resize", "Identity"],
        {"scales_float32": np.float32(1)},
    ),
    "a computed operand is cast back": (
        'k = Mul (scales, one) y = Resize <mode = "nearest"> (x, , k)',
        {"scales": np.array([1, 1, 2, 2], np.float32), "one": np.float32(1)},
        ["Mul", "Cast", "Resize"],
        {},
    ),
    "a result that can only be float32 is cast": (
        "n = DequantizeLinear (q, one, zero) y = Add (x, n)",
        {"q": np.full((1, 1, 4, 4), 3, np.int8), "one": np.float32(0.5), "zero": np.int8(1)},
        ["DequantizeLinear", "Cast", "Add"],
        {"one_float32": np.float32(0.5)},
    ),
}


@pytest.mark.parametrize("case", FLOAT32_ONLY)
def test_an_operator_that_knows_only_float32_keeps_it(case: str) -> None:
    nodes, constants, operators, kept = FLOAT32_ONLY[case]
    single = build(f"g (float[1,1,4,4] x) => (float[1,1,a,b] y) {{ {nodes} }}", opset=17, **constants)
    half = valid(to_half(single, FLOAT16))
    assert op_types(half) == operators
    stays = {
        name: value.const_value.numpy().flat[-1]
        for name, value in half.graph.initializers.items()
        if value.const_value.dtype is ir.DataType.FLOAT
    }
    assert stays == kept
    assert judged(single, half).error <= 64 * 2.0**-11


def test_attributes_that_say_float32_say_half() -> None:
    single = build(
        """g (int64[2] i) => (float[2] y) {
            f = Cast <to = 1> (i)
            k = Constant <value_floats = [0.1, 0.2]> ()
            c = Constant <value_float = 3.0> ()
            s = Shape (i)
            z = ConstantOfShape (s)
            o = ConstantOfShape <value = float[1] {0.5}> (s)
            e = EyeLike <dtype = 1> (m)
            r = ReduceSum <keepdims = 0> (e, axis)
            a = Sum (f, k, c, z, o, r)
            y = Identity (a)
        }""",
        opset=17,
        m=np.zeros((2, 2), np.int64),
        axis=np.array([0]),
    )
    half = valid(to_half(single, FLOAT16))
    assert {value.dtype for node in half.graph for value in node.outputs} == {FLOAT16, ir.DataType.INT64}
    assert judged(single, half).error < 1e-3


def test_subgraphs_are_cast_with_what_they_capture() -> None:
    single = build(
        """g (float[1,1,2,2] x, bool c) => (float[1,1,a,b] y) {
            y = If (c) <
                then_branch = t () => (float[1,1,a,b] u) { u = Resize <mode = "nearest"> (x, , scales) },
                else_branch = e () => (float[1,1,a,b] v) { v = Mul (x, x) }
            >
        }""",
        opset=17,
        scales=np.array([1, 1, 4 / 3, 5 / 3], np.float32),
    )
    half = valid(to_half(single, FLOAT16))
    assert "scales" not in half.graph.initializers
    kept = half.graph[0].attributes["then_branch"].as_graph().initializers["scales_float32"].const_value.numpy()
    assert np.array_equal(kept, np.array([1, 1, 4 / 3, 5 / 3], np.float32))
    assert judged(single, half).error < 1e-3


REFUSED: Mapping[str, tuple[str, dict[str, np.ndarray], str]] = {
    "too large": (
        "y = Mul (x, k)",
        {"k": np.array([1, 7e4], np.float32)},
        "initializer 'k' holds 70000, but FLOAT16 ends at 65504",
    ),
    "too large in a node": (
        "k = Constant <value_float = -1e9> () y = Add (x, k)",
        {},
        "(Constant) holds -1e+09, but FLOAT16 ends at 65504",
    ),
    "unknown operator": ("y = own.Warp (x)", {}, "operator 'Warp' of domain 'own' has no schema"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_half_precision_cannot_hold_is_refused_by_name(case: str) -> None:
    nodes, constants, told = REFUSED[case]
    with pytest.raises(HalfRefused) as refused:
        to_half(build(f"g (float[2] x) => (float[2] y) {{ {nodes} }}", **constants), FLOAT16)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_local_function_is_refused_by_name() -> None:
    function = '<domain: "own", opset_import: ["" : 17]> Twice (a) => (b) { b = Add (a, a) }'
    with pytest.raises(HalfRefused, match="local function 'Twice'"):
        to_half(build("g (float[2] x) => (float[2] y) { y = own.Twice (x) }", functions=function), FLOAT16)


# What half precision makes of these is another function, or none.
DIFFERS: Mapping[str, tuple[str, dict[str, np.ndarray], str]] = {
    "a constant that vanishes": (
        "d = Add (x, k) n = Abs (x) y = Div (n, d)",
        {"k": np.array([1e-9], np.float32)},
        "a weight or a constant is too small or too large",
    ),
    "a value that overflows": ("a = Mul (x, k) b = Mul (a, k) y = Div (b, k)", {"k": np.float32([3e4])}, "overflow"),
    "cancellation": ("a = Add (x, k) y = Sub (a, k)", {"k": np.float32([2048])}, "of their own size from float32's"),
}


@pytest.mark.parametrize("case", DIFFERS)
def test_answers_that_half_precision_ruins_are_not_accepted(case: str) -> None:
    nodes, constants, told = DIFFERS[case]
    single = build(f"g (float[N,50] x) => (float[N,50] y) {{ {nodes} }}", **constants)
    with pytest.raises(HalfDiffers, match=told):
        judged(single, to_half(single, FLOAT16))


def test_a_single_wrong_weight_is_noticed() -> None:
    single = conv_net()
    half = to_half(single, FLOAT16)
    w = half.graph.initializers["w"]
    wrong = w.const_value.numpy().copy()
    wrong.flat[np.abs(wrong).argmax()] *= np.float16(1.2)
    w.const_value = ir.tensor(wrong, name="w")
    with pytest.raises(HalfDiffers, match="output 'y' differs in FLOAT16"):
        judged(single, half)


def test_bfloat16_is_rounded_once() -> None:
    exact = single_weight = np.float32(1 + 2**-8 + 2**-16)  # rounds up; by way of float16 it would round down, to even
    single = build("g (float[1] x) => (float[1] y) { y = Mul (x, k) }", k=np.array([single_weight]))
    k = to_half(single, BFLOAT16).graph.initializers["k"].const_value.numpy()
    assert k[0] == exact.astype(ml_dtypes.bfloat16) == np.float32(1 + 2**-7)
