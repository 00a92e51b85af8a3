"""What `/metrics` tells: families of samples, from the counters of all processes and from what this one has loaded.

    nv_*         Triton's names, with Triton's meaning (statistics.py): dashboards made for it go on working
    foldserve_*  ours
    process_*    of all processes together

Counters are sums over all processes, also those that have died; gauges are of those that live. What a version is (its
golden check, its providers, its state) is as the process that answers knows it: all serve the same versions. Labels
are names that the server knows: a model or version that only a client has named is not one of them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from service import __version__
from service.model import Model
from service.process_gauges import (
    CONNECTIONS,
    QUEUE_BYTES,
    QUEUE_REQUESTS,
    QUEUE_ROWS,
    RESIDENT_BYTES,
    STARTED_S,
)
from service.prometheus_text import Family, Labels, Sample, histogram
from service.registry import Registry
from service.session import runtime_version
from service.statistics import STAGES, Counts, Histogram, counted_versions, read_counts, read_refusals
from service.traffic import FAMILY, LARGEST_FAMILY, Figure

_US = 1e6


def read_metrics(registry: Registry) -> Iterator[Family | None]:
    """Every family, in the order of the tables below, with samples that are made when they are asked for; None where a
    moment has passed without one. Others may be served meanwhile. Raises PageDamaged."""
    versions: dict[Labels, Counts] = {}
    for labels in counted_versions(registry.pages):
        versions[labels] = read_counts(registry.pages, labels)
        yield None
    models = registry.serving()
    for row in _COUNTED:
        yield Family(row.name, row.kind, row.help, _counted_samples(row, versions))
    for fact in _LOADED:
        yield Family(fact.name, "gauge", fact.help, _loaded_samples(fact, models))
    for one in _OF_THE_SERVER:
        yield Family(one.name, one.kind, one.help, one.of(registry))


def _counted_samples(row: _Counted, versions: Mapping[Labels, Counts]) -> Iterator[Sample]:
    for labels, counts in versions.items():
        yield from row.of(labels, counts)


def _loaded_samples(fact: _Loaded, models: Iterable[Model]) -> Iterator[Sample]:
    for model in models:
        yield from fact.of(model)


def _of(model: Model, *more: tuple[str, str]) -> Labels:
    return (("model", model.name), ("version", str(model.version)), *more)


# --- counted for each version -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Counted:
    name: str
    kind: str
    help: str
    of: Callable[[Labels, Counts], Iterable[Sample]]


def _counter(name: str, help_text: str, value: Callable[[Counts], float]) -> _Counted:
    return _Counted(name, "counter", help_text, lambda labels, counts: [Sample(value(counts), labels)])


def _stage_samples(labels: Labels, counts: Counts) -> Iterator[Sample]:
    for stage in STAGES[:-1]:
        yield from _histogram_samples((*labels, ("stage", stage)), counts.stages[stage])


def _request_samples(labels: Labels, counts: Counts) -> Iterator[Sample]:
    return _histogram_samples(labels, counts.stages[STAGES[-1]])


def _histogram_samples(labels: Labels, found: Histogram) -> Iterator[Sample]:
    return histogram(labels, found.bounds, found.counts, found.total)


_ROW_BOUNDS = tuple(2**power for power in range(11))


def _batch_rows_samples(labels: Labels, counts: Counts) -> Iterator[Sample]:
    in_buckets = [0.0] * (len(_ROW_BOUNDS) + 1)
    for rows, (batches, *_) in counts.batches.items():
        in_buckets[next((place for place, bound in enumerate(_ROW_BOUNDS) if rows <= bound), -1)] += batches
    return histogram(labels, _ROW_BOUNDS, in_buckets, counts.rows)


_COUNTED = (
    _counter("nv_inference_request_success", "Requests answered", lambda counts: counts.requests),
    _Counted(
        "nv_inference_request_failure",
        "counter",
        "Requests that ended otherwise: refused or expired, given up by their caller while they waited, failed in the "
        "model. Not those that did not fit the model",
        lambda labels, counts: [
            Sample(count, (*labels, ("reason", reason))) for reason, (count, _) in counts.failures.items()
        ],
    ),
    _counter("nv_inference_count", "Rows answered", lambda counts: counts.rows),
    _counter("nv_inference_exec_count", "Batches that ran", lambda counts: counts.executions),
    _counter(
        "nv_inference_request_duration_us",
        "Time of the requests answered, from the queue to the end of their batch, in microseconds",
        lambda counts: _US * counts.total_s,
    ),
    _counter(
        "nv_inference_queue_duration_us",
        "Time that they waited, in microseconds",
        lambda counts: _US * counts.queue_s,
    ),
    _counter(
        "nv_inference_compute_input_duration_us",
        "Time of joining their batch, counted for each request in it, in microseconds",
        lambda counts: _US * counts.input_s,
    ),
    _counter(
        "nv_inference_compute_infer_duration_us",
        "Time of the model's run, counted for each request in it, in microseconds",
        lambda counts: _US * counts.infer_s,
    ),
    _counter(
        "nv_inference_compute_output_duration_us",
        "Time of taking the batch apart, counted for each request in it, in microseconds",
        lambda counts: _US * counts.output_s,
    ),
    _Counted(
        "foldserve_request_seconds",
        "histogram",
        "Time of each request that got the model's answer, from its last byte until the answer is written",
        _request_samples,
    ),
    _Counted(
        "foldserve_stage_seconds",
        "histogram",
        "Time of requests in each stage; decode: from the last byte until it waits; queue: until its batch begins; "
        "compute: until that ends; encode: until its answer is written, those of its batch before it included. queue "
        "and compute count those, too, whose caller had gone when their batch ended",
        _stage_samples,
    ),
    _Counted("foldserve_batch_rows", "histogram", "Rows of each batch that ran", _batch_rows_samples),
    _Counted(
        "foldserve_cancelled_total",
        "counter",
        "Requests whose caller went away: they never ran, or what ran was for nobody",
        lambda labels, counts: [
            Sample(counts.events[f"cancelled_{moment}"], (*labels, ("while", moment)))
            for moment in ("queued", "running")
        ],
    ),
    _counter(
        "foldserve_poisoned_requests_total",
        "Requests that failed alone, after a batch that they were in had failed",
        lambda counts: counts.events["poisoned"],
    ),
    _counter(
        "foldserve_batch_splits_total",
        "Batches that failed and were halved to find the guilty request, halves that failed again included",
        lambda counts: counts.events["split"],
    ),
)

# --- what a version that serves is --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Loaded:
    name: str
    help: str
    of: Callable[[Model], Iterable[Sample]]


def _fact(name: str, help_text: str, value: Callable[[Model], float]) -> _Loaded:
    return _Loaded(name, help_text, lambda model: [Sample(value(model), _of(model))])


def _golden_samples(model: Model, what: str) -> Iterator[Sample]:
    if (verdict := model.report.golden_verdict) is not None:
        values = {"difference": verdict.difference, "tolerance": verdict.tolerance}[what]
        yield from (Sample(value, _of(model, ("output", name))) for name, value in values.items())


def _invariance_samples(model: Model) -> Iterator[Sample]:
    if (found := model.metadata.batch_invariance) is not None:
        yield Sample(found.largest_difference, _of(model, ("padded", str(found.padded).lower())))


_LOADED = (
    _fact("foldserve_load_seconds", "Time that loading took, checks included", lambda model: model.report.load_s),
    _fact(
        "foldserve_golden_samples",
        "Golden samples that were reproduced at load, or the version would not serve; 0: it has none",
        lambda model: model.report.golden_verdict.samples if model.report.golden_verdict else 0,
    ),
    _Loaded(
        "foldserve_golden_difference",
        "Largest absolute difference from a golden answer at load",
        lambda model: _golden_samples(model, "difference"),
    ),
    _Loaded(
        "foldserve_golden_tolerance",
        "Largest difference that would have been accepted",
        lambda model: _golden_samples(model, "tolerance"),
    ),
    _Loaded(
        "foldserve_batch_invariance_difference",
        "Largest difference that company in a batch made to a row's answer in the probe at load; padded: batches are "
        "padded to sizes at which it makes none",
        _invariance_samples,
    ),
    _Loaded(
        "foldserve_warm_up_info",
        "What became of the warm-up",
        lambda model: [Sample(1, _of(model, ("outcome", model.report.warm_up.split(",")[0])))],
    ),
    _Loaded(
        "foldserve_batch_latency_seconds",
        "Time that a batch of so many rows is expected to take, as the process that answers has learnt it",
        lambda model: [Sample(took_s, _of(model, ("rows", str(rows)))) for rows, took_s in model.curve.points.items()],
    ),
    _fact("foldserve_max_batch_rows", "Rows that may share a batch; 0: none", lambda model: model.max_batch_size),
    _fact("foldserve_instances", "Runs at the same time in one process", lambda model: model.instance_count),
    _fact("foldserve_intra_op_threads", "Threads of one run", lambda model: model.report.intra_op_threads),
    _Loaded(
        "foldserve_provider_info",
        "Execution providers that really run the model, in order of preference",
        lambda model: [
            Sample(1, _of(model, ("provider", name), ("place", str(place))))
            for place, name in enumerate(model.report.providers)
        ],
    ),
    _Loaded(
        "foldserve_provider_node_share",
        "Part of the graph's nodes that was given to each provider, before nodes were fused; absent where ONNX Runtime "
        "does not tell",
        lambda model: [
            Sample(share, _of(model, ("provider", name))) for name, share in model.report.node_share.items()
        ],
    ),
)

# --- the server ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _OfTheServer:
    name: str
    kind: str
    help: str
    of: Callable[[Registry], Iterable[Sample]]


def _gauge(name: str, help_text: str, family: str) -> _OfTheServer:
    """Out of the pages of all that live."""
    return _OfTheServer(
        name,
        "gauge",
        help_text,
        lambda registry: [Sample(cells[0], labels) for labels, cells in registry.pages.family(family).items()],
    )


def _one(name: str, help_text: str, value: Callable[[Registry], float]) -> _OfTheServer:
    return _OfTheServer(name, "gauge", help_text, lambda registry: [Sample(value(registry))])


def _state_samples(registry: Registry) -> Iterator[Sample]:
    for status in registry.states():
        version = "" if status.version is None else str(status.version)
        yield Sample(1, (("model", status.name), ("version", version), ("state", status.state.value)))


def _trial(name: str, help_text: str, figure: Figure, kind: str = "") -> _OfTheServer:
    """A count of canary or shadow, or of both where no kind is named."""
    return _OfTheServer(
        name,
        "counter",
        help_text,
        lambda registry: [
            Sample(cells[figure], labels)
            for labels, cells in registry.pages.family(FAMILY).items()
            if kind in ("", dict(labels)["kind"])
        ],
    )


def _largest_samples(registry: Registry) -> Iterator[Sample]:
    for labels, differences in registry.pages.family(LARGEST_FAMILY).items():
        if dict(labels)["kind"] == "shadow":
            for which, value in zip(("absolute", "relative"), differences, strict=True):
                yield Sample(value, (*labels, ("difference", which)))


_OF_THE_SERVER = (
    _trial(
        "foldserve_trial_requests_total",
        "Requests without a version, while another version was on trial beside the one that answers",
        Figure.REQUESTS,
    ),
    _trial("foldserve_canary_requests_total", "Of those, requests that the canary answered", Figure.ON_TRIAL, "canary"),
    _trial("foldserve_shadow_compared_total", "Answers that a shadow's were compared with", Figure.COMPARED, "shadow"),
    _trial(
        "foldserve_shadow_differing_total",
        "Of those, answers with an element that differs by more than the tolerance",
        Figure.DIFFERING,
        "shadow",
    ),
    _trial(
        "foldserve_shadow_dropped_total", "Requests that a shadow was not asked, being busy", Figure.DROPPED, "shadow"
    ),
    _trial("foldserve_shadow_failed_total", "Requests that a shadow failed on", Figure.FAILED, "shadow"),
    _OfTheServer(
        "foldserve_shadow_largest_difference",
        "gauge",
        "Largest difference of an element between what was answered and what the shadow said",
        _largest_samples,
    ),
    _gauge("nv_inference_pending_request_count", "Requests that wait now", QUEUE_REQUESTS),
    _gauge("foldserve_queue_requests", "Requests that wait now", QUEUE_REQUESTS),
    _gauge("foldserve_queue_rows", "Rows of the requests that wait now", QUEUE_ROWS),
    _gauge("foldserve_queue_bytes", "What all requests that wait now hold in memory", QUEUE_BYTES),
    _one(
        "foldserve_queue_limit_bytes",
        "What they may hold, in all processes together",
        lambda registry: registry.pages.living * registry.queue_space.limit_bytes,
    ),
    _OfTheServer(
        "foldserve_refusals_total",
        "counter",
        "Inference requests that were refused, by reason; model and version are empty where the request named none "
        "that is known here, or never came whole",
        lambda registry: [Sample(count, labels) for labels, count in read_refusals(registry.pages).items()],
    ),
    _OfTheServer("foldserve_model_state", "gauge", "1 for the state that a version is in", _state_samples),
    _one("foldserve_ready", "1 while the server is ready", lambda registry: registry.is_ready()),
    _gauge("foldserve_open_connections", "Connections that clients have open", CONNECTIONS),
    _one("foldserve_workers", "Processes that serve now", lambda registry: registry.pages.living),
    _one("foldserve_cpu_cores", "Cores that models may compute on", lambda registry: registry.cpu.cores),
    _OfTheServer(
        "foldserve_cpu_plan_info",
        "gauge",
        "Why models may compute on so many cores",
        lambda registry: [Sample(1, (("reason", registry.cpu.reason),))],
    ),
    _OfTheServer(
        "foldserve_build_info",
        "gauge",
        "Versions of what runs here",
        lambda _: [
            Sample(
                1,
                (
                    ("version", __version__),
                    ("onnxruntime", runtime_version()),
                    ("python", platform.python_version()),
                ),
            )
        ],
    ),
    _OfTheServer(
        "foldserve_uncounted_series_total",
        "counter",
        "Series that counted nowhere because the memory for counters was full",
        lambda registry: [Sample(registry.pages.dropped)],
    ),
    _gauge(
        "process_resident_memory_bytes", "Main memory of all processes; what they share counts for each", RESIDENT_BYTES
    ),
    _gauge("process_start_time_seconds", "When the youngest process began, in seconds since 1970", STARTED_S),
)
