"""When one request passed from each stage of its path to the next: what is counted of it, and told in `Server-Timing`.

    decode   from its last byte until it waits in the queue: read, validated, admitted
    queue    until its batch begins
    compute  until its batch has ended: joined, run, taken apart, and the way to a thread and back
    encode   until its answer is written, those of its batch that come before it included

So the four add up to what its caller meets inside this server. Knows no clock, no counters, no HTTP but one header.
"""

from __future__ import annotations

from collections.abc import Callable


class Stages:
    """Of one request; filled in on its way. Seconds, on time.monotonic()."""

    __slots__ = ("arrived_s", "batch_s", "record", "rows", "submitted_s", "version")

    is_told = False
    """Whether the caller is told."""

    submitted_s: float
    batch_s: tuple[float, float]
    """When its batch began, and when it ended."""
    version: int
    """That answered."""
    rows: int

    def __init__(self, arrived_s: float) -> None:
        self.arrived_s = arrived_s
        self.record: Callable[[Stages, float], object] | None = None
        """To be called with the time when the answer is written, once; None for what no model ran for."""


class ToldStages(Stages):
    """As `Stages`, and the caller is told (W3C, Server Timing): milliseconds."""

    __slots__ = ()

    is_told = True


def server_timing(stages: Stages, encoded_s: float) -> tuple[bytes, bytes]:
    """The header, when the answer has been encoded. Of a request that ran nowhere it tells the whole."""
    if stages.record is None:
        return b"server-timing", b"total;dur=%.3f" % (1e3 * (encoded_s - stages.arrived_s))
    began_s, ended_s = stages.batch_s
    return b"server-timing", b"decode;dur=%.3f, queue;dur=%.3f, compute;dur=%.3f, encode;dur=%.3f" % (
        1e3 * (stages.submitted_s - stages.arrived_s),
        1e3 * (began_s - stages.submitted_s),
        1e3 * (ended_s - began_s),
        1e3 * (encoded_s - ended_s),
    )
