"""The scheduler that needs no tuning, next to every static setting of a grid: `make bench-schedule`.

One process for each setting, all started before anything is measured and idle while it is not their turn. For each
number of clients (closed loop, load.c, on the same cores) every one is loaded in turn, in an order drawn anew each
time. `ours` is the real command without any option; it takes part twice, so that the table shows how much two
measurements of the same thing differ. A static setting is a batcher without judgement (static_foldserve.py). Where its
memory happens to lie makes a process faster or slower for as long as it lives, so all are started anew a few times.

The best static setting is the one with the highest median, chosen afterwards for each number of clients: the luckiest
of the grid, a little better than what any operator could have chosen.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import load
from tests.benchmarks.machine import heading
from tests.benchmarks.schedule_models import NETWORKS
from tests.benchmarks.serve_contenders import COMMANDS, Contender, Served, ask_ours, read_ours, running

OURS, AGAIN = "ours", "ours again"
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
TARGET = 0.95
STATIC = str(Path(__file__).with_name("static_foldserve.py"))
BUILD = Path(".venv-bench/load")


@dataclass(frozen=True)
class Pace:
    """`openings` times all are started and then take part in `rounds` rounds; seconds are those of one measurement."""

    openings: int
    rounds: int
    seconds: float
    warm_up_s: float
    batch_sizes: Sequence[int]
    delays_us: Sequence[int]

    @property
    def settings(self) -> list[tuple[int, int]]:
        """A batch of one row is always full: it has no delay."""
        return [(rows, delay) for rows in self.batch_sizes for delay in self.delays_us if rows > 1 or not delay]


QUICK = Pace(openings=2, rounds=2, seconds=0.25, warm_up_s=0.1, batch_sizes=(1, 8, 64), delays_us=(0, 2000))
WHOLE = Pace(
    openings=4, rounds=3, seconds=0.4, warm_up_s=0.15, batch_sizes=(1, 4, 8, 16, 32, 64), delays_us=(0, 500, 2000)
)


@dataclass(frozen=True)
class Figures:
    """One measurement. `batch_rows`: the mean over batches, from the server's own statistics."""

    per_s: float
    p50_ms: float
    batch_rows: float


Found = dict[tuple[str, int, str], list[Figures]]
"""By network, clients and contender; one entry a round."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_schedule", description=__doc__)
    parser.add_argument("--only", choices=NETWORKS, help="this network only")
    parser.add_argument("--clients", metavar="1,8", help="these numbers of clients only")
    parser.add_argument("--quick", action="store_true", help="a smaller grid, shorter: under four minutes")
    parser.add_argument(
        "--openings", type=int, help=f"instead of {WHOLE.openings}, or of {QUICK.openings} with --quick"
    )
    arguments = parser.parse_args()
    pace = QUICK if arguments.quick else WHOLE
    clients = [int(text) for text in arguments.clients.split(",")] if arguments.clients else CLIENTS
    try:
        program = load.build(BUILD)
    except load.NoCompiler as error:
        parser.error(str(error))
    print(f"{heading('schedule')}; load average before: {os.getloadavg()[0]:.1f}\n", flush=True)
    begin = time.monotonic()
    found: Found = {}
    openings = arguments.openings or pace.openings
    shuffled = random.Random(0)
    for name in [arguments.only] if arguments.only else NETWORKS:
        for _ in range(openings):
            with tempfile.TemporaryDirectory() as folder:
                measure(found, name, Path(folder), program, pace, clients, shuffled)
    print(table(found))
    print(f"\nMedians of {openings} x {pace.rounds} rounds, {(time.monotonic() - begin) / 60:.0f} minutes.")
    missed = misses(found)
    print("\n".join(missed) or f"At least {TARGET} of the best static setting everywhere.")
    return 1 if missed else 0


# --- measuring ----------------------------------------------------------------------------------------------------


def measure(
    found: Found,
    name: str,
    folder: Path,
    program: Path,
    pace: Pace,
    clients: Sequence[int],
    shuffled: random.Random,
) -> None:
    served = Served(folder / f"{name}.onnx", rows=1)
    NETWORKS[name](served.path)
    contenders = {OURS: ours(folder / OURS, served), AGAIN: ours(folder / AGAIN, served)}
    for rows, delay_us in pace.settings:
        label = setting(rows, delay_us)
        contenders[label] = static(folder / label, served, rows, delay_us)
    request = ask_ours(served, "binary", None)
    with ExitStack() as stack:
        ports = {label: stack.enter_context(running(contender, served, 0)) for label, contender in contenders.items()}
        for number in range(pace.rounds):
            for count in clients:
                for label in shuffled.sample(list(ports), len(ports)):
                    figures = measured(program, ports[label], served, request, count, pace)
                    found.setdefault((name, count, label), []).append(figures)
                print(f"{name}, round {number + 1}, {count} clients done", file=sys.stderr, flush=True)


def measured(program: Path, port: int, served: Served, request: bytes, clients: int, pace: Pace) -> Figures:
    rows, batches = counters(port, served.name)
    found = load.run(
        program, port, request, seconds=pace.seconds, warm_up=pace.warm_up_s, connections=clients
    ).refuse_unless_clean()
    rows_now, batches_now = counters(port, served.name)
    assert found.ok.p50 is not None  # or it would not be clean
    return Figures(found.ok_per_s, found.ok.p50, (rows_now - rows) / (batches_now - batches))


def counters(port: int, name: str) -> tuple[int, int]:
    """Rows and batches so far, the warm-up's included."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/v2/models/{name}/stats", timeout=20) as answer:
        (version,) = json.load(answer)["model_stats"]
    return version["inference_count"], version["execution_count"]


def setting(rows: int, delay_us: int) -> str:
    return f"{rows} rows, {delay_us} us"


def ours(repository: Path, served: Served) -> Contender:
    publish(repository, served, {})
    return _contender(repository, [str(COMMANDS / "foldserve")])


def static(repository: Path, served: Served, rows: int, delay_us: int) -> Contender:
    publish(repository, served, {"max_batch_size": rows, "scheduler": {"max_queue_delay_us": delay_us}})
    return _contender(repository, [sys.executable, STATIC])


def _contender(repository: Path, command: list[str]) -> Contender:
    def whole(_: Served, port: int) -> list[str]:
        return [*command, "--model-repository", str(repository), "--port", str(port)]

    return Contender(repository.name, whole, ask_ours, read_ours)


def publish(repository: Path, served: Served, config: Mapping[str, object]) -> None:
    version = repository / served.name / "1"
    version.mkdir(parents=True)
    os.link(served.path, version / "model.onnx")
    (version.parent / "config.json").write_text(json.dumps({"name": served.name, **config}))


# --- what was found -----------------------------------------------------------------------------------------------

HEADER = (
    "| network | clients | ours, req/s | p50, ms | rows a batch | best static, req/s | p50, ms | its setting "
    "| ours / best | ours again / ours |\n|---|---:|---:|---:|---:|---:|---:|---|---:|---:|"
)


def table(found: Found) -> str:
    lines = [HEADER]
    for name, clients in rows_of(found):
        best = best_static(found, name, clients)
        mine, theirs = (found[name, clients, label] for label in (OURS, best))
        lines.append(
            f"| {name} | {clients} | {median(mine, 'per_s'):.0f} | {median(mine, 'p50_ms'):.2f} "
            f"| {median(mine, 'batch_rows'):.1f} | {median(theirs, 'per_s'):.0f} | {median(theirs, 'p50_ms'):.2f} "
            f"| {best} | {ratio(found, name, clients, OURS, best):.3f} "
            f"| {ratio(found, name, clients, AGAIN, OURS):.3f} |"
        )
    return "\n".join(lines)


def misses(found: Found) -> list[str]:
    """One line for each row of the table that is below the target."""
    lines = []
    for name, clients in rows_of(found):
        best = best_static(found, name, clients)
        if (value := ratio(found, name, clients, OURS, best)) < TARGET:
            lines.append(f"MISSED {name}, {clients} clients: {value:.3f} of {best}, target {TARGET}")
    return lines


def rows_of(found: Found) -> list[tuple[str, int]]:
    return list(dict.fromkeys((name, clients) for name, clients, _ in found))


def best_static(found: Found, name: str, clients: int) -> str:
    labels = [key[2] for key in found if key[:2] == (name, clients) and key[2] not in (OURS, AGAIN)]
    return max(labels, key=lambda label: median(found[name, clients, label], "per_s"))


def ratio(found: Found, name: str, clients: int, one: str, other: str) -> float:
    """Only figures of the same round are compared."""
    pairs = zip(found[name, clients, one], found[name, clients, other], strict=True)
    return statistics.median(mine.per_s / theirs.per_s for mine, theirs in pairs)


def median(figures: Sequence[Figures], what: str) -> float:
    return statistics.median(getattr(each, what) for each in figures)


if __name__ == "__main__":
    sys.exit(main())
