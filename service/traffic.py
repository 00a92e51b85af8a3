"""Two versions of one model under the requests that name none: a canary answers a share of them, a shadow none.

    canary   n * weight of a process's first n requests go to the version on trial, rounded down: counted, not drawn
    shadow   the other version answers; behind the answer the same inputs run on the version on trial, and what both
             say is compared

A shadow never costs its caller: it begins when the answer is given, at the lowest priority, and one at a time; what
comes meanwhile is dropped and counted. Requests that name a version do not pass here. Stands in for the model in the
registry, so that models without any of this are reached as ever. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from service.counter_pages import Kind, Pages
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


def share(
    ready: Sequence[Model], config: ModelConfig, pages: Pages, before: Traffic | None = None
) -> Model | Traffic | None:
    """Who answers requests that name no version, of those that are READY, lowest first; None: nobody yet, for a version
    on trial is not to answer alone.

    pages: where it is counted. before: what shared them until now, which goes on when nothing has changed.
    """
    wanted = config.traffic.canary or config.traffic.shadow
    if wanted is None:
        return ready[-1]
    others = [model for model in ready if model.version != wanted.version]
    trial = next((model for model in ready if model.version == wanted.version), None)
    if not others or trial is None:
        return others[-1] if others else None
    main = others[-1]
    if told := _how_they_differ(main, trial):
        log.error("model %s: %s", main.name, told)
        return main
    if before is not None and (before.main, before.trial, before.wanted) == (main, trial, wanted):
        return before
    if isinstance(wanted, CanaryConfig):
        return Canary(main, trial, wanted, pages)
    return Shadow(main, trial, wanted, pages, config.scheduler.priority_levels)


def why_no_trial(versions: Collection[int], config: ModelConfig) -> str:
    """Why the trial that the configuration asks for would not take place with these; empty where it would."""
    wanted = config.traffic.canary or config.traffic.shadow
    told = ", ".join(map(str, sorted(versions)))
    if wanted and wanted.version not in versions:
        return f"traffic puts version {wanted.version} on trial, which is not among those to be loaded: {told}"
    if wanted and len(versions) == 1:
        return f"traffic puts version {wanted.version} on trial, but there is no other one to answer beside it"
    return ""


def why_not_shared(models: Sequence[Model], config: ModelConfig) -> str:
    """Why these, lowest first, cannot share requests as the configuration asks for; empty where they can."""
    wanted = config.traffic.canary or config.traffic.shadow
    others = [model for model in models if wanted and model.version != wanted.version]
    trials = [model for model in models if wanted and model.version == wanted.version]
    return _how_they_differ(others[-1], trials[0]) if others and trials else ""


def _how_they_differ(main: Model, trial: Model) -> str:
    if (main.metadata.inputs, main.metadata.outputs) == (trial.metadata.inputs, trial.metadata.outputs):
        return ""
    return f"version {trial.version} has other inputs or outputs than {main.version}"


class Figure(IntEnum):
    """What is counted, by its place among the cells."""

    REQUESTS = 0
    ON_TRIAL = 1
    COMPARED = 2
    DIFFERING = 3
    DROPPED = 4
    FAILED = 5


FAMILY, LARGEST_FAMILY = "traffic", "traffic_largest"
"""Of the pages: cells in the order of `Figure`; the largest absolute and relative difference."""


class Figures:
    """Counts of a pair of versions, as those of all processes that share it out: sums, and the largest differences."""

    def __init__(self, pages: Pages, main: Model, trial: Model, wanted: CanaryConfig | ShadowConfig) -> None:
        self._pages = pages
        versions = (("version", str(main.version)), ("on_trial", str(trial.version)))
        kind = "canary" if isinstance(wanted, CanaryConfig) else "shadow"
        self._labels = (("model", main.name), *versions, ("kind", kind))
        self._counts = pages.own.series(Kind.COUNTER, FAMILY, self._labels, len(Figure))
        self._largest = pages.own.series(Kind.MAXIMUM, LARGEST_FAMILY, self._labels, 2)

    def add(self, figure: Figure, count: int = 1) -> None:
        self._pages.own.cells[self._counts + figure] += count

    def differ_by(self, *differences: float) -> None:
        """Absolute and relative."""
        cells = self._pages.own.cells
        for place, difference in enumerate(differences, self._largest):
            cells[place] = max(cells[place], difference)

    def read(self) -> tuple[list[int], list[float]]:
        """The counts, in the order of `Figure`, and the largest absolute and relative difference."""
        counts = self._pages.value(FAMILY, self._labels) or [0.0] * len(Figure)
        return list(map(int, counts)), self._pages.value(LARGEST_FAMILY, self._labels) or [0.0, 0.0]


class Traffic:
    """In place of `main`; whatever is not shared is its own."""

    def __init__(self, main: Model, trial: Model, wanted: CanaryConfig | ShadowConfig, pages: Pages) -> None:
        self.main = main
        self.trial = trial
        self.wanted = wanted
        self.figures = Figures(pages, main, trial, wanted)

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

    def __init__(self, main: Model, trial: Model, wanted: CanaryConfig, pages: Pages) -> None:
        super().__init__(main, trial, wanted, pages)
        self._requests = self._on_trial = 0

    def begin(
        self, request: InferenceRequest, done: Done, arrived_s: float | None = None, stages: Stages | None = None
    ) -> Cancel:
        self._requests += 1
        self.figures.add(Figure.REQUESTS)
        if int(self._requests * self.wanted.weight) == self._on_trial:
            return self.main.begin(request, done, arrived_s, stages)
        self._on_trial += 1
        self.figures.add(Figure.ON_TRIAL)
        return self.trial.begin(request, done, arrived_s, stages)

    def read(self) -> TrafficReport:
        (requests, on_trial, *_), _ = self.figures.read()
        return TrafficReport(
            str(self.main.version), str(self.trial.version), requests, weight=self.wanted.weight, on_trial=on_trial
        )


class Shadow(Traffic):
    wanted: ShadowConfig

    def __init__(self, main: Model, trial: Model, wanted: ShadowConfig, pages: Pages, priority_levels: int) -> None:
        super().__init__(main, trial, wanted, pages)
        self._parameters = {"priority": priority_levels} if priority_levels else {}
        self._is_at_work = False

    def begin(
        self, request: InferenceRequest, done: Done, arrived_s: float | None = None, stages: Stages | None = None
    ) -> Cancel:
        self.figures.add(Figure.REQUESTS)

        def answered(outcome: InferenceResponse | Exception) -> None:
            if isinstance(outcome, Exception):
                done(outcome)
            elif self._is_at_work:
                self.figures.add(Figure.DROPPED)
                done(outcome)
            else:
                self._is_at_work = True
                # Behind the answers of the whole batch.
                asyncio.get_running_loop().call_soon(self._follow, request, outcome)
                done(outcome)

        return self.main.begin(request, answered, arrived_s, stages)

    def read(self) -> TrafficReport:
        (requests, _, *counts), largest = self.figures.read()
        shadow = ShadowReport(self.wanted.tolerance, *counts, *largest)
        return TrafficReport(str(self.main.version), str(self.trial.version), requests, shadow=shadow)

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
        self.figures.add(Figure.COMPARED)
        self.figures.add(Figure.DIFFERING, int(is_different))
        self.figures.differ_by(absolute, relative)

    def _fail(self, error: Exception) -> None:
        self._is_at_work = False
        if isinstance(error, Unavailable):
            self.figures.add(Figure.DROPPED)
            return
        self.figures.add(Figure.FAILED)
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
