"""Sequences that are only a tensor cut into pieces become Split, so that what BatchNormalization stands on goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from tests.training.fold.architectures.images import Shuffle
from tests.training.fold.architectures.preparing import batchnorms, export_default, export_raw, settle
from tests.training.fold.judge import judge
from tests.training.fold.models import build, op_types, reload, rng_of, serialized, statistics
from tests.training.fold.oracle import evaluate, feeds_for
from training.fold import Profile, Verdict, fold
from training.fold.driver import known_of
from training.fold.sequences import unpack_sequences

INDICES = {
    "i0": np.array(0), "i1": np.array(1), "i2": np.array(2), "last": np.array(-1), "first": np.array(-3),
    "i3": np.array(3), "under": np.array(-4), "row": np.array([0]), "narrow": np.array(1, dtype=np.int32),
}  # fmt: skip
SIZES = {
    "sizes": np.array([2, 4, 1]), "narrow_sizes": np.array([2, 4, 1], dtype=np.int32), "chunk": np.array(3),
    "empty": np.array([2, 0, 5]), "short": np.array([2, 4]), "zero": np.array(0), "none": np.array([], dtype=np.int64),
    "whole": np.array([7]), "matrix": np.array([[2, 5]]),
}  # fmt: skip


def constants_in(nodes: str) -> dict[str, Any]:
    words = nodes.replace(",", " ").replace("(", " ").replace(")", " ").split()
    return {name: array for name, array in (INDICES | SIZES).items() if name in words}


def cut(nodes: str, outputs: str, x: str = "double[2,7,5] x", opset: int = 17, ir_version: int = 8) -> ir.Model:
    return build(f"m ({x}) => ({outputs}) {{ {nodes} }}", opset=opset, ir_version=ir_version, **constants_in(nodes))


def unpack(model: ir.Model) -> int:
    return unpack_sequences(model, known_of(model, model.opset_imports[""]))


def split_of(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "Split")


# Of a [2, 7, 5]: how it is cut, which pieces are taken, and the sizes that Split gets.
BY_SIZES = "s = SplitToSequence <axis = 1> (x, sizes)"
CASES = {
    "sizes": (BY_SIZES, "i0", "i2", [2, 4, 1]),
    "sizes of 32 bits": ("s = SplitToSequence <axis = 1> (x, narrow_sizes)", "i0", "i2", [2, 4, 1]),
    "sizes, `keepdims` does not count": ("s = SplitToSequence <axis = 1, keepdims = 0> (x, sizes)", "i0", "i1",
                                         [2, 4, 1]),
    "the last chunk is smaller": ("s = SplitToSequence <axis = 1> (x, chunk)", "i0", "i2", [3, 3, 1]),
    "the last chunk is as large": ("s = SplitToSequence <axis = 0> (x, one)", "i0", "i1", [1, 1]),
    "one piece": ("s = SplitToSequence <axis = 1> (x, whole)", "i0", "i0", [7]),
    "a negative axis": ("s = SplitToSequence <axis = -1> (x, chunk)", "i0", "i1", [3, 2]),
    "no axis": ("s = SplitToSequence (x)", "i0", "i1", [1, 1]),
    "neither sizes nor chunk": ("s = SplitToSequence <axis = 1> (x)", "i1", "last", [1] * 7),
    "indices from the back": (BY_SIZES, "last", "first", [2, 4, 1]),
    "an index of 32 bits": (BY_SIZES, "narrow", "i0", [2, 4, 1]),
    "two readers of one piece": (BY_SIZES, "i1", "i1", [2, 4, 1]),
    "two ways to say one piece": (BY_SIZES, "i2", "last", [2, 4, 1]),
    "two pieces of three in a middle": (BY_SIZES, "i2", "i1", [2, 4, 1]),
}  # fmt: skip


@pytest.mark.parametrize("outputs", [False, True], ids=["inside", "graph outputs"])
@pytest.mark.parametrize("ir_version", [3, 8])
@pytest.mark.parametrize("case", CASES)
def test_a_sequence_of_which_pieces_are_taken_is_a_split(case: str, ir_version: int, outputs: bool):
    how, first, second, sizes = CASES[case]
    reads = "" if outputs else "y = Neg (a) z = Neg (b)"
    names = ("y", "z") if outputs else ("a", "b")
    one = "one = Constant <value = int64 {1}> ()" if "one)" in how else ""
    takes = f"[t0] {names[0]} = SequenceAt (s, {first}) [t1] {names[1]} = SequenceAt (s, {second})"
    graph = cut(f"{one} [cut] {how} {takes} {reads}", "double[A,B,C] y, double[D,E,F] z", ir_version=ir_version)
    before = reload(graph)
    if ir_version < 4:  # where initializers are graph inputs, and so no constants
        graph = constants_as_nodes(graph)

    assert unpack(graph) == 1

    split = split_of(graph)
    assert split.name == "cut" and len(split.outputs) == len(sizes)
    assert not {"SplitToSequence", "SequenceAt"} & set(op_types(graph))
    sizes_operand = split.inputs[1]
    assert sizes_operand is not None and (sizes_operand.is_initializer() == (ir_version >= 4))
    given = ir.convenience.get_const_tensor(sizes_operand)
    assert given is not None and given.dtype is ir.DataType.INT64 and given.numpy().tolist() == sizes
    assert [v.name for v in graph.graph.outputs] == ["y", "z"]
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    x = feeds_for(before, rng_of(0))
    for expected, found in zip(evaluate(before, x), evaluate(graph, x), strict=True):
        assert np.array_equal(expected, found)
    assert unpack(graph) == 0


def constants_as_nodes(model: ir.Model) -> ir.Model:
    for name in list(model.graph.initializers):
        value = model.graph.initializers.pop(name)
        assert value.const_value is not None
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", value.const_value)], name=name)
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        value.replace_all_uses_with(node.outputs[0])
        node.outputs[0].name = name
        model.graph.insert_before(model.graph[0], node)
    return model


TAKE = "y = SequenceAt (s, i0)"
REFUSED = {
    "the sequence is a graph output": (f"{BY_SIZES} {TAKE}", "double[2,2,5] y, seq(double[2,N,5]) s"),
    "its length is asked for": (f"{BY_SIZES} {TAKE} z = SequenceLength (s)", "double[2,2,5] y, int64 z"),
    "all of it is read": (f"{BY_SIZES} {TAKE} z = ConcatFromSequence <axis = 1> (s)",
                          "double[2,2,5] y, double[2,7,5] z"),
    "nobody reads it": (f"{BY_SIZES} y = Neg (x)", "double[2,7,5] y"),
    "which piece is computed": (f"{BY_SIZES} y = SequenceAt (s, n)", "double[2,N,5] y"),
    "an index behind the last": (f"{BY_SIZES} y = SequenceAt (s, i3)", "double[2,N,5] y"),
    "an index before the first": (f"{BY_SIZES} y = SequenceAt (s, under)", "double[2,N,5] y"),
    "an index that is no scalar": (f"{BY_SIZES} y = SequenceAt (s, row)", "double[2,N,5] y"),
    "the pieces lose the axis": (f"s = SplitToSequence <axis = 1, keepdims = 0> (x) {TAKE}", "double[2,5] y"),
    "where to cut is computed": (f"s = SplitToSequence <axis = 1> (x, n) {TAKE}", "double[2,N,5] y"),
    "an empty piece": (f"s = SplitToSequence <axis = 1> (x, empty) {TAKE}", "double[2,2,5] y"),
    "sizes that do not add up": (f"s = SplitToSequence <axis = 1> (x, short) {TAKE}", "double[2,2,5] y"),
    "no sizes": (f"s = SplitToSequence <axis = 1> (x, none) {TAKE}", "double[2,N,5] y"),
    "sizes in a matrix": (f"s = SplitToSequence <axis = 1> (x, matrix) {TAKE}", "double[2,N,5] y"),
    "a chunk of nothing": (f"s = SplitToSequence <axis = 1> (x, zero) {TAKE}", "double[2,N,5] y"),
    "chunks of an axis of unknown size": (f"s = SplitToSequence <axis = 1> (u, chunk) {TAKE}", "double[2,3,5] y"),
    "chunks of a tensor of unknown rank": (f"s = SplitToSequence <axis = 1> (v, chunk) {TAKE}", "double[2,N,5] y"),
    "pieces of size 1 of an axis of unknown size": (f"s = SplitToSequence <axis = 1> (u) {TAKE}", "double[2,1,5] y"),
    "more pieces than anybody names": (f"s = SplitToSequence (w) {TAKE}", "double[1] y"),
    "an axis that there is not": (f"s = SplitToSequence <axis = 3> (x, chunk) {TAKE}", "double[2,N,5] y"),
    "an axis that a scalar has not": (f"s = SplitToSequence (n, sizes) {TAKE}", "int64 y"),
    "an operator of another domain": (f"s = own.SplitToSequence <axis = 1> (x, sizes) {TAKE}", "double[2,2,5] y"),
}  # fmt: skip
INPUTS = "double[2,7,5] x, double[2,K,5] u, double v, double[2000] w, int64 n"


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_left_as_it_is_where(case: str):
    nodes, outputs = REFUSED[case]
    graph = cut(nodes, outputs, x=INPUTS)
    if "unknown rank" in case:
        next(value for value in graph.graph.inputs if value.name == "v").shape = None
    before = serialized(graph)

    assert unpack(graph) == 0
    assert serialized(graph) == before


def test_sizes_do_for_an_axis_of_unknown_size():
    graph = cut(f"{BY_SIZES.replace('x,', 'u,')} {TAKE}", "double[2,2,5] y", x=INPUTS)

    assert unpack(graph) == 1 and len(split_of(graph).outputs) == 3


@pytest.mark.parametrize("opset", [11, 12])
def test_before_opset_13_it_is_left_as_it_is(opset: int):
    assert unpack(cut(f"{BY_SIZES} {TAKE}", "double[2,2,5] y", opset=opset)) == 0


def test_a_constant_that_a_caller_may_override_is_none():
    graph = cut(f"{BY_SIZES} {TAKE}", "double[2,2,5] y", x="double[2,7,5] x, int64[3] sizes")

    assert unpack(graph) == 0


def test_a_piece_that_two_graph_outputs_show_is_copied_for_the_second():
    graph = cut(f"{BY_SIZES} y = SequenceAt (s, i1) z = SequenceAt (s, i1)", "double[2,4,5] y, double[2,4,5] z")
    unpack(graph)

    assert op_types(graph) == ["Split", "Identity"]
    assert split_of(graph).outputs[1].name == "y"


def test_a_piece_that_is_a_graph_output_is_called_so_whoever_else_takes_it():
    graph = cut(f"{BY_SIZES} a = SequenceAt (s, i1) y = SequenceAt (s, i1) z = Neg (a)", "double[A,B,C] y, double z")
    unpack(graph)

    assert op_types(graph) == ["Split", "Neg"]
    assert split_of(graph).outputs[1].name == "y"


def test_pieces_keep_names_types_and_shapes_and_those_unread_get_new_names():
    graph = cut(f"{BY_SIZES} s_0 = Neg (x) a = SequenceAt (s, last) y = Neg (a)", "double[2,1,5] y, double[2,7,5] s_0")
    unpack(graph)

    pieces = split_of(graph).outputs
    assert [piece.name for piece in pieces] == ["s_0_1", "s_1", "a"]
    assert [(piece.dtype, piece.shape) for piece in pieces] == [
        (ir.DataType.DOUBLE, ir.Shape([2, size, 5])) for size in (2, 4, 1)
    ]
    assert list(graph.graph.initializers) == ["sizes"]


def test_a_constant_that_others_read_stays_as_it_is():
    graph = cut(
        f"s = SplitToSequence <axis = 1> (x, i2) {TAKE} t = SplitToSequence <axis = 2> (x, i2) z = SequenceAt (t, i2)",
        "double[2,2,5] y, double[2,7,1] z",
    )
    before = reload(graph)

    assert unpack(graph) == 2
    x = feeds_for(before, rng_of(0))
    for expected, found in zip(evaluate(before, x), evaluate(graph, x), strict=True):
        assert np.array_equal(expected, found)


def test_a_sequence_cut_out_of_a_piece_of_another():
    graph = cut(
        f"{BY_SIZES} a = SequenceAt (s, i1) t = SplitToSequence <axis = 1> (a, chunk) y = SequenceAt (t, last)",
        "double[2,1,5] y",
    )
    before = reload(graph)

    assert [unpack(graph), unpack(graph)] == [1, 1]  # the size of a piece is known from its Split
    assert op_types(graph) == ["Split", "Split"]
    x = feeds_for(before, rng_of(0))
    assert np.array_equal(evaluate(before, x)[0], evaluate(graph, x)[0])


BODIES = """y = If (c) <
    then_branch = then () => (double[2,2,5] t) {{ {0} t = SequenceAt (s, i0) }},
    else_branch = other () => (double[2,2,5] e) {{ {1} e = SequenceAt ({2}, i0) }} >"""


def test_in_the_body_of_an_if():
    nodes = BODIES.format(BY_SIZES, BY_SIZES.replace("s =", "r =", 1), "r")
    graph = cut(nodes, "double[2,2,5] y", x="bool c, double[2,7,5] x")

    assert unpack(graph) == 2
    assert [node.op_type for node in graph.graph.all_nodes()] == ["If", "Split", "Split"]
    assert [body.outputs[0].name for body in graph.graphs() if body is not graph.graph] == ["t", "e"]
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)


def test_not_where_a_body_takes_a_piece_of_the_graph_around_it():
    graph = cut(
        f"{BY_SIZES} {BODIES.format('', '', 's')} z = SequenceAt (s, i1)",
        "double[2,2,5] y, double[2,4,5] z",
        x="bool c, double[2,7,5] x",
    )

    assert unpack(graph) == 0


CONV = "h = Conv (x, w) "
FOLDABLE = {
    "before a cut": f"{CONV} n = BatchNormalization (h, g, b, m, v) s = SplitToSequence <axis = 1> (n, parts) "
    "p = SequenceAt (s, i0) q = SequenceAt (s, last) y = Concat <axis = 1> (q, p)",
    "behind a cut": f"{CONV} s = SplitToSequence <axis = 1> (h, parts) p = SequenceAt (s, i0) q = SequenceAt (s, last) "
    "c = Concat <axis = 1> (q, p) y = BatchNormalization (c, g, b, m, v)",
}


@pytest.mark.parametrize("case", FOLDABLE)
def test_a_batchnorm_folds(case: str):
    graph = build(
        f"m (double[2,3,5] x) => (double[2,6,5] y) {{ {FOLDABLE[case]} }}",
        w=rng_of(1).normal(size=(6, 3, 1)), parts=np.array([2, 4]), i0=INDICES["i0"], last=INDICES["last"],
        **statistics(rng_of(2), 6),
    )  # fmt: skip

    judged = judge(graph, Profile.GENERIC)

    assert op_types(judged.folded) == ["Conv", "Split", "Concat"]
    assert judged.report.changed


def test_a_graph_in_which_nothing_folds_keeps_its_sequences():
    graph = cut(f"{BY_SIZES} a = SequenceAt (s, i0) y = Relu (a)", "double[2,2,5] y")

    folded, report = fold(graph)

    assert not report.changed and serialized(folded) == serialized(graph)
    assert report.nodes_before == report.nodes_after == 3


class CrossStage(nn.Module):
    """A CSP block (arXiv:1911.11929) as in YOLOv8: one part goes on, the other goes by, all are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.into_bn = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.inner_bn = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.joined_bn, self.out = nn.BatchNorm2d(12), nn.Conv2d(12, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.into_bn(self.into(x)).split((4, 4), 1))
        parts.append(torch.relu(self.inner_bn(self.inner(parts[-1]))))
        return self.out(self.joined_bn(torch.cat(parts, 1)))


def computing(model: ir.Model) -> list[str]:
    """But for the arithmetic on shapes, which the default export has done by itself."""
    kinds = ("BatchNormalization", "Conv", "Relu", "Split", "Transpose", "Mul", "Sub", "Add")
    return sorted(kind for kind in op_types(model) if kind in kinds)


BLOCKS = {"shuffle": (lambda: nn.Sequential(nn.Conv2d(8, 8, 1), Shuffle(8, 8, 1)), (8, 6, 6)),
          "cross stage": (CrossStage, (8, 6, 6))}  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS)
def test_what_torch_exports_unoptimised_folds_as_what_it_exports_by_default(block: str):
    make, shape = BLOCKS[block]
    torch.manual_seed(0)
    module = settle(make(), shape, rng_of(3))
    raw, default = export_raw(module, shape), export_default(module, shape)
    assert "SplitToSequence" in op_types(raw)

    folded, report = fold(raw, Profile.GENERIC)
    expected, _ = fold(default, Profile.GENERIC)

    assert report.count(Verdict.FOLDED) == batchnorms(raw) and batchnorms(folded) == 0
    assert computing(folded) == computing(expected)
    again, second = fold(folded, Profile.GENERIC)
    assert not second.changed and serialized(again) == serialized(folded)
    x = torch.from_numpy(rng_of(4).normal(size=(2, *shape)).astype(np.float32))
    with torch.no_grad():
        wanted = module(x).numpy()
    np.testing.assert_allclose(evaluate(folded, {"x": x.numpy()})[0], wanted, rtol=1e-4, atol=1e-4)
