"""The page: everything the report says, drawn and in tables, from whatever a stranger's file is named."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.models import acceptance_model, build, reload, rng_of, serialized
from training.fold import fold
from training.fold.normalise import normalise
from training.fold.page import render_page
from training.fold.page_graph import MOST_BOXES, Fates, Picture, picture_after, picture_before
from training.fold.page_layout import BOX_HEIGHT, BOX_WIDTH, lay_out
from training.fold.report import AffineOutcome, BatchNormOutcome, FoldReport, MergedBranches, Verdict

PROVED = {
    "passed": True,
    "failure": "",
    "algebra_error": 3.1e-15,
    "algebra_bound": 1e-9,
    "rounding_ratio": 0.93,
    "max_abs_error": 3.25e-6,
    "max_rel_error": None,
    "samples": 6,
    "oracle": "the float64 reference",
    "note": "",
}
FOUR = {name: np.ones(4, np.float32) for name in "sw"}
BEFORE = """every_verdict (float[1,4] x) => (float[1,4] y)
    {
        [shape] sizes = Shape (x)
        [twin] sw2 = Mul (s, w)
        [conv] a = Gemm (x, k)
        [bn_folded] b = BatchNormalization (a, s, s, s, s)
        [mul] c = Mul (b, s)
        [relu] d = Relu (c)
        [conv2] e = Gemm (d, k)
        [branch] f = Gemm (d, k)
        [add] g = Add (e, f)
        [bn_clamped] h = BatchNormalization (g, s, s, s, s)
        [relu2] i = Relu (h)
        [matmul] j = MatMul (i, k)
        [bn_reduced] l = BatchNormalization (j, s, s, s, s)
        [softmax] m = Softmax (l)
        [bn_kept] n = BatchNormalization (m, s, s, s, sw2)
        [reshape] y = Reshape (n, sizes)
    }"""
AFTER = """every_verdict (float[1,4] x) => (float[1,4] y)
    {
        [shape] sizes = Shape (x)
        [twin] sw2 = Mul (s, w)
        [conv] a = Gemm (x, k)
        [relu] d = Relu (a)
        [conv2] e = Gemm (d, k)
        [relu2_max] h = Max (e, s)
        [matmul] j = MatMul (h, k)
        [matmul_shift] l = Add (j, s)
        [softmax] m = Softmax (l)
        [bn_kept] n = BatchNormalization (m, s, s, s, sw2)
        [reshape] y = Reshape (n, sizes)
    }"""
REPORT = FoldReport(
    (
        BatchNormOutcome("bn_folded", Verdict.FOLDED, ("conv",), ""),
        BatchNormOutcome("bn_clamped", Verdict.FOLDED, ("conv2", "relu2_max"), "", clamped=True),
        BatchNormOutcome("bn_reduced", Verdict.REDUCED, ("matmul", "matmul_shift"), "MatMul 'matmul' holds no bias"),
        BatchNormOutcome("bn_kept", Verdict.KEPT, (), "producer is Softmax 'softmax'", way_out="retrain without it"),
    ),
    nodes_before=16,
    nodes_after=11,
    affines=(AffineOutcome("mul", Verdict.FOLDED, ("conv",), "", kind="Mul"),),
    branches_merged=1,
    profile="generic",
    merges=(MergedBranches("conv", "Conv", 2), MergedBranches("matmul", "MatMul", 1)),
)


def gemms(text: str) -> ir.Model:
    return build(text, k=np.ones((4, 4), np.float32), **FOUR)


def result_of(report: FoldReport, verify: Any = PROVED) -> dict[str, Any]:
    return {**report.as_dict(), "verify": verify}


def every_verdict(**changes: Any) -> str:
    return render_page(gemms(BEFORE), gemms(AFTER), result_of(REPORT) | changes)


def pictures(original: ir.Model, folded: ir.Model, report: FoldReport) -> tuple[Picture, Picture]:
    fates = Fates(report.as_dict())
    return picture_before(original, folded, fates), picture_after(original, folded, fates)


def kinds(picture: Picture) -> dict[str, str]:
    return {box.names[0]: box.kind for box in picture.boxes if box.names}


def named_edges(picture: Picture) -> set[tuple[str, str]]:
    shown = [box.names[0] if box.names else box.title for box in picture.boxes]
    return {(shown[a], shown[b]) for a, b in picture.edges}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parts: list[Any] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    def all(self, tag: str) -> list[Element]:
        found = [self] if self.tag == tag else []
        return found + [inner for part in self.parts if isinstance(part, Element) for inner in part.all(tag)]

    def everything(self) -> list[Element]:
        return [self] + [inner for part in self.parts if isinstance(part, Element) for inner in part.everything()]


class Page(HTMLParser):
    """As a browser reads it, but strictly: what is opened is closed, in order."""

    ALONE = ("meta", "input", "rect", "path")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert [element.tag for element in self.open] == [""], "elements left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} is given twice"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].parts.append(element)
        if tag not in self.ALONE:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.ALONE
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"{tag} closes {self.open[-1].tag}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)

    def all(self, tag: str) -> list[Element]:
        return self.root.all(tag)

    def rows(self) -> list[list[str]]:
        """The cells' texts of every row with an id: those of the maps."""
        return [
            [cell.text for cell in row.parts if isinstance(cell, Element)]
            for row in self.all("tr")
            if "id" in row.attributes
        ]


# What it says.


def test_each_map_has_a_row_with_its_verdict_where_it_went_what_blocked_it_and_the_way_out() -> None:
    assert Page(every_verdict()).rows() == [
        ["1", "bn_folded", "folded", "conv", "", ""],
        ["2", "bn_clamped", "clamped", "conv2, relu2_max", "", ""],
        ["3", "bn_reduced", "reduced", "matmul, matmul_shift", "MatMul 'matmul' holds no bias", ""],
        ["4", "bn_kept", "kept", "", "producer is Softmax 'softmax'", "retrain without it"],
        ["5", "mul Mul", "folded", "conv"],
    ]


def test_an_operator_that_does_what_several_did_is_listed_with_their_number() -> None:
    page = Page(every_verdict())
    section = next(one for one in page.all("section") if one.attributes["aria-labelledby"] == "merged")
    assert [[cell.text for cell in row.parts if isinstance(cell, Element)] for row in section.all("tr")] == [
        ["#", "Into", "Operator", "Branches"],
        ["1", "conv", "Conv", "2"],
        ["2", "matmul", "MatMul", "operators in sequence"],
    ]
    assert len(section.all("a")) == 2
    assert "merged" not in {one.attributes["aria-labelledby"] for one in Page(every_verdict(merges=[])).all("section")}


def test_the_head_counts_verdicts_nodes_other_maps_and_branches() -> None:
    page = Page(every_verdict())
    figures = {
        group.all("dt")[0].text: group.all("dd")[0].text for group in page.all("div") if len(group.all("dt")) == 1
    }
    assert figures == {
        "BatchNormalization": "4",
        "folded": "2",
        "clamped": "1 of the folded",
        "reduced": "1",
        "kept": "1",
        "other affine maps folded": "1 of 1",
        "branches merged": "1",
        "nodes": "16 → 11",
        "profile": "generic",
    }
    assert page.all("title")[0].text == "Fold report: every_verdict"
    assert [bar.attributes["aria-label"] for bar in page.all("svg")[:1]] == ["1 folded, 1 clamped, 1 reduced, 1 kept"]


@pytest.mark.parametrize(
    ("verify", "word", "says"),
    [
        (PROVED, "proved", "3.1e-15 of scale times condition (at most 1e-09)"),
        (PROVED, "proved", "0.93 times the original's own"),
        (PROVED, "proved", "not measured of the output's scale"),
        ("skipped", "skipped", "Nobody has compared the two graphs."),
        (None, "skipped", "Nobody has compared the two graphs."),
        ({"passed": True, "samples": 0, "note": "the file is a copy"}, "not needed", "the file is a copy"),
        (PROVED | {"passed": False, "failure": "output 'y' differs"}, "failed", "output 'y' differs"),
    ],
    ids=["algebra", "rounding", "not measured", "skipped", "missing", "nothing folded", "failed"],
)
def test_the_verification_is_told_with_its_figures(verify: Any, word: str, says: str) -> None:
    result = result_of(REPORT, verify)
    if verify is None:
        del result["verify"]
    section = Page(render_page(gemms(BEFORE), gemms(AFTER), result)).all("section")[0]
    assert section.all("h2")[0].text == f"Verification {word}"
    assert says in section.text


def test_what_is_left_is_grouped_by_reason_whatever_the_names() -> None:
    outcomes = [BatchNormOutcome(f"bn{i}", Verdict.KEPT, (), f"'h{i}' is a graph output") for i in range(3)]
    report = FoldReport((*outcomes, *REPORT.batchnorms), 1, 1)
    section = Page(render_page(gemms(BEFORE), gemms(AFTER), result_of(report))).all("section")[1]
    assert [row.text for row in section.all("tr")][1:] == [
        "3kept'...' is a graph outputbn0",
        "1reducedMatMul 'matmul' holds no biasbn_reduced",
        "1keptproducer is Softmax 'softmax'retrain without itbn_kept",
    ]


def test_where_all_is_folded_nothing_is_said_to_be_left() -> None:
    report = FoldReport(REPORT.batchnorms[:2], 1, 1)
    page = Page(render_page(gemms(BEFORE), gemms(AFTER), result_of(report)))
    assert "What is left" not in page.root.text
    assert [head.text for head in page.all("th")[:4]] == ["#", "Name", "Verdict", "Into"]  # no empty columns


def test_a_model_without_batchnormalization_has_a_page_too() -> None:
    model = build("plain (float[2] x) => (float[2] y) { y = Relu (x) }")
    page = Page(render_page(model, model, result_of(FoldReport((), 1, 1))))
    assert "The model has no BatchNormalization." in page.root.text
    assert page.rows() == []


# What it draws.


def test_the_original_shows_what_became_of_each_operator() -> None:
    before, _ = pictures(gemms(BEFORE), gemms(AFTER), REPORT)
    assert kinds(before) == {
        "conv": "holds",
        "bn_folded": "folded",
        "mul": "folded",
        "relu": "plain",
        "conv2": "holds",
        "branch": "gone",
        "add": "gone",
        "bn_clamped": "clamped",
        "relu2": "gone",
        "matmul": "holds",
        "bn_reduced": "reduced",
        "softmax": "plain",
        "bn_kept": "kept",
        "reshape": "plain",
    }


def test_the_folded_graph_shows_what_holds_a_map_and_what_is_left_or_new() -> None:
    _, after = pictures(gemms(BEFORE), gemms(AFTER), REPORT)
    assert kinds(after) == {
        "conv": "holds",
        "relu": "plain",
        "conv2": "holds",
        "relu2_max": "clamped",
        "matmul": "holds",
        "matmul_shift": "reduced",
        "softmax": "plain",
        "bn_kept": "kept",
        "reshape": "plain",
    }
    unexplained = FoldReport(REPORT.batchnorms[:1], 1, 1)
    assert kinds(pictures(gemms(BEFORE), gemms(AFTER), unexplained)[1])["relu2_max"] == "new"


def test_an_operator_that_became_another_says_which() -> None:
    original = gemms("g (float[1,4] x) => (float[1,4] y) { [mm] y = MatMul (x, k) }")
    folded = gemms("g (float[1,4] x) => (float[1,4] y) { [mm] y = Gemm (x, k, s) }")
    before, _ = pictures(original, folded, FoldReport((BatchNormOutcome("bn", Verdict.FOLDED, ("mm",), ""),), 2, 1))
    box = before.boxes[before.by_name()["mm"]]
    assert (box.kind, box.word, box.lines[-2:]) == ("holds", "→ Gemm", ("is a Gemm now", "holds 'bn' (folded)"))


def test_details_name_the_operator_its_output_and_its_fate() -> None:
    before, after = pictures(gemms(BEFORE), gemms(AFTER), REPORT)
    reduced = before.boxes[before.by_name()["bn_reduced"]]
    assert reduced.lines == (
        "BatchNormalization 'bn_reduced'",
        "reduced into matmul, matmul_shift",
        "because: MatMul 'matmul' holds no bias",
    )
    holder = after.boxes[after.by_name()["conv"]]
    assert holder.lines == ("Gemm 'conv'", "holds 'bn_folded' (folded)", "holds 'mul' (folded)")
    kept = after.boxes[after.by_name()["bn_kept"]]
    assert kept.lines[1:] == ("kept", "because: producer is Softmax 'softmax'", "way out: retrain without it")


def test_constants_and_arithmetic_on_shapes_are_not_drawn() -> None:
    before, _ = pictures(gemms(BEFORE), gemms(AFTER), REPORT)
    assert {"shape", "twin"}.isdisjoint(before.by_name())
    assert ("bn_kept", "reshape") in named_edges(before)
    assert [box.caption for box in before.boxes if box.kind == "io"] == ["x [1, 4]", "y [1, 4]"]


def test_bodies_are_drawn_in_place_and_feed_their_owner() -> None:
    inner = "{ [relu] r = Relu (h)\n [bn] b = BatchNormalization (r, s, s, s, s) }"
    model = build(
        f"""g (float[1,4] x, bool flag) => (float[1,4] y)
        {{
            [first] h = Abs (x)
            [either] y = If (flag) <then_branch = yes () => (float[1,4] b) {inner},
                                    else_branch = no () => (float[1,4] c) {{ [neg] c = Neg (h) }}>
        }}""",
        s=np.ones(4, np.float32),
    )
    report = FoldReport((BatchNormOutcome("bn", Verdict.KEPT, (), "it is in a body"),), 5, 5)
    before, _ = pictures(model, model, report)
    assert kinds(before)["bn"] == "kept"
    wanted = {("first", "relu"), ("relu", "bn"), ("bn", "either"), ("first", "neg"), ("neg", "either")}
    assert wanted <= named_edges(before)


def test_what_a_body_gets_from_its_owner_comes_from_what_the_owner_reads() -> None:
    model = build(
        """g (float[1,4] x) => (float[1,4] y)
        {
            [first] h = Abs (x)
            [loop] y = Loop (n, , h) <body = b (int64 i, bool c, float[1,4] v) => (bool d, float[1,4] w)
                { [keep] d = Identity (c)\n [neg] w = Neg (v) }>
        }""",
        n=np.array(3),
    )
    before, _ = pictures(model, model, FoldReport((), 4, 4))
    assert {("first", "neg"), ("neg", "loop")} <= named_edges(before)


def calling(body: str) -> ir.Model:
    return build(
        "g (float[1,4] x) => (float[1,4] y) { [call] y = own.part (x, s) }",
        functions=f'<opset_import: ["" : 17], domain: "own">\npart (a, s) => (c) {{ {body} }}',
        s=np.ones(4, np.float32),
    )


def test_calls_of_local_functions_are_drawn_as_the_engine_saw_them() -> None:
    model = calling("b = Relu (a)\n c = BatchNormalization (b, s, s, s, s)")
    (name,) = (node.name for node in normalise(model).graph if node.op_type == "BatchNormalization")
    report = FoldReport((BatchNormOutcome(name or "", Verdict.KEPT, (), "'y' is a graph output"),), 1, 1)
    for drawing in Page(render_page(model, model, result_of(report))).all("svg")[1:]:
        assert f"BatchNormalization '{name}'" in drawing.text and "kept" in drawing.text and "Relu '" in drawing.text
        assert "gone" not in drawing.text and "new" not in drawing.text


def test_a_call_without_batchnormalization_is_one_box() -> None:
    model = calling("b = Relu (a)\n c = Mul (b, s)")
    before, _ = pictures(model, model, FoldReport((), 1, 1))
    assert kinds(before) == {"call": "plain"}


def test_namesakes_are_told_apart_by_their_order() -> None:
    text = "g (float[1,4] x) => (float[1,4] y) { [bn] h = BatchNormalization (x, s, s, s, s)\n%s }"
    model = build(text % "[bn] y = BatchNormalization (h, s, s, s, s)", **FOUR)
    report = FoldReport(
        (
            BatchNormOutcome("bn", Verdict.FOLDED, (), ""),
            BatchNormOutcome("bn", Verdict.KEPT, (), "'y' is a graph output"),
        ),
        2,
        1,
    )
    before, _ = pictures(model, model, report)
    assert [box.kind for box in before.boxes if box.names] == ["folded", "kept"]


# How it is laid out.


def random_edges(seed: int, count: int) -> list[tuple[int, int]]:
    rng = rng_of(seed)
    pairs = {(int(rng.integers(max(0, b - 12), b)), b) for b in range(1, count) for _ in range(int(rng.integers(0, 4)))}
    return sorted(pairs | {(0, b) for b in range(1, count, 7)})


@pytest.mark.parametrize("seed", range(12))
def test_no_box_covers_another_and_no_line_crosses_a_box(seed: int) -> None:
    count = 60
    edges = random_edges(seed, count)
    layout = lay_out(count, edges)
    boxes = [(x, y, x + BOX_WIDTH, y + BOX_HEIGHT) for x, y in layout.corners]
    assert len(boxes) == count and len(layout.lines) == len(edges)
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0 and right <= layout.width and top >= 0 and bottom <= layout.height
        for other in boxes[:i]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
    for (a, b), line in zip(edges, layout.lines, strict=True):
        assert line[0] == (boxes[a][0] + BOX_WIDTH // 2, boxes[a][3])
        assert line[-1] == (boxes[b][0] + BOX_WIDTH // 2, boxes[b][1])
        for (x1, y1), (x2, y2) in pairwise(line):
            assert (x1 == x2) != (y1 == y2) and y1 <= y2, "level or upright, never up"
            assert max(x1, x2) <= layout.width
            for left, top, right, bottom in boxes:
                outside = max(x1, x2) <= left or right <= min(x1, x2) or max(y1, y2) <= top or bottom <= min(y1, y2)
                assert outside, f"the line of {a} to {b} crosses a box"


def test_a_chain_is_one_straight_column() -> None:
    layout = lay_out(4, [(0, 1), (1, 2), (2, 3)])
    assert len({x for x, _ in layout.corners}) == 1
    assert all(len(line) == 2 for line in layout.lines)


def test_an_empty_graph_has_a_layout() -> None:
    assert lay_out(0, []).corners == ()


# How it stays small.


def chain(folded: bool, length: int = 2500) -> ir.Model:
    """Conv and BatchNormalization by turns; every second BatchNormalization folds."""
    nodes, last = [], "x"
    for i in range(length):
        nodes.append(f"[a_long_prefix_of_stage_conv{i}] c{i} = Gemm ({last}, k)")
        last = f"c{i}"
        if not folded or i % 2:
            nodes.append(f"[a_long_prefix_of_stage_bn{i}] b{i} = BatchNormalization (c{i}, s, s, s, s)")
            last = f"b{i}"
    text = "\n".join([*nodes, f"y = Relu ({last})"])
    return gemms(f"chain (float[1,4] x) => (float[1,4] y) {{ {text} }}")


def chain_report(length: int = 2500) -> FoldReport:
    prefix = "a_long_prefix_of_stage_"
    reason = "its scale can go neither way: 'some_tensor_{0}' is a graph output; '{0}' is a graph input"
    return FoldReport(
        tuple(
            BatchNormOutcome(f"{prefix}bn{i}", Verdict.KEPT, (), reason.format(i), way_out="use --profile generic")
            if i % 2
            else BatchNormOutcome(f"{prefix}bn{i}", Verdict.FOLDED, (f"{prefix}conv{i}",), "")
            for i in range(length)
        ),
        2 * length + 1,
        3 * length // 2 + 1,
    )


def test_five_thousand_nodes_make_a_page_below_three_megabytes_that_says_what_it_leaves_out() -> None:
    original, folded, report = chain(False), chain(True), chain_report()
    text = render_page(original, folded, result_of(report))
    assert len(text.encode()) < 3_000_000
    page = Page(text)
    assert len(page.rows()) == 2500
    notes = [caption.text for caption in page.all("figcaption")]
    assert all(re.search(r"Only \d+ of \d+ boxes are drawn, those around what is not simply folded", n) for n in notes)
    before, after = pictures(original, folded, report)
    assert max(len(before.boxes), len(after.boxes)) <= MOST_BOXES


@pytest.mark.parametrize(("length", "joined"), [(20, False), (140, False), (500, True)])
def test_runs_of_what_is_settled_become_one_box_once_there_are_many_and_nothing_else_is_left_out(
    length: int, joined: bool
) -> None:
    before, _ = pictures(chain(False, length), chain(True, length), chain_report(length))
    drawn = [box.kind for box in before.boxes]
    assert drawn.count("kept") == length // 2 and len(drawn) <= MOST_BOXES
    assert sum(len(box.names) for box in before.boxes) == 2 * length + 1  # every operator is in one box
    assert bool(before.note) == any(len(box.names) > 1 for box in before.boxes) == joined
    assert all(a < b for a, b in before.edges)
    assert len(before.edges) == len(before.boxes) - 1  # still a chain


def test_a_run_says_what_is_in_it() -> None:
    before, _ = pictures(chain(False, 400), chain(True, 400), chain_report(400))
    run = next(box for box in before.boxes if len(box.names) > 1)
    assert (run.title, run.caption, run.kind, run.word) == ("3 operators", "2 Gemm, 1 BatchNorm", "folded", "1 folded")


def test_long_texts_are_cut() -> None:
    name = "x" * 1_000_000
    report = FoldReport((BatchNormOutcome(name, Verdict.KEPT, (name,) * 50, name, way_out=name),), 1, 1)
    text = render_page(gemms(BEFORE), gemms(AFTER), result_of(report))
    assert len(text) < 60_000
    assert "and 42 more" in text


# Whom it trusts.

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;</title></style>$title\n\x00\u202e"


def hostile_page() -> str:
    def rename(model: ir.Model) -> ir.Model:
        for number, node in enumerate(model.graph):
            node.name = f"{node.name}{HOSTILE}"
            node.outputs[0].name = f"v{number}{HOSTILE}"
        model.graph.inputs[0].name = f"x{HOSTILE}"
        model.graph.name = HOSTILE
        list(model.graph)[-1].op_type = f"Own{HOSTILE}"
        return model

    outcomes = tuple(
        BatchNormOutcome(
            f"{one.name}{HOSTILE}",
            one.verdict,
            tuple(f"{name}{HOSTILE}" for name in one.into),
            one.reason and HOSTILE,
            one.clamped,
            HOSTILE,
        )
        for one in REPORT.batchnorms
    )
    affines = (AffineOutcome(f"mul{HOSTILE}", Verdict.KEPT, (), HOSTILE, kind=HOSTILE),)
    report = FoldReport(outcomes, 1, 1, affines, profile=HOSTILE)
    folded = rename(gemms(AFTER))
    folded.metadata_props["foldserve.source_sha256"] = HOSTILE
    verify = PROVED | {"note": HOSTILE, "oracle": HOSTILE, "failure": HOSTILE}
    return render_page(rename(gemms(BEFORE)), folded, result_of(report, verify))


def test_names_are_text_and_never_markup() -> None:
    page, tame = Page(hostile_page()), Page(every_verdict())
    assert len(page.all("script")) == len(page.all("style")) == len(page.all("head")[0].all("title")) == 1
    assert {element.tag for element in page.root.everything()} <= {element.tag for element in tame.root.everything()}
    known = {(element.tag, name) for element in tame.root.everything() for name in element.attributes}
    assert {(element.tag, name) for element in page.root.everything() for name in element.attributes} <= known
    assert len(page.rows()) == 5
    assert all("<script>alert(1)</script>" in row[1] for row in page.rows())
    assert r"\n\x00\u202e" in page.rows()[0][1]
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", hostile_page())


def test_nodes_are_found_under_hostile_names_too() -> None:
    links = [link.attributes["href"] for row in Page(hostile_page()).all("tr")[-5:] for link in row.all("a")]
    assert len(links) >= 8 and all(re.fullmatch(r"#[ab]\d+", link) for link in links)


def test_the_content_policy_allows_the_pages_own_script_and_style_and_nothing_else() -> None:
    page = Page(every_verdict())
    policy = page.all("meta")[1].attributes["content"]
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.all(tag)[0].text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    for element in page.root.everything():
        assert "style" not in element.attributes and not any(name.startswith("on") for name in element.attributes)


def test_nothing_is_fetched_and_every_link_leads_somewhere_on_the_page() -> None:
    text = every_verdict()
    page = Page(text)
    ids = [element.attributes["id"] for element in page.root.everything() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    for element in page.root.everything():
        assert {"src", "srcset", "action", "data"}.isdisjoint(element.attributes) and element.tag not in (
            "link",
            "base",
        )
        for name in ("href", "for", "aria-labelledby"):
            if name in element.attributes:
                assert element.attributes[name].removeprefix("#") in ids
        assert set(element.attributes.get("data-to", "").split()) <= set(ids)


def test_a_map_leads_to_its_box_a_box_to_its_row_and_a_row_to_what_holds_it() -> None:
    page = Page(every_verdict())
    byid = {element.attributes["id"]: element for element in page.root.everything() if "id" in element.attributes}
    own, holder, clamp = (link.attributes["href"].removeprefix("#") for link in byid["r1"].all("a"))
    assert byid[own].all("title")[0].text.startswith("BatchNormalization 'bn_clamped'")
    assert byid[own].attributes["href"] == "#r1"
    assert set(byid[own].attributes["data-to"].split()) == {holder, clamp}
    assert byid[clamp].all("title")[0].text.startswith("Max 'relu2_max'")


# Who can use it.


def test_the_filter_needs_no_script() -> None:
    page = Page(every_verdict())
    style = page.all("style")[0].text
    labels = {label.attributes["for"]: label.text for label in page.all("label")}
    assert labels == {
        "only-all": "all (5)",
        "only-folded": "folded (3)",
        "only-clamped": "clamped (1)",
        "only-reduced": "reduced (1)",
        "only-kept": "kept (1)",
    }
    for name in list(labels)[1:]:
        assert f"#{name}:checked ~ .table tbody tr:not(.{name.removeprefix('only-')})" in style
    classes = [row.attributes["class"] for row in page.all("tr") if "id" in row.attributes]
    assert classes == ["folded", "folded clamped", "reduced", "kept", "folded"]


def test_tables_and_drawings_are_named_for_those_who_hear_them() -> None:
    page = Page(every_verdict())
    assert page.all("html")[0].attributes["lang"] == "en"
    assert all(head.attributes["scope"] in ("col", "row") for head in page.all("th"))
    assert [caption.text for caption in page.all("caption")] == ["BatchNormalization (4)", "Other affine maps (1)"]
    assert all(drawing.attributes["aria-label"] for drawing in page.all("svg"))
    assert len(page.all("h1")) == len(page.all("main")) == 1


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_text_has_the_contrast_that_wcag_asks_for(theme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", Page(every_verdict()).all("style")[0].text, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[theme]))
    verdicts = ("folded", "clamped", "reduced", "kept", "holds", "new", "gone")
    pairs = [(ink, paper) for ink in ("ink", "quiet", "link") for paper in ("paper", "card")]
    pairs += [(ink, f"{verdict}-tint") for verdict in verdicts for ink in (verdict, "ink", "quiet")]
    pairs += [("link", "holds-tint")]
    for ink, paper in pairs:
        low, high = sorted((_luminance(colours[ink]), _luminance(colours[paper])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, f"{ink} on {paper}"


# What it leaves alone.


def test_the_same_fold_gives_the_same_page_and_leaves_the_models_as_they_are() -> None:
    original, folded = gemms(BEFORE), gemms(AFTER)
    bytes_before = serialized(original), serialized(folded)
    page = render_page(original, folded, result_of(REPORT))
    assert render_page(reload(original), reload(folded), result_of(REPORT)) == page
    assert (serialized(original), serialized(folded)) == bytes_before


def test_the_engines_own_report_has_a_page() -> None:
    original = acceptance_model()
    folded, report = fold(original)
    page = Page(render_page(original, folded, result_of(report)))
    assert [row[1:3] for row in page.rows()][:4] == [[one.name, one.verdict.value] for one in report.batchnorms]
    drawn = {title.text.split("\n")[0] for title in page.all("title")}
    assert {"ConvTranspose 'deconv'", "BatchNormalization 'bn3'"} <= drawn
