"""The loop: deterministic, kind to BatchNorm, and polite to the process it runs in."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from training import datasets, train
from training.datasets.dataset import Dataset
from training.evaluation import accuracy
from training.optimiser import learning_rate_factor, parameter_groups
from training.recipe import Recipe
from training.recipe_sources import find_recipe

QUICK = ["epochs=1", "architecture.options.widths=[4,4,8,8,16,16]", "optimiser.warmup_fraction=0"]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return datasets.load("digits")


def quick(*overrides: str) -> Recipe:
    return find_recipe("digits", [*QUICK, *overrides])


def first(dataset: Dataset, rows: int) -> Dataset:
    part = dataset.train
    return dataclasses.replace(dataset, train=part.at(slice(rows)))


def weights(module: nn.Module) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values())


def test_the_same_recipe_gives_the_same_bits_and_another_seed_gives_others(digits) -> None:
    first_run, again, other = (train.train(quick(f"seed={seed}"), digits)[0] for seed in (0, 0, 1))

    assert weights(first_run) == weights(again)
    assert weights(first_run) != weights(other)


def test_training_learns_and_reports_what_it_did(digits) -> None:
    module, report = train.train(quick("epochs=3"), digits)

    assert not any(part.training for part in module.modules())
    assert report.test_accuracy == accuracy(module, digits.test) > 0.8
    assert report.train_accuracy == accuracy(module, digits.train) > 0.8
    assert (report.epochs, report.steps, report.n_train, report.n_test) == (3, 3 * 22, 1437, 360)
    assert report.settings["optimiser"]["learning_rate"] == 0.1
    assert report.versions["torch"] == torch.__version__


def test_the_process_is_left_as_it_was_found(digits) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()

    train.train(quick("threads=1"), first(digits, 64))

    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert torch.full((), 1e-40).mul(1.0).item() > 0, "subnormal numbers are numbers again"


def test_flush_denormal_stays_on_for_a_caller_who_had_it_on(digits) -> None:
    torch.set_flush_denormal(True)
    try:
        train.train(quick(), first(digits, 64))
        assert torch.full((), 1e-40).mul(1.0).item() == 0
    finally:
        torch.set_flush_denormal(False)


def test_a_loss_that_is_no_number_stops_with_one_line_that_says_what_to_try(digits) -> None:
    with pytest.raises(train.TrainingFailed) as caught:
        train.train(quick("optimiser.learning_rate=1e30", "epochs=2"), digits)

    text = str(caught.value)
    assert "the loss became nan in epoch 1 of 2" in text
    assert "--set optimiser.learning_rate=1e+29" in text
    assert "\n" not in text


@pytest.mark.parametrize("rows", [2, 3, 65, 129], ids="{} rows".format)
def test_a_remainder_of_one_row_is_no_batch_of_its_own(digits, rows) -> None:
    """65 = 64 + 1: torch refuses to train the head's BatchNorm1d on one row, so a leftover row would raise here."""
    _, report = train.train(quick("batch_size=64"), first(digits, rows))

    assert report.n_train == rows


def test_a_single_example_is_refused(digits) -> None:
    with pytest.raises(train.TrainingFailed, match="at least two rows"):
        train.train(quick(), first(digits, 1))


@given(rows=st.integers(2, 5000), batch_size=st.integers(2, 300))
def test_batches_differ_by_one_row_at_most_and_lose_none(rows, batch_size) -> None:
    sizes = [len(batch) for batch in torch.arange(rows).tensor_split(train.steps_per_epoch(rows, batch_size))]

    assert sum(sizes) == rows
    assert max(sizes) - min(sizes) <= 1
    assert min(rows, batch_size) <= min(sizes)
    assert max(sizes) < 2 * batch_size


@given(steps=st.integers(1, 3000), warmup=st.floats(0, 1, exclude_max=True))
def test_the_rate_rises_to_its_peak_then_falls_and_never_stands_still(steps, warmup) -> None:
    factors = [learning_rate_factor(step, steps, warmup) for step in range(steps + 1)]
    peak = factors.index(max(factors))

    assert factors[peak] == 1.0
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert min(factors[:-1]) > 0
    assert factors[-1] == pytest.approx(0, abs=1e-12)


def test_decay_touches_weights_and_neither_gamma_nor_beta_nor_a_bias() -> None:
    class Odd(nn.BatchNorm2d):
        """A subclass, as timm has them: the module's type tells, not its exact class."""

    network = nn.Sequential(nn.Conv2d(1, 3, 1), Odd(3), nn.Flatten(), nn.Linear(3, 2), nn.BatchNorm1d(2))

    decayed, spared = parameter_groups(network, 0.5)

    assert decayed["weight_decay"] == 0.5
    assert spared["weight_decay"] == 0.0
    assert [parameter.shape for parameter in decayed["params"]] == [(3, 1, 1, 1), (2, 3)]
    assert len(spared["params"]) == 6


def test_shifted_images_are_the_images_moved_with_zeros_moving_in() -> None:
    image = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))[0, 0]
    windows = {padded[y : y + 3, x : x + 3].numpy().tobytes() for y in range(3) for x in range(3)}

    moved = train.shifted(image.expand(500, 1, 3, 3), 1, torch.Generator().manual_seed(0))

    assert moved.shape == (500, 1, 3, 3)
    assert {np.ascontiguousarray(row).tobytes() for row in moved.numpy()} == windows


def test_no_shift_leaves_the_images_alone() -> None:
    images = torch.rand(2, 1, 3, 3)

    assert torch.equal(train.shifted(images, 0, torch.Generator()), images)


@pytest.mark.parametrize(
    ("show", "drawn"), [(True, True), (False, False), (None, False)], ids=["on", "off", "no terminal"]
)
def test_the_progress_bar_is_drawn_only_where_someone_sees_it(digits, capsys, show, drawn) -> None:
    train.train(quick(), first(digits, 64), show_progress=show)

    written = capsys.readouterr()
    assert ("training" in written.err) is drawn
    assert written.out == ""
