"""Each check of health says ill of what is ill, nothing of its healthy neighbour, and why where it cannot be made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from training.bn.facts import Facts
from training.bn.figures import Answers, Examined, LayerFigures, Seen, Statistics
from training.bn.findings import Finding, NotMade
from training.bn.health import health

CHANNELS = 4


def statistics(mean: float = 0.5, variance: float = 2.0, **of_first: float) -> Statistics:
    """The same for all channels, but for the first."""
    means, variances = np.full(CHANNELS, mean), np.full(CHANNELS, variance)
    means[0], variances[0] = of_first.get("mean_0", mean), of_first.get("variance_0", variance)
    return Statistics(means, variances)


def layer(**changes: Any) -> LayerFigures:
    """A layer in good health of which all is known."""
    healthy = LayerFigures(
        "bn", "BatchNorm1d", statistics(), gamma=np.ones(CHANNELS), beta=np.zeros(CHANNELS), eps=1e-5, momentum=0.1,
        count=100, clamped=True, closes_block=False, weight_norm=1.0,
        seen=Seen(statistics(), values=1e6, sites=1, effective_per_row=1.0, alikeness=1.0, unpadded=statistics()),
    )  # fmt: skip
    return replace(healthy, **changes)


def seen(**changes: Any) -> Seen:
    healthy = layer().seen
    assert healthy is not None
    return replace(healthy, **changes)


def gammas(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values)


FACTS = Facts(steps=100, batch_rows=64, learning_rate=0.1)


def examined(*layers: LayerFigures, **changes: Any) -> Examined:
    healthy = Examined(layers, 10_000, 100, Answers(10_000, 0.0, 0.0), padded=0.0, ranks=({"bn": statistics()},))
    return replace(healthy, **changes)


def findings(told: Examined, facts: Facts = FACTS) -> list[tuple[str, str]]:
    return [(one.check, one.severity) for one in health(told, facts) if isinstance(one, Finding)]


def not_made(told: Examined, facts: Facts = FACTS) -> dict[str, str]:
    return {one.check: one.reason for one in health(told, facts) if isinstance(one, NotMade)}


def test_of_a_healthy_layer_all_checks_are_made_and_find_nothing() -> None:
    assert health(examined(layer()), FACTS) == []


INITIAL = Statistics(np.zeros(CHANNELS), np.ones(CHANNELS))
NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"gamma": gammas(1, 1, 1, 1e-4)}, [("H1", "yellow")], id="a dead gamma"),
        pytest.param({"gamma": gammas(1, 1, 1, 0.01)}, [], id="a small gamma"),
        pytest.param({"gamma": gammas(0, 0, 0, 0)}, [("H1", "yellow")], id="all dead"),
        pytest.param({"beta": gammas(0, 0, 0, -3.1)}, [("H1", "yellow")], id="below its ReLU"),
        pytest.param({"beta": gammas(0, 0, 0, -3.1), "clamped": False}, [], id="below, without a ReLU"),
        pytest.param({"gamma": np.full(4, 1e-3), "closes_block": True}, [("H2", "yellow")], id="asleep"),
        pytest.param({"gamma": np.full(4, 1e-3)}, [], id="small, closing nothing"),
        pytest.param({"gamma": gammas(1, 1, NAN, 1)}, [("H3", "red")], id="a gamma that is no number"),
        pytest.param({"gamma": gammas(1, 1, 1, 2e3)}, [("H4", "yellow")], id="a gain of 1,400"),
        pytest.param({"gamma": gammas(500, 0.1, 0.1, 0.04)}, [("H4", "yellow")], id="gains 12,500 apart"),
        pytest.param({"count": 43}, [("H5", "note"), ("H9", "yellow")], id="one batch short, yet right"),
        pytest.param({"count": 200}, [("H9", "yellow")], id="counted twice"),
        pytest.param({"count": 101}, [], id="one batch more"),
        pytest.param({"count": 200, "seen": seen(sites=2)}, [], id="used twice a pass"),
        pytest.param({"weight_norm": 1e7}, [("H14", "yellow")], id="weights too large"),
        pytest.param({"weight_norm": 1e-4}, [("H14", "yellow")], id="weights too small"),
        pytest.param({"seen": seen(effective_per_row=0.4)}, [("H7", "yellow")], id="a batch worth 26"),
        pytest.param({"seen": seen(effective_per_row=0.1)}, [("H7", "red")], id="a batch worth 6"),
        pytest.param({"seen": seen(alikeness=2.8)}, [], id="rows that chance may make alike"),
        pytest.param({"seen": seen(alikeness=3.0)}, [("H7", "yellow")], id="rows that are alike"),
    ],
)
def test_what_a_layer_holds_is_told(changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert findings(examined(layer(**changes))) == expected


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        pytest.param(statistics(mean_0=0.5 + 0.1), [], id="mean 0.07 off"),
        pytest.param(statistics(mean_0=0.5 + 0.2), ["yellow"], id="mean 0.14 off"),
        pytest.param(statistics(mean_0=0.5 + 0.5), ["red"], id="mean 0.35 off"),
        pytest.param(statistics(variance_0=2.0 * 1.2), [], id="variance 1.2 times"),
        pytest.param(statistics(variance_0=2.0 * 1.4), ["yellow"], id="variance 1.4 times"),
        pytest.param(statistics(variance_0=2.0 / 2.0), ["red"], id="variance halved"),
    ],
)
def test_drift_is_told_in_standard_deviations_and_ratios(running: Statistics, expected: list[str]) -> None:
    told = findings(examined(layer(running=running), ranks=({"bn": running},)))

    assert told == [("H6", severity) for severity in expected]


def test_what_chance_alone_shows_on_few_rows_is_no_drift() -> None:
    off = layer(running=statistics(mean_0=0.5 + 0.3))

    assert ("H6", "yellow") in findings(examined(off, rows=10_000, ranks=()))
    assert ("H6", "yellow") not in findings(examined(off, rows=100, ranks=()))


@pytest.mark.parametrize(
    ("variance", "severity"),
    [(-0.1, "red"), (0.0, "red"), (NAN, "red"), (5e-5, "yellow")],
    ids=["negative", "zero", "no number", "below epsilon's reach"],
)
def test_a_bad_variance_is_told_without_data(variance: float, severity: str) -> None:
    told = findings(examined(layer(running=statistics(variance_0=variance), seen=None), rows=0, ranks=()))

    assert [found for found in told if found[0] == "H3"] == [("H3", severity)]


def test_a_channel_that_is_constant_in_the_data_may_have_no_variance() -> None:
    constant = statistics(variance_0=0.0)

    told = findings(examined(layer(running=constant, seen=seen(population=constant)), ranks=()))

    assert told == [("H3", "yellow")]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"running": INITIAL, "count": 0}, ("H5", "red"), id="never trained"),
        pytest.param({"count": 0}, ("H5", "yellow"), id="not counted"),
        pytest.param({"count": 5}, ("H5", "red"), id="five batches"),
        pytest.param({"count": 40}, ("H5", "yellow"), id="forty batches"),
        pytest.param({"count": 40, "momentum": 0.0}, ("H5", "red"), id="a momentum of 0"),
        pytest.param({"count": 1, "momentum": None}, None, id="a plain average"),
    ],
)
def test_without_data_the_counter_tells_what_is_left_of_the_initial_values(
    changes: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    told = findings(examined(layer(seen=None, **changes), rows=0, ranks=()), Facts())

    assert told == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        pytest.param(Answers(10_000, 0.2, 0.05), [], id="as batches of 64 differ"),
        pytest.param(Answers(10_000, 0.5), [("H8", "yellow")], id="half of the spread"),
        pytest.param(Answers(10_000, 2.0, 0.5), [("H8", "yellow")], id="far, by right statistics"),
        pytest.param(Answers(10_000, 0.2, 0.2), [("H8", "yellow")], id="other classes"),
        pytest.param(Answers(10_000, 0.2, 0.05, (0.93, 0.97)), [("H8", "red")], id="less often right"),
        pytest.param(Answers(10_000, 0.2, 0.05, (0.97, 0.93)), [], id="more often right"),
    ],
)
def test_the_gap_between_training_and_serving_is_told(answers: Answers, expected: list[tuple[str, str]]) -> None:
    assert findings(examined(layer(), answers=answers)) == expected


def test_a_gap_beside_a_drift_is_red() -> None:
    off = layer(running=statistics(mean_0=0.7))

    told = findings(examined(off, answers=Answers(10_000, 2.0), ranks=()))

    assert told == [("H6", "yellow"), ("H8", "red")]


def test_processes_that_disagree_and_padding_are_told() -> None:
    other = {"bn": statistics(mean_0=0.6)}

    assert findings(examined(layer(), ranks=(other,))) == [("H10", "yellow")]
    assert findings(examined(layer(), padded=0.2)) == [("H12", "yellow")]
    assert findings(examined(layer(), padded=0.04)) == []


def test_neighbours_tell_of_a_double_count_where_nobody_knows_the_steps() -> None:
    layers = [layer(name="a"), layer(name="b"), layer(name="c", count=200)]

    told = [one for one in health(examined(*layers, ranks=()), Facts(batch_rows=64)) if isinstance(one, Finding)]

    assert [(one.check, one.layer) for one in told] == [("H9", "c")]


def test_every_check_that_lacks_something_says_what() -> None:
    blind = layer(seen=None, clamped=None, closes_block=None, weight_norm=None, count=None)

    told = not_made(examined(blind, rows=0, answers=None, padded=None, ranks=()), Facts())

    assert set(told) == {"H1", "H2", "H5", "H6", "H7", "H8", "H9", "H10", "H12", "H14"}
    assert {told[check] for check in ("H6", "H7", "H8", "H12")} == {"needs data"}
