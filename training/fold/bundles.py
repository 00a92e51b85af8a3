"""The laws of a graph, entry by entry, gathered into bundles of channels that obey the same laws.

    entries --Equal, Clamp--> classes --Sum, Lift--> strands --same shape--> bundles

Every entry of every port is a variable. Entries that laws make equal form a *class*; classes that a Sum or a Lift ties
form a *strand*, which for most networks is one channel followed through the graph. Strands with the same laws in the
same places form a *bundle*: the solver works on one of them, with vectors for the numbers that differ. Nothing here
depends on the order or the names of nodes, but for the order of the results. Pure NumPy on index arrays; knows laws,
no operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.fold.laws import Index


class Relation(NamedTuple):
    """One law on variables: `slots[j][k]` is the variable in its j-th place for its k-th entry.

    `tag` says which law; whoever made the relations knows what it means. `entries[k]` is that law's own number for the
    k-th entry. `dead`: of a lift, that these are the entries that it multiplies by 0.
    """

    tag: int
    slots: tuple[Index, ...]
    entries: Index
    dead: bool = False


class Instance(NamedTuple):
    """A law at one entry of a strand, for all strands of its bundle: `places` are the bundle's own class numbers.

    `entries[strand]` is the law's entry there, by which its numbers are looked up.
    """

    tag: int
    places: tuple[int, ...]
    entries: Index
    dead: bool = False


@dataclass(frozen=True, eq=False)
class Bundle:
    """`classes` [places, strands]: the class in each place, for each strand."""

    classes: Index
    instances: tuple[Instance, ...]

    @property
    def width(self) -> int:
        return int(self.classes.shape[1])

    @property
    def places(self) -> int:
        return int(self.classes.shape[0])


def unite(count: int, pairs: Sequence[tuple[Index, Index]]) -> Index:
    """The class of each of `count` variables, numbered from 0, when both sides of every pair are one.

    Min-label propagation with pointer jumping: as many rounds as the longest chain has doublings, each over all pairs.
    """
    label = np.arange(count, dtype=np.int64)
    if pairs:
        left = np.concatenate([pair[0] for pair in pairs])
        right = np.concatenate([pair[1] for pair in pairs])
        while left.size:
            a, b = label[left], label[right]
            apart = a != b
            if not apart.any():
                break
            left, right, a, b = left[apart], right[apart], a[apart], b[apart]
            low, high = np.minimum(a, b), np.maximum(a, b)
            np.minimum.at(label, high, low)
            while True:
                shorter = label[label]
                if np.array_equal(shorter, label):
                    break
                label = shorter
    return np.asarray(np.unique(label, return_inverse=True)[1], dtype=np.int64)


def bundle(class_count: int, relations: Sequence[Relation]) -> list[Bundle]:
    """Bundles of the classes that `relations` (on classes) speak of; a class without a relation is in none."""
    if not relations:
        return []
    ties = [(r.slots[0], slot) for r in relations for slot in r.slots[1:]]
    strand_of = unite(class_count, ties)
    table = _occurrences(relations, strand_of)
    order = np.lexsort((table["slot"], table["entry"], table["relation"], table["strand"]))
    table = {name: column[order] for name, column in table.items()}
    starts = np.flatnonzero(np.r_[True, np.diff(table["strand"]) != 0])
    lengths = np.diff(np.r_[starts, len(order)])
    position = np.arange(len(order)) - np.repeat(starts, lengths)
    _, first, inverse = np.unique(table["class"], return_index=True, return_inverse=True)
    label = position[first[inverse]]  # where in its strand a class is first met: the same in every strand of a bundle
    code = np.stack([table["relation"], table["slot"], label], axis=1)
    groups: dict[bytes, list[int]] = {}
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        groups.setdefault(code[start : start + length].tobytes(), []).append(start)
    return [_gather(np.array(group), relations, table, code) for group in groups.values()]


def _occurrences(relations: Sequence[Relation], strand_of: Index) -> dict[str, NDArray[Any]]:
    columns: dict[str, list[Index]] = {name: [] for name in ("strand", "relation", "entry", "slot", "class")}
    for number, relation in enumerate(relations):
        for slot, classes in enumerate(relation.slots):
            size = len(classes)
            columns["strand"].append(strand_of[relation.slots[0]])
            columns["relation"].append(np.full(size, number, dtype=np.int64))
            columns["entry"].append(np.arange(size, dtype=np.int64))
            columns["slot"].append(np.full(size, slot, dtype=np.int64))
            columns["class"].append(classes)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _gather(starts: Index, relations: Sequence[Relation], table: dict[str, Index], code: Index) -> Bundle:
    """All strands that begin at `starts` in the table, where rows of equal offset say the same."""
    length = _length(starts[0], table["strand"])
    rows = starts[None, :] + np.arange(length)[:, None]  # [length, strands]
    sample = code[starts[0] : starts[0] + length]
    labels, place = np.unique(sample[:, 2], return_inverse=True)
    entry, numbers, places = table["entry"][rows], sample[:, 0].tolist(), place.tolist()
    instances, at = [], 0
    while at < length:
        relation = relations[numbers[at]]
        end = at + len(relation.slots)
        instances.append(Instance(relation.tag, tuple(places[at:end]), relation.entries[entry[at]], relation.dead))
        at = end
    return Bundle(table["class"][rows[labels]], tuple(instances))


def _length(start: int, strand: Index) -> int:
    return int(np.searchsorted(strand, strand[start], side="right")) - int(start)
