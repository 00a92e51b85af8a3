"""Laws as relations between numbered variables."""

from __future__ import annotations

from math import prod

import numpy as np

from tests.training.fold.maps import bn, numbers, posed
from tests.training.fold.models import build
from training.fold.laws import Free, Lift, Sum

W = np.ones((3, 3, 1))


def problem(nodes: str, results: str = "double[2,3,4] y", gamma=(1.5, 2.0, 0.5), **constants):
    used = {"w": W} if ", w)" in nodes else {}
    text = f"m (double[2,3,4] x) => ({results}) {{ {nodes} }}"
    return posed(build(text, **used, **constants, **numbers("n", gamma)))[0]


def port_of(problem, name: str):
    return next(port for (value, _), port in problem.reached.ports.items() if value.name == name)


CHAIN = f"[c] h = Conv (x, w) [r] i = Relu (h) {bn('n', 'i', 'p')} [t] y = Tanh (p)"


def test_every_entry_of_a_port_is_one_variable():
    posed = problem(CHAIN)

    assert sum(prod(sizes) for sizes in posed.sizes.values()) == len(posed.class_of) == 9  # h, i, p


def test_entries_that_a_law_makes_equal_are_one_class():
    posed = problem(CHAIN)
    h, i, p = (posed.classes(port_of(posed, name)) for name in "hip")

    assert h.tolist() == i.tolist() and not set(h) & set(p)
    assert posed.weight[h].tolist() == [2, 2, 2] and posed.weight[p].tolist() == [1, 1, 1]


def test_a_concat_joins_the_classes_of_its_parts_in_order():
    nodes = f"""[c] h = Conv (x, w) [d] i = Conv (x, w) [cat] j = Concat <axis = 1> (h, i)
        [s] k = Slice (j, one, four, one) {bn("n", "k", "p")} [t] y = Tanh (p)"""

    posed = problem(nodes, one=np.array([1]), four=np.array([4]))

    h, i, k = (posed.classes(port_of(posed, name)).tolist() for name in "hik")
    assert k == [h[1], h[2], i[0]]


def test_channels_that_obey_the_same_laws_share_a_bundle():
    posed = problem(CHAIN)

    assert [bundle.width for bundle in posed.bundles] == [3]
    assert len(posed.lifts) == 1 and len(posed.by_tag[posed.lifts[0]]) == 1


def test_dead_channels_are_stated_apart():
    posed = problem(CHAIN, gamma=(1.5, 0.0, 0.5))

    instances = [instance for _, instance in posed.by_tag[posed.lifts[0]]]
    assert sorted((i.dead, np.asarray(i.entries).ravel().tolist()) for i in instances) == [
        (False, [0, 2]), (True, [1]),
    ]  # fmt: skip


def test_laws_are_found_by_kind_and_a_lift_by_its_tag():
    posed = problem(f"[c] h = Conv (x, w) [a] i = Add (h, x) {bn('n', 'i', 'p')} [t] y = Tanh (p)")

    assert len(posed.tags(Sum)) == 1 and posed.tags(Lift) == list(posed.lifts)
    assert posed.lift(posed.lifts[0]).node.name == "n"
    assert all(isinstance(posed.law(tag), Free) for tag in posed.tags(Free))
