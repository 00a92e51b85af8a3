"""What our loop costs a step beyond the bare one that everybody writes: `make bench-train`.

Both train the same network on the same rows with the same optimiser, in one process and in turns; ours counts, draws
each step's randomness anew, sets the rate, checks the loss, keeps metrics and asks whether to stop. Told is the median
difference of rounds that lie beside each other, in seconds of the processor: the machine is never quiet.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from tests.benchmarks.machine import heading
from training import datasets
from training.checkpoint import Snapshot
from training.datasets.dataset import Dataset
from training.networks import opened_network
from training.optimiser import build_optimiser
from training.recipe import Recipe
from training.recipe_sources import find_recipe
from training.run_folder import RunFolder
from training.train import Fit, torch_set_up_for

LIMIT_US = 200.0
STEPS, ROUNDS = 44, 30
WIDTHS = {"tiny": [2, 2, 2, 2, 2, 2], "digits": [16, 16, 32, 32, 64, 64]}


def main() -> None:
    print(heading("train"))
    print("\n| network | bare, µs a step | ours | difference (10 % to 90 %) | at most | holds |")
    print("|---|---|---|---|---|---|")
    costs = []
    for name, widths in WIDTHS.items():
        recipe = find_recipe(
            "digits",
            [
                f"architecture.options.widths={widths}",
                "data.shift_pixels=0",
                "epochs=1000000",
                "optimiser.learning_rate=1e-6",
            ],
        )
        bare_us, ours_us = measured(recipe, datasets.load("digits"))
        apart = ours_us - bare_us
        low, cost, high = np.quantile(apart, [0.1, 0.5, 0.9])
        costs.append(cost)
        print(
            f"| {name} | {np.median(bare_us):.0f} | {np.median(ours_us):.0f} | {cost:.0f} ({low:.0f} to {high:.0f}) | "
            f"{LIMIT_US:.0f} | {'yes' if cost <= LIMIT_US else 'NO'} |"
        )
    if max(costs) > LIMIT_US:
        sys.exit(1)


def measured(recipe: Recipe, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds a step of each round: bare, ours."""
    rounds = []
    with tempfile.TemporaryDirectory() as folder, torch_set_up_for(recipe):
        runs = [bare(recipe, dataset), ours(recipe, dataset, Path(folder) / "run")]
        for number in range(ROUNDS + 1):
            order = (0, 1) if number % 2 else (1, 0)
            seconds = [0.0, 0.0]
            for which in order:
                begin = time.process_time()
                runs[which]()
                seconds[which] = time.process_time() - begin
            rounds.append([1e6 * each / STEPS for each in seconds])
    return tuple(np.array(rounds[1:]).T)  # type: ignore[return-value]


def bare(recipe: Recipe, dataset: Dataset) -> Callable[[], None]:
    """STEPS more of it."""
    with opened_network(recipe, dataset) as network:
        optimiser = build_optimiser(recipe.optimiser, network)
    images, labels = torch.from_numpy(dataset.train.only), torch.from_numpy(dataset.train.labels)
    batches = torch.randperm(len(labels)).split(recipe.batch_size)
    network.train()

    def run() -> None:
        for step in range(STEPS):
            rows = batches[step % len(batches)]
            loss = functional.cross_entropy(network(images[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return run


class Unkept(RunFolder):
    """Writes metrics and asks the clock as any run, but keeps no checkpoint, which is due every half minute."""

    def last(self, dataset: Dataset) -> None:
        return None

    def keep(self, snapshot: Snapshot) -> None:
        pass


def ours(recipe: Recipe, dataset: Dataset, folder: Path) -> Callable[[], None]:
    """STEPS more of it, under our engine."""
    run_folder = Unkept(folder)
    run_folder.begin(recipe)
    with opened_network(recipe, dataset) as network:
        fit = Fit(network, recipe, dataset, run_folder)

    def run() -> None:
        end = fit.steps + STEPS
        fit.go(False, lambda: fit.steps >= end)

    return run


if __name__ == "__main__":
    main()
