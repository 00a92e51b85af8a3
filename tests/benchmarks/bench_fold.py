"""What folding removes and what that saves, next to the tools that also remove BatchNorms: `make bench-fold`.

For each network, as exported raw and as exported by default: BatchNorms found and what became of them, nodes, rounding,
and latency in ONNX Runtime with all its optimisations, of our file, of the source and of what each rival made of it,
in turns. Fails where a rival leaves fewer BatchNorms over all networks, or is surely faster on any of them.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tests.benchmarks.fold_corpus import FORMS, NO_PROOF, OURS, RUNTIME, Case, Made, cases, rounding_ratio, session
from tests.benchmarks.fold_rivals import RIVALS
from tests.benchmarks.machine import heading
from tests.benchmarks.pairing import Ratio, Run, geometric_mean, in_turns, ratio
from tests.training.fold.architectures import NETWORKS

OTHERS = (RUNTIME, *RIVALS)
UNMERGED = ("repvgg-a0", "mobileone-s0")  # must be this much faster than with any other tool, from a raw export:
UNMERGED_RATIO = 1.3
SLOWER = 0.98  # a rival's time over ours, if surely below; what is left of the luck of memory's places is this much
BUDGET_S, QUICK_S = 10.0, 2.0  # of measuring one network at one number of threads


@dataclass(frozen=True)
class Latency:
    """One row: milliseconds of the source and of ours, and each other tool's time over ours, by name."""

    name: str
    form: str
    threads: int
    source_ms: float
    ours_ms: float
    over_ours: dict[str, Ratio]

    def surely_slower_than(self) -> list[str]:
        return [other for other, found in self.over_ours.items() if found.high < SLOWER]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_fold", description=__doc__)
    parser.add_argument("--rivals", type=Path, required=True, help="environment with rivals.txt")
    parser.add_argument("--families", nargs="+", default=list(NETWORKS), metavar="NAME", help="these only, or a SPEC")
    parser.add_argument("--form", choices=FORMS, action="append", help="one kind of export only")
    parser.add_argument("--quick", action="store_true", help="a fifth of the time, wider bounds")
    arguments = parser.parse_args()
    budget_s = QUICK_S if arguments.quick else BUDGET_S
    print(f"{heading('fold')}; {versions(arguments.rivals)}\n", flush=True)
    counts: list[Case] = []
    latencies: list[Latency] = []
    unproved: list[str] = []
    print(COUNTS_HEAD, flush=True)
    for name in arguments.families:
        rounding = rounding_ratio(name)
        unproved += [f"{name}: {rounding}"] if rounding.startswith(NO_PROOF) else []
        with cases(name, arguments.form or list(FORMS), arguments.rivals) as made:
            for case in made:
                print(counts_row(case, rounding), flush=True)
                counts.append(case)
                for threads in thread_counts():
                    latencies.append(timed(case, threads, budget_s))
                    print(latency_row(latencies[-1]), file=sys.stderr, flush=True)  # in hours much can happen
    print_latencies(latencies)
    return judge(counts, latencies, unproved)


def thread_counts() -> list[int]:
    return sorted({1, len(os.sched_getaffinity(0))})


def versions(rivals: Path) -> str:
    pins = (Path(__file__).with_name("rivals.txt")).read_text().split("\n")
    return ", ".join(line.replace("==", " ") for line in pins if "==" in line)


BATCHNORMS = ("found", "folded", "reduced", "kept", "kept, default", *OTHERS)
COLUMNS = ("network", "export", *BATCHNORMS, "nodes", "generic", "default")
COUNTS_HEAD = f"""
BatchNorms: found; folded (of those clamped), reduced and kept by `--profile generic`; kept by the default profile; left
by each other tool. Nodes: of the source, of ours, generic and default. Rounding: our error over the original's.

| {" | ".join(COLUMNS)} | rounding |
|{"---|" * (len(COLUMNS) + 1)}"""


def counts_row(case: Case, rounding: str) -> str:
    summary, kept = case.reports["generic"].summary(), case.reports[OURS].summary()["kept"]
    clamped = f" ({summary['clamped']})" if summary["clamped"] else ""
    left = " | ".join(shown(case.made[other]) for other in OTHERS)
    nodes = " | ".join(str(made.nodes) for made in (case.source, case.made["generic"], case.made[OURS]))
    return (
        f"| {case.name} | {case.form} | {case.source.batchnorms} | {summary['folded']}{clamped} | {summary['reduced']} "
        f"| {summary['kept']} | {kept} | {left} | {nodes} | {rounding} |"
    )


def shown(made: Made) -> str:
    return made.failure.replace("|", "/") or str(made.batchnorms)


def timed(case: Case, threads: int, budget_s: float) -> Latency:
    rng = np.random.default_rng(0)
    files = {name: made.path for name, made in case.made.items() if name in (OURS, *OTHERS) and made.path is not None}

    def opened(path: Path) -> Run:
        running = session(path, threads)
        return lambda: running.run(None, {"x": case.x})

    times = in_turns({name: partial(opened, path) for name, path in files.items()}, budget_s, rng)
    source, ours = (1e3 * float(np.median(np.concatenate(times[name]))) for name in (RUNTIME, OURS))
    over_ours = {other: ratio(times[other], times[OURS], rng) for other in OTHERS if other in times}
    return Latency(case.name, case.form, threads, source, ours, over_ours)


def print_latencies(rows: list[Latency]) -> None:
    print(f"""
Milliseconds for one row, the source and ours (default profile), both with ONNX Runtime's own optimisations; then each
other tool's time over ours, above 1 where ours is faster: median of rounds and one-sided 95 % bounds.

| network | export | threads | source ms | ours ms | {" | ".join(OTHERS)} |
|{"---|" * (5 + len(OTHERS))}""")
    print("\n".join(map(latency_row, rows)))
    for form in FORMS:
        for other in OTHERS:
            found = [row.over_ours[other] for row in rows if row.form == form and other in row.over_ours]
            if found:
                print(f"\n{form}, geometric mean of {other}'s time over ours: {geometric_mean(found):.3f}", end="")
    print()


def latency_row(row: Latency) -> str:
    ratios = " | ".join(str(row.over_ours.get(other, "")) for other in OTHERS)
    return f"| {row.name} | {row.form} | {row.threads} | {row.source_ms:.2f} | {row.ours_ms:.2f} | {ratios} |"


def judge(counts: list[Case], latencies: list[Latency], unproved: list[str]) -> int:
    wrong = list(unproved)
    ours = {profile: sum(case.made[profile].batchnorms for case in counts) for profile in ("generic", OURS)}
    found = sum(case.source.batchnorms for case in counts)
    left = {other: sum(left_by(case, other) for case in counts) for other in OTHERS}
    print(f"\nBatchNormalization left of {found}: {ours} by us; {left}")
    wrong += [f"{other} leaves {count}" for other, count in left.items() if count < ours["generic"]]
    wrong += [f"{case.name} ({case.form}): ours {made.failure}" for case in counts
              for name, made in case.made.items() if made.failure and name in ours]  # fmt: skip
    for row in latencies:
        place = f"{row.name} ({row.form}, {row.threads} threads)"
        wrong += [f"{place}: slower than {other}, {row.over_ours[other]}" for other in row.surely_slower_than()]
        if row.name in UNMERGED and row.form == "raw":
            wrong += [
                f"{place}: {found} times {other}'s speed, less than {UNMERGED_RATIO}"
                for other, found in row.over_ours.items()
                if found.low < UNMERGED_RATIO
            ]
    print("\n".join(f"WRONG {text}" for text in wrong) or "All holds.")
    return 1 if wrong else 0


def left_by(case: Case, other: str) -> int:
    """A tool that made nothing, or something wrong, leaves all there were."""
    return case.source.batchnorms if case.made[other].failure else case.made[other].batchnorms


if __name__ == "__main__":
    sys.exit(main())
