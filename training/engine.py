"""The engine under our loop: pytorch-ignite, which nobody else here knows. Steps in, a stop wherever one is asked for.

Ignite counts, and its handlers are what later needs (limits, averages of weights) hang on; what a step does, what is
random in it and what is kept of it is ours, so that a step is a function of its number and a run can go on at any.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

with warnings.catch_warnings():
    # Ignite 0.5.5 decorates a function of its own, which is not used here, with what torch 2.13 has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from ignite.engine import Engine, Events


def run_steps(step: Callable[[int], object], *, first: int, total: int, goes_on: Callable[[int], bool]) -> int:
    """Calls `step` with the numbers `first` to `total` - 1, in order, as long as `goes_on` says so of how many have
    been made; returns that number. What `step` raises comes through."""
    if first >= total:
        return first
    engine = Engine(lambda engine, _: step(engine.state.iteration - 1))
    # Who calls us tells what went wrong, once.
    engine.logger = logging.Logger("silent")
    engine.logger.disabled = True

    @engine.on(Events.ITERATION_COMPLETED)
    def after(engine: Engine) -> None:
        if not goes_on(engine.state.iteration):
            engine.terminate()

    # One epoch as far as Ignite is concerned: what an epoch of examples is, the loop knows by the step's number.
    engine.load_state_dict({"iteration": first, "epoch_length": total, "max_epochs": 1})
    engine.run(range(total))
    return engine.state.iteration
