"""The text against prometheus_client's own reader."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from service.prometheus_text import Family, Sample, histogram, to_text, write_lines


def text(*families: Family) -> bytes:
    return to_text(line for line in write_lines(families) if line is not None)


def read(*families: Family) -> list[tuple[str, dict[str, str], float]]:
    found = text_string_to_metric_families(text(*families).decode())
    return [(sample.name, dict(sample.labels), sample.value) for family in found for sample in family.samples]


def test_golden_text() -> None:
    family = Family("f", "gauge", "What it is\\ \n", [Sample(1.5, (("a", 'b"c\\\n'),)), Sample(2, ())])
    assert text(family) == b'# HELP f What it is\\\\ \\n\n# TYPE f gauge\nf{a="b\\"c\\\\\\n"} 1.5\nf 2\n'


@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats())
def test_whatever_is_written_is_read_back(value: str, number: float) -> None:
    ((_, labels, found),) = read(Family("f", "gauge", "h", [Sample(number, (("a", value),))]))
    assert labels == {"a": value}
    assert found == number or (math.isnan(found) and math.isnan(number))


def test_a_name_that_is_not_unicode_spoils_nothing() -> None:
    assert b'a="?"' in text(Family("f", "gauge", "h", [Sample(1, (("a", "\udcff"),))]))


def test_a_histogram_is_cumulated_and_ends_with_all() -> None:
    family = Family("h", "histogram", "h", list(histogram((("a", "b"),), (0.1, 1), (2, 0, 3), 7.5)))
    assert read(family) == [
        ("h_bucket", {"a": "b", "le": "0.1"}, 2),
        ("h_bucket", {"a": "b", "le": "1"}, 2),
        ("h_bucket", {"a": "b", "le": "+Inf"}, 5),
        ("h_sum", {"a": "b"}, 7.5),
        ("h_count", {"a": "b"}, 5),
    ]


@pytest.mark.parametrize("kind", ["counter", "gauge"])
def test_a_family_without_samples_is_shown_with_its_type(kind: str) -> None:
    (family,) = text_string_to_metric_families(text(Family("f_total", kind, "h", [])).decode())
    assert (family.type, family.samples) == (kind, [])
