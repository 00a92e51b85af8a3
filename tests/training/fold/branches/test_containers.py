"""Where nodes, constants and names can be: none of it changes what is merged, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.training.fold.branches.support import assert_same, batchnorm, facts, merge
from tests.training.fold.models import Array, build, constant, mild_statistics, op_types, reload, rng_of
from training.fold.branches import merge_branches
from training.reference import evaluate

C3 = "Conv <pads = [1, 1, 1, 1]>"
HEAD = "g (double[2,4,5,6] x) => (double[2,4,5,6] y)"


def weights(seed: int = 0) -> dict[str, Array]:
    rng = rng_of(seed)
    return {"w3": rng.normal(size=(4, 4, 3, 3)), "w1": rng.normal(size=(4, 4, 1, 1)), "b": rng.normal(size=4)}


def test_a_shared_weight_is_copied() -> None:
    graph = f"""{HEAD} {{
        a = {C3} (x, w3)
        s = Add (a, x)
        r = Relu (s)
        y = {C3} (r, w3)
    }}"""
    model = build(graph, w3=weights()["w3"])
    assert merge(model)
    assert set(model.graph.initializers) == {"w3", "w3_1"}
    np.testing.assert_array_equal(constant(model, "w3"), weights()["w3"])


def test_a_result_that_others_read_keeps_its_readers() -> None:
    graph = f"""g (double[2,4,5,6] x) => (double[2,4,5,6] s, double[2,4,5,6] y) {{
        a = {C3} (x, w3)
        s = Add (a, x)
        r = Relu (s)
        y = Add (r, s)
    }}"""
    model = build(graph, **weights())
    assert merge(model)
    assert sorted(op_types(model)) == ["Add", "Conv", "Relu"]


def test_a_branch_that_is_a_graph_output_stays() -> None:
    graph = f"""g (double[2,4,5,6] x) => (double[2,4,5,6] a, double[2,4,5,6] y) {{
        a = {C3} (x, w3)
        c = Conv (x, w1)
        s = Add (a, c)
        y = Add (s, x)
    }}"""
    model = build(graph, **weights())
    assert merge(model)
    assert sorted(op_types(model)) == ["Add", "Conv", "Conv"]


def test_a_branch_that_a_subgraph_reads_stays() -> None:
    graph = f"""g (double[2,4,5,6] x, bool c) => (double[2,4,5,6] y) {{
        a = {C3} (x, w3)
        s = Add (a, x)
        r = If (c) <
            then_branch = t () => (double[2,4,5,6] p) {{ p = Relu (a) }},
            else_branch = e () => (double[2,4,5,6] q) {{ q = Neg (a) }}
        >
        y = Mul (r, s)
    }}"""
    model = build(graph, **weights())
    assert merge_branches(model, facts(model)) == ()


def test_branches_inside_a_subgraph_merge_there() -> None:
    graph = f"""g (double[2,4,5,6] x, bool c) => (double[2,4,5,6] y) {{
        h = Relu (x)
        y = If (c) <
            then_branch = t () => (double[2,4,5,6] p) {{
                a = {C3} (h, w3, b)
                d = Conv (h, w1)
                p = Add (a, d)
            }},
            else_branch = e () => (double[2,4,5,6] q) {{ q = Neg (h) }}
        >
    }}"""
    model = build(graph, **weights())
    original = reload(model)
    assert len(merge_branches(model, facts(model))) == 1
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert [node.op_type for node in model.graph.all_nodes()] == ["Relu", "If", "Conv", "Neg"]
    rng = rng_of(4)
    for branch in (True, False):
        feeds = {"x": rng.normal(size=(2, 4, 5, 6)), "c": np.array(branch)}
        a, b = evaluate(original, feeds)["y"], evaluate(reload(model), feeds)["y"]
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


def test_constant_nodes_and_old_files_without_free_initializers() -> None:
    """Below IR version 4 an initializer has to be a graph input, so that new constants are nodes as well."""
    rng = rng_of(5)
    values = {"w3": rng.normal(size=(2, 2, 3)), "w1": rng.normal(size=(2, 2, 1)), "b": rng.normal(size=2)}

    def text(array: Array) -> str:
        return f"double[{','.join(map(str, array.shape))}] {{{', '.join(map(repr, array.reshape(-1).tolist()))}}}"

    nodes = "\n".join(f"{name} = Constant <value = {text(array)}> ()" for name, array in values.items())
    graph = f"""g (double[1,2,5] x) => (double[1,2,5] y) {{
        {nodes}
        a = Conv <pads = [1, 1]> (x, w3, b)
        c = Conv (x, w1)
        y = Add (a, c)
    }}"""
    model = build(graph, opset=9, ir_version=3)
    original = reload(model)
    assert len(merge_branches(model, facts(model))) == 1
    assert sorted(op_types(model)) == ["Constant", "Constant", "Conv"]
    assert not model.graph.initializers
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert_same(original, reload(model))


def test_what_only_the_making_of_a_bias_still_reads_is_gone_and_told_of() -> None:
    """As torch exports a convolution without bias unoptimised: a zero of the type of whatever goes in."""
    rng = rng_of(7)
    model = build(
        f"""{HEAD} {{
            [first] a = Conv (x, k1)
            [bn] n = BatchNormalization (a, g, b, m, v)
            none = CastLike (zero, n)
            four = Constant <value = int64[1] {{4}}> ()
            bias = Expand (none, four)
            [second] y = Conv (n, k2, bias)
        }}""",
        k1=rng.normal(size=(4, 4, 1, 1)),
        k2=rng.normal(size=(4, 4, 1, 1)),
        zero=np.array(0.0),
        **mild_statistics(rng, 4),
    )
    (record,) = merge(model)
    assert (record.node, record.replaced, record.batchnorms) == ("second", ("second", "first"), ("bn",))


def test_parameters_made_from_the_branch_itself() -> None:
    """As exporters write a BatchNormalization without scale and shift: ones and zeros in the shape of its input."""
    graph = f"""{HEAD} {{
        [conv] a = {C3} (x, w3)
        like = CastLike (one, a)
        shape = Shape <start = 1, end = 2> (a)
        g = Expand (like, shape)
        [bn] n = BatchNormalization (a, g, b, m, v)
        y = Add (n, x)
    }}"""
    rng = rng_of(6)
    stats = {"m": rng.normal(size=4), "v": rng.uniform(0.5, 2, 4)}
    model = build(graph, **weights(), one=np.array(1.0, np.float32), **stats)
    (record,) = merge(model)
    assert record.batchnorms == ("bn",)
    assert op_types(model) == ["Conv"]


def test_what_is_made_of_a_shape_is_looked_at_once_however_many_ways_lead_there() -> None:
    """Three to the power of fifty ways."""
    sums = " ".join(f"t{i + 1} = Sum (t{i}, t{i}, t{i})" for i in range(50))
    graph = f"""{HEAD} {{
        [conv] a = {C3} (x, w3)
        s = Shape (a) t0 = Cast <to = 11> (s) {sums} k = ReduceSum <keepdims = 0> (t50)
        y = Sum (a, x, k)
    }}"""
    model = build(graph, **weights())
    (record,) = merge_branches(model, facts(model))
    assert (op_types(model), record.branches) == (["Conv"], 2)


def test_a_shape_that_somebody_else_asks_for_keeps_its_tensor() -> None:
    graph = f"""g (double[2,4,5,6] x) => (double[2,4,5,6] y, int64[4] shape) {{
        a = {C3} (x, w3)
        shape = Shape (a)
        y = Add (a, x)
    }}"""
    model = build(graph, **weights())
    assert merge_branches(model, facts(model)) == ()


@pytest.mark.parametrize("opset", [1, 6])
def test_opsets_before_broadcasting(opset: int) -> None:
    """Add and Mul say where their second operand lies; BatchNormalization says that it is not training."""
    rng = rng_of(7)
    consumed = ", consumed_inputs = [0, 0, 0, 1, 1]" if opset == 1 else ""
    graph = f"""{HEAD} {{
        [conv] a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w3)
        [bn] n = BatchNormalization <is_test = 1{consumed}> (a, n_g, n_b, n_m, n_v)
        [mul] m = Mul <broadcast = 1, axis = 1> (n, k)
        [add] y = Add (m, x)
    }}"""
    model = build(graph, opset=opset, **weights(), **batchnorm(rng, "n", 4), k=rng.normal(size=4))
    original = reload(model)
    (record,) = merge_branches(model, facts(model))
    assert (op_types(model), record.batchnorms) == (["Conv"], ("bn",))
    onnx.checker.check_model(ir.to_proto(model))
    if opset == 6:
        assert_same(original, reload(model))


def test_nodes_without_names_go_by_their_outputs() -> None:
    model = build(f"{HEAD} {{ a = {C3} (x, w3) c = Conv (x, w1) y = Add (a, c) }}", **weights())
    original = reload(model)
    (record,) = merge_branches(model, facts(model))
    assert record.node == "y"
    assert set(record.replaced) == {"a", "c", "y"}
    assert_same(original, reload(model))


def test_metadata_of_the_sums_tensor_and_of_the_largest_convolution_stay() -> None:
    model = build(
        f"{HEAD} {{ [c3] a = {C3} (x, w3) [c1] c = Conv (x, w1) [sum] s = Add (a, c) y = Relu (s) }}", **weights()
    )
    largest, _, total, _ = model.graph
    largest.metadata_props["module"] = "stage1.conv"
    total.metadata_props["module"] = "stage1"
    total.outputs[0].metadata_props["seen"] = "yes"
    merge_branches(model, facts(model))
    conv = model.graph[0]
    assert (conv.name, conv.metadata_props, conv.outputs[0].metadata_props) == (
        "c3",
        {"module": "stage1.conv"},
        {"seen": "yes"},
    )


@pytest.mark.parametrize("kind", ["float", "float16"])
def test_the_storage_type_is_the_branches(kind: str) -> None:
    dtype = {"float": np.float32, "float16": np.float16}[kind]
    graph = f"g ({kind}[2,4,5,6] x) => ({kind}[2,4,5,6] y) {{ a = {C3} (x, w3, b) c = Conv (x, w1) y = Add (a, c) }}"
    model = build(graph, **{name: array.astype(dtype) for name, array in weights().items()})
    assert len(merge_branches(model, facts(model))) == 1
    assert {value.dtype for value in model.graph.initializers.values()} == {ir.DataType.from_numpy(np.dtype(dtype))}
