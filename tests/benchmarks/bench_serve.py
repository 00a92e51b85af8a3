"""The cost of the server next to other servers and to no server at all: `make bench-serve`.

In each round every contender is started, asked for one answer that must be right, loaded with every workload of its
model, and ended, one after the other, in an order that moves on by one each round. The client (load.c, one thread) runs
on the same cores. All give ONNX Runtime the same options: as many threads as cores for the image network, one for the
small one, no spinning; foldserve runs without any flag. Prints one table (serve_table.py says what its targets are) and
fails where one is missed. What each rival is told, and why, is in serve_rivals/.

Whether the chosen number of processes is worth less than one process is a question of a few percent: both servers are
started anew five times, and asked in turns of half a second. Not known: a client on a machine of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.benchmarks import load
from tests.benchmarks.machine import heading
from tests.benchmarks.pairing import OPENINGS, Ratio, Times, ratio
from tests.benchmarks.serve_contenders import (
    Contender,
    ContenderFailed,
    Served,
    answer_bytes,
    in_process,
    ours,
    rivals,
    running,
)
from tests.benchmarks.serve_table import (
    DEADLINE_MS,
    IN_PROCESS,
    NOT_BELOW_ONE_PROCESS,
    ONE_PROCESS,
    OURS,
    OVERLOAD,
    WORKLOADS,
    Figures,
    Found,
    Workload,
    cell,
    table,
    verdicts,
)

CORES = len(os.sched_getaffinity(0))
ROWS = {"mlp": 64, "image": 8}
"""The largest batch: as many rows as clients ask for at once."""
THREADS = {"mlp": 1, "image": CORES}
POOL = 512
"""Connections of the open loop: more than any server holds at the capacity of the large model within its deadline."""
GIVE_UP_MS = 3 * DEADLINE_MS
PAIRED_S = 0.4
QUIET = 0.5  # load average above which other work disturbs


@dataclass(frozen=True)
class Pace:
    """Seconds of measuring, by model and in the open loop, each after a warm-up."""

    rounds: int
    mlp_s: float
    image_s: float
    open_s: float
    in_process_s: float
    pairs: int
    """Of each opening and workload."""

    def seconds(self, workload: Workload) -> float:
        return self.mlp_s if workload.model == "mlp" else self.image_s


QUICK = Pace(rounds=3, mlp_s=0.8, image_s=2.0, open_s=3.0, in_process_s=0.4, pairs=12)
WHOLE = Pace(rounds=5, mlp_s=2.0, image_s=5.0, open_s=8.0, in_process_s=0.8, pairs=24)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_serve", description=__doc__)
    parser.add_argument("--rivals", type=Path, required=True, help="environment with serve_rivals.txt")
    parser.add_argument("--only", default="a,b,c,d", metavar="a,b", help="these workloads only")
    parser.add_argument("--against", metavar="NAME,NAME", help="these contenders only, ours always among them")
    parser.add_argument("--quick", action="store_true", help="shorter and fewer rounds: under ten minutes")
    parser.add_argument("--rounds", type=int, help="instead of 5, or of 3 with --quick")
    arguments = parser.parse_args()
    pace = QUICK if arguments.quick else WHOLE
    try:
        program = load.build(arguments.rivals.parent / "load")
    except load.NoCompiler as error:
        parser.error(str(error))
    chosen = [workload for workload in WORKLOADS if workload.letter in arguments.only.split(",")]
    contenders = everybody(arguments.rivals.absolute(), arguments.against)
    print(f"{heading('serve')}; {versions()}\n", flush=True)
    if os.getloadavg()[0] > QUIET:
        print(f"Disturbed: the load average was {os.getloadavg()[0]:.1f} before anything was measured.\n", flush=True)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "tests.benchmarks.serve_models", folder], check=True)
        served = {name: Served(Path(folder) / f"{name}.onnx", ROWS[name]) for name in ROWS}
        bench = Bench(program, pace, served)
        rounds = arguments.rounds or pace.rounds
        for number in range(rounds):
            bench.round(number, chosen, contenders)
        asked = [each for each in NOT_BELOW_ONE_PROCESS if each in chosen and ONE_PROCESS in contenders]
        paired = bench.paired(asked, contenders)
    names = [name for name in contenders if any((workload, name) in bench.found for workload in chosen)]
    print(table(bench.found, paired, names))
    print(f"\n{LEGEND}\nMedians of {rounds} rounds, {(time.monotonic() - begin) / 60:.0f} minutes.")
    missed = [verdict for verdict in verdicts(bench.found, paired) if not verdict.is_met]
    print("\n".join(f"MISSED {verdict.workload.title}: {verdict}" for verdict in missed) or "All targets are met.")
    return 1 if missed else 0


LEGEND = f"""
Right answers a second, median latency and 99th percentile. In-process: rows a second of session.run at its best plan
and batch (up to as many rows as there are clients), median of one run of one row. {OVERLOAD} x capacity: an open loop
with random arrivals at {OVERLOAD} times the contender's own rate of (c) with 8 clients in the same round; answers count
within {DEADLINE_MS:.0f} ms, and latencies from the time a request was due. ÷ {ONE_PROCESS}: median of pairs within a
second, and its bounds (each holds with a probability of 95 %)."""


def everybody(environment: Path, against: str | None) -> dict[str, Contender | None]:
    """By name, in the order of the columns; None is no server at all."""
    contenders: dict[str, Contender | None] = {OURS: ours()}
    contenders[ONE_PROCESS] = ours(ONE_PROCESS, "--workers", "1")
    contenders[IN_PROCESS] = None
    contenders |= {rival.name: rival for rival in rivals(environment, DEADLINE_MS / 1e3)}
    wanted = against.split(",") if against else list(contenders)
    return {name: contender for name, contender in contenders.items() if name in wanted or name == OURS}


def versions() -> str:
    pins = Path(__file__).with_name("serve_rivals.txt").read_text().split("\n")
    return ", ".join(pin.replace("==", " ") for pin in pins if "==" in pin)


class Bench:
    """The rounds so far."""

    def __init__(self, program: Path, pace: Pace, served: dict[str, Served]) -> None:
        self.found: Found = {}
        self._program = program
        self._pace = pace
        self._served = served

    def round(self, number: int, chosen: Sequence[Workload], contenders: dict[str, Contender | None]) -> None:
        names = list(contenders)
        first = number % len(names)
        for model in ROWS:
            workloads = [workload for workload in chosen if workload.model == model]
            for name in (names[first:] + names[:first]) if workloads else []:
                contender = contenders[name]
                if contender is None:
                    self._without_server(model, workloads)
                elif self._served[model].is_small or not contender.only_small:
                    self._with_server(contender, model, workloads)

    def paired(
        self, workloads: Sequence[Workload], contenders: Mapping[str, Contender | None]
    ) -> dict[Workload, Ratio]:
        """How many times the rate of one process ours is."""
        rng = np.random.default_rng(0)
        pair = [contender for name in (OURS, ONE_PROCESS) if (contender := contenders.get(name)) is not None]
        seconds: dict[tuple[Workload, str], Times] = {}
        for _ in range(OPENINGS if workloads else 0):
            for place, turns in self._opening(workloads, pair, rng).items():
                seconds.setdefault(place, []).append(np.array(turns))
        return {each: ratio(seconds[each, ONE_PROCESS], seconds[each, OURS], rng) for each in workloads}

    def _opening(
        self, workloads: Sequence[Workload], pair: Sequence[Contender], rng: np.random.Generator
    ) -> dict[tuple[Workload, str], list[float]]:
        """Seconds an answer in each turn, of servers that are started for it. Raises what one of them raises."""
        served = self._served[workloads[0].model]
        found: dict[tuple[Workload, str], list[float]] = {}
        with ExitStack() as started:
            ports = [started.enter_context(running(each, served, THREADS[served.name])) for each in pair]
            for workload in workloads:
                for _ in range(self._pace.pairs):
                    for turn in rng.permutation(len(pair)):
                        per_s = self._closed(pair[turn], served, ports[turn], workload, PAIRED_S).per_s
                        found.setdefault((workload, pair[turn].name), []).append(1 / per_s)
        return found

    def _with_server(self, contender: Contender, model: str, workloads: Sequence[Workload]) -> None:
        served = self._served[model]
        workloads = [each for each in workloads if contender.takes(each.form, each.clients)]
        if not workloads:
            return
        try:
            with running(contender, served, THREADS[model]) as port:
                for workload in workloads:
                    self._add(workload, contender.name, self._measured(contender, served, port, workload))
        except ContenderFailed as error:
            for workload in workloads:
                self._add(workload, contender.name, str(error))

    def _measured(self, contender: Contender, served: Served, port: int, workload: Workload) -> Figures | str:
        try:
            if workload.clients:
                return self._closed(contender, served, port, workload)
            return self._open(contender, served, port, workload)
        except (load.LoadFailed, ContenderFailed) as error:
            return str(error)

    def _closed(
        self, contender: Contender, served: Served, port: int, workload: Workload, seconds: float | None = None
    ) -> Figures:
        seconds = seconds or self._pace.seconds(workload)
        found = load.run(
            self._program,
            port,
            contender.ask(served, workload.form, None),
            seconds=seconds,
            warm_up=seconds / 4,
            connections=workload.clients,
            expect_bytes=answer_bytes(contender, served, workload.form, port),
        ).refuse_unless_clean()
        assert found.ok.p50 is not None  # or it would not be clean
        return Figures(found.ok_per_s, found.ok.p50, found.ok.p99)

    def _open(self, contender: Contender, served: Served, port: int, workload: Workload) -> Figures:
        """Behind the capacity that this very process has shown a moment ago, or shows now."""
        saturated = max((each for each in WORKLOADS if each.letter == "c"), key=lambda each: each.clients)
        so_far = self.found.get((saturated, contender.name), [])
        if len(so_far) > len(self.found.get((workload, contender.name), [])) and isinstance(so_far[-1], Figures):
            capacity = so_far[-1].per_s
        else:
            capacity = self._closed(contender, served, port, saturated).per_s
        found = load.run(
            self._program,
            port,
            contender.ask(served, workload.form, int(1e3 * DEADLINE_MS)),
            seconds=self._pace.open_s,
            warm_up=self._pace.open_s / 4,
            connections=POOL,
            rate=OVERLOAD * capacity,
            poisson=True,
            deadline_ms=DEADLINE_MS,
            timeout_ms=GIVE_UP_MS,
            expect_bytes=answer_bytes(contender, served, workload.form, port),
        )
        if found.wrong:
            raise load.LoadFailed(f"{found.wrong} answers 200 of the wrong length")
        nothing = float("nan")
        p50 = nothing if found.ok.p50 is None else found.ok.p50
        return Figures(found.good_per_s, p50, found.ok.p99, capacity, found.refused.p99)

    def _without_server(self, model: str, workloads: Sequence[Workload]) -> None:
        closed = [workload for workload in workloads if workload.clients]
        if not closed:
            return
        rows = [count for count in (1, 2, 4, 8, 16, 32, 64) if count <= max(each.clients for each in closed)]
        plans = in_process(self._served[model], self._pace.in_process_s, rows)
        one_row_ms = min(plan.p50_ms for plan in plans if plan.rows == 1)
        for workload in closed:
            # One caller at a time: what counts is how soon, and a second session would have nobody to call it.
            alone = workload.clients == 1
            best = 1e3 / one_row_ms if alone else max(p.rows_per_s for p in plans if p.rows <= workload.clients)
            self._add(workload, IN_PROCESS, Figures(best, one_row_ms))

    def _add(self, workload: Workload, name: str, figures: Figures | str) -> None:
        self.found.setdefault((workload, name), []).append(figures)
        told = figures if isinstance(figures, str) else cell({(workload, name): [figures]}, workload, name)
        print(f"{workload.title:50} {name:14} {told}", file=sys.stderr, flush=True)  # in minutes much can happen


if __name__ == "__main__":
    sys.exit(main())
