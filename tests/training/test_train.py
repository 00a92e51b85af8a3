"""The loop: deterministic, kind to BatchNorm, and polite to the process it runs in."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from training import datasets, train
from training.datasets.dataset import Dataset, Pixels
from training.errors import UserError
from training.evaluation import accuracy
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


def test_shifted_images_are_the_images_moved_with_zeros_moving_in() -> None:
    image = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))[0, 0]
    windows = {padded[y : y + 3, x : x + 3].numpy().tobytes() for y in range(3) for x in range(3)}

    moved = train.shifted(image.expand(500, 1, 3, 3), 1, torch.Generator().manual_seed(0))

    assert moved.shape == (500, 1, 3, 3)
    assert {np.ascontiguousarray(row).tobytes() for row in moved.numpy()} == windows


def test_images_with_their_channels_last_are_moved_along_height_and_width_alike() -> None:
    images = torch.arange(1, 2 * 4 * 5 * 3 + 1, dtype=torch.uint8).reshape(2, 4, 5, 3)
    first, last = (torch.Generator().manual_seed(3) for _ in range(2))

    moved = train.shifted(images, 2, last, channels_last=True)

    assert moved.dtype == torch.uint8
    assert torch.equal(moved, train.shifted(images.permute(0, 3, 1, 2), 2, first).permute(0, 2, 3, 1))


def test_the_loop_moves_pixels_and_not_colours(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image is one colour: moving it leaves at most that colour and black in each of its pixels."""
    some = first(digits, 64)
    colours = np.random.default_rng(0).integers(1, 255, (64, 1, 1, 3))
    flat = np.broadcast_to(colours, (64, 8, 8, 3)).astype(np.uint8)
    part = dataclasses.replace(some.train, inputs={"image": flat})
    front = Pixels((0.0,) * 3, (255.0,) * 3, channels_last=True)
    seen: list[np.ndarray] = []
    shifted = train.shifted

    def noted(*arguments: Any, **keywords: Any) -> torch.Tensor:
        moved = shifted(*arguments, **keywords)
        if keywords:
            seen.append(moved.numpy())
        return moved

    monkeypatch.setattr(train, "shifted", noted)
    train.train(quick("data.shift_pixels=2"), dataclasses.replace(some, train=part, test=part, front=front))

    pixels = np.concatenate(seen).reshape(-1, 3)
    known = {(0, 0, 0), *map(tuple, colours.reshape(-1, 3).tolist())}
    assert set(map(tuple, pixels.tolist())) == known


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


LINEAR = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.fixture
def linear(tmp_path) -> str:
    """Without normalisation, so that what a batch is changes nothing but rounding."""
    (tmp_path / "nets.py").write_text(LINEAR)
    return f"architecture.model=file:{tmp_path}/nets.py:make"


def linear_weights(dataset: Dataset, *overrides: str) -> torch.Tensor:
    settings = ["epochs=1", "data.shift_pixels=0", "optimiser.warmup_fraction=0", *overrides]
    module, _ = train.train(find_recipe("digits", settings), dataset)
    return module.get_parameter("body.1.weight").detach()


def test_gradients_of_several_batches_make_the_step_of_one_large_batch(digits, linear) -> None:
    few = first(digits, 70)

    large = linear_weights(few, linear, "batch_size=32")
    added_up = linear_weights(few, linear, "batch_size=8", "optimiser.accumulate=4")
    small = linear_weights(few, linear, "batch_size=8")

    torch.testing.assert_close(added_up, large, rtol=1e-4, atol=1e-6)
    assert (small - large).abs().max() > 0.01


def test_a_long_gradient_is_cut_to_what_the_recipe_allows(digits, linear) -> None:
    few, settings = first(digits, 16), [linear, "batch_size=16", "optimiser.weight_decay=0"]

    start = linear_weights(few, *settings, "optimiser.learning_rate=1e-30")
    moved = linear_weights(few, *settings, "optimiser.learning_rate=1", "optimiser.clip_norm=0.001") - start

    assert 0 < moved.norm() <= 0.001 * 1.9 + 1e-6, "Nesterov's first step is 1 + momentum times the gradient"


def test_training_ends_when_held_out_examples_gain_nothing(digits, linear) -> None:
    """At this rate nothing moves: the second epoch is no better than the first."""
    settings = [linear, "optimiser.learning_rate=1e-30", "epochs=9", "stopping.patience_epochs=1"]

    _, report = train.train(find_recipe("digits", settings), first(digits, 200))

    assert (report.steps, report.total_steps, report.best_epoch) == (4, 18, 1)
    assert report.is_finished


def test_half_of_the_bits_are_enough_to_learn(digits) -> None:
    _, report = train.train(quick("epochs=2", "precision=bfloat16"), digits)

    assert report.test_accuracy > 0.6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(digits) -> None:
    with pytest.raises(train.TrainingFailed, match="device=cuda: torch finds no GPU here; train with --set device=cpu"):
        train.train(quick("device=cuda"), digits)


def test_statistics_that_a_remedy_freezes_are_measured_once_and_stay(digits) -> None:
    recipe = quick("remedy=frozen:0.5")
    module, report = train.train(recipe, first(digits, 176))
    tracked = {part.num_batches_tracked.item() for part in module.modules() if hasattr(part, "num_batches_tracked")}
    assert tracked == {report.steps - report.steps // 2}


def test_auto_has_no_remedy_for_a_batch_that_needs_none(digits) -> None:
    plain, auto = (train.train(quick(f"remedy={remedy}"), first(digits, 176))[0] for remedy in ("none", "auto"))
    assert weights(plain) == weights(auto)


def test_an_average_of_weights_and_frozen_statistics_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"optimiser.average and remedy=auto exclude each other"):
        quick("remedy=auto", "optimiser.average=0.9")
