"""Sixteen ways to estimate population statistics wrongly, asked of ours and of others: `make bench-bn`.

Each cell is the largest relative error of a mean or variance against float64 (tests/training/bn/cases.py), or what the
estimator raised, or what it did to a layer that was to be kept. Others are called as their documentation says; what a
case tells ours by an option (a mask), they cannot be told. Fails where ours is off by more than the tests allow.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.optim.swa_utils import update_bn

from tests.benchmarks.machine import heading
from tests.training.bn.cases import CASES, DISTRIBUTED, RELATIVE_ERROR, Scene, error_of, rank_batches, two_ranks
from training.bn.population import estimate

Estimator = Callable[[Scene, nn.Module, Iterable[Any]], object]
# fvcore's own default where a loader cannot tell how long it is.
FVCORE_ITERATIONS = 200


def ours(scene: Scene, model: nn.Module, batches: Iterable[Any], *, mode: Any) -> object:
    return estimate(model, batches, mode=mode, **scene.options)


def torchs(_: Scene, model: nn.Module, batches: Iterable[Any]) -> object:
    return update_bn(batches, model)


def fvcores(_: Scene, model: nn.Module, batches: Iterable[Any]) -> object:
    from fvcore.nn.precise_bn import update_bn_stats

    iterations = len(batches) if isinstance(batches, list) else FVCORE_ITERATIONS
    inputs = (batch[0] if isinstance(batch, tuple) else batch for batch in batches)
    return update_bn_stats(model, inputs, iterations)


ESTIMATORS: dict[str, Estimator] = {
    "ours, sequential": functools.partial(ours, mode="sequential"),
    "ours, minibatch": functools.partial(ours, mode="minibatch"),
    f"torch {metadata.version('torch').partition('+')[0]} `update_bn`": torchs,
    f"fvcore {metadata.version('fvcore')} `update_bn_stats`": fvcores,
}


def cell(case: str, name: str) -> tuple[float, str]:
    """The error, and how it is told."""
    try:
        error = on_two_ranks(name) if case == DISTRIBUTED else on_one(CASES[case](), name)
    except Exception as failure:
        return math.inf, f"raises {type(failure).__name__}"
    told = "not kept" if math.isinf(error) else f"{error:.1g}"
    return error, told if error <= RELATIVE_ERROR else f"**{told}**"


def on_one(scene: Scene, name: str) -> float:
    return error_of(scene, lambda model, batches: ESTIMATORS[name](scene, model, batches))


def on_two_ranks(name: str) -> float:
    """Of the worse one."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(one_rank, (name, folder), nprocs=2)
        return max(float(Path(folder, str(rank)).read_text()) for rank in range(2))


def one_rank(rank: int, name: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    scene = two_ranks()
    ESTIMATORS[name](scene, scene.model, rank_batches(rank))
    Path(folder, str(rank)).write_text(str(error_of(scene, lambda *_: None)))
    torch.distributed.destroy_process_group()


def main() -> int:
    torch.manual_seed(0)
    print(heading("Population statistics: relative error against float64"))
    print()
    rows = [["case", *ESTIMATORS], ["---"] * (1 + len(ESTIMATORS))]
    missed = []
    for case in CASES:
        cells = {name: cell(case, name) for name in ESTIMATORS}
        rows.append([case, *(told for _, told in cells.values())])
        missed += [f"{case}: {name}" for name, (error, _) in cells.items() if "ours" in name and error > RELATIVE_ERROR]
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    print(
        f"\nBold: more than {RELATIVE_ERROR:g}, or a layer that was to be kept has changed. The variance asked for is "
        "what running_var holds: the unbiased one of all values."
    )
    print("\n".join(f"MISSED {line}" for line in missed) or "Ours is right in all cases.")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
