"""The report: JSON as other programs rely on it, text for people."""

from training.fold.report import BatchNormOutcome, FoldReport, Verdict

REPORT = FoldReport(
    (
        BatchNormOutcome("bn1", Verdict.FOLDED, ("conv1",), ""),
        BatchNormOutcome("bn2", Verdict.REDUCED, ("mm", "mm_shift"), "MatMul 'mm' holds no bias"),
        BatchNormOutcome("bn3", Verdict.KEPT, (), "producer is Relu 'r1'"),
    ),
    nodes_before=7,
    nodes_after=6,
)


def test_the_json_is_the_contract_of_architecture_md():
    assert REPORT.as_dict() == {
        "batchnorms": [
            {"name": "bn1", "verdict": "folded", "into": ["conv1"], "reason": ""},
            {"name": "bn2", "verdict": "reduced", "into": ["mm", "mm_shift"], "reason": "MatMul 'mm' holds no bias"},
            {"name": "bn3", "verdict": "kept", "into": [], "reason": "producer is Relu 'r1'"},
        ],
        "summary": {
            "found": 3,
            "folded": 1,
            "clamped": 0,
            "reduced": 1,
            "kept": 1,
            "affines_found": 0,
            "affines_folded": 0,
            "branches_merged": 0,
            "nodes_before": 7,
            "nodes_after": 6,
        },
    }


def test_the_text_is_for_people():
    assert REPORT.as_text().splitlines() == [
        "3 BatchNormalization found: 1 folded, 1 reduced, 1 kept; 7 nodes before, 6 after",
        "  folded  bn1 into conv1",
        "  reduced bn2 into mm, mm_shift: MatMul 'mm' holds no bias",
        "  kept    bn3: producer is Relu 'r1'",
    ]


def test_a_report_of_kept_ones_alone_changed_nothing():
    assert REPORT.changed
    assert not FoldReport(REPORT.batchnorms[2:], 1, 1).changed


def test_the_marks_name_the_source_only_where_it_is_known():
    assert sorted(REPORT.metadata("abc")) == ["foldserve.fold", "foldserve.source_sha256", "foldserve.version"]
    assert sorted(REPORT.metadata(None)) == ["foldserve.fold", "foldserve.version"]
