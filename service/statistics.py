"""What one version of a model has done so far, in the counters of Triton's statistics extension, and in some of ours.

    success         requests answered, and their whole time in the scheduler: waiting, running, taking apart
    fail            requests that ended otherwise, and their time: refused or expired (a full queue, a deadline), given
                    up by their caller while they waited, failed in the model. Not those that did not fit the model:
                    they never became requests of it
    queue           the successful ones' time before their batch began
    compute_*       the batch's own durations, counted once for *each* request in it, as in Triton: the average over
                    requests is what a caller met, and success is at least queue and compute together
    batch_stats     by rows of a batch: the same durations, counted once for each batch
    inference_count rows answered; execution_count batches that ran

Counters only grow (perf_analyzer subtracts two readings) and belong to a name and version, not to one loading of its
file. They lie in the cells of a page (counter_pages.py), so a reading is of every process that serves the version,
also of those that have died. Adding a batch takes about a microsecond whatever its size, and so does adding what became
of one request (stages.py). Lives on the event loop's thread. Knows neither HTTP nor models.
"""

from __future__ import annotations

import struct
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from service.counter_pages import Kind, Labels, Pages
from service.protocol import BatchStatistics, DurationStatistics, InferenceStatistics, VersionStatistics
from service.stages import Stages
from service.ticket import BatchRecord

_NONE = DurationStatistics(count=0, ns=0)

# --- what lies in the cells ---------------------------------------------------------------------------------------

_ANSWERED, _LAST, _BATCHES, _STAGES, _REFUSALS = "answered", "last", "batches", "stages", "refusals"
"""Families of series. All but the last have the labels model and version first."""

_ANSWERED_CELLS = struct.Struct("6d")
"""Requests, then seconds: total, queue, input, infer, output."""
_BATCH_CELLS = struct.Struct("4d")
"""Batches of one number of rows, then seconds: input, infer, output."""
_BEHIND_ANSWERED = 6

FAILURES = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Triton's words for why a request failed; in the cells behind the answered ones, count and seconds of each."""
REJECTED, CANCELED, BACKEND, _OTHER = FAILURES
_EVENTS = ("cancelled_queued", "cancelled_running", "poisoned", "split")
_EVENTS_BEGIN = _BEHIND_ANSWERED + 2 * len(FAILURES)
_CANCELLED_QUEUED, _CANCELLED_RUNNING, _POISONED, _SPLIT = range(_EVENTS_BEGIN, _EVENTS_BEGIN + len(_EVENTS))
_MODEL_CELLS = _EVENTS_BEGIN + len(_EVENTS)

STAGES = ("decode", "queue", "compute", "encode", "request")
"""The last is the whole."""
BOUNDS_S = (
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0,
)  # fmt: skip
_BUCKETS = len(BOUNDS_S) + 1
_STAGE_CELLS = _BUCKETS + 1
"""A bucket for each bound and one beyond, and the sum of seconds."""
_DECODE, _QUEUE, _COMPUTE, _ENCODE, _REQUEST = (_STAGE_CELLS * number for number in range(len(STAGES)))
_SUM = _BUCKETS


# --- counting -----------------------------------------------------------------------------------------------------


class _BatchSize:
    """Sums over the batches of one size, in seconds; `place` is that of their cells in the page, in bytes."""

    __slots__ = ("batches", "infer_s", "input_s", "output_s", "place")

    def __init__(self, place: int, batches: float, input_s: float, infer_s: float, output_s: float) -> None:
        self.place = place
        self.batches = batches
        self.input_s, self.infer_s, self.output_s = input_s, infer_s, output_s


class ModelStatistics:
    """Seconds as floats inside: a sum of a year's work still resolves to a few nanoseconds, and never falls.

    What is added to for each batch is kept in attributes as well, and written to its cells together: half the time.
    """

    __slots__ = (
        "_answered", "_answers_s", "_by_rows", "_cells", "_decodes_s", "_encodes_s", "_infer_s", "_input_s", "_labels",
        "_last", "_output_s", "_page", "_pages", "_queue_s", "_requests", "_stages", "_total_s",
    )  # fmt: skip

    def __init__(self, pages: Pages | None = None, name: str = "", version: int = 0) -> None:
        """pages: without them, memory of its own."""
        self._pages = pages or Pages()
        self._labels: Labels = (("model", name), ("version", str(version)))
        page = self._page = self._pages.own
        self._cells = page.cells
        self._answered = page.series(Kind.COUNTER, _ANSWERED, self._labels, _MODEL_CELLS)
        self._stages = page.series(Kind.COUNTER, _STAGES, self._labels, _STAGE_CELLS * len(STAGES))
        self._last = page.series(Kind.MAXIMUM, _LAST, self._labels)
        (
            self._requests, self._total_s, self._queue_s, self._input_s, self._infer_s, self._output_s,
        ) = _ANSWERED_CELLS.unpack_from(page.buffer, 8 * self._answered)  # fmt: skip
        self._by_rows: dict[int, _BatchSize] = {}
        # Of the batch that is being told.
        self._decodes_s: list[float] = []
        self._encodes_s: list[float] = []
        self._answers_s: list[float] = []

    def count_run(self, requests: int, rows: int) -> None:
        """A batch has run, and its callers are about to be told: whatever happens to this process then, what a caller
        has been answered has been counted. Its record comes next."""
        self._requests += requests
        self._cells[self._answered] = self._requests
        size = self._by_rows.get(rows)
        if size is None:
            size = self._by_rows[rows] = self._size(rows)
        size.batches += 1
        self._cells[size.place // 8] = size.batches

    def record_batch(self, record: BatchRecord) -> None:
        """A batch that has been counted, if it did not fail. In the path of every request, so nothing is computed here
        that `read` could compute."""
        if record.failed:
            self._cells[self._answered + _POISONED] += record.poisoned
            self._failed(BACKEND, record.failed, record.total_s)
            return
        requests = record.requests
        self._total_s += record.total_s
        # Differences of clock readings that were added up: rounding may leave a little less than nothing.
        self._queue_s += max(0.0, record.queue_s)
        self._input_s += requests * record.input_s
        self._infer_s += requests * record.infer_s
        self._output_s += requests * record.output_s
        _ANSWERED_CELLS.pack_into(
            self._page.buffer, 8 * self._answered,
            self._requests, self._total_s, self._queue_s, self._input_s, self._infer_s, self._output_s,
        )  # fmt: skip
        size = self._by_rows[record.rows]
        size.input_s += record.input_s
        size.infer_s += record.infer_s
        size.output_s += record.output_s
        _BATCH_CELLS.pack_into(self._page.buffer, size.place, size.batches, size.input_s, size.infer_s, size.output_s)
        self._cells[self._last] = time.time()
        if record.submitted_s:
            place, began_s = self._stages + _COMPUTE, record.began_s
            self._cells[place + bisect_left(BOUNDS_S, record.run_s)] += requests
            self._cells[place + _SUM] += requests * record.run_s
            self._observe(_QUEUE, [began_s - came_s for came_s in record.submitted_s])
        if self._answers_s:
            self._count_answers()

    def _size(self, rows: int) -> _BatchSize:
        labels = (*self._labels, ("rows", str(rows)))
        place = 8 * self._page.series(Kind.COUNTER, _BATCHES, labels, 4)
        return _BatchSize(place, *_BATCH_CELLS.unpack_from(self._page.buffer, place))

    def note_answer(self, stages: Stages, written_s: float) -> None:
        """A request of the batch whose record comes next has been answered at `written_s`. In the path of every one:
        those of a batch are counted together, which takes a third of the time."""
        arrived_s = stages.arrived_s
        self._decodes_s.append(stages.submitted_s - arrived_s)
        self._encodes_s.append(written_s - stages.batch_s[1])
        self._answers_s.append(written_s - arrived_s)

    def record_answer(self, stages: Stages, written_s: float) -> None:
        """As `note_answer`, for one whose batch has been recorded."""
        self.note_answer(stages, written_s)
        self._count_answers()

    def _count_answers(self) -> None:
        for place, seconds in ((_DECODE, self._decodes_s), (_ENCODE, self._encodes_s), (_REQUEST, self._answers_s)):
            self._observe(place, seconds)
            seconds.clear()

    def _observe(self, stage: int, seconds: list[float]) -> None:
        """Sorted, they fall into few buckets: looking for where those end costs less than looking each up."""
        cells, place = self._cells, self._stages + stage
        cells[place + _SUM] += sum(seconds)
        seconds.sort()
        bucket, last = bisect_left(BOUNDS_S, seconds[0]), bisect_left(BOUNDS_S, seconds[-1])
        done = 0
        while bucket < last:
            end = bisect_right(seconds, BOUNDS_S[bucket], done)
            cells[place + bucket] += end - done
            done, bucket = end, bucket + 1
        cells[place + last] += len(seconds) - done

    def record_failure(self, seconds: float, failure: str = REJECTED) -> None:
        """A request has ended without having run, `seconds` after it came; `failure` is one of `FAILURES`."""
        self._failed(failure, 1, max(0.0, seconds))

    def record_cancelled(self, seconds: float, *, was_running: bool) -> None:
        """A caller has gone `seconds` after its request came. What runs goes on, and is counted when it ends."""
        self._cells[self._answered + (_CANCELLED_RUNNING if was_running else _CANCELLED_QUEUED)] += 1
        if not was_running:
            self._failed(CANCELED, 1, max(0.0, seconds))

    def record_split(self) -> None:
        """A batch has failed, and its halves are tried."""
        self._cells[self._answered + _SPLIT] += 1

    def _failed(self, failure: str, requests: int, seconds: float) -> None:
        place = self._answered + _BEHIND_ANSWERED + 2 * FAILURES.index(failure)
        self._cells[place] += requests
        self._cells[place + 1] += seconds

    def read(self, name: str, version: int) -> VersionStatistics:
        """The counters of all processes now, under the name and version that they belong to."""
        return read_counts(self._pages, self._labels).statistics(name, version)


class Refusals:
    """Infer requests that were refused, by reason and, where the request named one, by model and version."""

    def __init__(self, pages: Pages) -> None:
        self._page = pages.own
        self._places: dict[tuple[str, str, str], int] = {}

    def record(self, reason: str, name: str = "", version: str = "") -> None:
        """`name` and `version` of what is known here: never one that a caller has made up."""
        key = (name, version, reason)
        place = self._places.get(key)
        if place is None:
            labels = (("model", name), ("version", version), ("reason", reason))
            place = self._places[key] = self._page.series(Kind.COUNTER, _REFUSALS, labels)
        self._page.cells[place] += 1


# --- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations by bound, each counted once: not cumulated. `counts` has one more, for those beyond the last."""

    bounds: Sequence[float]
    counts: Sequence[float]
    total: float


@dataclass(frozen=True, slots=True)
class Counts:
    """One reading of one version's counters. Seconds, but `last_s`, which is a time of day."""

    requests: int
    total_s: float
    queue_s: float
    input_s: float
    infer_s: float
    output_s: float
    failures: dict[str, tuple[int, float]]
    """By Triton's word: requests and seconds."""
    events: dict[str, int]
    stages: dict[str, Histogram]
    batches: dict[int, tuple[int, float, float, float]]
    """By rows: batches, and seconds of input, infer, output."""
    last_s: float

    @property
    def rows(self) -> int:
        return sum(rows * size[0] for rows, size in self.batches.items())

    @property
    def executions(self) -> int:
        return sum(size[0] for size in self.batches.values())

    def statistics(self, name: str, version: int) -> VersionStatistics:
        """In the form of Triton's extension."""
        failed = self.failures.values()
        return VersionStatistics(
            name=name,
            version=str(version),
            last_inference=int(self.last_s * 1000),
            inference_count=self.rows,
            execution_count=self.executions,
            inference_stats=InferenceStatistics(
                success=_duration(self.requests, self.total_s),
                fail=_duration(sum(count for count, _ in failed), sum(seconds for _, seconds in failed)),
                queue=_duration(self.requests, self.queue_s),
                compute_input=_duration(self.requests, self.input_s),
                compute_infer=_duration(self.requests, self.infer_s),
                compute_output=_duration(self.requests, self.output_s),
                # No answer comes from a cache here, but perf_analyzer reads both.
                cache_hit=_NONE,
                cache_miss=_NONE,
            ),
            batch_stats=tuple(
                BatchStatistics(
                    batch_size=rows,
                    compute_input=_duration(batches, input_s),
                    compute_infer=_duration(batches, infer_s),
                    compute_output=_duration(batches, output_s),
                )
                for rows, (batches, input_s, infer_s, output_s) in self.batches.items()
            ),
        )


def read_counts(pages: Pages, labels: Labels) -> Counts:
    """What all processes have counted of one version. Raises PageDamaged."""
    cells = pages.value(_ANSWERED, labels) or [0.0] * _MODEL_CELLS
    stages = pages.value(_STAGES, labels) or [0.0] * _STAGE_CELLS * len(STAGES)
    batches = pages.family(_BATCHES, labels)
    return Counts(
        requests=int(cells[0]),
        total_s=cells[1],
        queue_s=cells[2],
        input_s=cells[3],
        infer_s=cells[4],
        output_s=cells[5],
        failures={
            failure: (int(cells[place]), cells[place + 1])
            for failure, place in zip(FAILURES, range(_BEHIND_ANSWERED, _EVENTS_BEGIN, 2), strict=True)
        },
        events=dict(zip(_EVENTS, map(int, cells[_EVENTS_BEGIN:]), strict=True)),
        stages=_histograms(stages),
        batches={
            int(found[-1][1]): (int(sums[0]), sums[1], sums[2], sums[3])
            for found, sums in sorted(batches.items(), key=lambda item: int(item[0][-1][1]))
        },
        last_s=(pages.value(_LAST, labels) or [0.0])[0],
    )


def _histograms(cells: Sequence[float]) -> dict[str, Histogram]:
    found = {}
    for number, stage in enumerate(STAGES):
        own = cells[number * _STAGE_CELLS : (number + 1) * _STAGE_CELLS]
        found[stage] = Histogram(BOUNDS_S, own[:_BUCKETS], own[_SUM])
    return found


def counted_versions(pages: Pages) -> list[Labels]:
    """Every version that any process has counted for, as `read_counts` wants it. Raises PageDamaged."""
    return list(pages.family(_ANSWERED))


def read_refusals(pages: Pages) -> dict[Labels, int]:
    """By model, version and reason. Raises PageDamaged."""
    return {labels: int(values[0]) for labels, values in pages.family(_REFUSALS).items()}


def _duration(count: int, seconds: float) -> DurationStatistics:
    return DurationStatistics(count, round(seconds * 1e9))
