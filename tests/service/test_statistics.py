"""The counters against Triton's definition, computed here from the requests one by one."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
import mmap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.counter_pages import PAGE_BYTES, CounterPage, Kind, Pages, mark_dead
from service.errors import DeadlineExceeded, ModelNotReady, RequestMismatch
from service.model import Model
from service.protocol import BatchStatistics, DurationStatistics, InferenceRequest, InputTensor
from service.stages import Stages
from service.statistics import CANCELED, ModelStatistics, Refusals, counted_versions, read_counts, read_refusals
from service.ticket import BatchRecord
from tests.service.forked import forked
from tests.service.handmade import PICKY, load_version, save_version

MS = 1_000_000
"""Nanoseconds."""


def batch(**changes: Any) -> BatchRecord:
    """Two requests of three rows together: they waited 1 and 2 ms, and were 10 ms under way in all."""
    record = BatchRecord(
        requests=2, rows=3, failed=0, queue_s=0.003, total_s=0.010, input_s=0.0005, infer_s=0.002, output_s=0.0001
    )
    return record._replace(**changes)


def failed(requests: int, total_s: float) -> BatchRecord:
    return batch(requests=0, rows=0, failed=requests, total_s=total_s)


def ran(statistics: ModelStatistics, record: BatchRecord) -> None:
    """As the scheduler tells of a batch."""
    if record.requests:
        statistics.count_run(record.requests, record.rows)
    statistics.record_batch(record)


def test_what_is_about_to_be_answered_is_counted_already() -> None:
    """So that a process that is killed behind an answer has counted it."""
    pages = Pages()
    statistics = ModelStatistics(pages, "m", 1)
    statistics.count_run(2, 3)
    for read in (statistics.read("m", 1), ModelStatistics(pages, "m", 1).read("m", 1)):
        assert (read.inference_count, read.execution_count, read.inference_stats.success.count) == (3, 1, 2)


def test_nothing_yet_is_zero_everywhere_and_no_batches() -> None:
    read = ModelStatistics().read("m", 3)
    assert (read.name, read.version, read.last_inference) == ("m", "3", 0)
    assert (read.inference_count, read.execution_count, read.batch_stats) == (0, 0, ())
    assert set(dataclasses.astuple(read.inference_stats)) == {(0, 0)}


def test_a_batch_counts_rows_once_and_its_durations_for_each_request() -> None:
    statistics = ModelStatistics()
    before_ms = int(time.time() * 1000)
    ran(statistics, batch())
    read = statistics.read("m", 1)
    assert (read.inference_count, read.execution_count) == (3, 1)
    assert before_ms <= read.last_inference <= time.time() * 1000
    stats = read.inference_stats
    assert stats.success == DurationStatistics(2, 10 * MS)
    assert stats.queue == DurationStatistics(2, 3 * MS)
    assert stats.compute_input == DurationStatistics(2, 1 * MS)
    assert stats.compute_infer == DurationStatistics(2, 4 * MS)
    assert stats.compute_output == DurationStatistics(2, MS // 5)
    assert stats.fail == stats.cache_hit == stats.cache_miss == DurationStatistics(0, 0)


def test_batches_of_one_size_are_added_up_and_sizes_kept_apart() -> None:
    statistics = ModelStatistics()
    for record in (batch(rows=8), batch(rows=1), batch(rows=8, infer_s=0.005)):
        ran(statistics, record)
    assert statistics.read("m", 1).batch_stats == (
        BatchStatistics(
            batch_size=1,
            compute_input=DurationStatistics(1, MS // 2),
            compute_infer=DurationStatistics(1, 2 * MS),
            compute_output=DurationStatistics(1, MS // 10),
        ),
        BatchStatistics(
            batch_size=8,
            compute_input=DurationStatistics(2, MS),
            compute_infer=DurationStatistics(2, 7 * MS),
            compute_output=DurationStatistics(2, MS // 5),
        ),
    )


def test_what_failed_in_the_model_and_what_never_ran_are_failures_and_nothing_else() -> None:
    statistics = ModelStatistics()
    ran(statistics, failed(1, 0.004))
    statistics.record_failure(0.002)
    read = statistics.read("m", 1)
    assert read.inference_stats.fail == DurationStatistics(2, 6 * MS)
    assert dataclasses.replace(read.inference_stats, fail=DurationStatistics(0, 0)) == (
        ModelStatistics().read("m", 1).inference_stats
    )
    assert (read.inference_count, read.execution_count, read.last_inference) == (0, 0, 0)


@pytest.mark.parametrize("rounding_s", [-1e-9, -0.0])
def test_rounding_of_clock_readings_never_makes_a_counter_fall(rounding_s: float) -> None:
    statistics = ModelStatistics()
    ran(statistics, batch(queue_s=rounding_s))
    statistics.record_failure(rounding_s)
    read = statistics.read("m", 1).inference_stats
    assert (read.queue.ns, read.fail.ns) == (0, 0)


SECONDS = st.floats(0, 3600)


@given(
    st.lists(
        st.builds(
            BatchRecord,
            requests=st.integers(1, 8),
            rows=st.integers(1, 8),
            failed=st.just(0),
            queue_s=SECONDS,
            total_s=SECONDS,
            input_s=SECONDS,
            infer_s=SECONDS,
            output_s=SECONDS,
        )
        | st.builds(failed, st.integers(1, 8), SECONDS),
        max_size=20,
    )
)
def test_readings_are_whole_numbers_that_only_grow(records: list[BatchRecord]) -> None:
    statistics = ModelStatistics()
    before = flat(statistics)
    for record in records:
        ran(statistics, record)
        after = flat(statistics)
        assert all(isinstance(value, int) for value in after)
        assert all(new >= old for new, old in zip(after, before, strict=True))
        before = after
    read = statistics.read("m", 1)
    good = [record for record in records if not record.failed]
    assert read.inference_count == sum(record.rows for record in good)
    assert read.execution_count == len(good) == sum(one.compute_infer.count for one in read.batch_stats)
    assert read.inference_stats.success.count == sum(record.requests for record in good)
    assert read.inference_stats.compute_infer.ns == pytest.approx(
        sum(record.requests * record.infer_s for record in good) * 1e9, abs=1
    )


def flat(statistics: ModelStatistics) -> list[int]:
    read = statistics.read("m", 1)
    durations = [value for pair in dataclasses.astuple(read.inference_stats) for value in pair]
    return [read.inference_count, read.execution_count, *durations]


# --- what a model tells them --------------------------------------------------------------------------------------


def pick(*indices: int, **parameters: int) -> InferenceRequest:
    """For PICKY: one row an index; 0 and 1 are good, 9 makes the model fail."""
    rows = len(indices)
    return InferenceRequest(
        (
            InputTensor("x", "FP32", np.zeros((rows, 2), np.float32)),
            InputTensor("i", "INT64", np.array(indices, np.int64).reshape(rows, 1)),
        ),
        parameters=parameters,
    )


def counted(folder: Path, scenario: Callable[[Model], Awaitable[None]]) -> tuple[int, int, int, int]:
    """Rows, batches, successes and failures after `scenario`."""
    save_version(folder, "picky", PICKY)
    # Its index may not be guessed, so it is not probed.
    (folder / "picky" / "config.json").write_text('{"name": "picky", "max_batch_size": 8}')
    model = load_version(folder / "picky" / "1")

    async def run() -> None:
        await scenario(model)
        await model.close()

    asyncio.run(asyncio.wait_for(run(), timeout=60))
    read = model.statistics.read("picky", 1)
    stats = read.inference_stats
    return read.inference_count, read.execution_count, stats.success.count, stats.fail.count


def test_only_the_guilty_request_of_a_batch_counts_as_failed(tmp_path: Path) -> None:
    async def scenario(model: Model) -> None:
        asked = [model.infer(pick(0, 1)), model.infer(pick(9)), model.infer(pick(1))]
        good, bad, fine = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(bad, RequestMismatch)
        assert not isinstance(good, BaseException)
        assert not isinstance(fine, BaseException)

    assert counted(tmp_path, scenario) == (3, 2, 2, 1)


def test_a_request_whose_time_is_over_counts_as_failed(tmp_path: Path) -> None:
    async def scenario(model: Model) -> None:
        with pytest.raises(DeadlineExceeded):
            model.begin(pick(0, timeout=1), print, arrived_s=time.monotonic() - 1)

    assert counted(tmp_path, scenario) == (0, 0, 0, 1)


def test_a_request_that_is_given_up_before_it_ran_counts_as_failed_once(tmp_path: Path) -> None:
    async def scenario(model: Model) -> None:
        give_up = model.begin(pick(0), print)
        give_up()
        give_up()
        await model.infer(pick(1))

    assert counted(tmp_path, scenario) == (1, 1, 1, 1)


def test_what_an_unloading_model_refuses_counts_as_failed(tmp_path: Path) -> None:
    async def scenario(model: Model) -> None:
        waiting = asyncio.ensure_future(model.infer(pick(0)))
        await asyncio.sleep(0)
        await model.close(drain=False)
        for refused in (waiting, model.infer(pick(0))):
            with pytest.raises(ModelNotReady):
                await refused

    assert counted(tmp_path, scenario) == (0, 0, 0, 2)


def test_a_request_that_does_not_fit_the_model_is_none_of_its_requests(tmp_path: Path) -> None:
    async def scenario(model: Model) -> None:
        misfit = InferenceRequest((InputTensor("x", "FP32", np.zeros((1, 3), np.float32)),))
        with pytest.raises(RequestMismatch):
            await model.infer(misfit)

    assert counted(tmp_path, scenario) == (0, 0, 0, 0)


# --- several processes --------------------------------------------------------------------------------------------


@pytest.fixture(
    params=[pytest.param(bytearray, id="private"), pytest.param(lambda size: mmap.mmap(-1, size), id="shared")]
)
def memory(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Makes the memory of one page."""
    return lambda: request.param(PAGE_BYTES)


def test_two_processes_count_as_one_and_a_dead_one_still_does(memory: Callable[[], Any]) -> None:
    one, other = memory(), memory()
    first = ModelStatistics(Pages(CounterPage(one), [other]), "m", 3)
    second = ModelStatistics(Pages(CounterPage(other), [one]), "m", 3)
    alone = ModelStatistics()
    records = [batch(), batch(rows=8), failed(1, 0.5), batch(rows=8, infer_s=0.25), batch(rows=1)]
    for number, record in enumerate(records):
        ran((first, second)[number % 2], record)
        ran(alone, record)
    second.record_failure(0.125, CANCELED)
    alone.record_failure(0.125, CANCELED)
    mark_dead(other)
    read = first.read("m", 3)
    assert read == second.read("m", 3)
    assert dataclasses.replace(read, last_inference=0) == dataclasses.replace(alone.read("m", 3), last_inference=0)


def test_versions_of_one_name_are_counted_apart() -> None:
    pages = Pages()
    ran(ModelStatistics(pages, "m", 1), batch())
    assert ModelStatistics(pages, "m", 2).read("m", 2).execution_count == 0


def test_last_inference_is_that_of_the_process_that_was_last(memory: Callable[[], Any]) -> None:
    one, other = memory(), memory()
    late, early = CounterPage(one), CounterPage(other)
    pages = Pages(late, [other])
    statistics = ModelStatistics(pages, "m", 1)
    ran(statistics, batch())
    early.cells[early.series(Kind.MAXIMUM, "last", (("model", "m"), ("version", "1")))] = 1.0
    assert statistics.read("m", 1).last_inference >= (time.time() - 60) * 1000


def test_whoever_takes_a_page_over_goes_on_from_where_it_stands(memory: Callable[[], Any]) -> None:
    buffer = memory()
    for _ in range(2):
        statistics = ModelStatistics(Pages(CounterPage(buffer)), "m", 1)
        ran(statistics, batch(rows=2))
    assert statistics.read("m", 1).inference_count == 4
    assert statistics.read("m", 1).inference_stats.success == DurationStatistics(4, 20 * MS)


# --- stages -------------------------------------------------------------------------------------------------------


def stages(arrived_s: float, submitted_s: float, began_s: float, ended_s: float) -> Stages:
    found = Stages(arrived_s)
    found.submitted_s, found.batch_s = submitted_s, (began_s, ended_s)
    return found


# Whole numbers of 2^-20 s, so that differences of them, and sums, are exact.
TICKS = st.integers(0, 40 * 2**20).map(lambda ticks: ticks / 2**20)


@given(st.lists(st.tuples(TICKS, TICKS, TICKS), min_size=1, max_size=40), TICKS, st.booleans())
def test_histograms_hold_every_observation_in_its_bucket(
    requests: list[tuple[float, float, float]], run_s: float, is_late: bool
) -> None:
    """Of one batch: each request's seconds of decode, queue and encode."""
    pages = Pages()
    statistics = ModelStatistics(pages, "m", 1)
    began_s = 1000.0
    ended_s = began_s + run_s
    found = [
        stages(began_s - queue_s - decode_s, began_s - queue_s, began_s, ended_s) for decode_s, queue_s, _ in requests
    ]
    record = batch(
        requests=len(requests),
        queue_s=sum(queue_s for _, queue_s, _ in requests),
        submitted_s=[one.submitted_s for one in found],
        began_s=began_s,
        run_s=run_s,
    )
    if is_late:
        ran(statistics, record)
    for one, (_, _, encode_s) in zip(found, requests, strict=True):
        (statistics.record_answer if is_late else statistics.note_answer)(one, ended_s + encode_s)
    if not is_late:
        ran(statistics, record)
    (version,) = counted_versions(pages)
    counts = read_counts(pages, version)
    expected = {
        "decode": [decode_s for decode_s, _, _ in requests],
        "queue": [queue_s for _, queue_s, _ in requests],
        "compute": [run_s] * len(requests),
        "encode": [encode_s for _, _, encode_s in requests],
        "request": [sum(request) + run_s for request in requests],
    }
    for stage, seconds in expected.items():
        histogram = counts.stages[stage]
        cumulated = list(itertools.accumulate(histogram.counts))
        assert cumulated == [sum(one <= bound for one in seconds) for bound in (*histogram.bounds, math.inf)]
        assert histogram.total == pytest.approx(sum(seconds))


# --- refusals -----------------------------------------------------------------------------------------------------


def test_refusals_are_counted_by_reason_and_by_what_is_known() -> None:
    pages = Pages()
    refusals = Refusals(pages)
    for _ in range(2):
        refusals.record("queue_full", "m", "1")
    refusals.record("not_found")
    assert {tuple(value for _, value in labels): count for labels, count in read_refusals(pages).items()} == {
        ("m", "1", "queue_full"): 2,
        ("", "", "not_found"): 1,
    }


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_what_a_killed_process_has_answered_stays_in_the_statistics() -> None:
    buffer = mmap.mmap(-1, PAGE_BYTES)

    def answer() -> None:
        statistics = ModelStatistics(Pages(CounterPage(buffer)), "m", 1)
        for _ in range(100):
            ran(statistics, batch())

    with forked(answer) as until_done:
        until_done()
    mark_dead(buffer)
    survivor = ModelStatistics(Pages(CounterPage(), [buffer]), "m", 1)
    ran(survivor, batch(rows=1))
    read = survivor.read("m", 1)
    assert (read.inference_count, read.execution_count) == (301, 101)
    assert read.inference_stats.success == DurationStatistics(202, 1010 * MS)
