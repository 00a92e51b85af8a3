"""Fold random graphs until told to stop: `python -m tests.training.fold.fuzz --count 100000 --seed 0` (`make fuzz`).

Prints the seeds that fail, with what failed, and exits 1 if any did. Seed s is the model `random_model(s)`, one in ten
with quantised weights. With `--widen` they are folded with widening, and every other one is `random_convolutions(s)`,
where there is more to widen.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from functools import partial

from tests.training.fold.judge import judge
from tests.training.fold.random_convolutions import random_convolutions
from tests.training.fold.random_graphs import random_model
from training.fold import Profile

_CHUNK = 200


def prepare() -> None:
    """A process that does nothing else: a tenth of its time would go to a search for garbage among what is imported."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def run(seeds: range, widen: bool = False) -> tuple[list[tuple[int, str]], Counter[str]]:
    """Failures as (seed, what), and how often each verdict was given."""
    failures, counts = [], Counter[str]()
    for seed in seeds:
        profile = Profile.GENERIC if seed % 4 else Profile.ORT_CPU
        try:
            model = random_convolutions(seed) if widen and seed % 2 else random_model(seed, quantised=seed % 10 == 3)
            counts.update(judge(model, profile, seed, widen).report.summary())
        except Exception as error:  # whatever is wrong is told with its seed
            where = traceback.extract_tb(error.__traceback__)[-1]
            failures.append((seed, f"{type(error).__name__}: {str(error)[:300]} ({where.filename}:{where.lineno})"))
    return failures, counts


def chunks(start: int, count: int) -> Iterator[range]:
    for first in range(start, start + count, _CHUNK):
        yield range(first, min(first + _CHUNK, start + count))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first graph")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--widen", action="store_true")
    options = parser.parse_args()
    began, counts, failed = time.monotonic(), Counter[str](), 0
    with multiprocessing.Pool(options.processes, prepare, maxtasksperchild=20) as pool:
        work = pool.imap_unordered(partial(run, widen=options.widen), chunks(options.seed, options.count))
        for done, (failures, some) in enumerate(work, start=1):
            counts += some
            failed += len(failures)
            for seed, what in failures:
                print(f"seed {seed}: {what}", flush=True)
            if done % 25 == 0:
                print(f"... {done * _CHUNK} graphs, {time.monotonic() - began:.0f} s", flush=True)
    print(
        f"seeds {options.seed} to {options.seed + options.count - 1}: {failed} wrong, {time.monotonic() - began:.0f} s"
    )
    print(", ".join(f"{name} {number}" for name, number in counts.items()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
