"""Every random choice of a training run as a function of its seed and its place: nothing is drawn in sequence.

So a run that is resumed at any step draws what it would have drawn, without a generator's state in the checkpoint, and
what one part draws (the order of the examples) does not move what another does (augmentation, dropout).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch

Purpose = Literal["weights", "order", "augmentation", "noise", "held_out", "finder"]
_NUMBERS: dict[Purpose, int] = {
    "weights": 0, "order": 1, "augmentation": 2, "noise": 3, "held_out": 4, "finder": 5,
}  # fmt: skip


_AT_ONCE = 256


def seed_of(seed: int, purpose: Purpose, place: int = 0) -> int:
    """64 bits that differ for each seed, purpose and place (NumPy's SeedSequence: M. E. O'Neill's seed_seq design)."""
    return _seeds(seed, _NUMBERS[purpose], place // _AT_ONCE)[place % _AT_ONCE]


@lru_cache(maxsize=16)
def _seeds(seed: int, number: int, block: int) -> tuple[int, ...]:
    """Those of a block of places. Between two steps of a network NumPy's code has left the processor's caches, and one
    seed takes 75 µs; in a row they take 5 µs each."""
    places = range(block * _AT_ONCE, (block + 1) * _AT_ONCE)
    return tuple(int(np.random.SeedSequence([seed, number, place]).generate_state(1, np.uint64)[0]) for place in places)


def generator(seed: int, purpose: Purpose, place: int = 0) -> torch.Generator:
    """For one step, or one epoch."""
    # torch takes the seed as a signed number.
    return torch.Generator().manual_seed(seed_of(seed, purpose, place) >> 1)


def reseed(seed: int, purpose: Purpose, place: int = 0) -> None:
    """torch's global generators, which dropout and new modules draw from.

    Not by torch.manual_seed: for each kind of device that has not been used yet it keeps a stack trace, at every step,
    which costs more than a small network's step is to cost in all, and stays in memory.
    """
    number = seed_of(seed, purpose, place) >> 1
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
