"""Random choices are functions of seed, purpose and place."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from training.randomness import generator, reseed, seed_of


def test_seeds_purposes_and_places_differ():
    seeds = {
        seed_of(seed, purpose, place)
        for seed, purpose, place in itertools.product(
            range(5), ("weights", "order", "augmentation", "noise"), range(50)
        )
    }
    assert len(seeds) == 5 * 4 * 50


@pytest.mark.parametrize("place", [0, 1, 255, 256, 1000])
def test_seeds_are_those_of_numpys_seed_sequence_whether_made_one_by_one_or_together(place: int):
    (expected,) = np.random.SeedSequence([7, 3, place]).generate_state(1, np.uint64)

    assert seed_of(7, "noise", place) == expected


def test_the_same_place_draws_the_same_whatever_was_drawn_before():
    first = torch.rand(3, generator=generator(1, "order", 4))
    torch.rand(100)

    assert torch.equal(torch.rand(3, generator=generator(1, "order", 4)), first)


def test_the_global_generator_is_set_as_well():
    with torch.random.fork_rng(devices=[]):
        reseed(1, "noise", 4)
        first = torch.rand(3)
        reseed(1, "noise", 4)
        assert torch.equal(torch.rand(3), first)
