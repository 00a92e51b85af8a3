from __future__ import annotations

import math
from typing import Any

import pytest

from service.model_knobs import SchedulerConfig
from service.urgency import Urgency


@pytest.mark.parametrize(
    ("config", "asked", "priority"),
    [
        pytest.param({}, {}, 0, id="no-levels-nothing-asked"),
        pytest.param({}, {"priority": 3}, 0, id="no-levels"),
        pytest.param({"priority_levels": 3, "default_priority": 2}, {}, 2, id="default"),
        pytest.param({"priority_levels": 3, "default_priority": 2}, {"priority": 0}, 2, id="zero-is-default"),
        pytest.param({"priority_levels": 3, "default_priority": 2}, {"priority": 1}, 1, id="asked"),
        pytest.param({"priority_levels": 3, "default_priority": 2}, {"priority": 3}, 3, id="last-level"),
        pytest.param({"priority_levels": 3, "default_priority": 2}, {"priority": 4}, 2, id="beyond-is-default"),
    ],
)
def test_priority_is_a_level_of_the_model_or_its_default(
    config: dict[str, Any], asked: dict[str, int], priority: int
) -> None:
    assert Urgency(SchedulerConfig(**config)).priority(asked) == priority


@pytest.mark.parametrize(
    ("config", "asked", "after_s"),
    [
        pytest.param({}, {}, math.inf, id="none"),
        pytest.param({}, {"timeout": 0}, math.inf, id="zero-is-none"),
        pytest.param({}, {"timeout": 250_000}, 0.25, id="asked"),
        pytest.param({}, {"timeout": 10**400}, 1e10, id="longer-than-a-float"),
        pytest.param({"default_timeout_us": 100_000}, {}, 0.1, id="default"),
        pytest.param({"default_timeout_us": 100_000}, {"timeout": 50_000}, 0.05, id="shorter-than-default"),
        pytest.param({"default_timeout_us": 100_000}, {"timeout": 200_000}, 0.1, id="never-longer-than-default"),
        pytest.param(
            {"default_timeout_us": 100_000, "allow_timeout_override": False},
            {"timeout": 50_000},
            0.1,
            id="override-forbidden",
        ),
        pytest.param({"allow_timeout_override": False}, {"timeout": 50_000}, math.inf, id="forbidden-without-default"),
    ],
)
def test_timeout_counts_from_arrival_in_microseconds(
    config: dict[str, Any], asked: dict[str, int], after_s: float
) -> None:
    assert Urgency(SchedulerConfig(**config)).deadline_s(asked, 1000.0) == pytest.approx(1000.0 + after_s)
