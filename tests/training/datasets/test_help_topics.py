"""Windows of Python's help: no word is both learned from and tested on, and another help is refused."""

from __future__ import annotations

import numpy as np
import pytest

from training import datasets
from training.datasets import help_topics
from training.datasets.dataset import Dataset, Examples, Tokens
from training.datasets.options import DEFAULT, Options
from training.errors import UserError

LONG = Options(length=1024)


@pytest.fixture(scope="module")
def whole() -> Dataset:
    """Long enough that no window is cut."""
    return datasets.load("help-topics", LONG)


def windows(dataset: Dataset, part: Examples) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {name: [] for name in dataset.classes}
    for row, label in zip(part.only, part.labels, strict=True):
        found[dataset.classes[label]].append(row.tobytes().rstrip(b"\0").decode().split(" "))
    return found


def test_every_window_is_sixty_four_words_of_its_topic_in_a_row(whole: Dataset) -> None:
    for part in (whole.train, whole.test):
        for name, found in windows(whole, part).items():
            text = " ".join(help_topics.topics[name].split())
            assert found
            assert {len(words) for words in found} == {64}
            assert all(" ".join(words) in text for words in found)


@pytest.mark.parametrize("words", [1552, 8571])
@pytest.mark.parametrize("seed", range(3))
def test_no_word_of_the_test_is_learned_from_and_each_counts_once(words: int, seed: int) -> None:
    learned, tested = help_topics._starts(words, DEFAULT, np.random.default_rng(seed))
    times_learned, times_tested = (np.zeros(words, dtype=int) for _ in range(2))
    for start in learned:
        times_learned[start : start + 64] += 1
    for start in tested:
        times_tested[start : start + 64] += 1

    assert max(*learned, *tested) + 64 <= words
    assert not (times_learned.astype(bool) & times_tested.astype(bool)).any()
    assert times_tested.max() == 1
    assert 0.1 < times_tested.mean() < 0.25
    assert times_learned.astype(bool).mean() > 0.7


def test_clients_send_bytes(whole: Dataset) -> None:
    dataset = datasets.load("help-topics")
    assert dataset.front == Tokens(256)
    assert dataset.train.only.dtype == np.uint8
    assert dataset.train.only.shape[1] % 16 == 0
    assert np.array_equal(dataset.train.only, whole.train.only[:, : dataset.train.only.shape[1]])
    assert dataset.notes[0] == "trained on windows of 64 words joined by single spaces"


def test_the_seed_alone_decides_the_split() -> None:
    first, again, other = (datasets.load("help-topics", Options(split_seed=seed)).test.only for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_help_of_another_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(help_topics.topics, "types", "something new")
    with pytest.raises(UserError, match=r"help-topics: the help of Python 3\.\S+ has sha256 .* that of Python 3.11.7"):
        help_topics.load("", DEFAULT)


def test_a_fraction_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"help-topics: data.test_fraction=0.95 leaves nothing of a topic"):
        datasets.load("help-topics", Options(test_fraction=0.95))
