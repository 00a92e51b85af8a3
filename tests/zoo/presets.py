"""Our own presets in the zoo: each with each flag, a few channels wide.

One training step, population statistics, export, fold, proof; a line of the table says how many BatchNorms there were
and are. `LEAVES` has what is not folded, and why: anything else is wrong.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping

import torch

from tests.training.architectures.presets import NORMS, TINY, Served, serve, tiny
from tests.zoo.trial import Trial, one_line, reasons_left
from training.errors import UserError

PREFIX = "preset:"
CLOSE = 1e-5  # of torch's answers, of their scale

LEAVES: Mapping[str, str] = {
    "densenet-mini": "slower on ort-cpu",  # its layers see the same channels, each through a BatchNorm of its own
}


def specs() -> list[str]:
    """`preset:NAME,FLAG` for each of both."""
    return [f"{PREFIX}{preset},{flag}" for preset in TINY for flag in NORMS]


def attempt(spec: str) -> list[Trial]:
    """One Trial. A combination that is refused in words is a line of the table, and no fault."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    preset, _, flag = spec.removeprefix(PREFIX).partition(",")
    try:
        network, features = tiny(preset, NORMS[flag])
    except UserError as refusal:
        return [Trial(spec, "raw", failure=str(refusal))]
    begin = time.perf_counter()
    try:
        served = serve(network, features)
    except Exception as error:
        return [Trial(spec, "raw", failure=one_line(error), ours=True)]
    seconds = time.perf_counter() - begin
    failure = _wrong(served, LEAVES.get(preset, ""))
    reasons = reasons_left(served.report)
    return [Trial(spec, "raw", served.report.summary(), seconds, 0.0, reasons, failure, bool(failure))]


def _wrong(served: Served, leaves: str) -> str:
    if any(reason != leaves for reason, _ in reasons_left(served.report)):
        return f"{served.left} BatchNormalization left"
    if not served.difference < CLOSE:
        return f"answers {served.difference:.2g} from torch's"
    return ""
