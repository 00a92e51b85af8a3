"""One loaded version of a model: how it is loaded, and how it answers.

`Model.infer` is the path of every request; `Model.load` is everything that must hold before the first one. What a
version's files lead to:

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

Knows neither HTTP nor other models.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from service.batch import join, split
from service.consistency import check_files, check_labels, derive_metadata
from service.errors import InferenceFailed, ModelRejected, RequestMismatch
from service.golden import GoldenSamples, check_golden, read_golden
from service.protocol import (
    Array,
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    OutputTensor,
    RequestedOutput,
)
from service.repository import (
    CONFIG_FILE,
    ModelConfig,
    SchedulerConfig,
    VersionDirectory,
    VersionReport,
    read_report,
)
from service.row_independence import Rows, probe_rows
from service.scheduler import Scheduler
from service.session import Session
from service.validate import validate_request
from service.warm_up import Feed, find_feed, golden_feed, shapes_leave_no_guess

log = logging.getLogger(__name__)

# Rows of a batch when config.json does not say: enough that the fixed cost of a run (some 50 us) is spread thin, few
# enough that a caller behind a full batch of a ResNet-50 on one core waits seconds, not minutes. A judgement; a latency
# curve measured at load will replace it.
DEFAULT_MAX_BATCH_SIZE = 64

# The largest warm-up batch is chosen to take about this long: readiness must not wait for 64 rows of a large network.
_WARM_UP_S = 0.5
# And its inputs not to take more than a request may (the default of max_body_bytes).
_WARM_UP_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What loading found out, in words for the log, and times in seconds."""

    providers: tuple[str, ...]
    intra_op_threads: int
    batching: str
    warm_up: str
    golden: str
    load_s: float
    batch_s: float


class Model:
    """One version that is ready to answer. Made by `load`, used on one event loop, ended by `close`."""

    def __init__(
        self,
        version: int,
        metadata: ModelMetadata,
        max_batch_size: int,
        session: Session,
        scheduling: SchedulerConfig,
        report: LoadReport,
    ) -> None:
        self.name = metadata.name
        self.version = version
        self.metadata = metadata
        self.max_batch_size = max_batch_size
        """In rows; 0: not batchable, one request at a time."""
        self.report = report
        self._session = session
        self._threads = ThreadPoolExecutor(scheduling.instances, thread_name_prefix=f"{self.name}/{version}")
        self._scheduler: Scheduler[Mapping[str, Array], Mapping[str, Array]] = Scheduler(
            self._run_batch,
            name=f"model {self.name!r} version {version}",
            # A model that is not batchable counts each request as one row (see validate_request).
            max_batch_rows=max(1, max_batch_size),
            max_queue_size=scheduling.max_queue_size,
            instances=scheduling.instances,
            clock=time.monotonic,
            expected_batch_s=report.batch_s,
        )

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        """Raises RequestMismatch, QueueFull, ModelNotReady (closing) or InferenceFailed."""
        rows = validate_request(request, self.metadata, self.max_batch_size)
        inputs = {tensor.name: tensor.data for tensor in request.inputs}
        same_shapes = tuple(inputs[tensor.name].shape[1:] for tensor in self.metadata.inputs)
        try:
            outputs = await self._scheduler.submit(inputs, rows=rows, group=same_shapes)
        except InferenceFailed as error:
            log.warning("model %s version %d: %s", self.name, self.version, error)
            raise
        return self._answer(request, outputs)

    async def close(self, *, drain: bool = True) -> None:
        """Waits for what runs; waiting requests are answered first, or refused when not draining."""
        await self._scheduler.close(drain=drain)
        self._threads.shutdown(wait=False)

    def _answer(self, request: InferenceRequest, outputs: Mapping[str, Array]) -> InferenceResponse:
        """The requested outputs in the order asked; the output's own `binary_data` beats the request's default."""
        datatypes = {tensor.name: tensor.datatype for tensor in self.metadata.outputs}
        asked = request.outputs or tuple(RequestedOutput(name) for name in datatypes)
        return InferenceResponse(
            model_name=self.name,
            model_version=str(self.version),
            id=request.id,
            outputs=tuple(
                OutputTensor(
                    output.name,
                    datatypes[output.name],
                    outputs[output.name],
                    binary=request.binary_data_output if output.binary is None else output.binary,
                )
                for output in asked
            ),
        )

    async def _run_batch(self, items: Sequence[Mapping[str, Array]]) -> Sequence[Mapping[str, Array]]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._compute, items)

    def _compute(self, items: Sequence[Mapping[str, Array]]) -> Sequence[Mapping[str, Array]]:
        if not self.max_batch_size:
            return [self._session.run(item) for item in items]
        rows = [len(next(iter(item.values()))) for item in items]
        return split(self._session.run(join(items)), rows)

    @classmethod
    def load(
        cls,
        version: VersionDirectory,
        config: ModelConfig,
        *,
        providers: tuple[str, ...],
        intra_op_threads: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> Model:
        """Loads, warms up and checks one version; blocks for as long as that takes.

        Raises ModelRejected with the reason when the version must not serve.
        """
        started = clock()
        files = read_report(version) or VersionReport()
        check_files(version, files)
        session = Session(version.model_path, providers=providers, intra_op_threads=intra_op_threads)
        metadata = derive_metadata(version, config, session)
        check_labels(version, config)
        golden = read_golden(version, files.golden, metadata.inputs, metadata.outputs)
        obstacle = batching_obstacle(config, session, metadata)
        feed, skipped = _choose_feed(session, metadata, golden, rows_are_free=not obstacle)
        max_batch_size, batching = _settle_batching(config, obstacle, session, feed, golden)
        batch_s = _warm_up(session, feed, max_batch_size, clock) if feed else 1.0
        verdict = "none"
        if golden is not None:
            verdict = check_golden(golden, session.run, max_batch_size or _fixed_rows(metadata) or golden.rows)
        report = LoadReport(
            session.providers, intra_op_threads, batching, skipped or "done", verdict, clock() - started, batch_s
        )
        return cls(version.version, metadata, max_batch_size, session, config.scheduler, report)


# --- batching and warm-up -----------------------------------------------------------------------------------------


def batching_obstacle(config: ModelConfig, session: Session, metadata: ModelMetadata) -> str:
    """Why axis 0 cannot be rows of independent requests, as far as declarations tell; empty when nothing speaks
    against it. Raises ModelRejected when config.json demands batching and the model file rules it out."""
    if config.max_batch_size == 0:
        return f"{CONFIG_FILE} sets max_batch_size to 0"
    if not metadata.inputs:
        return "the model has no inputs"
    for tensor in (*metadata.inputs, *metadata.outputs):
        if tensor.shape[:1] != (-1,):
            obstacle = f"the first dimension of {tensor.name!r} is fixed, shape {list(tensor.shape)}"
            if config.max_batch_size:
                raise ModelRejected(f"{CONFIG_FILE} sets max_batch_size to {config.max_batch_size}, but {obstacle}")
            return obstacle
    symbols = {tensor.dims[0] for tensor in (*session.inputs, *session.outputs) if tensor.dims}
    # A config that asks for batches speaks for files whose exporter gave the batch dimension several names, or none.
    if not config.max_batch_size and (len(symbols) != 1 or None in symbols):
        return f"first dimensions do not share one name: {sorted(map(str, symbols))}"
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
    config: ModelConfig, obstacle: str, session: Session, feed: Feed | None, golden: GoldenSamples | None
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
    verdict = probe_rows(golden.inputs if golden else feed(2), session.run, min(asked or 3, 3))
    if verdict.rows is Rows.INTERFERE and asked:
        raise ModelRejected(
            f"{CONFIG_FILE} sets max_batch_size to {asked}, but rows are not independent: {verdict.reason}"
        )
    if verdict.rows is Rows.INTERFERE:
        return 0, f"rows are not independent: {verdict.reason}"
    if verdict.rows is Rows.UNKNOWN:
        # As above. The log line tells the operator what to do about it.
        unknown = f"whether rows are independent is not known: {verdict.reason}"
        return (asked, f"as configured; {unknown}") if asked else (0, f"{unknown}; config.json may set max_batch_size")
    return (asked, "as configured") if asked else (DEFAULT_MAX_BATCH_SIZE, "derived from the model file")


def _warm_up(session: Session, feed: Feed, max_batch_size: int, clock: Callable[[], float]) -> float:
    """Runs one row, then the largest batch that fits the time; returns the seconds that took. Raises ModelRejected."""
    rows = 1
    try:
        one = feed(1)
        seconds = max(_timed(session, one, clock), 1e-6)
        row_bytes = max(sum(array.nbytes for array in one.values()), 1)
        rows = max(1, min(max_batch_size, int(_WARM_UP_S / seconds), _WARM_UP_BYTES // row_bytes))
        return _timed(session, feed(rows), clock)
    except (InferenceFailed, RequestMismatch) as error:
        raise ModelRejected(f"warm-up with {rows} rows: {error}") from error


def _timed(session: Session, inputs: Mapping[str, Array], clock: Callable[[], float]) -> float:
    started = clock()
    session.run(inputs)
    return clock() - started
