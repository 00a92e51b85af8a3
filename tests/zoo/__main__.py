"""Folds the networks of torchvision and timm, and our own presets, and prints what became of their BatchNorms: `make
test-zoo`.

Fails where one of torchvision's keeps a BatchNorm, where folding raises, or where a folded network is less accurate.
Run by the interpreter of an environment with the training extra and `requirements.txt`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from multiprocessing import get_context

from tests.benchmarks.machine import heading
from tests.zoo import names, presets
from tests.zoo.trial import FORMS, Trial, attempt

ZOOS = {"torchvision": names.torchvision, "timm": names.timm, "preset": presets.specs}
COLUMNS = ("found", "folded", "clamped", "reduced", "kept", "branches_merged", "nodes_before", "nodes_after")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("--zoo", choices=ZOOS, action="append", help="one of them only")
    parser.add_argument("--only", nargs="+", metavar="SPEC", help="these networks, e.g. timm:levit_128s")
    parser.add_argument("--form", choices=FORMS, action="append", help="one kind of export only")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="networks at a time")
    arguments = parser.parse_args()
    specs = arguments.only or [spec for zoo in arguments.zoo or ZOOS for spec in ZOOS[zoo]()]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "onnxscript", "torchvision", "timm"))
    print(f"{heading('zoo')}, {versions}\n", flush=True)
    print("| network | export | found | folded | clamped | reduced | kept | merged | nodes | then | s | error | left |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    trials = []
    for trial in attempts(specs, arguments.form or list(FORMS), arguments.jobs):
        trials.append(trial)
        print(line(trial), flush=True)
    return judge(trials)


def attempts(specs: Sequence[str], forms: Sequence[str], jobs: int) -> Iterator[Trial]:
    """A fresh process for each network gives its memory back."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = [
            pool.submit(presets.attempt, spec) if spec.startswith(presets.PREFIX) else pool.submit(attempt, spec, forms)
            for spec in specs
        ]
        for future in as_completed(futures):
            yield from future.result()


def line(trial: Trial) -> str:
    name = trial.spec.partition(":")[2] if trial.spec.startswith("torchvision") else trial.spec
    if not trial.summary:
        return f"| {name} | {trial.form} |{' |' * 10} {trial.failure} |"
    numbers = " | ".join(str(trial.summary[column]) for column in COLUMNS)
    why = "; ".join(f"{count}: {reason}" for reason, count in trial.reasons)
    left = "; ".join(part for part in (trial.failure, why) if part).replace("|", "/")
    return f"| {name} | {trial.form} | {numbers} | {trial.seconds:.1f} | {trial.error_ratio:.2f} | {left} |"


def judge(trials: Sequence[Trial]) -> int:
    """Totals, and what must not be."""
    for zoo in ZOOS:
        for form in FORMS:
            mine = [t for t in trials if t.spec.startswith(zoo) and t.form == form and t.summary]
            if mine:
                totals = {column: sum(t.summary[column] for t in mine) for column in COLUMNS}
                print(f"\n{zoo}, {form}: {len(mine)} networks; " + ", ".join(f"{k} {v}" for k, v in totals.items()))
    wrong = [t for t in trials if t.ours or (t.spec.startswith("torchvision") and (t.left or not t.summary))]
    for trial in wrong:
        print(f"WRONG {trial.spec} ({trial.form}): {trial.failure or f'{trial.left} BatchNormalization left'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
