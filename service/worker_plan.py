"""How many worker processes serve, when nobody has said: chosen before the first begins, from what the models take.

    a model whose row takes long     one process: its runs use all cores, and what Python adds is little beside them
    rows that are over soon          Python is most of the work, and one process can use one core for it: several

Measured in a process of its own, which ends and leaves nothing behind (probe.py), or remembered from an earlier start
(measurements.py); `choose` is arithmetic. Knows no server.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from service.child_signals import kept_from_children
from service.cpu_plan import CpuPlan, in_words
from service.measurements import Measured, Memory, fingerprint
from service.settings import Settings

SHORT_S = 1e-3
"""A row that takes longer is worth more than one core: as in load_version.py."""
# Nobody is answered before, not even that the server lives.
PROBE_S = 10.0
# One for each core: measured on 2 of them, with a client on the same ones and a small model, one caller got as many
# answers as from one process (0.96 to 1.04 times), 16 got 1.2 times as many, 64 got 1.4 to 1.8 times. Each loads every
# model; more than 2 have not been measured.
_MOST_WORKERS = 8
_BOOT = (
    "import sys; sys.path[:] = {path!r}; from service.probe import main; sys.exit(main(sys.argv[1:], alive={alive}))"
)


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """`reason`: in words, for the log and the configuration endpoint."""

    workers: int
    reason: str


def choose(cpu: CpuPlan, models: Sequence[Measured], threads: int = 1) -> WorkerPlan:
    """The number of workers for these models on these cores: workers x instances x threads are no more than cores.

    threads: of one run, as the user asks.
    """
    if cpu.cores < 2:
        return WorkerPlan(1, f"{in_words(cpu.cores)}, {cpu.reason}")
    if not models:
        return WorkerPlan(1, "there is no model yet")
    for model in models:
        if model.row_s is None:
            return WorkerPlan(1, f"{model.label}: {model.reason}")
        if model.row_s >= SHORT_S:
            return WorkerPlan(1, f"{model.label} takes {1e3 * model.row_s:.3g} ms a row on one core, so runs use all")
    longest_us = 1e6 * max(model.row_s or 0.0 for model in models)
    at_once = threads * max(model.instances for model in models)
    possible = max(1, min(cpu.cores // at_once, _MOST_WORKERS))
    share = "one for each" if at_once == 1 else f"one for every {at_once}, the threads that run at once in each,"
    share = f"the most there may be, {possible}," if possible == _MOST_WORKERS < cpu.cores // at_once else share
    return WorkerPlan(possible, f"a row takes {longest_us:.3g} us at most, so {share} of {in_words(cpu.cores)}")


def plan(cpu: CpuPlan, settings: Settings, argv: Sequence[str]) -> WorkerPlan:
    """As `choose`, having looked at the models that `settings` name. Raises nothing: without a measurement one process
    serves. argv: the command line that the settings were read from."""
    if settings.providers != ("CPUExecutionProvider",):
        return WorkerPlan(1, f"{settings.providers[0]} computes, and each process would hold every model there")
    threads = settings.intra_op_threads or 1
    if cpu.cores < 2:
        return choose(cpu, ())
    if (known := Memory.of_this_machine().models(fingerprint(settings))) is not None:
        return choose(cpu, known, threads)
    alive, ours = os.pipe()
    try:
        with kept_from_children(signal.SIGINT):  # Ctrl-C ends us, and with us the probe
            probe = subprocess.Popen(  # noqa: S603 - our own interpreter, our own program
                [sys.executable, "-c", _BOOT.format(path=sys.path, alive=alive), *argv],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=(alive,),
            )  # fmt: skip
        models = [Measured(**row) for row in json.loads(_printed(probe))]
    except subprocess.TimeoutExpired:
        return WorkerPlan(1, f"the models were not measured within {PROBE_S:g} s")
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        return WorkerPlan(1, f"the models could not be measured: {error}")
    finally:
        os.close(alive)
        os.close(ours)
    return choose(cpu, models, threads)


def _printed(probe: subprocess.Popen[bytes]) -> bytes:
    """By then it has ended. Raises TimeoutExpired or CalledProcessError."""
    with probe:
        try:
            printed, _ = probe.communicate(timeout=PROBE_S)
        finally:
            probe.kill()
    if probe.returncode:
        raise subprocess.CalledProcessError(probe.returncode, "the process that measures")
    return printed
