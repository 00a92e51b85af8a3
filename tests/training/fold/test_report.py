"""The report: JSON as other programs rely on it, text for people."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.training.fold.models import build, mild_statistics, rng_of
from training.fold import fold
from training.fold.report import AffineOutcome, BatchNormOutcome, FoldReport, MergedBranches, Verdict

REPORT = FoldReport(
    (
        BatchNormOutcome("bn1", Verdict.FOLDED, ("conv1",), "", into_ops=("Conv",)),
        BatchNormOutcome("bn2", Verdict.REDUCED, ("mm", "mm_shift"), "MatMul 'mm' holds no bias"),
        BatchNormOutcome("bn3", Verdict.KEPT, (), "producer is Relu 'r1'", way_out="use --profile generic"),
        BatchNormOutcome("bn4", Verdict.FOLDED, ("conv4", "relu4"), "", clamped=True, into_ops=("Conv", "Max")),
        BatchNormOutcome("bn5", Verdict.FOLDED, ("conv1", "conv5"), "", widened=True, into_ops=("Conv", "Conv")),
    ),
    nodes_before=9,
    nodes_after=6,
    affines=(
        AffineOutcome("scale1", Verdict.FOLDED, ("conv4",), "", kind="Mul"),
        AffineOutcome("mean", Verdict.KEPT, (), "'image' is a graph input", kind="Sub"),
    ),
    branches_merged=2,
    profile="generic",
    constant_bytes_before=4000,
    constant_bytes_after=5004,
    merges=(MergedBranches("conv1", "Conv", 3), MergedBranches("fc", "Gemm", 1)),
)


def kept(name: str, reason: str, way_out: str = "") -> BatchNormOutcome:
    return BatchNormOutcome(name, Verdict.KEPT, (), reason, way_out=way_out)


def folded(name: str, *ops: str) -> BatchNormOutcome:
    return BatchNormOutcome(name, Verdict.FOLDED, tuple(f"{name}_{op}" for op in ops), "", into_ops=ops)


def lines_of(*batchnorms: BatchNormOutcome) -> list[str]:
    """The text without its totals."""
    return FoldReport(batchnorms, 1, 1).as_text().splitlines()[1:]


def test_the_json_is_the_contract_of_architecture_md_and_a_little_more() -> None:
    assert REPORT.as_dict() == {
        "batchnorms": [
            {"name": "bn1", "verdict": "folded", "into": ["conv1"], "reason": ""},
            {"name": "bn2", "verdict": "reduced", "into": ["mm", "mm_shift"], "reason": "MatMul 'mm' holds no bias"},
            {
                "name": "bn3",
                "verdict": "kept",
                "into": [],
                "reason": "producer is Relu 'r1'",
                "way_out": "use --profile generic",
            },
            {"name": "bn4", "verdict": "folded", "into": ["conv4", "relu4"], "reason": "", "clamped": True},
            {"name": "bn5", "verdict": "folded", "into": ["conv1", "conv5"], "reason": "", "widened": True},
        ],
        "summary": {
            "found": 5,
            "folded": 3,
            "clamped": 1,
            "widened": 1,
            "reduced": 1,
            "kept": 1,
            "affines_found": 2,
            "affines_folded": 1,
            "branches_merged": 2,
            "nodes_before": 9,
            "nodes_after": 6,
            "constant_bytes_before": 4000,
            "constant_bytes_after": 5004,
        },
        "affines": [
            {"name": "scale1", "kind": "Mul", "verdict": "folded", "into": ["conv4"], "reason": ""},
            {"name": "mean", "kind": "Sub", "verdict": "kept", "into": [], "reason": "'image' is a graph input"},
        ],
        "merges": [
            {"into": "conv1", "kind": "Conv", "branches": 3},
            {"into": "fc", "kind": "Gemm", "branches": 1},
        ],
        "profile": "generic",
    }
    assert json.loads(json.dumps(REPORT.as_dict())) == REPORT.as_dict()


def test_the_verdicts_add_up_and_the_clamped_are_among_the_folded() -> None:
    clamp_of_a_reduced_one = BatchNormOutcome("bn", Verdict.REDUCED, ("add",), "an Add is left", clamped=True)
    s = FoldReport((*REPORT.batchnorms, clamp_of_a_reduced_one), 1, 1).summary()
    assert s["found"] == s["folded"] + s["reduced"] + s["kept"] == 6
    assert s["clamped"] == s["widened"] == 1 <= s["folded"]


def test_the_text_counts_what_is_folded_and_explains_what_is_not() -> None:
    totals, *lines = REPORT.as_text().splitlines()
    assert totals == (
        "5 BatchNormalization found: 3 folded (1 clamped, 1 widened), 1 reduced, 1 kept; "
        "1 of 2 other affine maps folded; 2 branches and sequences merged; 9 nodes before, 6 after"
    )
    assert lines == [
        "  constants grew by 25 %, from 4,000 to 5,004 bytes",
        "  branches merged into 'conv1' (3 of them)",
        "  sequences merged into 'fc'",
        "  folded  2 into Conv, 1 into Conv and Max",
        "  reduced bn2 into mm, mm_shift: MatMul 'mm' holds no bias",
        "  kept    bn3: producer is Relu 'r1'",
        "          way out: use --profile generic",
        "  other affine maps:",
        "    kept    mean: 'image' is a graph input",
    ]


def test_the_verbose_text_has_a_line_for_each_map_in_graph_order() -> None:
    assert REPORT.as_text(verbose=True).splitlines()[4:] == [
        "  folded  bn1 into conv1",
        "  reduced bn2 into mm, mm_shift: MatMul 'mm' holds no bias",
        "  kept    bn3: producer is Relu 'r1' (way out: use --profile generic)",
        "  folded  bn4 into conv4, relu4, clamped",
        "  folded  bn5 into conv1, conv5, widened",
        "  folded  scale1 into conv4",
        "  kept    mean: 'image' is a graph input",
    ]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [(0, 0, False), (1000, 900, False), (1000, 1000, False), (1000, 1010, False), (1000, 1011, True), (8, 80, True)],
)
def test_growth_is_told_above_one_percent(before: int, after: int, told: bool) -> None:
    text = FoldReport((), 3, 3, constant_bytes_before=before, constant_bytes_after=after).as_text()
    assert ("constants grew" in text) is told


@pytest.mark.parametrize(
    ("branches", "told"),
    [([], "2 branches"), ([3], "2 branches"), ([2], "1 branch"), ([1], "1 sequence"), ([1, 1], "2 sequences")],
)
def test_what_followed_one_another_is_not_called_branches(branches: list[int], told: str) -> None:
    merges = tuple(MergedBranches(f"c{i}", "Conv", count) for i, count in enumerate(branches))
    total = sum(max(count - 1, 1) for count in branches) or 2
    assert f"; {told} merged; " in FoldReport((), 3, 3, branches_merged=total, merges=merges).as_text()


@pytest.mark.parametrize(
    ("into", "ops", "told"),
    [
        (("bn",), ("Add",), "bn to one Add"),
        (("bn", "conv"), ("Mul", "Conv"), "bn to one Mul, the rest into conv"),
        (("conv", "bn", "fc"), ("Conv", "Add", "Gemm"), "bn to one Add, the rest into conv, fc"),
        (("conv",), ("Conv",), "bn into conv"),
        ((), (), "bn"),
    ],
)
def test_a_reduced_one_is_not_said_to_go_into_itself(into: Any, ops: Any, told: str) -> None:
    outcome = BatchNormOutcome("bn", Verdict.REDUCED, into, "stuck", into_ops=ops)
    assert lines_of(outcome) == [f"  reduced {told}: stuck"] == [f"  {outcome.as_text()}"]
    assert outcome.as_dict()["into"] == list(into)


def test_of_many_merges_the_first_are_named() -> None:
    merges = tuple(MergedBranches(f"c{i}", "Conv", 2) for i in range(28))
    (_, line) = FoldReport((), 3, 3, branches_merged=28, merges=merges).as_text().splitlines()
    assert line.startswith("  branches merged into 'c0' (2 of them), 'c1'") and line.endswith(
        "'c5' (2 of them) and 22 more"
    )


@pytest.mark.parametrize(("statistics", "copies"), [(1, 1), (2, 2), (10, 10)])
def test_a_weight_that_ten_maps_go_into_is_stored_once_for_each_content(statistics: int, copies: int) -> None:
    """Ten convolutions share a weight, and each has a BatchNormalization behind it, of so many different statistics."""
    lines, constants = [], {"w": rng_of(0).normal(size=(4, 3, 3, 3)), "k": np.zeros(4)}
    for i in range(10):
        own = mild_statistics(rng_of(i % statistics), 4)
        constants |= {f"{key}{i}": part for key, part in own.items()}
        lines.append(f"c{i} = Conv (x, w, k) y{i} = BatchNormalization (c{i}, g{i}, b{i}, m{i}, v{i})")
    outputs = ", ".join(f"double[2,4,5,5] y{i}" for i in range(10))
    model = build(f"g (double[2,3,7,7] x) => ({outputs}) {{ {' '.join(lines)} }}", **constants)

    folded, report = fold(model)

    weight, bias = 4 * 3 * 3 * 3 * 8, 4 * 8
    assert report.constant_bytes_before == weight + bias + 10 * 4 * bias
    assert report.constant_bytes_after == copies * (weight + bias)
    assert sum(value.const_value.nbytes for value in folded.graph.initializers.values()) == copies * (weight + bias)


def test_constant_nodes_and_those_of_bodies_count() -> None:
    model = build(
        """g (double[2] x, bool c) => (double[2] y) {
            s = Constant <value = double[2] {1.0, 2.0}> () z = Mul (x, s)
            y = If (c) <
                then_branch = t () => (double[2] a) { k = Constant <value = double[1] {1.0}> () a = Add (z, k) },
                else_branch = e () => (double[2] b) { b = Relu (z) }> }""",
        w=np.zeros(3, np.float32),
    )

    report = fold(model)[1]

    assert report.constant_bytes_before == report.constant_bytes_after == 16 + 8 + 12


def test_nothing_is_said_of_what_there_is_none_of() -> None:
    assert FoldReport((), 3, 3).as_text() == (
        "0 BatchNormalization found: 0 folded, 0 reduced, 0 kept; 3 nodes before, 3 after"
    )


def test_the_operators_that_hold_most_come_first() -> None:
    outcomes = (folded("a", "Gemm"), *(folded(f"b{i}", "Conv") for i in range(3)), folded("c", "Max", "Min", "Conv"))
    assert lines_of(*outcomes) == ["  folded  3 into Conv, 1 into Conv, Max and Min, 1 into Gemm"]


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (BatchNormOutcome("bn", Verdict.FOLDED, ("conv",), ""), "1 into other nodes"),
        (BatchNormOutcome("bn", Verdict.FOLDED, (), ""), "1 without a trace"),
        (folded("bn", "Conv", "Conv"), "1 into Conv"),
    ],
    ids=["operators not known", "it was the identity", "one operator twice"],
)
def test_what_the_folded_went_into_is_said_in_words(outcome: BatchNormOutcome, line: str) -> None:
    assert lines_of(outcome) == [f"  folded  {line}"]


def test_those_that_share_a_reason_share_a_line_the_most_frequent_first() -> None:
    slow = [kept(f"bn{i}", "slower on ort-cpu", "use --profile generic") for i in range(9)]
    assert lines_of(kept("odd", "'x' is a graph input"), *slow) == [
        "  kept    9 (bn0, bn1, bn2, bn3, bn4, bn5, ...): slower on ort-cpu",
        "          way out: use --profile generic",
        "  kept    odd: 'x' is a graph input",
    ]


def test_the_same_reason_with_another_way_out_is_another_line() -> None:
    assert lines_of(kept("a", "slow", "wait"), kept("b", "slow", "run")) == [
        "  kept    a: slow",
        "          way out: wait",
        "  kept    b: slow",
        "          way out: run",
    ]


def test_thousands_whose_reasons_differ_in_names_alone_are_one_line() -> None:
    many = [kept(f"bn{i}", f"output 'h{i}' of Conv 'conv{i}' is also a graph output") for i in range(2326)]
    assert lines_of(*many) == [
        "  kept    2326 (bn0, bn1, bn2, bn3, bn4, bn5, ...): output '...' of Conv '...' is also a graph output"
    ]


def test_thousands_of_different_reasons_are_cut_and_counted() -> None:
    lines = lines_of(*(kept(f"bn{i}", f"reason number {i}") for i in range(2326)))
    assert len(lines) == 21
    assert lines[-1] == "  and 2306 more for 2306 other reasons; the report file (--report) has them all"


def test_names_cannot_write_to_the_terminal() -> None:
    text = FoldReport((kept("bn\x1b[2J\n\u202egood", "stuck at 'x\r'"),), 1, 1)
    for shown in (text.as_text(), text.as_text(verbose=True)):
        assert len(shown.splitlines()) == 2
        assert all(char.isprintable() or char == "\n" for char in shown)
        assert r"bn\x1b[2J\n\u202egood" in shown


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({}, False),
        ({"batchnorms": REPORT.batchnorms[:1]}, True),
        ({"batchnorms": REPORT.batchnorms[1:2]}, True),
        ({"affines": REPORT.affines[1:]}, False),
        ({"affines": REPORT.affines[:1]}, True),
        ({"branches_merged": 1}, True),
    ],
    ids=["kept alone", "folded", "reduced", "affine kept", "affine folded", "branch merged"],
)
def test_a_report_of_kept_ones_alone_changed_nothing(change: dict[str, Any], changed: bool) -> None:
    parts: dict[str, Any] = {"batchnorms": REPORT.batchnorms[2:3], "nodes_before": 1, "nodes_after": 1}
    assert FoldReport(**(parts | change)).changed is changed


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [(Verdict.KEPT, ""), (Verdict.REDUCED, ""), (Verdict.FOLDED, "there is one")],
)
def test_what_is_not_folded_has_a_reason_and_nothing_else_has(verdict: Verdict, reason: str) -> None:
    with pytest.raises(ValueError, match=f"'bn' is {verdict}, with reason '{reason}'"):
        BatchNormOutcome("bn", verdict, (), reason)


def test_operators_are_given_for_each_node_or_for_none() -> None:
    with pytest.raises(ValueError, match="'bn' went into 2 nodes, but has 1 operators"):
        BatchNormOutcome("bn", Verdict.FOLDED, ("a", "b"), "", into_ops=("Conv",))


def test_the_marks_name_the_source_only_where_it_is_known() -> None:
    assert sorted(REPORT.metadata("abc")) == ["foldserve.fold", "foldserve.source_sha256", "foldserve.version"]
    assert sorted(REPORT.metadata(None)) == ["foldserve.fold", "foldserve.version"]
    assert json.loads(REPORT.metadata(None)["foldserve.fold"]) == REPORT.summary()
