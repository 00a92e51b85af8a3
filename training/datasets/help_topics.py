"""Real text: eleven topics of Python's own help, and which of them a window of 64 words comes from.

Source: the Python Language Reference and Library Reference as `help("topics")` has them (module `pydoc_data.topics`,
Python 3.11.7; Python Software Foundation License), the largest topics of which none repeats another. Words are joined
by single spaces. Held out are whole stretches of each topic; no word in them is trained on, wherever a window begins.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import replace
from pydoc_data.topics import topics

import numpy as np

from training.datasets import texts
from training.datasets.dataset import Dataset
from training.datasets.options import Options
from training.errors import UserError

TOPICS = (
    "assignment",
    "comparisons",
    "compound",
    "debugger",
    "execmodel",
    "formatstrings",
    "specialnames",
    "string-methods",
    "types",
    "typesmapping",
    "typesseq",
)
SHA256 = "393d5636b754faebc31113663c4c7fbca9aa893afe8f8a891a3f339b73b5f79d"
PYTHON = "3.11.7"
WORDS = 64
STEP = 16
"""Training windows begin so many words apart, those of the test a whole window: no word of it counts twice."""
STRETCH = 5 * WORDS
"""About as long is what is held out or not."""


def load(where: str, options: Options) -> Dataset:  # noqa: ARG001 - there is one help
    """Inputs uint8 [rows, length], UTF-8. Raises UserError where the help says something else."""
    content = {name: topics.get(name, "") for name in TOPICS}
    found = hashlib.sha256("\0".join(content.values()).encode()).hexdigest()
    if found != SHA256:
        raise UserError(
            f"help-topics: the help of Python {platform.python_version()} has sha256 {found[:12]}..., expected "
            f"{SHA256[:12]}..., that of Python {PYTHON}; use that one, or other data"
        )
    train: list[tuple[bytes, str]] = []
    test: list[tuple[bytes, str]] = []
    random = np.random.default_rng(options.split_seed)
    for name, text in content.items():
        words = text.split()
        learned, held_out = _starts(len(words), options, random)
        train += [(_window(words, start), name) for start in learned]
        test += [(_window(words, start), name) for start in held_out]
    windows, labels = zip(*train, *test, strict=True)
    notes = (f"trained on windows of {WORDS} words joined by single spaces",)
    dataset = texts.dataset_of("help-topics", windows, labels, options, len(test), notes)
    return replace(dataset, origin=(__doc__ or "").partition("\n\n")[2].strip())


def _starts(words: int, options: Options, random: np.random.Generator) -> tuple[list[int], list[int]]:
    """Where the windows to learn from and those of the test begin in a topic of so many words. Raises UserError."""
    stretches = np.array_split(np.arange(words), round(words / STRETCH))
    drawn = max(1, round(options.test_fraction * len(stretches)))
    if drawn == len(stretches):
        raise UserError(
            f"help-topics: data.test_fraction={options.test_fraction} leaves nothing of a topic to learn from; choose "
            f"a smaller one"
        )
    tested = [stretches[number] for number in sorted(random.choice(len(stretches), drawn, replace=False))]
    held_out = np.isin(np.arange(words), np.concatenate(tested))
    learned = [start for start in range(0, words - WORDS + 1, STEP) if not held_out[start : start + WORDS].any()]
    return learned, [int(start) for stretch in tested for start in stretch[: len(stretch) - WORDS + 1 : WORDS]]


def _window(words: Sequence[str], start: int) -> bytes:
    return " ".join(words[start : start + WORDS]).encode()
