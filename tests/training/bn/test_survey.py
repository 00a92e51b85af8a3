"""Of forty-five faults, most written down before the checks, at least 95 % are found; no healthy network is called ill.

Here each fault in one kind of network and one healthy network of each kind; `make test-doctor` has all of them.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.training.bn.faults import FAULTS
from tests.training.bn.networks import KINDS
from tests.training.bn.survey import FOUND_SHARE, VARIANTS, before, of_health, trial
from training.bn.findings import CHECKS


def test_the_list_has_forty_five_faults_and_half_of_them_are_held_out() -> None:
    assert len({fault.name for fault in FAULTS}) == 45
    assert Counter(fault.held_out for fault in FAULTS) == {True: 24, False: 21}
    assert {fault.check for fault in FAULTS} <= set(CHECKS)


def test_each_fault_can_be_put_into_five_kinds_of_networks_at_least() -> None:
    for fault in FAULTS:
        assert sum(fault.where != "closing" or kind.closing is not None for kind in KINDS.values()) >= 5, fault.name


def test_most_faults_are_found_each_in_a_kind_of_its_turn() -> None:
    kinds = sorted(KINDS, reverse=True)  # cnn6 last: it has no block whose last layer could be asleep
    found = {}
    for number, fault in enumerate(FAULTS):
        able = [kind for kind in kinds if fault.where != "closing" or KINDS[kind].closing]
        found[fault.name] = trial(fault, able[number % len(able)]).found

    missed = [name for name, is_found in found.items() if not is_found]
    assert len(missed) <= (1 - FOUND_SHARE) * len(FAULTS), missed


@pytest.mark.parametrize("number", range(len(KINDS)), ids=list(KINDS))
def test_a_healthy_network_has_nothing_red(number: int) -> None:
    kind, variant = list(KINDS)[number], VARIANTS[number % len(VARIANTS)]

    assert of_health(kind, variant).of("red") == ()


@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_network_of_which_all_is_known_has_neither_red_nor_yellow(kind: str) -> None:
    told = before(kind)

    assert (told.of("red"), told.of("yellow")) == ((), ())
