"""One loaded version of a model, and how it answers: `Model.begin` is the path of every request.

Made from what `load_version` found; used on one event loop. Knows neither HTTP nor other models.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from service.batch import JoinSpace, join, size_bytes, split
from service.batch_invariance import pad, padded_rows
from service.classification import classify
from service.errors import InferenceFailed, RequestMismatch, Unavailable
from service.instances import Instances
from service.latency_curve import LatencyCurve
from service.load_version import LoadedVersion
from service.protocol import Array, InferenceRequest, InferenceResponse, OutputTensor, Parameters, RequestedOutput
from service.scheduler import Scheduler
from service.stages import Stages
from service.statistics import ModelStatistics
from service.ticket import BatchOutcome, Ticket
from service.timers import RunningLoop
from service.urgency import Urgency
from service.validate import empty_outputs, validate_request
from service.waiting import QueueSpace

log = logging.getLogger(__name__)

# What a run is taken to last while nothing is known: no input was found to measure with. The first batches correct it.
_UNKNOWN_S = 0.01

Inputs = Mapping[str, Array]
Outputs = Mapping[str, Array]


class Model:
    """One version that is ready to answer. Used on one event loop, ended by `close`."""

    def __init__(
        self,
        loaded: LoadedVersion,
        statistics: ModelStatistics | None = None,
        space: QueueSpace | None = None,
        *,
        max_request_rows: int | None = None,
    ) -> None:
        """
        statistics: those of an earlier loading of the same version, which count on where it stopped.
        space: for the tensors of waiting requests, shared with other models; without it there is no bound on them.
        max_request_rows: the operator's bound on one request, beside max_batch_size.
        """
        scheduling = loaded.scheduling
        self.name = loaded.metadata.name
        self.version = loaded.version
        self.metadata = loaded.metadata
        self.max_batch_size = loaded.max_batch_size
        """In rows; 0: not batchable, one request at a time."""
        self._max_request_rows = max_request_rows or self.max_batch_size or 1
        self.report = loaded.report
        self.statistics = statistics or ModelStatistics()
        self._note_answer = self.statistics.note_answer
        self.instance_count = scheduling.instances
        self.curve = LatencyCurve(loaded.report.latency_s or {1: _UNKNOWN_S})
        self._session = loaded.session
        self._spaces = threading.local()
        self._batch_rows = loaded.batch_rows
        self._known_good = loaded.known_good
        self._urgency = Urgency(scheduling)
        self._labels = loaded.labels
        """By output, for classifications."""
        self._datatypes = {tensor.name: tensor.datatype for tensor in self.metadata.outputs}
        self._all_outputs = tuple(RequestedOutput(name) for name in self._datatypes)
        label = f"model {self.name!r} version {self.version}"
        self._instances: Instances[Inputs, Outputs] = Instances(
            self._compute,
            self.curve,
            count=scheduling.instances,
            name=label,
            is_as_measured=_is_as_measured(loaded),
        )
        self._scheduler: Scheduler[Inputs, Outputs] = Scheduler(
            self._instances,
            self.curve,
            RunningLoop(),
            name=label,
            # A model that is not batchable counts each request as one row (see validate_request).
            max_batch_rows=max(1, self.max_batch_size),
            max_queue_size=scheduling.max_queue_size,
            space=space,
            instances=scheduling.instances,
            max_queue_delay_s=math.inf if (delay_us := scheduling.max_queue_delay_us) is None else delay_us / 1e6,
            on_run=self.statistics.count_run,
            on_batch=self.statistics.record_batch,
            on_split=self.statistics.record_split,
        )

    def begin(
        self,
        request: InferenceRequest,
        done: Callable[[InferenceResponse | Exception], object],
        arrived_s: float | None = None,
        stages: Stages | None = None,
    ) -> Callable[[], object]:
        """Queues `request`; `done` gets the response, or the error, once, on the event loop, and not before this
        returns. Calling what is returned gives the request up: then `done` is not called.

        arrived_s: when the request came, on time.monotonic(): its timeout counts from there.
        stages: filled in when `done` gets a response that the model has run for.
        Raises RequestMismatch, QueueFull, DeadlineExceeded and ModelNotReady (closing).
        """
        rows = validate_request(request, self.metadata, self.max_batch_size)
        if not rows:
            return self._begin_empty(request, done)
        if rows > self._max_request_rows:
            raise RequestMismatch(
                f"the request has {rows} rows, this server takes at most {self._max_request_rows} in one request "
                f"(--max-request-rows); split it"
            )
        inputs = {tensor.name: tensor.data for tensor in request.inputs}

        came_s = time.monotonic() if arrived_s is None else arrived_s

        def answer(outcome: Outputs | Exception) -> None:
            if isinstance(outcome, Exception):
                self._note(outcome, came_s)
                done(outcome)
            else:
                if stages is not None:
                    stages.submitted_s = ticket.submitted_s
                    stages.batch_s = self._scheduler.told_s
                    stages.record = self._note_answer
                    stages.version = self.version
                    stages.rows = rows
                done(self._answer_or_refusal(request, outcome))
                if stages is not None and stages.record is not None:
                    stages.record = self.statistics.record_answer  # a thread writes it, and its batch ends before

        try:
            ticket: Ticket[Inputs, Outputs] = self._scheduler.submit(
                inputs,
                answer,
                rows=rows,
                size_bytes=size_bytes(inputs.values()),
                group=tuple([inputs[tensor.name].shape[1:] for tensor in self.metadata.inputs]),
                priority=self._urgency.priority(request.parameters),
                deadline_s=self._urgency.deadline_s(request.parameters, came_s),
            )
        except Unavailable as error:
            self._note(error, came_s)
            raise
        return lambda: self._give_up(ticket, came_s)

    def check_admission(self, rows: int, parameters: Parameters, arrived_s: float) -> None:
        """Raises QueueFull, DeadlineExceeded or ModelNotReady if a request would meet that now; for one whose body is
        still coming, and need not be waited for then."""
        try:
            self._scheduler.check_admission(
                rows if self.max_batch_size else 1,
                self._urgency.deadline_s(parameters, arrived_s),
                self._urgency.priority(parameters),
            )
        except Unavailable as error:
            self._note(error, arrived_s)
            raise

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        """As `begin`, for a caller that waits; cancelling the call gives the request up."""
        answered: asyncio.Future[InferenceResponse | Exception] = asyncio.get_running_loop().create_future()
        cancel = self.begin(request, answered.set_result)
        try:
            outcome = await answered
        except asyncio.CancelledError:
            cancel()
            raise
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def close(self, *, drain: bool = True) -> None:
        """Waits for what runs; waiting requests are answered first, or refused when not draining."""
        idle = asyncio.Event()
        self._scheduler.close(idle.set, drain=drain)
        await idle.wait()
        self._instances.close()

    @property
    def waiting(self) -> tuple[int, int]:
        """Requests and rows that wait, without those that run."""
        return self._scheduler.queue_size, self._scheduler.queue_rows

    def give_up(self) -> int:
        """Refuses all that waits or runs; returns how many requests that were."""
        return self._scheduler.give_up()

    def release(self) -> None:
        """Gives the memory of the model file back; only behind `close`. Any thread, and it may take a while."""
        del self._session

    def _note(self, error: Exception, came_s: float) -> None:
        """A request ends without an answer. What failed in a batch, the scheduler has told the statistics already."""
        if isinstance(error, Unavailable):
            self.statistics.record_failure(time.monotonic() - came_s)

    def _give_up(self, ticket: Ticket[Inputs, Outputs], came_s: float) -> None:
        if ticket.done is not None:
            self.statistics.record_cancelled(time.monotonic() - came_s, was_running=not ticket.is_waiting)
        self._scheduler.cancel(ticket)

    def _begin_empty(
        self, request: InferenceRequest, done: Callable[[InferenceResponse | Exception], object]
    ) -> Callable[[], object]:
        """As `begin`, of no rows: no model runs on nothing (see validate.py), and the statistics do not count it."""
        answer = self._answer_or_refusal(request, empty_outputs(self.metadata))
        return asyncio.get_running_loop().call_soon(done, answer).cancel

    def _answer_or_refusal(self, request: InferenceRequest, outputs: Outputs) -> InferenceResponse | Exception:
        try:
            return self._answer(request, outputs)
        except RequestMismatch as error:  # a classification that is too large
            return error

    def _answer(self, request: InferenceRequest, outputs: Outputs) -> InferenceResponse:
        """The requested outputs in the order asked; the output's own `binary_data` beats the request's default."""
        tensors = [
            OutputTensor(
                output.name,
                self._datatypes[output.name],
                outputs[output.name],
                request.binary_data_output if output.binary is None else output.binary,
                output.area,
            )
            if output.classes is None
            else self._classification(request, output, outputs[output.name])
            for output in request.outputs or self._all_outputs
        ]
        return InferenceResponse(self.name, str(self.version), tuple(tensors), request.id)

    def _classification(self, request: InferenceRequest, output: RequestedOutput, values: Array) -> OutputTensor:
        assert output.classes is not None
        texts = classify(
            values,
            self._datatypes[output.name],
            output.classes,
            self._labels.get(output.name, ()),
            f"output {output.name!r}",
            has_rows=self.max_batch_size > 0,
        )
        binary = request.binary_data_output if output.binary is None else output.binary
        return OutputTensor(output.name, "BYTES", texts, binary)

    def _compute(self, items: Sequence[Inputs]) -> BatchOutcome[Outputs]:
        """One batch, from the requests' inputs to each one's own outputs. Runs on any thread, raises nothing."""
        try:
            return self._run_rows(items) if self.max_batch_size else self._run_each(items)
        except Exception as error:
            return BatchOutcome(None, self._whose_fault(error) if len(items) == 1 else error)

    def _run_each(self, items: Sequence[Inputs]) -> BatchOutcome[Outputs]:
        began = time.monotonic()
        results = [self._session.run(item) for item in items]
        return BatchOutcome(results, infer_s=time.monotonic() - began)

    def _run_rows(self, items: Sequence[Inputs]) -> BatchOutcome[Outputs]:
        began = time.monotonic()
        rows = [len(next(iter(item.values()))) for item in items]
        joined = join(items, self._join_space()) if len(items) > 1 else items[0]
        padding = 0
        if self._batch_rows:
            total = sum(rows)
            padding = padded_rows(total, self._batch_rows) - total
            joined = pad(joined, total + padding)
        joined_at = time.monotonic()
        outputs = self._session.run(joined)
        ran_at = time.monotonic()
        results = split(outputs, [*rows, padding])[:-1] if padding else split(outputs, rows)
        return BatchOutcome(
            results, input_s=joined_at - began, infer_s=ran_at - joined_at, output_s=time.monotonic() - ran_at
        )

    def _join_space(self) -> JoinSpace:
        """One for each thread that batches run on."""
        try:
            space: JoinSpace = self._spaces.join
        except AttributeError:
            space = self._spaces.join = JoinSpace()
        return space

    def _whose_fault(self, error: Exception) -> Exception:
        """The runtime's words do not tell a bad index from a defect of the server's side. So inputs that have been
        answered before are run again: when they are answered now, this request's values are to blame."""
        if not isinstance(error, InferenceFailed) or self._known_good is None:
            return error
        try:
            self._session.run(self._known_good)
        except (InferenceFailed, RequestMismatch):
            return error
        return RequestMismatch(f"the model fails on this request's values, and on others it does not: {error}")


# Requests that much larger than what was measured are taken to be like it.
_LIKE = 2.0


def _is_as_measured(loaded: LoadedVersion) -> Callable[[Sequence[Inputs], int], bool] | None:
    """Whether the latency curve, measured with one kind of input, speaks for these requests; None: for all."""
    if loaded.values_decide or loaded.known_good is None:
        return lambda *_: False
    behind_rows = 1 if loaded.max_batch_size else 0
    if not any(-1 in tensor.shape[behind_rows:] for tensor in loaded.metadata.inputs):
        return None
    most = _LIKE * sum(array.size for array in loaded.known_good.values())
    return lambda items, rows: sum([array.size for item in items for array in item.values()]) <= most * rows
