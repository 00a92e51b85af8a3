"""Random choices are functions of seed, purpose and place."""

from __future__ import annotations

import itertools

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
