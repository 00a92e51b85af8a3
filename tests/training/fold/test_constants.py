"""Chains over constants: seen through with the run time's arithmetic, or refused with the node that needs data."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.models import build
from tests.training.fold.oracle import evaluate
from training.fold import FoldError
from training.fold.constants import Constants
from training.fold.refusal import Refusal
from training.fold.shapes import Shapes


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
}  # fmt: skip


@pytest.mark.parametrize("nodes", SEEN_THROUGH.values(), ids=SEEN_THROUGH.keys())
def test_a_chain_is_what_the_reference_computes(nodes):
    model = chain(nodes, w=W, a=np.array([1]))
    (expected,) = evaluate(model, {"x": np.zeros((2, 4, 6))})

    found = read(model)

    assert isinstance(found, np.ndarray) and found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


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
    "computed": ("[e] k = Exp (w)", "'k' is computed by Exp 'e'"),
    "of another domain": ("[e] k = own.Identity (w)", "'k' is computed by Identity 'e'"),
    "from data": ("k = Identity (x)", "'x' is a graph input"),
    "dynamic size": ("[s] k = Shape (x)", "'k' is computed by Shape 's', of which not all sizes are known"),
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
    "no axes": ("[c] k = Unsqueeze (w)", "'k' is computed by Unsqueeze 'c', which names no axes"),
    "a string": (
        """[c] k = Constant <value_string = "a"> ()""",
        "'k' is computed by Constant 'c', which holds no dense number"),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_constant_names_the_node(nodes, reason):
    assert read(chain(nodes, w=W, a=np.array([1]))) == Refusal(reason)


def test_operands_that_do_not_fit_are_refused_not_raised():
    refusal = read(chain("s = Constant <value_ints = [4]> () [c] k = Reshape (w, s)", w=W))

    assert refusal.reason.startswith("'k' is computed by Reshape 'c', which fails: ")


def test_an_initializer_that_is_also_an_input_is_not_constant():
    model = build("m (float[2] k) => (float[2] y) { y = Relu (k) }", k=np.ones(2, np.float32))

    assert read(model) == Refusal("'k' is a graph input with a default that a caller may override")


def test_a_chain_without_end_is_refused():
    nodes = " ".join(f"k{i + 1} = Identity (k{i})" for i in range(5000))

    assert "more than 64 nodes" in read(chain(f"{nodes} k = Identity (k5000)", k0=W)).reason


def test_data_that_is_gone_is_an_error_with_the_tensors_name(tmp_path):
    model = chain("k = Identity (w)", w=W)
    model.graph.initializers["w"].const_value = ir.ExternalTensor(
        "gone.bin", 0, 48, ir.DataType.DOUBLE, shape=ir.Shape((2, 3)), name="w", base_dir=tmp_path
    )

    with pytest.raises(FoldError, match=r"^tensor 'w' cannot be read: "):
        read(model)
