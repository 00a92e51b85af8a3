"""What one version of a model has done so far, in the counters of Triton's statistics extension.

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
file. Adding a batch takes about a microsecond whatever its size. Lives on the event loop's thread. Knows neither HTTP
nor models; who serves a version in several processes has to add up their readings.
"""

from __future__ import annotations

import time

from service.protocol import BatchStatistics, DurationStatistics, InferenceStatistics, VersionStatistics
from service.ticket import BatchRecord

_NONE = DurationStatistics(count=0, ns=0)


class _BatchSize:
    """Sums over the batches of one size, in seconds."""

    __slots__ = ("batches", "infer_s", "input_s", "output_s")

    def __init__(self) -> None:
        self.batches = 0
        self.input_s = self.infer_s = self.output_s = 0.0


class ModelStatistics:
    """Seconds as floats inside: a sum of a year's work still resolves to a few nanoseconds, and never falls."""

    __slots__ = (
        "_by_rows", "_failed", "_failed_s", "_infer_s", "_input_s", "_last_s", "_output_s", "_queue_s", "_requests",
        "_rows", "_total_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self._requests = self._rows = self._failed = 0
        self._total_s = self._queue_s = self._failed_s = 0.0
        self._input_s = self._infer_s = self._output_s = 0.0
        self._last_s = 0.0
        self._by_rows: dict[int, _BatchSize] = {}

    def record_batch(self, record: BatchRecord) -> None:
        """A batch has run. In the path of every request, so nothing is computed here that `read` could compute."""
        if record.failed:
            self._failed += record.failed
            self._failed_s += record.total_s
            return
        requests = record.requests
        self._requests += requests
        self._rows += record.rows
        self._total_s += record.total_s
        # Differences of clock readings that were added up: rounding may leave a little less than nothing.
        self._queue_s += max(0.0, record.queue_s)
        self._input_s += requests * record.input_s
        self._infer_s += requests * record.infer_s
        self._output_s += requests * record.output_s
        size = self._by_rows.get(record.rows)
        if size is None:
            size = self._by_rows[record.rows] = _BatchSize()
        size.batches += 1
        size.input_s += record.input_s
        size.infer_s += record.infer_s
        size.output_s += record.output_s
        self._last_s = time.time()

    def record_failure(self, seconds: float) -> None:
        """A request has ended without having run, `seconds` after it came."""
        self._failed += 1
        self._failed_s += max(0.0, seconds)

    def read(self, name: str, version: int) -> VersionStatistics:
        """The counters now, under the name and version that they belong to."""
        return VersionStatistics(
            name=name,
            version=str(version),
            last_inference=int(self._last_s * 1000),
            inference_count=self._rows,
            execution_count=sum(size.batches for size in self._by_rows.values()),
            inference_stats=InferenceStatistics(
                success=_duration(self._requests, self._total_s),
                fail=_duration(self._failed, self._failed_s),
                queue=_duration(self._requests, self._queue_s),
                compute_input=_duration(self._requests, self._input_s),
                compute_infer=_duration(self._requests, self._infer_s),
                compute_output=_duration(self._requests, self._output_s),
                # No answer comes from a cache here, but perf_analyzer reads both.
                cache_hit=_NONE,
                cache_miss=_NONE,
            ),
            batch_stats=tuple(
                BatchStatistics(
                    batch_size=rows,
                    compute_input=_duration(size.batches, size.input_s),
                    compute_infer=_duration(size.batches, size.infer_s),
                    compute_output=_duration(size.batches, size.output_s),
                )
                for rows, size in sorted(self._by_rows.items())
            ),
        )


def _duration(count: int, seconds: float) -> DurationStatistics:
    return DurationStatistics(count, round(seconds * 1e9))
