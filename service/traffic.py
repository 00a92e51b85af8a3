"""Two versions of one model under the requests that name none: a canary answers a share of them, a shadow none.

    canary   n * weight of the first n requests go to the version on trial, rounded down: counted, not drawn
    shadow   the other version answers; behind the answer the same inputs run on the version on trial, and what both
             say is compared

A shadow never costs its caller: it begins when the answer is given, at the lowest priority, and one at a time; what
comes meanwhile is dropped and counted. Requests that name a version do not pass here. Stands in for the model in the
registry, so that models without any of this are reached as ever. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from service.errors import ServiceError, Unavailable
from service.model import Model
from service.model_knobs import CanaryConfig, ShadowConfig
from service.off_loop import Work, in_thread
from service.protocol import Array, InferenceRequest, InferenceResponse, ShadowReport, TrafficReport
from service.repository import ModelConfig
from service.stages import Stages

log = logging.getLogger(__name__)

Done = Callable[[InferenceResponse | Exception], object]
Cancel = Callable[[], object]


def share(ready: Sequence[Model], config: ModelConfig, before: Traffic | None = None) -> Model | Traffic | None:
    """Who answers requests that name no version, of those that are READY, lowest first; None: nobody yet, for a version
    on trial is not to answer alone.

    before: what shared them until now, which goes on when nothing has changed, with its figures.
    """
    wanted = config.traffic.canary or config.traffic.shadow
    if wanted is None:
        return ready[-1]
    others = [model for model in ready if model.version != wanted.version]
    trial = next((model for model in ready if model.version == wanted.version), None)
    if not others or trial is None:
        return others[-1] if others else None
    main = others[-1]
    if (main.metadata.inputs, main.metadata.outputs) != (trial.metadata.inputs, trial.metadata.outputs):
        log.error("model %s: version %d has other inputs or outputs than %d", main.name, trial.version, main.version)
        return main
    if before is not None and (before.main, before.trial, before.wanted) == (main, trial, wanted):
        return before
    if isinstance(wanted, CanaryConfig):
        return Canary(main, trial, wanted)
    return Shadow(main, trial, wanted, config.scheduler.priority_levels)


class Traffic:
    """In place of `main`; whatever is not shared is its own."""

    def __init__(self, main: Model, trial: Model, wanted: CanaryConfig | ShadowConfig) -> None:
        self.main = main
        self.trial = trial
        self.wanted = wanted

    def __getattr__(self, name: str) -> Any:
        return getattr(self.main, name)

    def begin(
        self, request: InferenceRequest, done: Done, arrived_s: float | None = None, stages: Stages | None = None
    ) -> Cancel:
        """As `Model.begin`."""
        raise NotImplementedError

    def read(self) -> TrafficReport:
        raise NotImplementedError


class Canary(Traffic):
    wanted: CanaryConfig

    def __init__(self, main: Model, trial: Model, wanted: CanaryConfig) -> None:
        super().__init__(main, trial, wanted)
        self._requests = self._on_trial = 0

    def begin(
        self, request: InferenceRequest, done: Done, arrived_s: float | None = None, stages: Stages | None = None
    ) -> Cancel:
        self._requests += 1
        if int(self._requests * self.wanted.weight) == self._on_trial:
            return self.main.begin(request, done, arrived_s, stages)
        self._on_trial += 1
        return self.trial.begin(request, done, arrived_s, stages)

    def read(self) -> TrafficReport:
        return TrafficReport(
            str(self.main.version),
            str(self.trial.version),
            self._requests,
            weight=self.wanted.weight,
            on_trial=self._on_trial,
        )


class Shadow(Traffic):
    wanted: ShadowConfig

    def __init__(self, main: Model, trial: Model, wanted: ShadowConfig, priority_levels: int) -> None:
        super().__init__(main, trial, wanted)
        self._parameters = {"priority": priority_levels} if priority_levels else {}
        self._is_at_work = False
        self._requests = self._compared = self._differing = self._dropped = self._failed = 0
        self._largest_absolute = self._largest_relative = 0.0

    def begin(
        self, request: InferenceRequest, done: Done, arrived_s: float | None = None, stages: Stages | None = None
    ) -> Cancel:
        self._requests += 1

        def answered(outcome: InferenceResponse | Exception) -> None:
            if isinstance(outcome, Exception):
                done(outcome)
            elif self._is_at_work:
                self._dropped += 1
                done(outcome)
            else:
                self._is_at_work = True
                # Behind the answers of the whole batch.
                asyncio.get_running_loop().call_soon(self._follow, request, outcome)
                done(outcome)

        return self.main.begin(request, answered, arrived_s, stages)

    def read(self) -> TrafficReport:
        shadow = ShadowReport(
            self.wanted.tolerance,
            self._compared,
            self._differing,
            self._dropped,
            self._failed,
            self._largest_absolute,
            self._largest_relative,
        )
        return TrafficReport(str(self.main.version), str(self.trial.version), self._requests, shadow=shadow)

    def _follow(self, request: InferenceRequest, answer: InferenceResponse) -> None:
        """Ranked classes are no numbers; they are compared by the values that they were ranked by, when asked for."""
        ranked = {output.name for output in request.outputs if output.classes is not None}
        told = {output.name: output.data for output in answer.outputs if output.name not in ranked}

        def compare(outcome: InferenceResponse | Exception) -> None:
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                other = {output.name: output.data for output in outcome.outputs}
                tolerance = self.wanted.tolerance
                in_thread(Work.COMPARE, lambda: differences(told, other, tolerance), self._count, self._fail)
            except Exception as error:
                self._fail(error)

        try:
            self.trial.begin(InferenceRequest(request.inputs, parameters=self._parameters), compare)
        except Exception as error:
            self._fail(error)

    def _count(self, found: tuple[bool, float, float]) -> None:
        is_different, absolute, relative = found
        self._is_at_work = False
        self._compared += 1
        self._differing += is_different
        self._largest_absolute = max(self._largest_absolute, absolute)
        self._largest_relative = max(self._largest_relative, relative)

    def _fail(self, error: Exception) -> None:
        self._is_at_work = False
        if isinstance(error, Unavailable):
            self._dropped += 1
            return
        self._failed += 1
        if not isinstance(error, ServiceError):
            log.error("model %s: the shadow version %d failed", self.name, self.trial.version, exc_info=error)


def differences(told: Mapping[str, Array], other: Mapping[str, Array], tolerance: float) -> tuple[bool, float, float]:
    """Whether any element differs by more than tolerance * (1 + |told|), and the largest difference, absolute and
    relative to what was told. What is no finite number counts as different where it is not the same in both."""
    is_different, absolute, relative = False, 0.0, 0.0
    for name, values in told.items():
        others = other[name]
        if values.shape != others.shape:
            is_different = True
        elif values.dtype.kind not in "biuf":
            is_different |= not np.array_equal(values, others)
        elif values.size:
            before, after = values.astype(np.float64), others.astype(np.float64)
            comparable = np.isfinite(before) & np.isfinite(after)
            same = (before == after) | (np.isnan(before) & np.isnan(after))
            size = np.abs(before[comparable])
            apart = np.abs(after[comparable] - before[comparable])
            is_different |= bool(np.any(apart > tolerance * (1 + size)) or not np.all(same[~comparable]))
            absolute = max(absolute, float(apart.max(initial=0)))
            relative = max(relative, float((apart[size > 0] / size[size > 0]).max(initial=0)))
    return is_different, absolute, relative
