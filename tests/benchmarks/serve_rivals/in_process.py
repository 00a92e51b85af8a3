"""session.run itself, with no server: `python in_process.py MODEL SECONDS ROWS...`. Prints one line of JSON.

For each number of rows: rows a second of two plans, one session that computes with all cores, and as many sessions as
cores with one thread each, run at once by as many threads of Python's; and the median latency of a run.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

import numpy as np
from session import open_session, row_shape


def main() -> None:
    model, seconds, rows = sys.argv[1], float(sys.argv[2]), [int(text) for text in sys.argv[3:]]
    cores = len(os.sched_getaffinity(0))
    plans = {f"1 session x {cores} threads": (1, cores), f"{cores} sessions x 1 thread": (cores, 1)}
    found = []
    for plan, (sessions, threads) in plans.items():
        opened = [open_session(model, threads) for _ in range(sessions)]
        for count in rows:
            x = np.random.default_rng(0).random((count, *row_shape(opened[0])), dtype=np.float32)
            times = measured(opened, x, seconds)
            rows_per_s = count * sum(len(each) / sum(each) for each in times if each)
            p50_ms = 1e3 * median([run_s for each in times for run_s in each])
            found.append({"plan": plan, "rows": count, "rows_per_s": rows_per_s, "p50_ms": p50_ms})
    print(json.dumps(found))


def measured(sessions: list, x: np.ndarray, seconds: float) -> list[list[float]]:
    """By session, seconds of each run that ended within the measured time, after a quarter of it that is not counted.

    Runs per second are to be had from their times: how many end within the time is a small whole number where a run
    takes long, and the largest of several such is too large.
    """
    times: list[list[float]] = [[] for _ in sessions]
    begin = time.perf_counter() + seconds / 4
    end = begin + seconds

    def work(session, mine: list[float]) -> None:
        while (before := time.perf_counter()) < end:
            session.run(None, {"x": x})
            after = time.perf_counter()
            if begin <= after < end:
                mine.append(after - before)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(sessions, times, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def median(times: list[float]) -> float:
    return float(np.median(times)) if times else float("nan")


if __name__ == "__main__":
    main()
