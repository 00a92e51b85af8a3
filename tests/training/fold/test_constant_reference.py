"""Operators that the engine has no function for, of constants: what a run time computes, or a refusal with a reason."""

from __future__ import annotations

import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from tests.training.fold.models import build, mild_statistics, op_types, rng_of, serialized
from training import verify
from training.fold import constant_reference, fold
from training.fold.constant_reference import KNOWN
from training.fold.constants import Constants
from training.fold.refusal import Refusal
from training.fold.shapes import Shapes

P = rng_of(0).normal(size=(4, 6)).astype(np.float32)
IMAGE = rng_of(1).normal(size=(1, 4, 6, 5)).astype(np.float32)
INTEGERS = rng_of(2).integers(-9, 9, size=(4, 6))
CONSTANTS = {
    "p": P,
    "q": rng_of(3).normal(size=(6, 3)).astype(np.float32),
    "image": IMAGE,
    "positive": np.abs(P) + 1,
    "square": rng_of(9).normal(size=(3, 3)).astype(np.float32),
    "n": INTEGERS,
    "m": np.abs(INTEGERS[::-1]) + 1,
    "c": P > 0,
    "u8": np.array([1, 7], np.uint8),
    "zero": np.array(0),
    "one": np.array(1),
    "four": np.array(4),
    "nine": np.array(9),
    "back": np.array(-4),
    "axis": np.array([1]),
    "two": np.array([2]),
    "sizes": np.array([2, 3]),
    "lengths": np.array([1, 6, 3, 2]),
    "picks": np.array([[3, 0, 1, 2, 0, 3]]),
    "places": np.array([[3, 5], [0, 1]]),
    "put": P[:1] * 2,
    "put_two": np.array([1, 2], np.float32),
    "keep": np.array([True, False, True]),
    "ones": np.ones(4, np.float32),
    "all_ones": np.ones((4, 6, 5), np.float32),
    "start": np.array(1.0, np.float32),
    "limit": np.array(3.0, np.float32),
    "step": np.array(0.3, np.float32),
    "ties": np.array([[3, 1, 3, 2, 1, 3]], np.float32),
    "mixed": np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32),
    "signed": np.array([-7, 7, -8, 8]),
    "divisors": np.array([3, -3, -3, 3]),
    "minus": np.array(-1),
    "neg": np.array([[-1, 0, -2, 1, -3, 2]]),
    "last_places": np.array([[-1, -1], [0, -6]]),
    "twice": np.array([[1], [1]]),
    "two_rows": np.ones((2, 6), np.float32),
    "pads": np.array([1, 2, 1, 1]),
    "fill": np.array(9, np.float32),
    "indices": np.array([-1, 0, 2]),
    "off_on": np.array([0, 5], np.float32),
    "big": rng_of(10).normal(size=(2, 3, 4, 4)).astype(np.float32),
    "other": rng_of(11).normal(size=(4, 6)).astype(np.float32),
    "six": rng_of(12).normal(size=6).astype(np.float32),
    "column_of_four": rng_of(13).normal(size=(4, 1)).astype(np.float32),
    "seven": rng_of(14).normal(size=(7, 2)).astype(np.float32),
    "square_of_four": rng_of(15).normal(size=(4, 4)).astype(np.float32),
    "batch": rng_of(16).normal(size=(2, 3, 3)).astype(np.float32),
    "infinite": np.array([np.inf, -np.inf, 0, np.nan], np.float32),
    "bytes": np.array([128, 7], np.uint8),
    "none_and_two": np.array([0, 2]),
    "times": np.array([1, 2, 1, 3]),
    "repeated": np.array([3, 1, 3, 2, 1, 3]),
    "six_lengths": np.array([1, 2, 3, 4, 4, 1]),
    "never": np.zeros((4, 6), bool),
}


def chain(nodes: str, opset: int = 20, **constants) -> ir.Model:
    """A graph that reads no x and whose last output is `k`, with those constants that it names."""
    named = set(re.findall(r"\w+", nodes))
    used = {name: array for name, array in (CONSTANTS | constants).items() if name in named}
    return build(f"m (float[N,4,6] x) => (k) {{ {nodes} }}", opset=opset, **used)


def found_in(model: ir.Model, name: str = "k"):
    (value,) = (output for node in model.graph for output in node.outputs if output.name == name)
    return Constants(Shapes(model)).of(value)


def run(model: ir.Model):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run(["k"], {"x": np.zeros((2, 4, 6), np.float32)})[0]


UNARY = (
    *("ArgMax", "ArgMin", "Asinh", "Atan", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Floor", "Gelu", "HardSigmoid"),
    *("HardSwish", "Hardmax", "IsInf", "IsNaN", "LeakyRelu", "LogSoftmax", "Mish", "NonZero"),
    *("ReduceL1", "ReduceLogSumExp", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Softmax"),
    *("Softplus", "Softsign", "Tan", "Tanh", "ThresholdedRelu", "Trilu"),
)
EVALUATED = {
    **{op: f"k = {op} (p)" for op in UNARY},
    "arcs": "b = Tanh (p) a = Atanh (b) d = Acos (b) e = Asin (b) k = Sum (a, d, e)",
    "logarithm": "k = Log (positive)",
    "logarithm of a sum": "k = ReduceLogSum (positive)",
    "arc hyperbolic cosine": "k = Acosh (positive)",
    "running sum": "k = CumSum <reverse = 1> (p, one)",
    "product of matrices": "k = MatMul (p, q)",
    "affine product": "k = Gemm <alpha = 0.5, transA = 1, transB = 1> (q, p)",
    "Einstein's sum": """k = Einsum <equation = "ij,jk->ki"> (p, q)""",
    "inner product": """k = Einsum <equation = "ij, ij -> i"> (p, p)""",
    "mean of several": "k = Mean (p, positive)",
    "slope by parameter": "k = PRelu (p, positive)",
    "tile": "k = Tile (p, sizes)",
    "pad": "g = Concat <axis = 0> (sizes, sizes) k = Pad (p, g)",
    "second of a split": "s = Concat <axis = 0> (two, two) f, k = Split <axis = 0> (p, s)",
    "first of a split": "k, f = Split <axis = 0, num_outputs = 2> (p)",
    "place of the largest": "v, k = TopK (p, two)",
    "largest": "k, v = TopK <largest = 0> (p, two)",
    "greater": "k = Greater (p, positive)",
    "less or equal": "k = LessOrEqual (n, m)",
    "equal": "k = Equal (n, m)",
    "choice by comparison": "b = Less (p, positive) g = Not (b) h = Or (b, g) k = Where (h, p, positive)",
    "remainder": "k = Mod (n, m)",
    "remainder of floats": "k = Mod <fmod = 1> (p, positive)",
    "product of integers": "k = ReduceProd <keepdims = 0> (m, axis)",
    "sum of integers": "k = ReduceSum (n)",
    "power of integers": "k = Pow (m, two)",
    "cast of a choice": "k = Cast <to = 1> (c)",
    "cast to a choice": "k = Cast <to = 9> (p)",
    "cast to bytes": "k = Cast <to = 3> (p)",
    "one-hot": "v = Cast <to = 1> (sizes) k = OneHot (axis, nine, v)",
    "range of floats": "k = Range (start, limit, step)",
    "range of integers": "k = Range (zero, nine, four)",
    "backwards": "k = Range (nine, zero, back)",
    "picked elements": "k = GatherElements <axis = 0> (p, picks)",
    "picked places": "k = GatherND (p, places)",
    "put elements": "k = ScatterElements (p, picks, put)",
    "put places": """k = ScatterND <reduction = "add"> (p, places, put_two)""",
    "kept rows": "k = Compress <axis = 1> (p, keep)",
    "identity matrix": "k = EyeLike (p)",
    "determinant": "k = Det (square)",
    "depth to space": "k = DepthToSpace <blocksize = 2> (image)",
    "layer normalisation": "k = LayerNormalization <axis = 1> (image, all_ones)",
    "instance normalisation": "k = InstanceNormalization (image, ones, ones)",
    "group normalisation": "k = GroupNormalization <num_groups = 2> (image, ones, ones)",
    "root mean square": "k = RMSNormalization <axis = 1> (image, all_ones)",
    "reversed rows": "k = ReverseSequence <batch_axis = 0, time_axis = 1> (p, lengths)",
    "bits": "a = BitwiseAnd (n, m) b = BitwiseOr (a, m) c1 = BitwiseXor (b, n) k = BitwiseNot (c1)",
    "shifted bits": """k = BitShift <direction = "LEFT"> (u8, u8)""",
    "at most one": "b = Less (p, positive) k = Xor (b, c)",
    "both": "b = GreaterOrEqual (p, positive) k = And (b, c)",
    "swish": "k = Swish <alpha = 0.5> (p)",
    "dropout": "k = Dropout (p)",
}
VARIANTS = [
    "v, k = TopK (ties, two)",
    "v, k = TopK <largest = 0> (ties, two)",
    "k, v = TopK <axis = 0> (p, two)",
    "v, k = TopK <sorted = 1> (repeated, two)",
    "k = ArgMax <axis = 1, select_last_index = 1> (ties)",
    "k = ArgMax <axis = 1> (ties)",
    "k = ArgMin <axis = -1, keepdims = 0> (ties)",
    "k = Hardmax (ties)",
    "k = Round (mixed)",
    "k = Mod (signed, divisors)",
    "k = Mod <fmod = 1> (signed, divisors)",
    "k = CumSum <exclusive = 1> (p, one)",
    "k = CumSum <exclusive = 1, reverse = 1> (p, minus)",
    "k = GatherND (p, last_places)",
    "k = ScatterND (p, last_places, put_two)",
    'k = ScatterND <reduction = "mul"> (p, twice, two_rows)',
    'k = ScatterND <reduction = "max"> (p, twice, two_rows)',
    'k = ScatterElements <axis = 1, reduction = "add"> (p, neg, put)',
    'k = Pad <mode = "reflect"> (p, pads)',
    'k = Pad <mode = "edge"> (p, pads)',
    'k = Pad <mode = "wrap"> (p, pads)',
    "k = Pad (p, pads, fill)",
    "k = OneHot (indices, four, off_on)",
    "k = OneHot <axis = 0> (indices, four, off_on)",
    "k = Trilu <upper = 0> (big, one)",
    "k = Trilu (p, one)",
    "k = Trilu <upper = 0> (big, minus)",
    'k = Einsum <equation = "...ij->...ji"> (big)',
    'k = Einsum <equation = "ii"> (square)',
    'k = Einsum <equation = "ij,jk"> (p, q)',
    'k = Einsum <equation = "b...->..."> (big)',
    "k = Gemm (p, q, column_of_four)",
    "k = Gemm <alpha = 2.0, beta = 0.5, transA = 1> (p, other, six)",
    "k = Hardmax <axis = 0> (p)",
    "a, b, k = Split <axis = 0, num_outputs = 3> (seven)",
    "k, b, c1 = Split <axis = 0, num_outputs = 3> (seven)",
    'k = DepthToSpace <blocksize = 2, mode = "CRD"> (image)',
    "k = LayerNormalization (p, six)",
    "k = LayerNormalization (p, six, six)",
    "k, mean, inv = LayerNormalization (p, six)",
    'k = BitShift <direction = "RIGHT"> (bytes, u8)',
    'k = BitShift <direction = "LEFT"> (bytes, u8)',
    'k = Gelu <approximate = "tanh"> (p)',
    "k = Shrink <lambd = 0.3, bias = 0.1> (p)",
    "k = ThresholdedRelu <alpha = 0.2> (p)",
    "k = Celu <alpha = 0.3> (p)",
    "k = Selu <alpha = 1.2, gamma = 0.5> (p)",
    "k = Elu <alpha = 0.3> (p)",
    "k = HardSigmoid <alpha = 0.3, beta = 0.4> (p)",
    "k = LeakyRelu <alpha = 0.3> (p)",
    "k = Compress (p, keep)",
    "k = Tile (p, none_and_two)",
    "k = Tile (big, times)",
    "k = ReduceL1 <keepdims = 0> (p, axis)",
    "k = ReduceLogSumExp (p, axis)",
    "k = ReduceLogSum <noop_with_empty_axes = 1> (positive)",
    "k = EyeLike <k = 1> (p)",
    "k = EyeLike <k = -1, dtype = 7> (p)",
    "k = Softmax <axis = 0> (p)",
    "k = LogSoftmax <axis = 1> (big)",
    "k = InstanceNormalization <epsilon = 0.1> (image, ones, ones)",
    "k = Mean (p, six, column_of_four)",
    "k = PRelu (p, six)",
    "k = ReverseSequence <batch_axis = 1, time_axis = 0> (p, six_lengths)",
    "k = Equal (c, never)",
    "k = MatMul (big, square_of_four)",
    "k = MatMul (six, six)",
    "k = NonZero (ties)",
    "k = Det (batch)",
    "k = Size (big)",
    "k = Range (nine, zero, back)",
    "k = Cast <to = 6> (mixed)",
    "k = Cast <to = 2> (u8)",
    "k = ReduceMin <keepdims = 0> (n, axis)",
    "k = Pow (n, two)",
    "k = Xor (c, c)",
    "k = IsInf <detect_negative = 0> (infinite)",
    "k = IsInf <detect_positive = 0> (infinite)",
    "k = Sign (infinite)",
    "k = Cast <to = 9> (infinite)",
    "k = Equal (infinite, infinite)",
]
YOUNGER = {"GroupNormalization": 21, "RMSNormalization": 23, "Swish": 24}


@pytest.mark.parametrize("nodes", [*EVALUATED.values(), *VARIANTS], ids=[*EVALUATED, *VARIANTS])
def test_it_is_what_the_run_time_computes(nodes):
    opset = max([20, *(since for op, since in YOUNGER.items() if f" {op} " in nodes)])
    model = chain(nodes, opset)
    expected = run(model)

    found = found_in(model)

    assert isinstance(found, np.ndarray), found
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_every_operator_that_is_evaluated_is_in_the_table():
    assert {op for op in KNOWN if not any(f"= {op} " in nodes for nodes in EVALUATED.values())} == set()


REFUSED = {
    "random": ("[r] k = RandomNormalLike (p)", 20, ""),
    "random by its operands": ("[r] k = Multinomial (p)", 20, ""),
    "a dropout in training": (
        "t = Constant <value = bool {1}> () h = Constant <value = float {0.5}> () [r] k = Dropout (p, h, t)",
        20, ", which is random in training mode"),
    "a layer": ("[r] k = LRN <size = 3> (image)", 20, ""),
    "what somebody wants quantised": ("z = Cast <to = 3> (zero) [r] k = QuantizeLinear (p, step, z)", 20, ""),
    "a choice of graphs": (
        """b = Constant <value = bool {1}> ()
           [r] k = If (b) <then_branch = t () => (float[4,6] u) { u = Neg (p) },
                           else_branch = e () => (float[4,6] v) { v = Abs (p) }>""", 20, ""),
    "a sequence": ("s = SequenceConstruct (p, p) [r] k = ConcatFromSequence <axis = 0> (s)", 20, ""),
    "another domain": ("[r] k = own.Softmax (p)", 20, ""),
    "an older meaning": ("[r] k = Softmax (image)", 11, ""),
    "an older meaning of the parameters": ("[r] k = GroupNormalization <num_groups = 2> (image, pair, pair)", 18, ""),
    "older broadcasting": ("[r] k = Greater <axis = 0, broadcast = 1> (p, ones)", 6, ""),
    "data": ("[r] k = Tanh (x)", 20, ""),
    "numbers that the operator does not take": ("[r] k = Tanh (n)", 20, ", which fails: [ShapeInferenceError] "),
    "two types": ("[r] k = Greater (p, n)", 20, ", which fails: [ShapeInferenceError] "),
    "sizes that do not fit": ("[r] k = MatMul (p, p)", 20, ", which fails: [ShapeInferenceError] "),
    "a place that is not there": ("[r] k = GatherElements (p, far)", 20, ", which fails: "),
    "a bomb by Tile": ("[r] k = Tile (p, bomb)", 20, ", whose 240000000000 elements are not a weight"),
    "a bomb by Pad": ("[r] k = Pad (p, far_pads)", 20, ", whose 10000400600024 elements are not a weight"),
    "a bomb by OneHot": (
        "v = Cast <to = 1> (sizes) [r] k = OneHot (axis, depth, v)", 20, ", whose 1000000000000 elements"),
    "a bomb by MatMul": (
        "a = ConstantOfShape (column) b = ConstantOfShape (row) [r] k = MatMul (a, b)",
        20, ", whose 16000000000 elements are not a weight"),
    "a bomb by Einsum": (
        """a = ConstantOfShape (small) [r] k = Einsum <equation = "ab,bc,cd,de->ae"> (a, a, a, a)""",
        20, ", which takes too many products"),
    "a large operand": ("a = ConstantOfShape (large) [r] k = Erf (a)", 20, ", whose 4198400 elements"),
    "many steps of a loop": (
        "a = ConstantOfShape (many) [r] k = GatherND (a, places)", 20, ", whose 76800 elements are not a weight"),
    "an infinity of the reference's own": ("[r] k = LogSoftmax (steep)", 20, ", which onnx.reference does not answer"),
    "a number beyond the type": ("[r] k = Cast <to = 7> (steep)", 20, ", to int64, which cannot hold its numbers"),
}  # fmt: skip
HOSTILE = {
    "pair": np.ones(2, np.float32),
    "far": np.array([[99]]),
    "bomb": np.array([100000, 100000]),
    "far_pads": np.array([0, 0, 100000, 100000000]),
    "depth": np.array(1000000000000),
    "column": np.array([4000000, 1]),
    "row": np.array([1, 4000]),
    "small": np.array([256, 256]),
    "large": np.array([2050, 2048]),
    "steep": np.array([0, 1e20], np.float32),
    "many": np.array([300, 256]),
}


@pytest.mark.parametrize(("nodes", "opset", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_evaluated_is_refused_with_the_node(nodes, opset, reason):
    refusal = found_in(chain(nodes, opset, **HOSTILE))

    assert isinstance(refusal, Refusal)
    assert re.match(rf"'k' is computed by \w+ 'r'{re.escape(reason) or '$'}", refusal.reason), refusal.reason


ON_EDGE = {"tenth": np.float32([0.7]), "half": np.float32([0.5]), "ten": np.float32([10]), "seven": np.float32([7])}


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Mul (tenth, ten) k = Floor (a)",
        "a = Mul (tenth, ten) b = Sub (a, seven) k = Sign (b)",
        "a = Mul (tenth, ten) k = GreaterOrEqual (a, seven)",
        "a = Mul (tenth, ten) k = Cast <to = 7> (a)",
        "a = Mul (tenth, ten) b = Cast <to = 11> (a) k = Floor (b)",
        "a = Mul (tenth, ten) k = ArgMax (a)",
        "a = Sqrt (seven) k, i = TopK (a, one)",
        "a = Mul (tenth, ten) b = Squeeze (a) k = Range (zero, b, step)",
        "a = Mul (tenth, ten) k = OneHot (a, depth, values)",
    ],
)
def test_a_step_is_not_decided_by_a_number_that_a_run_time_rounds(nodes):
    """0.7 as a float, times 10, is below 7; rounded to a float it is 7."""
    more = {
        "one": np.array([1]),
        "depth": np.array(8),
        "zero": np.float32(0),
        "step": np.float32(1),
        "values": np.float32([0, 1]),
    }
    refusal = found_in(chain(nodes, **ON_EDGE, **more))

    assert isinstance(refusal, Refusal) and refusal.reason.endswith("which rounding may decide")


@pytest.mark.parametrize(
    "nodes", ["a = Mul (half, ten) k = Floor (a)", "k = Sign (tenth)", "a = Sub (ten, seven) k = Cast <to = 7> (a)"]
)
def test_where_nothing_is_rounded_a_step_is_taken(nodes):
    model = chain(nodes, **ON_EDGE)

    assert found_in(model) == run(model)


@pytest.mark.parametrize("operator", ["ReduceSumSquare", "ReduceL2", "ReduceL1", "ReduceSum"])
def test_reducing_along_no_axis_reduces_each_element(operator):
    v = np.float32([[1.5, -2.0], [0.25, 3.0]])
    model = chain(f"k = {operator} <noop_with_empty_axes = 1> (v)", v=v)

    np.testing.assert_array_equal(found_in(model), {"ReduceSum": v, "ReduceSumSquare": v * v}.get(operator, np.abs(v)))


@pytest.mark.parametrize(
    "nodes",
    ["k, i = TopK <sorted = 0> (v, n)", "k = ArgMax (nan)", "k = ReduceMean (empty, axes)", "k = Pow (large, n)"],
)
def test_where_run_times_differ_nothing_is_said(nodes):
    arrays = {"v": np.float32([3, 1, 2]), "n": np.array([2]), "nan": np.float32([np.nan, 1])}
    more = {"empty": np.zeros((2, 0), np.float32), "axes": np.array([1]), "large": np.int32([1 << 20])}

    assert isinstance(found_in(chain(nodes, **arrays, **more)), Refusal)


def test_many_chains_that_fit_no_memory_take_no_longer_than_their_nodes(monkeypatch):
    """Each operand is read once, though nothing is remembered."""
    monkeypatch.setattr("training.fold.constants._REMEMBERED_BYTES", 0)
    asked = []
    evaluate = constant_reference.evaluate
    monkeypatch.setattr(constant_reference, "evaluate", lambda *given: asked.append(0) or evaluate(*given))
    nodes = " ".join(f"a{i + 1} = Softsign (a{i})" for i in range(40))

    found_in(chain(f"a0 = Identity (v) {nodes} k = Erf (a40)", v=np.float32([1, 2])))

    assert len(asked) == 41


def test_arithmetic_around_it_is_rounded_once():
    v = np.linspace(0.1, 3, 200).astype(np.float32)
    exact = 1 / (1 + np.exp(-np.sqrt(v.astype(np.float64))))

    np.testing.assert_array_equal(found_in(chain("a = Sqrt (v) k = Sigmoid (a)", v=v)), exact.astype(np.float32))


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64], ids=lambda kind: kind.__name__)
def test_the_type_is_the_operators(kind):
    v = np.linspace(-1, 1, 9).astype(kind)
    expected = np.tanh(v.astype(np.float64))

    found = found_in(chain("k = Tanh (v)", v=v))

    assert found.dtype == kind
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=float(ml_dtypes.finfo(kind).eps))


def test_operands_are_never_written_into():
    model = chain("k = ScatterElements (p, picks, put) e = Mul (p, p)")
    before = CONSTANTS["p"].copy()

    found_in(model)

    np.testing.assert_array_equal(model.graph.initializers["p"].const_value.numpy(), before)


def test_questions_are_answered_once_each_output_too():
    """2^60 steps if nothing were remembered, of a node with two outputs each."""
    doubled = " ".join(f"a{i}, b{i} = TopK (k{i}, two) k{i + 1} = Mean (a{i}, a{i})" for i in range(60))
    model = chain(f"{doubled} k = Identity (k60)", k0=np.array([2.0, 1.0], np.float32))

    assert found_in(model).tolist() == [2.0, 1.0]


def test_onnx_reference_is_imported_when_it_is_needed_only():
    code = "import sys, training.fold; sys.exit('onnx.reference' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


FOLDED = {
    "weights of a search": "s = Softmax <axis = 0> (a) i = Gather (s, j) h = Mul (n, i)",
    "a gate of parameters": "s = Sigmoid (gate) h = Mul (n, s)",
    "a mask": "s = Greater (gate, zero_float) t = Cast <to = 1> (s) h = Mul (n, t)",
    "halves": "s, t = Split <axis = 0, num_outputs = 2> (gate) u = Concat <axis = 0> (t, s) h = Mul (n, u)",
}


@pytest.mark.parametrize("nodes", FOLDED.values(), ids=FOLDED.keys())
def test_functions_of_parameters_fold_with_the_batchnorm_and_the_proof_holds(nodes):
    """Nothing of the chain is left either, and folding twice changes nothing more."""
    rng = rng_of(11)
    constants = {
        "w": rng.normal(size=(4, 3, 3, 3)), "w2": rng.normal(size=(2, 4, 1, 1)), "a": rng.normal(size=5),
        "gate": rng.normal(size=(4, 1, 1)), "zero_float": np.zeros(1),
    }  # fmt: skip
    model = build(
        f"""m (float[N,3,8,8] x) => (float[N,2,6,6] y) {{
            c = Conv (x, w) n = BatchNormalization (c, g, b, m, v) {nodes} y = Conv (h, w2) }}""",
        opset=20,
        j=np.array(3),
        **{name: array.astype(np.float32) for name, array in constants.items() if name in nodes or name[0] == "w"},
        **mild_statistics(rng, 4, np.float32),
    )

    folded, report = fold(model, "generic")

    assert report.summary()["folded"] == 1 and set(op_types(folded)) == {"Conv"}
    verify.verify(model, folded, [{"x": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)}])
    assert serialized(fold(folded, "generic")[0]) == serialized(folded)
