"""Everything that must hold before the first request to a version: its files, its session, its batches, its answers.

`load_version` blocks for as long as that takes. What a version's files lead to:

    files beside model.onnx                              state
    none, or no report.json (made by hand)               READY, golden "none"
    golden.npz without report.json                       READY if reproduced within golden.RELATIVE_TOLERANCE
    report.json, every file as listed, golden reproduced READY
    report.json lists or promises a file that is missing UNAVAILABLE
    a file whose length or sha256 is not the listed one  UNAVAILABLE (a swapped model.onnx, one changed bit)
    report.json does not list model.onnx, or golden.npz  UNAVAILABLE (nothing would have been checked)
    its tolerance would accept nearly any answer         UNAVAILABLE (golden.LARGEST_RELATIVE_TOLERANCE)
    golden answers not reproduced within tolerance       UNAVAILABLE
    a named pipe or a folder where a file belongs        UNAVAILABLE (a pipe as report.json: LOADING until written)
    golden.npz, report.json or config.json damaged       UNAVAILABLE
    config.json disagrees with model.onnx                UNAVAILABLE
    a requested execution provider is missing            UNAVAILABLE

Knows neither HTTP, nor queues, nor other models.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf

from service.batch_invariance import probe_invariance
from service.consistency import check_files, derive_metadata, read_labels
from service.errors import InferenceFailed, ModelRejected, RequestMismatch
from service.golden import GoldenSamples, GoldenVerdict, bf16_names, check_golden, read_golden, widening
from service.model_knobs import SchedulerConfig
from service.model_operators import operators_of
from service.protocol import Array, ModelMetadata
from service.repository import ModelConfig, VersionDirectory, VersionReport, read_report
from service.reshape import open_session
from service.row_independence import Rows, probe_rows
from service.session import Session
from service.warm_up import Feed, find_feed, golden_feed, measure_curve, shapes_leave_no_guess

# Rows of a batch when config.json does not say: enough that the fixed cost of a run (some 50 us) is spread thin. How
# many of them really run together the latency curve decides.
DEFAULT_MAX_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What loading found out, in words for the log, and times in seconds."""

    providers: tuple[str, ...]
    intra_op_threads: int
    batching: str
    warm_up: str
    golden: str
    load_s: float
    latency_s: Mapping[int, float]
    """Rows to seconds of a batch, as measured; empty when nothing could be."""
    golden_verdict: GoldenVerdict | None = None
    node_share: Mapping[str, float] = field(default_factory=dict)
    """By execution provider; empty where ONNX Runtime does not tell."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedVersion:
    """A version that may serve.

    max_batch_size: in rows; 0: not batchable, one request at a time.
    batch_rows: sizes that batches are padded to, ascending; empty: any size.
    known_good: inputs of one row that the model has answered.
    values_decide: how long a run takes may depend on the values that it is given.
    """

    version: int
    metadata: ModelMetadata
    session: Session
    max_batch_size: int
    scheduling: SchedulerConfig
    report: LoadReport
    labels: Mapping[str, Sequence[str]]
    batch_rows: tuple[int, ...] = ()
    known_good: Mapping[str, Array] | None = None
    values_decide: bool = False


def load_version(
    version: VersionDirectory,
    config: ModelConfig,
    *,
    providers: tuple[str, ...],
    intra_op_threads: int,
    may_use_fewer: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> LoadedVersion:
    """Loads, warms up, measures and checks one version.

    may_use_fewer: one thread will do for a model whose short runs more threads do not make shorter.

    Raises ModelRejected with the reason when the version must not serve.
    """
    started = clock()
    files = read_report(version) or VersionReport()
    check_files(version, files)
    session = open_session(version.model_path, config, providers=providers, intra_op_threads=intra_op_threads)
    metadata = derive_metadata(version, config, session)
    labels = read_labels(version, config)
    golden = read_golden(version, files.golden, metadata.inputs, metadata.outputs)
    operators = operators_of(version.model_path)
    obstacle = batching_obstacle(config, session, metadata, operators or frozenset())
    feed, skipped = _choose_feed(session, metadata, golden, rows_are_free=not obstacle)
    bf16 = bf16_names(metadata.outputs)
    max_batch_size, batching = _settle_batching(config, obstacle, session, feed, golden, bf16)
    latency_s = _warm_up(session, feed, max_batch_size, clock) if feed else {}
    if feed and may_use_fewer and intra_op_threads > 1 and _may_do_alone(version, session, latency_s):
        with suppress(ModelRejected):  # then it stays as it is
            alone = open_session(version.model_path, config, providers=providers, intra_op_threads=1)
            alone_s = _warm_up(alone, feed, max_batch_size, clock)
            # Twice: other work on the machine disturbs many threads more than one.
            latency_s = _shorter(latency_s, _warm_up(session, feed, max_batch_size, clock))
            if not threads_pay(latency_s, alone_s):
                session, latency_s, intra_op_threads = alone, alone_s, 1
    batch_rows: tuple[int, ...] = ()
    if feed and max_batch_size > 1:
        known = golden.inputs if golden else feed(_KNOWN_ROWS)
        seen = probe_invariance(known, widening(session.run, bf16), tuple(latency_s), clock)
        if config.scheduler.exact_batches:
            batch_rows, max_batch_size = seen.identical_rows, max(seen.identical_rows)
            batching += f", padded to {', '.join(map(str, batch_rows))} rows"
        metadata = dataclasses.replace(metadata, batch_invariance=dataclasses.replace(seen, padded=bool(batch_rows)))
    verdict: GoldenVerdict | None = None
    if golden is not None:
        verdict = check_golden(golden, session.run, max_batch_size or _fixed_rows(metadata) or golden.rows)
    return LoadedVersion(
        version=version.version,
        metadata=metadata,
        session=session,
        max_batch_size=max_batch_size,
        scheduling=config.scheduler,
        report=LoadReport(
            session.providers,
            intra_op_threads,
            batching,
            skipped or "done",
            str(verdict or "none"),
            clock() - started,
            latency_s,
            verdict,
            session.node_share,
        ),
        labels=labels,
        batch_rows=batch_rows,
        known_good=feed(1) if feed else None,
        values_decide=operators is None or not operators.isdisjoint(_REPEATS_OR_BRANCHES),
    )


_REPEATS_OR_BRANCHES = frozenset({"If", "Loop", "Scan"})
# Rows that differ, for the probe of batch invariance: one, and enough others to stand around it.
_KNOWN_ROWS = 4


# --- threads ------------------------------------------------------------------------------------------------------

# A run this short spends much of its time on waking other threads up, and on a busy machine more than when it was
# measured on an idle one. Longer ones are worth all cores.
_SHORT_S = 1e-3
# A short run may still look things up in a large table, and a second session would hold it once more for a while.
_MOST_BYTES = 256 * 1024 * 1024
# Another core must make it so much shorter; else the event loop and other models have more from that core.
_WORTH_A_CORE = 0.75


def _may_do_alone(version: VersionDirectory, session: Session, latency_s: Mapping[int, float]) -> bool:
    if session.providers != ("CPUExecutionProvider",) or max(latency_s.values()) >= _SHORT_S:
        return False
    return sum(path.stat().st_size for path in version.model_path.parent.iterdir() if path.is_file()) <= _MOST_BYTES


def _shorter(one_s: Mapping[int, float], other_s: Mapping[int, float]) -> dict[int, float]:
    """The shorter measurement of every size that either knows."""
    return {rows: min(one_s.get(rows, inf), other_s.get(rows, inf)) for rows in sorted(one_s.keys() | other_s.keys())}


def threads_pay(all_s: Mapping[int, float], alone_s: Mapping[int, float]) -> bool:
    """Rows to seconds, measured with all threads and with one: is the largest batch that both know worth the cores?"""
    rows = max(all_s.keys() & alone_s.keys())
    return all_s[rows] < _WORTH_A_CORE * alone_s[rows]


# --- batching and warm-up -----------------------------------------------------------------------------------------


def batching_obstacle(config: ModelConfig, session: Session, metadata: ModelMetadata, operators: frozenset[str]) -> str:
    """Why axis 0 cannot be rows of independent requests, as far as declarations tell; empty when nothing speaks
    against it. Raises ModelRejected when config.json demands batching and the model file rules it out."""
    if config.max_batch_size == 0:
        return config.told_batch_size
    if not metadata.inputs:
        return "the model has no inputs"
    for tensor in (*metadata.inputs, *metadata.outputs):
        if tensor.shape[:1] != (-1,):
            obstacle = f"the first dimension of {tensor.name!r} is fixed, shape {list(tensor.shape)}"
            if config.max_batch_size:
                raise ModelRejected(
                    f"{config.file_name} sets max_batch_size to {config.max_batch_size}, but {obstacle}"
                )
            return obstacle
    symbols = {tensor.dims[0] for tensor in (*session.inputs, *session.outputs) if tensor.dims}
    # A config that asks for batches speaks for files whose exporter gave the batch dimension several names, or none.
    if not config.max_batch_size and (len(symbols) != 1 or None in symbols):
        return f"first dimensions do not share one name: {sorted(map(str, symbols))}"
    # Their condition is one for the whole batch, and a probe may not hit upon the values that turn it.
    if not config.max_batch_size and (found := sorted(operators & {"If", "Loop"})):
        what = " and ".join(found)
        return f"{what} may do with all rows what one of them asks for; its configuration may set max_batch_size"
    return ""


def _fixed_rows(metadata: ModelMetadata) -> int | None:
    """The first dimension that all inputs are fixed to, if there is one."""
    first = {tensor.shape[:1] for tensor in metadata.inputs}
    (length,) = first.pop() if len(first) == 1 and first != {()} else (-1,)
    return length if length > 0 else None


def _choose_feed(
    session: Session, metadata: ModelMetadata, golden: GoldenSamples | None, *, rows_are_free: bool
) -> tuple[Feed | None, str]:
    """Inputs for the warm-up, and an empty text; or None, and why there are none. Raises ModelRejected."""
    if golden is not None:
        return golden_feed(golden, None if rows_are_free else _fixed_rows(metadata) or golden.rows), ""
    feed, refusal = find_feed(metadata.inputs, session.run)
    if refusal and shapes_leave_no_guess(metadata.inputs):
        raise ModelRejected(
            f"warm-up: the model fails on made-up inputs of its declared shapes: {refusal}; "
            f"if it needs particular values, put some into a golden.npz beside it"
        )
    return feed, f"skipped, no made-up input was accepted: {refusal}" if refusal else ""


def _settle_batching(
    config: ModelConfig,
    obstacle: str,
    session: Session,
    feed: Feed | None,
    golden: GoldenSamples | None,
    bf16: frozenset[str],
) -> tuple[int, str]:
    """max_batch_size in rows, and why. Rows together are compared with one by one before we believe in rows.

    Raises ModelRejected when config.json asks for batches of rows that are not independent: answers would be wrong.
    """
    if obstacle:
        return 0, obstacle
    asked = config.max_batch_size
    if feed is None:
        # Nothing to probe with. The operator's word counts; our own guess does not.
        return (asked, "as configured, not probed") if asked else (0, "no input known to probe it with")
    if asked == 1:
        return 1, "as configured"
    known = golden.inputs if golden else feed(2)
    verdict = probe_rows(known, session.run, min(asked or 3, 3), bf16=bf16)
    if verdict.rows is Rows.INTERFERE and asked:
        raise ModelRejected(
            f"{config.file_name} sets max_batch_size to {asked}, but rows are not independent: {verdict.reason}"
        )
    if verdict.rows is Rows.INTERFERE:
        return 0, f"rows are not independent: {verdict.reason}"
    if verdict.rows is Rows.UNKNOWN:
        # As above. The log line tells the operator what to do about it.
        unknown = f"whether rows are independent is not known: {verdict.reason}"
        return (
            (asked, f"as configured; {unknown}")
            if asked
            else (0, f"{unknown}; its configuration may set max_batch_size")
        )
    return (asked, "as configured") if asked else (DEFAULT_MAX_BATCH_SIZE, "derived from the model file")


def _warm_up(session: Session, feed: Feed, max_batch_size: int, clock: Callable[[], float]) -> dict[int, float]:
    """Runs batches of 1, 2, 4, ... rows, as many as fit the time; returns rows to seconds. Raises ModelRejected."""
    try:
        return measure_curve(session.run, feed, max(1, max_batch_size), clock)
    except (InferenceFailed, RequestMismatch) as error:
        raise ModelRejected(f"warm-up: {error}") from error
