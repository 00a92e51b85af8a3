"""The lane, where somebody watches: tells of each request that it took when that is over. See watching.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from service.answers import Answer
from service.connection import Phase, Refused, refusal_bytes
from service.http_lane import Lane
from service.infer import InferHead
from service.lane_heads import LaneHead
from service.off_loop import Cancel
from service.request_tags import RequestTags
from service.stages import Stages
from service.watching import CLIENT_LEFT, Asked, Finished, Watch, client_name, tell


class WatchedLane(Lane):
    """One connection. `begin` takes `make_stages` as well."""

    def __init__(
        self,
        begin: Callable[..., Cancel | None],
        *of_lane: Any,
        watches: Sequence[Watch],
        make_stages: Callable[[float], Stages] = Stages,
        **from_uvicorn: Any,
    ) -> None:
        super().__init__(self._begin_noting, *of_lane, **from_uvicorn)
        self._begin_infer = begin
        self._watches = watches
        self._make_stages = make_stages
        self._stages: Stages | None = None
        self._came_s = 0.0

    def _begin_noting(self, infer: InferHead, body: Any, reply: Callable[[Answer], object]) -> Cancel | None:
        return self._begin_infer(infer, body, reply, make_stages=self._note_stages)

    def _note_stages(self, arrived_s: float) -> Stages:
        self._stages = self._make_stages(arrived_s)
        return self._stages

    def _take(self, data: bytes) -> bool:
        self._came_s = time.monotonic()
        self._stages = None
        return super()._take(data)

    def _answer(self, answer: Answer) -> None:
        head = self._lane_head
        super()._answer(answer)
        if head is not None:
            in_bytes = head.body_bytes - self._unwanted_bytes
            self._tell_watches(head, answer.status, in_bytes, len(answer.body), answer.reason)

    def connection_lost(self, exc: Exception | None) -> None:
        head, come_bytes = self._lane_head, self._come_bytes()
        super().connection_lost(exc)
        if head is not None:
            self._tell_watches(head, CLIENT_LEFT, come_bytes, 0, "")

    def _refuse(self, refusal: Refused) -> None:
        head, come_bytes, phase = self._lane_head, self._come_bytes(), self._phase
        super()._refuse(refusal)
        out_bytes = len(refusal_bytes(refusal).partition(b"\r\n\r\n")[2])
        if head is not None:
            self._tell_watches(head, refusal.status, come_bytes, out_bytes, "")
        elif phase is not Phase.BODY:  # of which the application tells
            now = time.monotonic()
            client = client_name(self.client)
            tell(self._watches, Finished(client, "-", "-", refusal.status, 0, out_bytes, now, now, RequestTags()))

    def _come_bytes(self) -> int:
        if self._lane_head is None:
            return 0
        return self._lane_head.body_bytes if self._body is None else self._body_filled

    def _tell_watches(self, head: LaneHead, status: int, in_bytes: int, out_bytes: int, reason: str) -> None:
        name, version = head.infer.model_name, head.infer.version
        path = f"/v2/models/{name}/infer" if version is None else f"/v2/models/{name}/versions/{version}/infer"
        finished = Finished(
            client_name(self.client),
            "POST",
            path,
            status,
            in_bytes,
            out_bytes,
            self._came_s,
            time.monotonic(),
            head.tags or RequestTags(),
            Asked(name, version, reason, self._stages),
        )
        tell(self._watches, finished)
