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
            found.append(
                {"plan": plan, "rows": count, "rows_per_s": len(times) * count / seconds, "p50_ms": 1e3 * median(times)}
            )
    print(json.dumps(found))


def measured(sessions: list, x: np.ndarray, seconds: float) -> list[float]:
    """Seconds of each run that ended within the measured time, after a quarter of it that is not counted."""
    times: list[float] = []
    begin = time.perf_counter() + seconds / 4
    end = begin + seconds

    def work(session) -> None:
        while (before := time.perf_counter()) < end:
            session.run(None, {"x": x})
            after = time.perf_counter()
            if begin <= after < end:
                times.append(after - before)

    threads = [threading.Thread(target=work, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def median(times: list[float]) -> float:
    return float(np.median(times)) if times else float("nan")


if __name__ == "__main__":
    main()
