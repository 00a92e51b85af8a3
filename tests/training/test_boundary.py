"""A proof goes up to a node that the oracle cannot follow and on from it; a mistake on either side is found."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from tests.training.fold.models import acceptance_model, constant, mild_statistics, rng_of
from training.fold import fold
from training.fold_file import fold_file
from training.reference import UnsupportedOperator
from training.samples import make_samples
from training.verify import VerificationFailed, VerifyReport, verify

OPSETS = '<ir_version: 8, opset_import: ["" : 17, "own" : 1, "com.microsoft" : 1]>'
IMAGE = "float[N,3,6,6]"


def with_weights(graph: str, value_info: dict[str, list[int | str]] | None = None) -> ir.Model:
    """The graph with Conv weights v, w and BatchNormalization parameters p_ and q_, and shapes of inner tensors."""
    rng = rng_of(5)
    proto = onnx.parser.parse_model(f"{OPSETS}\n{graph}")
    constants = {"v": rng.normal(size=(3, 3, 3, 3)), "w": rng.normal(size=(3, 3, 3, 3)), "ratio": np.array(0.3)}
    for prefix in "pq":
        constants |= {f"{prefix}_{key}": part for key, part in mild_statistics(rng, 3).items()}
    constants |= {"rois": np.array([[0, 0, 0, 3, 3], [1, 1, 1, 5, 4]]), "on": np.array(True), "many": np.array([2])}
    used = {name for node in proto.graph.node for name in node.input}
    for name, array in constants.items():
        if name in used:
            array = array.astype(np.float32) if array.dtype.kind == "f" and name != "many" else array
            array = array.astype(np.float32) if name == "rois" else array
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for name, shape in (value_info or {}).items():
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return ir.from_proto(proto)


BEFORE = """
    [conv1] c = Conv <pads = [1, 1, 1, 1]> (x, v)
    [bn1] a = BatchNormalization (c, p_g, p_b, p_m, p_v)
"""
AFTER = """
    [conv2] d = Conv <pads = [1, 1, 1, 1]> (b, w)
    [bn2] y = BatchNormalization (d, q_g, q_b, q_m, q_v)
"""
LIKE_X: dict[str, list[int | str]] = {"b": ["N", 3, 6, 6]}


@dataclass(frozen=True)
class Case:
    """A node in the middle, of which no oracle knows, and what the report says of it."""

    node: str
    told: str
    value_info: dict[str, list[int | str]] | None = None
    onnx_runtime: str = "ONNX Runtime's runs of the whole files are at most "
    source: str = "for answers that ONNX Runtime computes"


MADE_UP = "for answers that were made up"
CASES = {
    "own operator": Case("[warp] b = own.Warp (a)", "node 'warp' (own:Warp)", LIKE_X, "cannot run the whole", MADE_UP),
    "own operator without a name": Case(
        "b = own.Warp (a)", "node 'b' (own:Warp)", LIKE_X, "cannot run the whole", MADE_UP
    ),
    "own operator that reads the input too": Case(
        "[warp] b = own.Warp (a, x)", "node 'warp' (own:Warp)", LIKE_X, "cannot run the whole", MADE_UP
    ),
    "two own operators in a row": Case(
        "[one] e = own.Warp (a) [two] b = own.Warp (e)",
        "node 'one' (own:Warp), node 'two' (own:Warp)",
        LIKE_X,
        "cannot run the whole",
        MADE_UP,
    ),
    "an operator of ONNX Runtime's": Case(
        "[gelu] b = com.microsoft.Gelu (a)", "node 'gelu' (com.microsoft:Gelu)", LIKE_X
    ),
    "a standard one without reference": Case(
        "[pool] b = MaxRoiPool <pooled_shape = [6, 6]> (a, rois)", "node 'pool' (MaxRoiPool)"
    ),
    "Dropout in training": Case(
        "[drop] b = Dropout (a, ratio, on)", "node 'drop' (Dropout)", None, "did not run the whole files"
    ),
    "a random one that reads a shape": Case(
        "[noise] r = RandomNormalLike (a) b = Add (a, r)",
        "node 'noise' (RandomNormalLike)",
        None,
        "did not run the whole files",
    ),
}


def network(case: Case, before: str = BEFORE, after: str = AFTER) -> ir.Model:
    return with_weights(f"g ({IMAGE} x) => (float[N,3,6,6] y) {{ {before} {case.node} {after} }}", case.value_info)


def proved(original: ir.Model, folded: ir.Model) -> VerifyReport:
    return verify(original, folded, make_samples(original))


@pytest.mark.parametrize("name", CASES)
def test_a_right_fold_around_a_node_without_reference_is_proved_and_the_report_names_it(name: str) -> None:
    case = CASES[name]
    original = network(case)
    folded, report = fold(original, profile="generic")
    assert report.summary()["folded"] >= 1
    proof = proved(original, folded)
    assert proof.note.startswith(f"proved up to {case.told}, which was not evaluated, and on from it {case.source}")
    assert case.onnx_runtime in proof.note
    assert "\n" not in proof.note
    assert proof.rounding is not None


def off(model: ir.Model, place: int, factor: float) -> ir.Model:
    """The graph with the first channel of one convolution's bias off."""
    copy = model.clone()
    bias = [node for node in copy.graph if node.op_type == "Conv"][place].inputs[2]
    assert bias is not None
    array = constant(copy, bias.name or "").copy()
    array[0] *= 1 + factor
    bias.const_value = ir.tensor(array, name=bias.name)
    return copy


FOLDED_ON_BOTH_SIDES = [name for name in CASES if "random" not in name]


@pytest.mark.parametrize("place", [0, 1], ids=["before", "after"])
@pytest.mark.parametrize("name", FOLDED_ON_BOTH_SIDES)
def test_a_mistake_on_either_side_of_the_node_is_found(name: str, place: int) -> None:
    original = network(CASES[name])
    folded, report = fold(original, profile="generic")
    assert report.summary()["folded"] == 2
    output = "operand 0 of node" if place == 0 else "output 'y'"
    with pytest.raises(VerificationFailed, match=f"{output}.*the folded graph is not the same function"):
        proved(original, off(folded, place, 1e-4))


def test_what_only_such_a_node_answers_needs_no_shape() -> None:
    """A detector's own suppression stands at the end; nothing after it has to be proved."""
    original = with_weights(f"g ({IMAGE} x) => (int64 y) {{ {BEFORE} [pick] y = own.Pick (a) }}")
    folded, report = fold(original, profile="generic")
    assert report.summary()["folded"] == 1
    proof = proved(original, folded)
    assert [output.name for output in proof.outputs] == ["operand 0 of node 'pick' (own:Pick)"]
    assert proof.note.startswith(
        "proved up to node 'pick' (own:Pick), which was not evaluated; ONNX Runtime cannot run"
    )
    with pytest.raises(VerificationFailed, match="operand 0 of node 'pick'"):
        proved(original, off(folded, 0, 1e-4))


UNKNOWN: dict[str, tuple[Callable[[], ir.Model], str]] = {
    "no shape": (lambda: network(Case("[warp] b = own.Warp (a)", "")), "its output 'b' has no known type and shape"),
    "a size that no input has": (
        lambda: network(Case("[warp] b = own.Warp (a)", "", {"b": ["M", 3, 6, 6]})),
        "its output 'b' has no known type and shape",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_where_nobody_knows_what_the_node_answers_it_is_refused_with_what_to_do(name: str) -> None:
    build, told = UNKNOWN[name]
    original = build()
    folded, _ = fold(original, profile="generic")
    with pytest.raises(UnsupportedOperator) as refused:
        proved(original, folded)
    assert str(refused.value).startswith("node 'warp': operator 'Warp' of domain 'own' cannot be evaluated: " + told)
    assert "(value_info), or skip the proof (--no-verify)" in str(refused.value)


def test_a_node_that_only_one_graph_has_is_refused() -> None:
    case = CASES["own operator"]
    original, without = network(case), network(Case("[warp] b = Identity (a)", ""))
    with pytest.raises(UnsupportedOperator, match="operator 'Warp' of domain 'own'"):
        proved(without, original)
    with pytest.raises(UnsupportedOperator, match="operator 'Warp' of domain 'own'"):
        proved(original, without)


def test_a_node_inside_a_branch_is_refused() -> None:
    branches = "then_branch = t () => (float[N,3,6,6] e) { e = own.Warp (a) }"
    other = "else_branch = u () => (float[N,3,6,6] f) { f = Neg (a) }"
    graph = f"g ({IMAGE} x) => (float[N,3,6,6] y) {{ {BEFORE} y = If (on) <{branches}, {other}> }}"
    original = with_weights(graph)
    folded, _ = fold(original, profile="generic")
    with pytest.raises(UnsupportedOperator, match="operator 'Warp' of domain 'own'"):
        proved(original, folded)


def test_nodes_in_another_order_are_told_apart_by_what_they_answer() -> None:
    """Two nameless nodes of the same kind: mistaken for each other, they would read different operands."""
    both = ["e = own.Warp (c)", "f = own.Warp (k)"]
    shapes: dict[str, list[int | str]] = {"e": ["N", 3, 6, 6], "f": ["N", 3, 6, 6]}

    def built(order: list[str]) -> ir.Model:
        head = "c = Conv <pads = [1, 1, 1, 1]> (x, v) k = Neg (x)"
        return with_weights(f"g ({IMAGE} x) => ({IMAGE} y) {{ {head} {' '.join(order)} y = Sub (e, f) }}", shapes)

    assert proved(built(both), built(both[::-1])).passed
    crossed = ["e = own.Warp (k)", "f = own.Warp (c)"]
    with pytest.raises(VerificationFailed, match=r"operand 0 of node '[ef]'"):
        proved(built(both), built(crossed))


def test_a_graph_that_the_oracle_can_follow_says_nothing_of_boundaries() -> None:
    original = acceptance_model()
    assert "proved up to" not in proved(original, fold(original)[0]).note


def test_the_command_folds_and_proves_a_file_with_an_operator_of_its_own(tmp_path: Path) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    ir.save(network(CASES["own operator"]), source)
    result = fold_file(source, target, profile="generic", reports=[tmp_path / "r.json"])
    assert re.search(r"\n  note: proved up to node 'warp' \(own:Warp\)", result.as_text())
    assert "proved up to node 'warp' (own:Warp)" in (tmp_path / "r.json").read_text()
    assert [node.op_type for node in ir.load(target).graph] == ["Conv", "Warp", "Conv"]
