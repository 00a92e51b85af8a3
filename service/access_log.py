"""The access log: one line a request, whatever came of it. Knows no door."""

from __future__ import annotations

import logging

from service.logs import fields
from service.watching import Finished

log = logging.getLogger("service.access")


def write_access(finished: Finished) -> None:
    """At whatever level other events are told: who switches it on wants it."""
    log.setLevel(logging.INFO)
    log.info(
        "%s %s %d",
        finished.method,
        finished.path,
        finished.status,
        extra=fields(
            client=finished.client,
            method=finished.method,
            path=finished.path,
            status=finished.status,
            in_bytes=finished.in_bytes,
            out_bytes=finished.out_bytes,
            duration_ms=round(1e3 * (finished.ended_s - finished.began_s), 3),
            request_id=finished.tags.request_id,
            trace_id=finished.tags.trace.trace_id if finished.tags.trace else None,
        ),
    )
