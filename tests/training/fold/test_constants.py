"""Chains over constants: seen through with the run time's arithmetic, or refused with the node that needs data."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.models import build
from tests.training.fold.oracle import evaluate
from training.fold import FoldError
from training.fold.constants import Constants
from training.fold.refusal import Refusal
from training.fold.shapes import Shapes
from training.fold.weights import round_once


def read(model, name="k"):
    constants = Constants(Shapes(model))
    for node in model.graph:
        for output in node.outputs:
            if output.name == name:
                return constants.of(output)
    return constants.of(model.graph.initializers[name])


def chain(nodes: str, opset: int = 17, **constants):
    """A graph whose output k the chain computes; x is a graph input of shape [N, 4, 6]."""
    return build(f"m (double[N,4,6] x) => (k) {{ {nodes} }}", opset=opset, **constants)


W = np.arange(6.0).reshape(2, 3)
SEEN_THROUGH = {
    "identity": "k = Identity (w)",
    "constant tensor": "k = Constant <value = float[2] {1.0, 2.0}> ()",
    "constant float": "k = Constant <value_float = 0.1> ()",
    "constant floats": "k = Constant <value_floats = [0.1, 0.2]> ()",
    "constant int": "k = Constant <value_int = 3> ()",
    "constant ints": "k = Constant <value_ints = [3, 4]> ()",
    "cast down": "k = Cast <to = 1> (w)",
    "cast to half": "k = Cast <to = 10> (w)",
    "cast to integers": "k = Cast <to = 7> (w)",
    "cast like": "c = Constant <value_float = 0.5> () k = CastLike (c, x)",
    "expand": "s = Constant <value_ints = [4, 2, 1]> () k = Expand (w, s)",
    "expand by a shape of data": "c = Constant <value_floats = [1.0]> () s = Shape <start = 2> (x) k = Expand (c, s)",
    "reshape": "s = Constant <value_ints = [-1, 2]> () k = Reshape (w, s)",
    "reshape keeping a size": "s = Constant <value_ints = [0, -1, 1]> () k = Reshape (w, s)",
    "transpose": "k = Transpose (w)",
    "transpose with perm": "u = Unsqueeze (w, a) k = Transpose <perm = [2, 0, 1]> (u)",
    "unsqueeze": "k = Unsqueeze (w, a)",
    "squeeze": "u = Unsqueeze (w, a) k = Squeeze (u)",
    "squeeze axes": "u = Unsqueeze (w, a) k = Squeeze (u, a)",
    "constant of shape": "s = Constant <value_ints = [4]> () k = ConstantOfShape <value = double[1] {1.5}> (s)",
    "constant of shape, default": "s = Shape (w) k = ConstantOfShape (s)",
    "negative start of shape": "k = Shape <start = -1> (x)",
    "flatten": "u = Unsqueeze (w, a) k = Flatten <axis = 2> (u)",
    "flatten from the end": "u = Unsqueeze (w, a) k = Flatten <axis = -1> (u)",
    "concat": "k = Concat <axis = -1> (w, w)",
    "concat of what was computed": "u = Neg (w) k = Concat <axis = 0> (w, u)",
    "gather": "i = Constant <value_ints = [-1, 0]> () k = Gather <axis = 1> (w, i)",
    "gather one": "i = Constant <value_int = 1> () k = Gather (w, i)",
    "slice": "s = Constant <value_ints = [1]> () e = Constant <value_ints = [9]> () k = Slice (w, s, e, s)",
    "slice backwards":
        "s = Constant <value_ints = [-1]> () e = Constant <value_ints = [-9]> () k = Slice (w, s, e, a, s)",
    "arithmetic with a scalar": "c = Constant <value = double {0.5}> () k = Sub (c, w)",
    "a sum that broadcasts":
        "t = Transpose (w) s = Constant <value_ints = [3, 2, 1]> () u = Reshape (w, s) k = Add (u, w)",
    "product": "k = Mul (w, w)",
    "quotient": "c = Constant <value = double {0.7}> () k = Div (w, c)",
    "integers divided towards zero":
        "n = Constant <value_ints = [7, -7, -8]> () d = Constant <value_ints = [2, 2, -2]> () k = Div (n, d)",
    "integers": "n = Constant <value_ints = [7, -7]> () d = Mul (n, n) e = Sub (d, n) f = Neg (e) k = Max (f, n)",
    "power": "c = Constant <value = double {2.0}> () k = Pow (w, c)",
    "power of another type": "c = Constant <value_int = 3> () k = Pow (w, c)",
    "several": "k = Sum (w, w, w)",
    "largest and smallest": "n = Neg (w) u = Max (w, n) k = Min (u, w)",
    "clip": "c = Constant <value = double {2.0}> () k = Clip (w, , c)",
    "exponential": "k = Exp (w)",
    "absolute": "n = Neg (w) k = Abs (n)",
    "frozen normalisation": "e = Constant <value = double {0.5}> () v = Add (w, e) r = Sqrt (v) k = Reciprocal (r)",
    "where": "c = Constant <value = bool[3] {1, 0, 1}> () n = Neg (w) k = Where (c, w, n)",
    "weight normalisation": "l = ReduceL2 <axes = [1]> (w) k = Div (w, l)",
    "mean of all": "k = ReduceMean <keepdims = 0> (w)",
    "sum over an axis": "k = ReduceSum <keepdims = 0> (w, a)",
    "no axes, no reduction": "k = ReduceSum <noop_with_empty_axes = 1> (w)",
    "one size of a shape": "i = Constant <value_int = -2> () s = Shape (x) k = Gather (s, i)",
    "two sizes of a shape": "e = Constant <value_ints = [3]> () s = Shape (x) k = Slice (s, a, e)",
    "shape arithmetic": """i = Constant <value_ints = [1, 2]> () s = Shape (x) t = Gather (s, i)
                           n = Constant <value_ints = [-1]> () u = Concat <axis = 0> (t, n)
                           z = ConstantOfShape (t) k = Reshape (z, u)""",
}  # fmt: skip


@pytest.mark.parametrize("nodes", SEEN_THROUGH.values(), ids=SEEN_THROUGH.keys())
def test_a_chain_is_what_the_reference_computes(nodes):
    model = chain(nodes, w=W, a=np.array([1]))
    (expected,) = evaluate(model, {"x": np.zeros((2, 4, 6))})

    found = read(model)

    assert isinstance(found, np.ndarray) and found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


OLD = {
    "slice by attributes": ("k = Slice <axes = [1], starts = [1], ends = [3]> (w)", 9, W[:, 1:3]),
    "slice of leading axes": ("k = Slice <starts = [1], ends = [1000]> (w)", 9, W[1:]),
    "reshape by attribute": ("k = Reshape <shape = [0, -1, 1]> (w)", 1, W[:, :, np.newaxis]),
    "sum over an axis": ("k = ReduceSum <axes = [0]> (w)", 11, W.sum(0, keepdims=True)),
    "clip by attributes": ("k = Clip <min = 1.0, max = 2.5> (w)", 6, W.clip(1, 2.5)),
    "broadcast along an axis": ("k = Mul <broadcast = 1, axis = 0> (w, v)", 6, W * np.array([[2.0], [3.0]])),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "opset", "expected"), OLD.values(), ids=OLD.keys())
def test_what_older_opsets_say_by_attribute(nodes, opset, expected):
    np.testing.assert_array_equal(read(chain(nodes, opset, w=W, v=np.array([2.0, 3.0]))), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda dtype: dtype.__name__)
def test_a_chain_of_arithmetic_rounds_once_at_its_end(dtype):
    """1 / sqrt(v + e): by steps in the tensor's own type a third of these come out wrong in the last place."""
    v = np.linspace(0.1, 2, 200).astype(dtype)
    e = np.array([1e-3]).astype(dtype)
    model = chain("s = Add (v, e) r = Sqrt (s) q = Reciprocal (r) k = Unsqueeze (q, a)", v=v, e=e, a=np.array([0]))
    exact = 1 / np.sqrt(v.astype(np.float64) + e.astype(np.float64))

    assert read(model).dtype == dtype
    np.testing.assert_array_equal(read(model)[0], round_once(exact, np.dtype(dtype)))
    np.testing.assert_array_equal(Constants(Shapes(model)).exact(model.graph[3].outputs[0])[0], exact)


def test_a_cast_in_between_does_round():
    model = chain("r = Sqrt (w) h = Cast <to = 10> (r) k = Cast <to = 1> (h)", w=W)

    np.testing.assert_array_equal(read(model), np.sqrt(W).astype(np.float16).astype(np.float32))


def test_a_quantised_bias_is_seen_through_a_quantised_weight_stays_quantised():
    steps, scale, zero = np.array([-3, 0, 100], np.int32), np.array([0.1, 0.2, 0.3], np.float32), np.zeros(3, np.int32)
    model = chain("k = DequantizeLinear <axis = 0> (q, s, z)", q=steps, s=scale, z=zero)

    np.testing.assert_array_equal(read(model), (steps * scale.astype(np.float64)).astype(np.float32))
    weight = chain("[d] k = DequantizeLinear <axis = 1> (q, s)", q=np.ones((2, 3), np.int8), s=scale)
    assert read(weight) == Refusal("'k' is computed by DequantizeLinear 'd', which keeps a weight quantised")


def test_questions_are_answered_once():
    """A shared chain, where every node reads the one before it twice: 2^60 steps if nothing were remembered."""
    doubled = " ".join(f"k{i + 1} = Add (k{i}, k{i})" for i in range(60))
    model = chain(f"{doubled} k = Identity (k60)", k0=W)

    np.testing.assert_array_equal(read(model), W * 2.0**60)


def test_a_refusal_is_remembered_with_its_reason():
    doubled = " ".join(f"k{i + 1} = Add (k{i}, k{i})" for i in range(60))
    constants, model = [], chain(f"[r] k0 = Sigmoid (x) {doubled} k = Identity (k60)")
    constants = Constants(Shapes(model))
    outputs = [node.outputs[0] for node in model.graph]

    assert {constants.of(output) for output in reversed(outputs)} == {
        Refusal("'k0' is computed by Sigmoid 'r'"),
        *(Refusal(f"'k{i + 1}' is computed by Add of 'k{i + 1}' from 'k{i}'") for i in range(60)),
    }


def test_whether_it_is_constant_is_told_without_reading_an_initializer():
    model = chain("y = Relu (x) t = Transpose (w) k = LRN <size = 1> (t)", w=W, g=W)
    model.graph.initializers["g"].const_value = ir.LazyTensor(
        lambda: pytest.fail("was read"), ir.DataType.DOUBLE, ir.Shape((2, 3)), name="g"
    )
    constants = Constants(Shapes(model))
    y, t, k = (node.outputs[0] for node in model.graph)

    assert constants.holds(model.graph.initializers["g"]) and constants.holds(t)
    assert not constants.holds(y) and not constants.holds(k) and not constants.holds(model.graph.inputs[0])


@pytest.mark.parametrize("op", ["Squeeze", "Unsqueeze"])
def test_axes_are_an_attribute_before_opset_13(op):
    model = chain(f"k = {op} <axes = [1]> (w)", opset=11, w=np.ones((2, 1, 3)))

    assert read(model).shape == {"Squeeze": (2, 3), "Unsqueeze": (2, 1, 1, 3)}[op]


def test_the_exporters_chain_for_affine_false_is_seen_through():
    """What torch writes: a one, cast like the data, expanded to the data's channel count."""
    model = chain(
        """c = Constant <value_floats = [1.0]> () [like] d = CastLike (c, x)
           s = Shape <start = 1, end = 2> (x) k = Expand (d, s)"""
    )

    assert read(model).tolist() == [1.0] * 4 and read(model).dtype == np.float64


def test_the_shape_of_an_undeclared_tensor_is_inferred():
    model = chain("r = Relu (x) s = Shape <start = 1, end = 3> (r) k = ConstantOfShape (s)")
    assert model.graph[0].outputs[0].shape is None

    assert read(model).shape == (4, 6)


REFUSED = {
    "computed": ("[e] k = LRN <size = 1> (w)", "'k' is computed by LRN 'e'"),
    "computed from data": ("r = Sin (x) [m] k = Mul (w, r)", "'k' is computed by Mul 'm' from 'r'"),
    "of another domain": ("[e] k = own.Identity (w)", "'k' is computed by Identity 'e'"),
    "from data": ("k = Identity (x)", "'x' is a graph input"),
    "dynamic size": ("[s] k = Shape (x)", "'k' is computed by Shape 's', of which not all sizes are known"),
    "a dynamic size of a shape": (
        "i = Constant <value_ints = [0, 1]> () s = Shape (x) [g] k = Gather (s, i)",
        "'k' is computed by Gather 'g', of which not all sizes are known"),
    "through other types": ("[c] k = Cast <to = 8> (w)", "'k' is computed by Cast 'c', to STRING"),
    "like an unknown type": (
        "[u] q = own.Foo (x) [c] k = CastLike (w, q)",
        "'k' is computed by CastLike 'c', to an unknown type"),
    "a bomb": (
        "s = Constant <value_ints = [1000000, 1000000, 1000000]> () [c] k = ConstantOfShape (s)",
        "'k' is computed by ConstantOfShape 'c', whose 1000000000000000000 elements are not a weight"),
    "a bomb by Expand": (
        "s = Constant <value_ints = [1000000, 2, 1000]> () o = ConstantOfShape (a) [c] k = Expand (o, s)",
        "'k' is computed by Expand 'c', whose 2000000000 elements are not a weight"),
    "an unknown rank": (
        "[u] q = own.Foo (x) [c] k = Shape (q)",
        "the rank of 'q', which Shape 'c' asks for, is not known"),
    "a bomb by Mul": (
        "u = Expand (w, big) [m] k = Mul (u, u)",
        "'k' is computed by Mul 'm', whose 67108866 elements are not a weight"),
    "a bomb by Concat": (
        "u = Expand (w, big) [m] k = Concat <axis = 0> (u, u, u, u, u)",
        "'k' is computed by Concat 'm', whose 335544330 elements are not a weight"),
    "truth": (
        "b = Constant <value = bool[1] {1}> () [m] k = Add (b, b)", "'k' is computed by Add 'm', of type bool"),
    "the root of an integer": ("[m] k = Sqrt (a)", "'k' is computed by Sqrt 'm', of type int64"),
    "two types": (
        "[m] k = Add (w, a)",
        "'k' is computed by Add 'm', which fails: its operands are of types ['float64', 'int64']"),
    "no axes": ("[c] k = Unsqueeze (w)", "'k' is computed by Unsqueeze 'c', which names no axes"),
    "a string": (
        """[c] k = Constant <value_string = "a"> ()""",
        "'k' is computed by Constant 'c', which holds no dense number"),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_constant_names_the_node(nodes, reason):
    assert read(chain(nodes, w=W, a=np.array([1]), big=np.array([11184811, 2, 3]))) == Refusal(reason)


def test_operands_that_do_not_fit_are_refused_not_raised():
    refusal = read(chain("s = Constant <value_ints = [4]> () [c] k = Reshape (w, s)", w=W))

    assert refusal.reason.startswith("'k' is computed by Reshape 'c', which fails: ")


UNFIT = {
    "integers divided by zero": "z = Constant <value_ints = [0]> () [c] k = Div (a, z)",
    "sizes": "[c] k = Add (w, v)",
    "scalars": "z = Constant <value_int = 0> () [c] k = Concat <axis = 0> (z, z)",
    "an index out of range": "[c] k = Gather (w, i)",
    "an operand is missing": "[c] k = Mul (w)",
}


@pytest.mark.parametrize("nodes", UNFIT.values(), ids=UNFIT.keys())
def test_operands_that_no_operator_takes_are_refused(nodes):
    refusal = read(chain(nodes, w=W, v=np.ones(5), a=np.array([1]), i=np.array([2])))

    assert refusal.reason.startswith("'k' is computed by ") and ", which fails: " in refusal.reason


def test_an_initializer_that_is_also_an_input_is_not_constant():
    model = build("m (float[2] k) => (float[2] y) { y = Relu (k) }", k=np.ones(2, np.float32))

    assert read(model) == Refusal("'k' is a graph input with a default that a caller may override")


def test_a_chain_of_any_length_is_read():
    """And one that begins with data is refused: neither goes as deep as Python's stack."""
    nodes = " ".join(f"k{i + 1} = Identity (k{i})" for i in range(5000))

    assert np.array_equal(read(chain(f"{nodes} k = Identity (k5000)", k0=W)), W)
    assert isinstance(read(chain(f"k0 = Relu (x) {nodes} k = Identity (k5000)")), Refusal)


def test_data_that_is_gone_is_an_error_with_the_tensors_name(tmp_path):
    model = chain("k = Identity (w)", w=W)
    model.graph.initializers["w"].const_value = ir.ExternalTensor(
        "gone.bin", 0, 48, ir.DataType.DOUBLE, shape=ir.Shape((2, 3)), name="w", base_dir=tmp_path
    )

    with pytest.raises(FoldError, match=r"^tensor 'w' cannot be read: "):
        read(model)
