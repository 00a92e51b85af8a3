"""Figures of rounds become one table: medians, ratios within a round, targets met or missed."""

from __future__ import annotations

import pytest

from tests.benchmarks.pairing import Ratio
from tests.benchmarks.serve_table import (
    IN_PROCESS,
    NOT_BELOW_ONE_PROCESS,
    OURS,
    WORKLOADS,
    Figures,
    Found,
    Verdict,
    Workload,
    cell,
    median_of,
    number,
    rate,
    ratio_to,
    table,
    verdicts,
)


def workload(letter: str, clients: int) -> Workload:
    (found,) = (each for each in WORKLOADS if (each.letter, each.clients) == (letter, clients))
    return found


def rounds(*per_s: float, p50_ms: float = 1.0) -> list[Figures | str]:
    return [Figures(each, p50_ms, 2 * p50_ms) for each in per_s]


def test_the_middle_round_counts():
    place = workload("a", 1)
    found: Found = {(place, OURS): rounds(10, 1000, 20)}

    assert median_of(found, place, OURS, rate) == 20


def test_ratios_are_of_the_same_round_so_what_slows_a_round_down_cancels():
    place = workload("a", 16)
    found: Found = {(place, OURS): rounds(400, 40, 4), (place, "mosec"): rounds(100, 10, 1)}

    assert ratio_to(found, place, "mosec") == 4.0


def test_a_round_in_which_one_failed_has_no_ratio():
    place = workload("a", 16)
    found: Found = {(place, OURS): rounds(400, 40), (place, "mosec"): ["it broke", *rounds(20)]}

    assert ratio_to(found, place, "mosec") == 2.0
    assert cell(found, place, "mosec") == "20/s (ours 2 x), 1 ms (p99 2), failed in 1 of 2 rounds"
    assert cell({(place, "mosec"): ["it broke"]}, place, "mosec") == "failed"


A1, A16, A64, B16, C1, C8, D = (
    workload(letter, clients)
    for letter, clients in (("a", 1), ("a", 16), ("a", 64), ("b", 16), ("c", 1), ("c", 8), ("d", 0))
)


def overload(good: float, capacity: float, p99: float) -> list[Figures | str]:
    return [Figures(good, 500.0, p99, capacity, 12.0)]


def small(place: Workload, ours: float, rival: str, theirs: float) -> Found:
    return {(place, OURS): rounds(ours), (place, rival): rounds(theirs)}


AS_FAST = dict.fromkeys(NOT_BELOW_ONE_PROCESS, Ratio(1.0, 0.98, 1.02))
CASES: dict[str, tuple[Found, list[bool]]] = {
    "(a) at 1: 3.5 times FastAPI, one process": (small(A1, 35, "FastAPI", 10), [True, True]),
    "(a) at 1: not quite": (small(A1, 34.9, "FastAPI", 10), [False, True]),
    "(a) at 16: 4 times mosec": (small(A16, 40, "mosec", 10), [True, True]),
    "(a) at 64: 1.3 times mosec": ({(A64, OURS): rounds(13), (A64, "mosec"): rounds(10)}, [True]),
    "(a) at 64: as fast as mosec": ({(A64, OURS): rounds(10), (A64, "mosec"): rounds(10)}, [False]),
    "(c) at 8: 0.95 of in-process": ({(C8, OURS): rounds(95), (C8, IN_PROCESS): rounds(100)}, [True]),
    "(c) at 1: 0.4 ms more": ({(C1, OURS): rounds(1, p50_ms=16.4), (C1, IN_PROCESS): rounds(1, p50_ms=16.0)}, [True]),
    "(c) at 1: more": ({(C1, OURS): rounds(1, p50_ms=16.5), (C1, IN_PROCESS): rounds(1, p50_ms=16.0)}, [False]),
    "(d): goodput and latency": ({(D, OURS): overload(54, 60, 990)}, [True, True]),
    "(d): too few in time": ({(D, OURS): overload(53, 60, 990)}, [False, True]),
    "(d): too late": ({(D, OURS): overload(54, 60, 1001)}, [True, False]),
    "no rival to compare with": ({(A1, OURS): rounds(35)}, [False, True]),
    "ours failed": ({(D, OURS): ["it broke"]}, [False, False]),
}  # fmt: skip


@pytest.mark.parametrize(("found", "met"), CASES.values(), ids=CASES)
def test_every_target_is_met_or_missed(found: Found, met: list[bool]):
    assert [verdict.is_met for verdict in verdicts(found, AS_FAST)] == met


@pytest.mark.parametrize(
    ("paired", "is_met"),
    [
        (Ratio(1.10, 1.05, 1.15), True),
        (Ratio(0.99, 0.96, 1.02), True),
        (Ratio(0.97, 0.95, 0.99), False),  # shown to be below, if only by a little
        (Ratio(0.98, 0.90, 1.06), False),  # might well be: more pairs would tell
        (None, False),
    ],
)
def test_not_below_takes_bounds_that_reach_the_limit_and_rule_out_a_twentieth_less(paired: Ratio | None, is_met: bool):
    verdict = Verdict(A1, "÷ one process", paired, 1.0)

    assert verdict.is_met == is_met


@pytest.mark.parametrize(("binary", "is_met"), [(10, True), (9, False)])
def test_binary_is_compared_with_our_own_json(binary: float, is_met: bool):
    found: Found = {(B16, OURS): rounds(binary), **small(A16, 10, "mosec", 1)}

    assert [verdict.is_met for verdict in verdicts(found, AS_FAST)] == [True, True, is_met]


def test_what_was_not_measured_has_no_target():
    assert verdicts({}, AS_FAST) == []


def test_every_workload_of_ours_has_a_target():
    found: Found = {(each, OURS): rounds(1) for each in WORKLOADS}

    assert {verdict.workload for verdict in verdicts(found, {})} == set(WORKLOADS)


def test_the_table_has_a_row_a_workload_and_a_column_a_contender():
    found: Found = {
        (A1, OURS): rounds(12_345.6, p50_ms=0.08),
        (A1, "FastAPI"): rounds(2_469.12, p50_ms=0.4),
        (D, OURS): overload(57, 60, 900),
    }
    heading, rule, small, large = table(found, {}, [OURS, "FastAPI"]).split("\n")

    assert heading == "|  | ours | FastAPI | targets |"
    assert rule == "| --- | --- | --- | --- |"
    assert small == (
        "| (a) 64-64-10, JSON, 1 client | 12,346/s, 0.08 ms (p99 0.16) | 2,469/s (ours 5 x), 0.4 ms (p99 0.8) "
        "| ÷ FastAPI ≥ 3.5: 5 met; ÷ ours, one process ≥ 1: not measured **MISSED** |"
    )
    assert large == (
        "| (d) ResNet-18, 224x224, binary, 10 x capacity "
        "| 57/s = 0.95 of capacity, 500 ms (p99 900), refused p99 12 ms |  "
        "| goodput ÷ capacity ≥ 0.9: 0.95 met; admitted p99 ms ≤ 1000: 900 met |"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (float("nan"), "–"),
        (0.12345, "0.123"),
        (99.94, "99.9"),
        (100.4, "100"),
        (37_000, "37,000"),
        (0, "0"),
    ],
)
def test_numbers_have_as_many_figures_as_repeat(value: float | None, text: str):
    assert number(value) == text
