"""Classes, strands and bundles: the equal become one, the tied stay together, and what looks alike is solved once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.fold.bundles import Relation, bundle, unite


def relation(tag: int, *slots: list[int]) -> Relation:
    return Relation(tag, tuple(np.array(slot) for slot in slots), np.arange(len(slots[0])))


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))
    )
)
def test_unite_finds_the_classes_that_a_search_finds(case):
    count, pairs = case
    found = unite(count, [(np.array([a]), np.array([b])) for a, b in pairs])

    for start in range(count):
        reached, pending = {start}, [start]
        while pending:
            at = pending.pop()
            near = {b for a, b in pairs if a == at} | {a for a, b in pairs if b == at}
            pending += list(near - reached)
            reached |= near
        assert {i for i in range(count) if found[i] == found[start]} == reached
    assert sorted(set(found.tolist())) == list(range(max(found) + 1))


def test_a_long_chain_is_one_class():
    assert set(unite(10_000, [(np.arange(9_999), np.arange(1, 10_000))]).tolist()) == {0}


def test_channels_that_obey_the_same_laws_are_one_bundle():
    """A lift from x (0..3) to y (4..7), y pinned: four strands, one bundle of width four."""
    (one,) = bundle(8, [relation(7, [0, 1, 2, 3], [4, 5, 6, 7]), relation(8, [4, 5, 6, 7])])

    assert (one.places, one.width) == (2, 4)
    assert [i.tag for i in one.instances] == [7, 8]
    lift, pin = one.instances
    assert pin.places == (lift.places[1],)
    assert one.classes[lift.places[0]].tolist() == [0, 1, 2, 3]
    assert lift.entries.tolist() == [0, 1, 2, 3]


def test_channels_that_obey_other_laws_are_bundles_of_their_own():
    bundles = bundle(8, [relation(7, [0, 1, 2, 3], [4, 5, 6, 7]), relation(8, [5])])

    assert sorted(b.width for b in bundles) == [1, 3]


def test_channels_that_are_tied_to_each_other_are_one_strand():
    """A sum of x and its reverse."""
    bundles = bundle(6, [relation(1, [4, 5, 4, 5], [0, 1, 2, 3])])

    assert [(b.places, b.width) for b in bundles] == [(3, 2)]
    assert [i.tag for i in bundles[0].instances] == [1, 1]


def test_the_entry_of_a_law_is_remembered_where_only_some_of_its_entries_hold():
    law = Relation(3, (np.array([0, 1]), np.array([2, 3])), np.array([5, 9]))

    (one,) = bundle(4, [law])

    assert one.instances[0].entries.tolist() == [5, 9]


@given(st.randoms(use_true_random=False), st.integers(1, 6), st.integers(1, 8))
def test_every_relation_comes_back_exactly_once(random, width, laws):
    count = 3 * width
    relations = [
        relation(tag, *[[random.randrange(count) for _ in range(width)] for _ in range(random.choice([1, 2, 3]))])
        for tag in range(laws)
    ]

    found = sorted(
        (i.tag, int(i.entries[strand]), tuple(int(b.classes[place, strand]) for place in i.places))
        for b in bundle(count, relations)
        for i in b.instances
        for strand in range(b.width)
    )

    assert found == sorted(
        (r.tag, entry, tuple(int(slot[entry]) for slot in r.slots)) for r in relations for entry in range(width)
    )


def test_nothing_to_bundle():
    assert bundle(5, []) == []
