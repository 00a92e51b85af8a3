"""Networks of torchvision and timm, trained for a step, their statistics measured, exported, folded and compared.

Part of `make test-zoo`. Prints a line a network, with what went wrong where something did. Fails where a step of ours
raises, or a folded network is less accurate than the exported one. Noise of the smallest size that a network takes
stands for images: what is asked is whether the way is open, not what is learned.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.benchmarks.machine import heading
from tests.training.fold.architectures.preparing import BatchNorm, export_raw
from tests.zoo import names
from tests.zoo.trial import Trial, one_line, prepared, try_fold
from training.bn.population import estimate
from training.optimiser import parameter_groups

ROWS = 4
BATCHES = 2
FORM = "trained"
TORCHVISION = (
    "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "vgg11_bn", "vgg19_bn", "googlenet", "inception_v3",
    "densenet121", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet0_5", "mnasnet1_0",
    "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "efficientnet_b0", "efficientnet_b1", "efficientnet_v2_s",
    "regnet_y_400mf", "regnet_x_400mf",
)  # fmt: skip


def specs() -> list[str]:
    """Without those that have no BatchNorm."""
    timm = [f"timm:{name}" for place, group in names.TIMM.items() if place != "nowhere" for name in group]
    return [f"torchvision:{name}" for name in TORCHVISION] + timm


def step_and_measure(module: nn.Module, shape: Sequence[int]) -> nn.Module:
    """One step of gradient descent, then population statistics; returns it in eval mode."""
    rng = np.random.default_rng(0)
    batches = [torch.from_numpy(rng.normal(size=(ROWS, *shape)).astype(np.float32)) for _ in range(BATCHES)]
    optimiser = torch.optim.SGD(parameter_groups(module, 1e-4), lr=1e-3, momentum=0.9)
    scores: Any = module.train()(batches[0])
    scores = scores[0] if isinstance(scores, tuple) else scores  # torchvision's Inceptions bring their side branches
    nn.functional.cross_entropy(scores, torch.arange(ROWS)).backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    estimate(module.eval(), batches, mode="minibatch")
    return module.eval()


def attempt(spec: str) -> Trial:
    """As a line of the table."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    try:
        module, shape = prepared(spec, step_and_measure)
        if not any(isinstance(part, BatchNorm) for part in module.modules()):
            return Trial(spec, FORM, failure="has no BatchNorm")
        graph = export_raw(module, shape)
    except Exception as error:
        return Trial(spec, FORM, failure=one_line(error))
    x = np.random.default_rng(1).normal(size=(ROWS, *shape)).astype(np.float32)
    with torch.no_grad():
        wanted = module.double()(torch.from_numpy(x).double()).numpy()
    return try_fold(spec, FORM, graph, x, wanted)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo.trained", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="SPEC", help="these networks, e.g. timm:levit_128s")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="networks at a time")
    arguments = parser.parse_args()
    print(
        f"{heading('zoo, trained')}\n\n| network | BatchNorms | folded | left | error | what went wrong |", flush=True
    )
    print("|---|---|---|---|---|---|", flush=True)
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        waiting = [pool.submit(attempt, spec) for spec in arguments.only or specs()]
        trials = [told(future.result()) for future in as_completed(waiting)]
    whole = [trial for trial in trials if trial.summary and not trial.failure]
    print(f"\n{len(whole)} of {len(trials)} networks from a step of training to a folded graph that answers alike")
    return 1 if any(trial.ours for trial in trials) else 0


def told(trial: Trial) -> Trial:
    """Printed as soon as it is there."""
    summary = trial.summary
    numbers = (
        f"{summary['found']} | {summary['folded']} | {trial.left} | {trial.error_ratio:.2f}" if summary else "| | |"
    )
    why = "; ".join([trial.failure, *(f"{count}: {reason}" for reason, count in trial.reasons)]).strip("; ")
    print(f"| {trial.spec} | {numbers} | {why.replace('|', '/')} |", flush=True)
    return trial


if __name__ == "__main__":
    sys.exit(main())
