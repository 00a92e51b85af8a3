"""How soon after its start foldserve answers, and how soon `foldtrain --help` is there: `make bench-start`.

Run by the interpreter of an environment that holds the base dependencies and nothing else; foldtrain's environments are
arguments. Commands are started as a user starts them. One start that is not counted fills the file cache and the
bytecode, as on any machine where the command ran before.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import TypeVar

from tests.benchmarks.machine import heading
from tests.end_to_end.running import COMMANDS, clean_environment, free_port

T = TypeVar("T")

POLL_S = 0.002
GIVE_UP_S = 60.0
ROUNDS = 11

WITHOUT_TORCH = """
import sys
from training.__main__ import main
try:
    main(["--help"])
except SystemExit:
    pass
print(sorted(set(sys.modules) & {"torch", "onnx", "onnx_ir", "onnxruntime", "sklearn", "numpy"}), file=sys.stderr)
"""


def time_to_answers(
    command: Sequence[str], port: int, paths: Sequence[str], environment: Mapping[str, str]
) -> dict[str, float]:
    """Starts `command`, and returns seconds from the start to the first 200 of each path. Then stops it again."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env=clean_environment(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        times: dict[str, float] = {}
        while len(times) < len(paths):
            for path in paths:
                if path not in times and answers(port, path):
                    times[path] = time.perf_counter() - begin
            if process.poll() is not None or time.perf_counter() - begin > GIVE_UP_S:
                raise SystemExit(f"{' '.join(command)} did not become ready; exit code {process.poll()}")
            time.sleep(POLL_S)
        return times
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(GIVE_UP_S)


def answers(port: int, path: str) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def time_to_end(command: Sequence[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def rounds_of(measure: Callable[[], T]) -> list[T]:
    measure()
    return [measure() for _ in range(ROUNDS)]


def row(what: str, seconds: Sequence[float], limit_s: float) -> str:
    median = statistics.median(seconds)
    verdict = "yes" if median <= limit_s else "NO"
    return f"| {what} | {median:.3f} | {min(seconds):.3f} to {max(seconds):.3f} | {limit_s:g} | {verdict} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fold", type=Path, required=True, help="environment with the fold extra only")
    parser.add_argument("--torch", type=Path, required=True, help="environment where torch is installed")
    arguments = parser.parse_args()

    print(heading("start"))
    print(f"\nMedian of {ROUNDS} starts, after one that is not counted.\n")
    print("| from the start of the process to | median s | range s | must be s | holds |\n|---|---|---|---|---|")
    live, ready = "/v2/health/live", "/v2/health/ready"
    foldserve = [str(COMMANDS / "foldserve"), "--model-repository", "models"]
    with tempfile.TemporaryDirectory() as folder:
        kinds: Mapping[str, Callable[[], dict[str, str]]] = {
            "one process": lambda: {"FOLDSERVE_WORKERS": "1"},
            "as it chooses": lambda: {"FOLDSERVE_WORKERS": "0", "STATE_DIRECTORY": folder},
            # Nothing is remembered, so what the models take is measured first.
            "as it chooses, very first start": lambda: {
                "FOLDSERVE_WORKERS": "0",
                "STATE_DIRECTORY": tempfile.mkdtemp(dir=folder),
            },
        }
        for kind, environment in kinds.items():
            starts = rounds_of(lambda: time_to_answers(foldserve, free_port(), (live, ready), environment()))  # noqa: B023
            print(row(f"foldserve live, {kind}", [times[live] for times in starts], 1.0))
            print(row(f"foldserve ready with the shipped models, {kind}", [times[ready] for times in starts], 2.0))
    for name, extra in (("fold extra only", arguments.fold), ("torch installed", arguments.torch)):
        command = [str(extra / "bin" / "foldtrain"), "--help"]
        print(row(f"end of foldtrain --help, {name}", rounds_of(lambda: time_to_end(command)), 0.3))  # noqa: B023
    python = str(arguments.torch / "bin" / "python")
    loaded = subprocess.run([python, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True).stderr.strip()
    print(f"\nHeavy modules that foldtrain --help loads where all are installed: {loaded}")
    if loaded != "[]":
        sys.exit(1)


if __name__ == "__main__":
    main()
