"""Each check of a network's make finds what it is for, leaves its healthy neighbour alone, and says what it lacks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from tests.training.bn.test_structure import Branching
from training.bn.facts import Facts, Group
from training.bn.findings import Finding, NotMade
from training.bn.lint import lint
from training.bn.structure import read_structure


def outcomes(network: nn.Module, **facts: object) -> list[Finding | NotMade]:
    return lint(network, read_structure(network), Facts.model_validate(facts))


def findings(network: nn.Module, **facts: object) -> set[tuple[str, str, str]]:
    return {(one.check, one.layer, one.severity) for one in outcomes(network, **facts) if isinstance(one, Finding)}


def not_made(network: nn.Module, **facts: object) -> set[str]:
    return {one.check for one in outcomes(network, **facts) if isinstance(one, NotMade)}


def plain(norm: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3, bias=False), norm or nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3)).eval()


def shared() -> nn.Module:
    norm = nn.BatchNorm1d(3)
    return nn.Sequential(nn.Linear(3, 3, bias=False), norm, nn.Linear(3, 3, bias=False), norm).eval()


def toggled() -> nn.Module:
    network = plain()
    network[1].track_running_stats = False
    return network


def half_frozen() -> nn.Module:
    network = plain().train()
    network[1].requires_grad_(False)
    return network


def partly_training() -> nn.Module:
    network = plain()
    network[1].train()
    return network


def of(**options: object) -> Callable[[], nn.Module]:
    return lambda: plain(nn.BatchNorm1d(3, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(plain, set(), id="nothing wrong"),
        pytest.param(of(momentum=0.05), set(), id="a small momentum"),
        pytest.param(of(momentum=None), set(), id="a plain average"),
        pytest.param(of(affine=False), set(), id="without gamma"),
        pytest.param(lambda: half_frozen().eval(), set(), id="frozen, all of it"),
        pytest.param(of(momentum=0.99), {("L4", "1", "yellow")}, id="Keras's momentum"),
        pytest.param(of(momentum=0.0), {("L4", "1", "yellow")}, id="momentum 0"),
        pytest.param(of(eps=0.0), {("L11", "1", "red")}, id="epsilon 0"),
        pytest.param(of(eps=0.1), {("L11", "1", "yellow")}, id="epsilon 0.1"),
        pytest.param(of(track_running_stats=False), {("L7", "1", "red")}, id="no statistics"),
        pytest.param(shared, {("L6", "1", "yellow")}, id="shared"),
        pytest.param(toggled, {("H11", "1", "yellow")}, id="switched off later"),
        pytest.param(half_frozen, {("H11", "1", "yellow")}, id="half frozen"),
        pytest.param(partly_training, {("L16", "1", "red")}, id="one layer training"),
        pytest.param(lambda: plain(nn.SyncBatchNorm(3)), {("L9", "1", "note")}, id="SyncBatchNorm on a CPU"),
        pytest.param(
            lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval(), {("H13", "1", "note")}, id="bias before"
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Softmax(1), nn.BatchNorm1d(3)).eval(), {("L10", "1", "yellow")}, id="softmax"
        ),
        pytest.param(
            lambda: nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).eval(), {("L10", "1", "yellow")}, id="twice"
        ),
    ],
)
def test_a_networks_make_is_told(make: Callable[[], nn.Module], expected: set[tuple[str, str, str]]) -> None:
    assert findings(make()) == expected


def decaying(name: str) -> tuple[Group, ...]:
    return (Group(parameters=(name,), weight_decay=0.1),)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param({"groups": decaying("1.weight")}, {("L2", "1", "yellow")}, id="decay on gamma"),
        pytest.param({"groups": decaying("0.weight")}, set(), id="decay on weights"),
        pytest.param({"batch_rows": 8, "rows": 17, "drop_last": False}, {("L12", "", "yellow")}, id="a batch of one"),
        pytest.param({"batch_rows": 8, "rows": 17, "drop_last": True}, set(), id="the last batch dropped"),
        pytest.param({"batch_rows": 8, "rows": 18, "drop_last": False}, set(), id="a batch of two"),
        pytest.param({"accumulation": 4}, {("L13", "", "note")}, id="accumulation"),
        pytest.param({"shuffle": False}, {("L14", "", "yellow")}, id="not shuffled"),
        pytest.param({"shuffle": True, "accumulation": 1}, set(), id="shuffled"),
    ],
)
def test_what_the_training_did_is_told(facts: dict[str, object], expected: set[tuple[str, str, str]]) -> None:
    assert findings(plain(), **facts) == expected


def test_momentum_none_is_a_fault_under_fullgraph_alone() -> None:
    network = plain(nn.BatchNorm1d(3, momentum=None))

    assert findings(network, fullgraph=False) == set()
    assert findings(network, fullgraph=True) == {("L5", "1", "yellow")}


def test_a_training_network_is_ill_only_when_its_training_is_over() -> None:
    network = plain().train()

    assert findings(network, finished=False) == set()
    assert "L16" in not_made(network)
    assert findings(network, finished=True) == {("L16", "1", "red")}


def test_what_needs_facts_or_a_graph_is_not_made_without_them() -> None:
    assert not_made(plain()) == {"L2", "L5", "L12", "L13", "L14"}
    assert not_made(Branching()) >= {"L1", "L6", "L10", "H13"}
